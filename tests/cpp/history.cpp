// SPDX-License-Identifier: Apache-2.0
// Starts, runs and ends a simulated history.
#include "history.h"

#include <cstdlib>
#include <cstring>

#include "history_job.h"
#include "plugin.h"

namespace history {

namespace {

constexpr uint64_t kWaitNs = 5'000'000'000;  // of virtual time: no wait takes that long unless something is lost

struct Boot {
    Job* job = nullptr;
    int pe = 0;
};

// The plugin opens this PE's devices of the world and a transport under its clock.
void install_sources() {
    plugin::PluginSources& sources = plugin::plugin_sources();
    sources.mode.open_soft = [](const OpenOptions&, std::vector<std::unique_ptr<Nic>>* nics) {
        *nics = starting().job->world->nics(starting().pe);
        return Status();
    };
    sources.create = [](TransportOptions options, std::unique_ptr<Transport>* transport) {
        Job& job = *starting().job;
        const std::string mode = options.knobs.mode;
        options.knobs = job.shape.knobs;
        options.knobs.mode = mode;
        options.clock = &job.world->clock(starting().pe);
        options.agent_thread = false;
        EFA_TRY(Transport::create(std::move(options), transport));
        job.pes[static_cast<size_t>(starting().pe)].transport = transport->get();
        return Status();
    };
}

void fill_boot(Job& job, int pe, Boot* boot) {
    abi::BootstrapHandle& handle = job.pes[static_cast<size_t>(pe)].boot;
    *boot = {&job, pe};
    handle.pg_rank = pe;
    handle.pg_size = job.shape.n_pes;
    handle.comm_state = boot;
    handle.allgather = [](const void* send, void* recv, int bytes, abi::BootstrapHandle* own) {
        auto* state = static_cast<Boot*>(own->comm_state);
        state->job->allgather(state->pe, send, recv, static_cast<size_t>(bytes));
        return 0;
    };
    handle.barrier = [](abi::BootstrapHandle* own) {
        auto* state = static_cast<Boot*>(own->comm_state);
        uint8_t mark = 0, marks[kPesMax];
        state->job->allgather(state->pe, &mark, marks, 1);
        return 0;
    };
}

void prepare_memory(Job& job, int pe) {
    PeState& state = job.pes[static_cast<size_t>(pe)];
    state.heap = std::make_unique<Heap>();
    state.wanted = std::make_unique<Heap>();
    fill(job, state.heap->fixed, kStaticBytes, 77, static_cast<uint64_t>(pe));
    memcpy(state.wanted->fixed, state.heap->fixed, kStaticBytes);
    state.heap->shared.all = ~uint64_t{0};
}

// As the host library starts a transport (docs/pe-runtime.md).
void start_pe(Job& job, int pe) {
    PeState& state = job.pes[static_cast<size_t>(pe)];
    starting() = {&job, pe};
    job.must(pe::PluginPort::load("", job.shape.abi, &state.port), "nvshmemt_init");
    pe::HostFields fields;
    fields.boot_handle = &state.boot;
    fields.heap_base = state.heap.get();
    fields.my_pe = pe;
    fields.n_pes = job.shape.n_pes;
    state.port->share(fields);
    for (int other = 0; other < job.shape.n_pes; ++other) {
        abi::PeInfo info{};
        info.pe = other;
        int access = 0;
        job.must(state.port->can_reach_peer(&info, &access), "can_reach_peer");
    }
    // In a third of the histories agents look rarely, as one does that waits for the GPU: what peers send piles up.
    const uint64_t pause_ns = job.seed % 3 == 0 ? 200'000 : 0;
    auto look = [&job, transport = state.transport, pause_ns, random = soft::Prng(job.seed + static_cast<uint64_t>(pe)),
                 next_ns = uint64_t{0}]() mutable {
        if (job.world->now_ns() < next_ns) return false;
        next_ns = job.world->now_ns() + random.below(pause_ns);
        return transport->poll_agent();
    };
    job.world->add_poller(pe, look);
    std::vector<int> devices{0};
    job.must(state.port->connect_endpoints(devices), "connect_endpoints");
    abi::MemHandleBytes mine[pe::kTransportStride] = {};
    job.must(state.port->get_mem_handle(&mine[pe::kTransportIndex], state.heap.get(), sizeof(Heap), false), "get_mem_handle");
    state.handles.resize(static_cast<size_t>(job.shape.n_pes * pe::kTransportStride));
    job.allgather(pe, mine, state.handles.data(), sizeof mine);
    job.must(state.port->add_remote_handles(state.handles.data(), 0, sizeof(Heap)), "add_device_remote_mem_handles");
    state.is_connected = true;
}

void run_lane(LaneState& lane) {
    Job& job = *lane.job;
    try {
        if (lane.lane == 0) start_pe(job, lane.pe);
        job.wait(lane.pe, "the start of all PEs", [&] {
            for (const PeState& pe : job.pes)
                if (!pe.is_connected) return false;
            return true;
        });
        for (int i = 0; i < job.shape.operations; ++i) {
            run_operation(lane);
            if (lane.random.below(3) == 0) job.relax(lane.pe);
        }
        finish_lane(lane);
        lane.is_done = true;
        if (lane.lane == 1) return;
        job.wait(lane.pe, "the end of all lanes", [&] {
            for (const PeState& pe : job.pes)
                for (const LaneState& other : pe.lanes)
                    if (!other.is_done) return false;
            return true;
        });
        if (lane.pe == 0) check_end(job);
    } catch (const Stop&) {
    }
    lane.is_done = true;
}

void finish(Job& job, Result* result) {
    const soft::SoftStats stats = job.world->stats();
    result->trace = job.world->trace_hash();
    result->work_requests = stats.work_requests;
    result->out_of_order = stats.out_of_order;
    result->duplicates = stats.duplicates;
    result->rnr = stats.rnr;
    result->operations = job.operations;
    result->violation = job.violation;
    if (result->violation.empty() && stats.cq_overruns) result->violation = "a completion queue overran";
}

}  // namespace

Starting& starting() {
    static Starting instance;
    return instance;
}

std::string Shape::text() const {
    return "abi " + std::to_string(abi) + ", " + std::to_string(n_pes) + " PEs, " + std::to_string(rails) + " rails, " + profile +
           ", reorder " + std::to_string(faults.reorder_ns) + " ns, duplicates " + std::to_string(faults.duplicate_ppm) + " ppm, delays " +
           std::to_string(faults.delay_ppm) + " ppm, RNR " + std::to_string(faults.rnr_ppm) + " ppm, SQ " + std::to_string(knobs.sq_depth) +
           ", RQ " + std::to_string(knobs.rq_depth) + ", " + knobs.signal + " signals";
}

Shape draw_shape(uint64_t seed, int abi) {
    soft::Prng random(seed ^ 0x5ca1ab1e);
    Shape shape;
    shape.abi = abi;
    shape.n_pes = 2 + static_cast<int>(random.below(kPesMax - 1));
    shape.rails = 1 + static_cast<int>(random.below(3));
    const char* const profiles[] = {"efa2", "efa3", "efa4"};
    shape.profile = profiles[random.below(3)];
    const uint64_t windows[] = {0, 500, 3000, 20'000, 100'000};
    shape.faults.reorder_ns = windows[random.below(5)];
    const uint32_t rates[] = {0, 2000, 50'000, 300'000};
    shape.faults.duplicate_ppm = rates[random.below(4)];
    shape.faults.delay_ppm = rates[random.below(3)];
    shape.faults.rnr_ppm = random.below(3) ? 0 : rates[1 + random.below(2)];
    const int64_t depths[] = {8, 16, 64, 256};
    shape.knobs.sq_depth = depths[random.below(4)];
    shape.knobs.rq_depth = depths[random.below(4)];
    shape.knobs.stripe_bytes = 256 << random.below(5);
    shape.knobs.segment_bytes = random.below(2) ? 0 : static_cast<int64_t>(100 + random.below(3000));
    shape.knobs.signal = random.below(4) ? "agent" : "gated";
    shape.knobs.timeout_ms = 4000;
    return shape;
}

void Job::fail(const std::string& what) {
    if (violation.empty()) violation = what;
    throw Stop{};
}

void Job::must(const Status& status, const std::string& what) {
    if (!violation.empty()) throw Stop{};
    if (!status.ok()) fail(what + ": " + status.message());
}

void Job::relax_once(int pe) {
    world->clock(pe).relax(0);
    if (!violation.empty()) throw Stop{};
    for (int other = 0; other < shape.n_pes; ++other)
        if (pes[static_cast<size_t>(other)].is_connected) check_arrivals(*this, other);
}

void Job::wait(int pe, const char* what, const std::function<bool()>& done) {
    const uint64_t end = world->now_ns() + kWaitNs;
    while (!done()) {
        if (world->now_ns() > end) fail("PE " + std::to_string(pe) + " waited in vain for " + what);
        relax_once(pe);
    }
}

void Job::allgather(int pe, const void* send, void* recv, size_t bytes) {
    const uint64_t number = pes[static_cast<size_t>(pe)].collectives++;
    Collective& mine = collectives[number];
    mine.bytes.resize(bytes * static_cast<size_t>(shape.n_pes));
    memcpy(&mine.bytes[bytes * static_cast<size_t>(pe)], send, bytes);
    ++mine.arrived;
    wait(pe, "a collective of the bootstrap", [&] { return mine.arrived == shape.n_pes; });
    memcpy(recv, mine.bytes.data(), mine.bytes.size());
    if (++mine.left == shape.n_pes) collectives.erase(number);
}

Result run(uint64_t seed, int abi) {
    setenv("NVSHMEM_EFA_MODE", "soft", 1);
    setenv("NVSHMEM_EFA_LOG_LEVEL", "error", 0);
    install_sources();
    Job job;
    job.seed = seed;
    job.shape = draw_shape(seed, abi);
    Result result;
    result.shape = job.shape.text();
    soft::WorldOptions options;
    options.n_pes = job.shape.n_pes;
    options.rails = job.shape.rails;
    options.profile = job.shape.profile;
    options.faults = job.shape.faults;
    options.seed = seed;
    options.wire_refusals_ppm = seed % 5 ? 0 : 100'000;
    job.world = std::make_unique<soft::World>(options);
    job.pes.resize(static_cast<size_t>(job.shape.n_pes));
    job.shared.resize(job.pes.size());
    std::vector<Boot> boots(job.pes.size());
    for (int pe = 0; pe < job.shape.n_pes; ++pe) {
        PeState& state = job.pes[static_cast<size_t>(pe)];
        prepare_memory(job, pe);
        fill_boot(job, pe, &boots[static_cast<size_t>(pe)]);
        for (int i = 0; i < kLanes; ++i) {
            LaneState& lane = state.lanes[i];
            lane.job = &job;
            lane.pe = pe;
            lane.lane = i;
            lane.random = soft::Prng(seed * 1000 + static_cast<uint64_t>(pe * kLanes + i));
            lane.messages.assign(job.pes.size(), 0);
            lane.pairs = lane.counts = lane.flags = lane.messages;
            job.world->spawn(pe, [&lane] { run_lane(lane); });
        }
    }
    const Status status = job.world->run();
    if (!status.ok() && job.violation.empty()) job.violation = status.message();
    finish(job, &result);
    for (PeState& pe : job.pes) pe.port.reset();  // finalize; devices before the world
    return result;
}

}  // namespace history
