// SPDX-License-Identifier: Apache-2.0
// A job of several PEs in this process: real transports over software devices with threads, and queues for posters.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "check.h"
#include "nvshmem_efa/device_state.h"
#include "nvshmem_efa/gpu_queue_shared.h"
#include "soft_efa/engine.h"
#include "transport.h"

namespace gpu_lane_rig {

using namespace nvshmem_efa;

// Collectives among threads, one for each PE.
class Meeting {
   public:
    explicit Meeting(int n) : n_(n) {}
    void allgather(int pe, const void* send, void* recv, size_t bytes) {
        std::unique_lock held(lock_);
        if (bytes_.size() < bytes * static_cast<size_t>(n_)) bytes_.resize(bytes * static_cast<size_t>(n_));
        std::memcpy(bytes_.data() + bytes * static_cast<size_t>(pe), send, bytes);
        wait(held);
        std::memcpy(recv, bytes_.data(), bytes * static_cast<size_t>(n_));
        wait(held);
    }
    void barrier() {
        std::unique_lock held(lock_);
        wait(held);
    }
    // Somebody will not come any more: all who wait, or will, give up.
    void abandon() {
        const std::lock_guard held(lock_);
        is_abandoned_ = true;
        wake_.notify_all();
    }

   private:
    void wait(std::unique_lock<std::mutex>& held) {
        if (is_abandoned_) throw check::Failed{};
        const uint64_t round = round_;
        if (++here_ == n_) {
            here_ = 0;
            ++round_;
            wake_.notify_all();
            return;
        }
        wake_.wait(held, [&] { return round_ != round || is_abandoned_; });
        if (round_ == round) throw check::Failed{};
    }
    const int n_;
    std::mutex lock_;
    std::condition_variable wake_;
    int here_ = 0;
    bool is_abandoned_ = false;
    uint64_t round_ = 0;
    std::vector<uint8_t> bytes_;
};

inline Knobs default_knobs() {
    Knobs knobs;
    knobs.mode = "soft";
    knobs.timeout_ms = 8000;
    knobs.gpu_queues = 2;
    knobs.soft_rails = 1;
    return knobs;
}

struct alignas(4096) Page {
    uint8_t bytes[4096];
};

struct PeSide {
    std::vector<Page> heap;  // outlives the devices that write it
    std::unique_ptr<Transport> transport;
    const DeviceState* state = nullptr;
    uint8_t* at(size_t offset) { return heap[0].bytes + offset; }
    uint64_t* word(size_t index) { return reinterpret_cast<uint64_t*>(at(index * 8)); }
};

using Nics = std::vector<std::unique_ptr<Nic>>;

inline Nics open_soft(int pe, const Knobs& knobs) {
    Nics nics;
    std::shared_ptr<soft::Engine> engine;
    const int rails = static_cast<int>(knobs.soft_rails);
    CHECK_OK(soft::Engine::open({rails, pe, knobs}, &engine));
    for (int rail = 0; rail < rails; ++rail) nics.push_back(engine->make_nic(rail));
    return nics;
}
// The devices of a PE; tests/device puts real ones here.
inline std::function<Nics(int pe, const Knobs& knobs)> open_nics = open_soft;

class Job {
   public:
    Job(int n_pes, const Knobs& knobs, size_t heap_bytes) : Job(n_pes, std::vector<Knobs>(static_cast<size_t>(n_pes), knobs), heap_bytes) {}
    // `before` runs on the thread of each PE that does anything for it.
    Job(int n_pes, const std::vector<Knobs>& knobs, size_t heap_bytes, std::function<void(int)> before = nullptr)
        : pes(static_cast<size_t>(n_pes)), before_(std::move(before)), meeting_(n_pes) {
        for (PeSide& pe : pes) pe.heap = std::vector<Page>((heap_bytes + sizeof(Page) - 1) / sizeof(Page));
        on_all([&](int pe) { start(pe, knobs[static_cast<size_t>(pe)]); });
    }
    ~Job() {
        for (PeSide& pe : pes) pe.transport.reset();
    }

    // Runs `body` on a thread for each PE; the first failure is this call's.
    void on_all(const std::function<void(int)>& body) {
        std::vector<std::thread> threads;
        std::atomic<bool> failed{false};
        for (int pe = 0; pe < static_cast<int>(pes.size()); ++pe)
            threads.emplace_back([&, pe] {
                try {
                    if (before_) before_(pe);
                    body(pe);
                } catch (const check::Failed&) {
                    failed = true;
                    meeting_.abandon();  // or the other PEs would wait for this one for ever
                }
            });
        for (std::thread& thread : threads) thread.join();
        if (failed) throw check::Failed{};
    }
    void barrier() { meeting_.barrier(); }

