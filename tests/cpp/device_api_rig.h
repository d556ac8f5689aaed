// SPDX-License-Identifier: Apache-2.0
// The device API on the CPU: PEs of a virtual world, each with software devices and the real agent; a DeviceState made by
// hand; posters as fibers, switched before accesses to shared memory as a seed says. See test_device_api*.cpp.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

namespace device_api_test {
void step();  // runs other posters, agents and devices; does nothing outside a poster
}
#define NVSHMEM_EFA_STEP_HOOK ::device_api_test::step

#include "nvshmem_efa/amo.cuh"
#include "nvshmem_efa/put.cuh"
#include "nvshmem_efa/signal.cuh"
#include "nvshmem_efa/wait.cuh"

#include "agent.h"
#include "check.h"
#include "soft_efa/prng.h"
#include "soft_efa/world.h"

namespace device_api_test {

using namespace nvshmem_efa;
using nvshmem_efa::soft::Fiber;
using nvshmem_efa::soft::mix64;

inline constexpr size_t kHeapBytes = 64 << 10;
inline constexpr size_t kChunkBytes = kHeapBytes / 2;  // two chunks, registered apart
inline constexpr uint32_t kQkey = 0x1234;

struct Options {
    int n_pes = 2;
    int rails = 1;
    uint32_t queues = 1;  // a rail
    uint32_t depth = 8;
    uint32_t max_batch = 16;
    uint32_t window = 4;
    uint32_t flags = kCountByImmediate;
    uint64_t segment_bytes = 1 << 20;
    uint64_t stripe_bytes = 1 << 20;
    uint64_t wait_ticks = 60'000'000'000;  // some 20 s
    uint64_t seed = 1;
    uint32_t chunks = 2;  // that the state names at the start
    bool is_counting = true;  // completion counters; else the CQ
    bool use_timing = true;   // else packets take no time beside what faults add: answers overtake late copies
    soft::Faults faults{.reorder_ns = 3000, .duplicate_ppm = 100'000, .delay_ppm = 20'000};
};

// One PE. Members in the order in which they must be made; undone in the opposite one.
struct Pe {
    std::vector<uint64_t> counters;  // outlive the devices, which count also what they give up at their end
    std::vector<std::unique_ptr<Nic>> nics;
    ControlMemory control;
    std::vector<uint8_t> heap_memory = std::vector<uint8_t>(kHeapBytes + 4096);
    std::unique_ptr<MemoryTable> memory;
    MemHandle chunks[2];
    Job job;
    FetchBoard board;
    std::unique_ptr<Agent> agent;
    std::vector<GpuQueueState> queue_states;
    std::vector<GpuQueueError> errors;
    std::vector<GpuQueue> queues;
    std::vector<DeviceTarget> targets;
    std::vector<DevicePeer> peers;
    std::vector<DeviceShared> shared{1};
    std::vector<uint32_t> reply_busy;
    std::vector<DeviceChunk> state_chunks;
    std::vector<uint32_t> lkeys, rkeys, local_lkeys;
    std::vector<uint64_t> remote_bases;
    std::vector<DeviceLocal> locals{1};
    std::vector<uint8_t> local_memory = std::vector<uint8_t>(4096);  // registered, not in the heap
    MemHandle local;
    uint64_t* acks = nullptr;
    ReplySlot* replies = nullptr;
    DeviceState state{};

    uint8_t* heap() { return reinterpret_cast<uint8_t*>((reinterpret_cast<uint64_t>(heap_memory.data()) + 4095) & ~uint64_t{4095}); }
    template <class T>
    T* at(size_t offset) { return reinterpret_cast<T*>(heap() + offset); }
    const GpuQueueError* error() const {  // the first error record that is filled
        for (const GpuQueueError& record : errors)
            if (gpu_queue_error(&record)) return &record;
        return nullptr;
    }
};

class Rig {
   public:
    explicit Rig(const Options& with) : options(with), world_(world_options(with)), pes(static_cast<size_t>(with.n_pes)) {
        for (int pe = 0; pe < options.n_pes; ++pe) open(pe);
        for (int pe = 0; pe < options.n_pes; ++pe) connect(pe);
        for (int pe = 0; pe < options.n_pes; ++pe) fill_state(pe);
        for (int pe = 0; pe < options.n_pes; ++pe)
            world_.add_poller(pe, [this, pe] { return pes[static_cast<size_t>(pe)].agent->poll(); });
    }
    ~Rig() { pes.clear(); }

    Options options;

   private:
    soft::World world_;

   public:
    std::vector<Pe> pes;

    soft::World& world() { return world_; }
    Pe& pe(int number) { return pes[static_cast<size_t>(number)]; }
    const DeviceState& state(int number) { return pe(number).state; }