    // Registers [from, from + bytes) of each PE's heap as a chunk, on all.
    void add_chunk(int pe, size_t from, size_t bytes) {
        PeSide& side = pes[static_cast<size_t>(pe)];
        MemHandle own;
        CHECK_OK(side.transport->register_memory(side.at(from), bytes, &own));
        std::vector<MemHandle> all(pes.size());
        meeting_.allgather(pe, &own, all.data(), sizeof own);
        for (size_t other = 0; other < pes.size(); ++other)
            CHECK_OK(side.transport->attach_peer_memory(static_cast<int>(other), all[other]));
        CHECK_OK(side.transport->add_heap_chunk(all));
    }

    std::vector<PeSide> pes;

   private:
    void start(int pe, const Knobs& knobs) {
        PeSide& side = pes[static_cast<size_t>(pe)];
        TransportOptions options;
        options.knobs = knobs;
        options.nics = open_nics(pe, knobs);
        CHECK_OK(Transport::create(std::move(options), &side.transport));
        Bootstrap bootstrap;
        bootstrap.pe = pe;
        bootstrap.n_pes = static_cast<int>(pes.size());
        bootstrap.allgather = [this, pe](const void* send, void* recv, size_t bytes) {
            meeting_.allgather(pe, send, recv, bytes);
            return Status();
        };
        bootstrap.barrier = [this] {
            meeting_.barrier();
            return Status();
        };
        CHECK_OK(side.transport->connect(bootstrap));
        const void* state = nullptr;
        if (knobs.gpu_queues) CHECK_OK(side.transport->device_state(&state));
        side.state = static_cast<const DeviceState*>(state);
    }

    std::function<void(int)> before_;
    Meeting meeting_;
};

// A write from here to a PE, in one chunk; addresses are our own. `rkey_flip` spoils it.
inline bool post_write(const DeviceState& state, size_t queue, uint64_t from, uint64_t to, uint32_t bytes, int pe, uint32_t chunk = 0,
                       uint32_t rkey_flip = 0) {
    const uint32_t rail = static_cast<uint32_t>(queue) / state.queues_per_rail;
    const DeviceTarget target = state.targets[static_cast<uint32_t>(pe) * state.n_rails + rail];
    const uint32_t entry = chunk * static_cast<uint32_t>(state.n_pes) + static_cast<uint32_t>(pe);
    const uint64_t offset = to - state.heap_base - state.chunks[chunk].offset;
    SendWqe wqe;
    wqe_begin(wqe, SendOpcode::kRdmaWrite, {target.ahn, target.qp_num, target.qkey}, 0, false, 0);
    wqe_set_remote(wqe, state.remote_bases[entry] + offset, bytes, state.rkeys[entry * state.n_rails + rail] ^ rkey_flip);
    wqe_set_local(wqe, from, bytes, state.lkeys[chunk * state.n_rails + rail]);
    return shared_post(state.queues[queue], OneThread{}, wqe, static_cast<uint32_t>(pe));
}

// A record of the GPU lane: adds `value` to a word.
inline bool post_add(const DeviceState& state, size_t queue, uint64_t word, uint64_t value, int pe) {
    const uint32_t rail = static_cast<uint32_t>(queue) / state.queues_per_rail;
    const DeviceTarget target = state.targets[static_cast<uint32_t>(pe) * state.n_rails + rail];
    AgentRecord record{};
    record.addr = state.remote_bases[pe] + (word - state.heap_base);
    record.operand = value;
    record.seq = __atomic_fetch_add(&state.peers[pe].next_seq, 1, __ATOMIC_RELAXED);
    record.op = static_cast<uint8_t>(WordOp::kAdd) & 0xf;
    record.bytes_log2 = 3;
    SendWqe wqe;
    wqe_begin(wqe, SendOpcode::kSend, {target.ahn, target.qp_num, target.qkey}, 0, false, 0);
    wqe_set_send_inline(wqe, &record, sizeof record);
    return shared_post(state.queues[queue], OneThread{}, wqe, static_cast<uint32_t>(pe));
}

}  // namespace gpu_lane_rig