    // A poster of that PE. `number` chooses its queue.
    template <class Body>
    void poster(int on, uint32_t number, Body body) {
        world_.spawn(on, [this, on, number, body] {
            Poster self{&world_.clock(on), number, soft::Prng(options.seed * 977 + static_cast<uint64_t>(on) * 31 + number)};
            posters()[Fiber::current()] = &self;
            body(self.prng);
            posters().erase(Fiber::current());
        });
    }
    void run() {
        Status status = world_.run();
        for (const Pe& each : pes)
            if (each.board.stopped()) check::fail(__FILE__, __LINE__, each.board.why_stopped());
        CHECK_OK(std::move(status));
    }
    // All went well: no error records, and the agents had nothing to complain about.
    void check_no_errors() {
        for (Pe& each : pes) {
            if (const GpuQueueError* record = each.error())
                check::fail(__FILE__, __LINE__, "error record: waited " + std::to_string(static_cast<int>(record->waited)) + ", status " +
                                                    std::to_string(record->status) + ", seed " + std::to_string(options.seed));
            if (each.board.stopped()) check::fail(__FILE__, __LINE__, each.board.why_stopped());
        }
    }

    struct Poster {
        Clock* clock;
        uint32_t number;
        soft::Prng prng;
        uint64_t run_on = 0;
    };
    static std::vector<std::pair<Fiber*, Poster*>>& list() {
        static std::vector<std::pair<Fiber*, Poster*>> all;
        return all;
    }
    struct Posters {
        Poster*& operator[](Fiber* fiber) const {
            for (auto& entry : list())
                if (entry.first == fiber) return entry.second;
            return list().emplace_back(fiber, nullptr).second;
        }
        void erase(Fiber* fiber) const {
            std::erase_if(list(), [fiber](const auto& entry) { return entry.first == fiber; });
        }
    };
    static Posters posters() { return {}; }

   private:
    static soft::WorldOptions world_options(const Options& with) {
        soft::WorldOptions world;
        world.n_pes = with.n_pes;
        world.rails = with.rails;
        world.faults = with.faults;
        world.seed = with.seed;
        world.use_timing = with.use_timing;
        return world;
    }

    size_t rails() const { return static_cast<size_t>(options.rails); }
    size_t n_pes() const { return static_cast<size_t>(options.n_pes); }

    void open(int number) {
        Pe& each = pe(number);
        each.nics = world_.nics(number);
        EndpointAttr agent;
        agent.sq_depth = 64;
        agent.rq_depth = 256;
        agent.recv_cq_depth = 1024;
        agent.qkey = kQkey;
        const size_t acks = n_pes() * sizeof(uint64_t), replies = n_pes() * options.window * sizeof(ReplySlot);
        CHECK_OK(each.control.allocate(Endpoint::control_bytes(agent) * rails() + ControlMemory::aligned(acks) + ControlMemory::aligned(replies), each.nics));
        each.acks = static_cast<uint64_t*>(each.control.take(acks));
        each.replies = static_cast<ReplySlot*>(each.control.take(replies));
        for (uint32_t i = 0; i < n_pes() * options.window; ++i)
            each.replies[i] = reply_encode(0, reply_never(i & (options.window - 1)));
        std::vector<Endpoint> endpoints(rails());
        for (size_t rail = 0; rail < rails(); ++rail) {
            agent.rail = rail;
            CHECK_OK(endpoints[rail].open(*each.nics[rail], agent, each.control));
            endpoints[rail].post_receives();
        }
        each.agent = std::make_unique<Agent>(std::move(endpoints));
        each.memory = std::make_unique<MemoryTable>(each.nics);
        for (size_t i = 0; i < 2; ++i) CHECK_OK(each.memory->add(each.heap() + i * kChunkBytes, kChunkBytes, &each.chunks[i]));
        CHECK_OK(each.memory->add(each.local_memory.data(), each.local_memory.size(), &each.local));
        open_queues(each);
    }

    void open_queues(Pe& each) {
        const size_t n = rails() * options.queues;
        each.counters.assign(n * 2, 0);
        each.queue_states.resize(n);
        each.errors.resize(n + 1);
        each.queues.resize(n);
        for (size_t i = 0; i < n; ++i) {
            Nic& nic = *each.nics[i / options.queues];
            Cq cq;
            Qp qp;
            CHECK_OK(nic.create_cq({.depth = 2 * options.depth}, &cq));
            CHECK_OK(nic.create_qp({.send_cq = cq.handle, .recv_cq = cq.handle, 
                                    .sq_depth = options.depth, .unsolicited_recv = true, .qkey = kQkey}, &qp));
            GpuQueue& queue = each.queues[i];
            if (options.is_counting) {
                uint64_t handle = 0;
                CHECK_OK(nic.create_counter({&each.counters[2 * i], &each.counters[2 * i + 1], MemoryKind::kHost}, &handle));
                CHECK_OK(nic.attach_counter(qp.handle, handle, kCountSend | kCountRead | kCountWrite));
                queue.completions = &each.counters[2 * i];
                queue.errors = &each.counters[2 * i + 1];
            }
            queue.cq_entries = static_cast<const uint8_t*>(cq.entries);
            queue.cq_depth = cq.depth;
            queue.cq_entry_bytes = cq.entry_bytes;
            queue.cq_consumer = options.is_counting ? nullptr : cq.consumer;
            queue.slots = static_cast<uint8_t*>(qp.sq_slots);
            queue.doorbell = const_cast<uint32_t*>(qp.sq_doorbell);
            queue.state = &each.queue_states[i];
            queue.error = &each.errors[i];
            queue.wait_ticks = options.wait_ticks;
            queue.qp_num = qp.qp_num;
            queue.depth = qp.sq_depth;
            queue.max_batch = std::min(options.max_batch, qp.sq_max_batch);
            queue.slots_are_readable = true;
            CHECK(gpu_queue_init(queue, each.queue_states[i], 0, 0));
        }
    }

    void connect(int number) {
        Pe& each = pe(number);
        Job& job = each.job;
        job.pe = number;
        job.n_pes = options.n_pes;
        job.n_rails = rails();
        job.lanes = kLanesMax;
        job.window = options.window;
        job.count_by_immediate = true;
        job.timeout_ms = 60'000;
        job.clock = &world_.clock(number);
        job.peers.resize(n_pes());
        for (size_t to = 0; to < n_pes(); ++to) {
            Pe& other = pes[to];
            Peer& peer = job.peers[to];
            peer.card.ack_words[kLaneGpu] = reinterpret_cast<uint64_t>(other.acks);
            peer.card.reply_slots[kLaneGpu] = reinterpret_cast<uint64_t>(other.replies);
            for (size_t rail = 0; rail < rails(); ++rail) {
                CHECK_OK(each.nics[rail]->create_address_handle(other.nics[rail]->address(), &peer.ah[rail]));
                const Qp& qp = other.agent->endpoints()[rail].qp();
                peer.agent[rail] = {peer.ah[rail].ahn, static_cast<uint16_t>(qp.qp_num), qp.qkey};
                peer.card.rails[rail].control_rkey = other.control.rkey(rail);
                for (size_t i = 0; i < options.queues; ++i)
                    peer.card.rails[rail].gpu_qp_num[i] = static_cast<uint16_t>(other.queues[rail * options.queues + i].qp_num);
            }
        }
        each.agent->attach(job, *each.memory, each.board, nullptr);
    }

    void fill_state(int number) {
        Pe& each = pe(number);
        each.peers.resize(n_pes());
        each.reply_busy.assign(n_pes() * options.window, 0);
        for (const Peer& peer : each.job.peers)
            for (size_t rail = 0; rail < rails(); ++rail)
                each.targets.push_back({peer.agent[rail].ah, peer.agent[rail].qp_num, peer.agent[rail].qkey});
        for (size_t i = 0; i < 2; ++i) {
            each.state_chunks.push_back({i * kChunkBytes, kChunkBytes});
            for (size_t rail = 0; rail < rails(); ++rail) each.lkeys.push_back(each.chunks[i].lkey[rail]);
            for (Pe& other : pes) {
                each.remote_bases.push_back(other.chunks[i].base);
                for (size_t rail = 0; rail < rails(); ++rail) each.rkeys.push_back(other.chunks[i].rkey[rail]);
            }
        }
        each.locals[0] = {reinterpret_cast<uint64_t>(each.local_memory.data()), each.local_memory.size()};
        for (size_t rail = 0; rail < rails(); ++rail) each.local_lkeys.push_back(each.local.lkey[rail]);
        DeviceState& state = each.state;
        state.magic = kDeviceStateMagic;
        state.version = kDeviceStateVersion;
        state.bytes = sizeof state;
        state.flags = options.flags;
        state.pe = number;
        state.n_pes = options.n_pes;
        state.n_rails = static_cast<uint32_t>(rails());
        state.queues_per_rail = options.queues;
        state.window = options.window;
        state.chunks_max = 2;
        state.locals_max = 1;
        state.n_chunks = options.chunks;
        state.n_locals = 1;
        state.queues = each.queues.data();
        state.targets = each.targets.data();
        state.peers = each.peers.data();
        state.shared = each.shared.data();
        state.acks = each.acks;
        state.replies = each.replies;
        state.reply_busy = each.reply_busy.data();
        state.heap_base = reinterpret_cast<uint64_t>(each.heap());
        state.segment_bytes = options.segment_bytes;
        state.stripe_bytes = options.stripe_bytes;
        state.wait_ticks = options.wait_ticks;
        state.chunks = each.state_chunks.data();
        state.lkeys = each.lkeys.data();
        state.remote_bases = each.remote_bases.data();
        state.rkeys = each.rkeys.data();
        state.locals = each.locals.data();
        state.local_lkeys = each.local_lkeys.data();
        state.errors = each.errors.data();
    }
};

inline void step() {
    Fiber* fiber = Fiber::current();
    if (!fiber) return;
    Rig::Poster* self = Rig::posters()[fiber];
    if (!self) return;
    device::cpu_poster = self->number;
    if (self->run_on != 0) {
        --self->run_on;
        return;
    }
    // A poster runs a few accesses, seldom many: long and short overtakings both happen.
    const uint64_t draw = mix64(self->prng.next());
    self->run_on = draw % 32 == 0 ? 100 : (draw >> 8) % 6;
    self->clock->relax(0);
    device::cpu_poster = self->number;
}

}  // namespace device_api_test
