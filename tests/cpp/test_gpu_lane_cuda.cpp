// SPDX-License-Identifier: Apache-2.0
// What the host does for a GPU that posts, with a fake driver: the state lies in "GPU memory", which faults when the host
// touches it, and is read back by copies. The test plays the GPU through the fake's view of that memory.
#include "fake_cuda/fake_cuda.h"
#include "gpu_lane_rig.h"
#include "nvshmem_efa/counted.cuh"

using namespace gpu_lane_rig;

namespace {

constexpr size_t kHeapBytes = 1 << 16;
constexpr uint64_t kMappedAt = uint64_t{1} << 45;  // GPU addresses of registered host memory

template <class T>
T* on_gpu(T* at) {
    void* cpu = fake_cuda_cpu(reinterpret_cast<uint64_t>(at));
    if (!cpu) check::fail(__FILE__, __LINE__, "this does not lie in GPU memory");
    return static_cast<T*>(cpu);
}
template <class T>
T* pinned(T* at) {
    T* host = reinterpret_cast<T*>(reinterpret_cast<uint64_t>(at) - kMappedAt);
    if (fake_cuda_host_flags(host) < 0) check::fail(__FILE__, __LINE__, "this is not host memory that the GPU has mapped");
    return host;
}
// Memory of the software device: mapped, or pinned by the device itself.
template <class T>
T* device_memory(T* at) {
    T* host = reinterpret_cast<T*>(reinterpret_cast<uint64_t>(at) - kMappedAt);
    return fake_cuda_host_flags(host) >= 0 ? host : at;
}

// The state with all pointers as this CPU can use them.
struct GpuView {
    DeviceState state;
    std::vector<GpuQueue> queues;
    std::vector<ArrivalQueue> arrival_queues;
    explicit GpuView(const DeviceState* at) {
        const DeviceState* seen = on_gpu(at);
        state = *seen;
        n_chunks = &seen->n_chunks;
        n_locals = &seen->n_locals;
        heap_base = &seen->heap_base;
        const GpuQueue* from = on_gpu(state.queues);
        queues.assign(from, from + state.n_rails * state.queues_per_rail);
        for (GpuQueue& queue : queues) {
            queue.slots = device_memory(queue.slots);
            queue.doorbell = device_memory(queue.doorbell);
            queue.completions = pinned(queue.completions);
            queue.errors = pinned(queue.errors);
            queue.cq_entries = device_memory(queue.cq_entries);
            queue.state = on_gpu(queue.state);
            queue.error = pinned(queue.error);
        }
        state.queues = queues.data();
        state.targets = on_gpu(state.targets);
        state.peers = on_gpu(state.peers);
        state.acks = pinned(state.acks);
        state.replies = pinned(state.replies);
        state.chunks = on_gpu(state.chunks);
        state.lkeys = on_gpu(state.lkeys);
        state.remote_bases = on_gpu(state.remote_bases);
        state.rkeys = on_gpu(state.rkeys);
        state.locals = on_gpu(state.locals);
        state.local_lkeys = on_gpu(state.local_lkeys);
        state.errors = pinned(state.errors);
        if (state.arrival_slots == 0) return;
        state.arrival_targets = on_gpu(state.arrival_targets);
        state.arrival_biases = on_gpu(state.arrival_biases);
        state.arrival_counts = state.arrival_queues ? on_gpu(state.arrival_counts) : pinned(state.arrival_counts);
        state.shared = on_gpu(state.shared);
        for (uint32_t rail = 0; state.arrival_queues && rail < state.n_rails; ++rail) {
            ArrivalQueue& queue = arrival_queues.emplace_back(*on_gpu(state.arrival_queues + rail));
            queue.cq_entries = device_memory(queue.cq_entries);
            queue.recv_doorbell = queue.recv_depth ? device_memory(queue.recv_doorbell) : nullptr;
            queue.counts = on_gpu(queue.counts);
            queue.state = on_gpu(queue.state);
        }
        if (state.arrival_queues) state.arrival_queues = arrival_queues.data();
    }
    void look_again() {
        state.n_chunks = __atomic_load_n(n_chunks, __ATOMIC_ACQUIRE);
        state.n_locals = __atomic_load_n(n_locals, __ATOMIC_ACQUIRE);
        state.heap_base = *heap_base;
    }
    const uint32_t *n_chunks, *n_locals;
    const uint64_t* heap_base;
};

Knobs slow_knobs() {
    Knobs knobs = default_knobs();
    knobs.soft_reorder_ns = 20'000'000;
    return knobs;
}

struct GpuJob {
    explicit GpuJob(const Knobs& knobs) {
        fake_cuda_reset(1);
        fake_cuda_map_host_at(kMappedAt);
        mappings_before = fake_cuda_open_mappings();
        job = std::make_unique<Job>(2, std::vector<Knobs>{knobs, knobs}, kHeapBytes, [](int) { fake_cuda_use_device(0); });
        job->on_all([&](int pe) { job->add_chunk(pe, 0, kHeapBytes); });
        fake_cuda_forbid_allocation(1);  // from now on kernels may run
    }
    int mappings() const { return fake_cuda_open_mappings() - mappings_before; }
    int mappings_before = 0;
    std::unique_ptr<Job> job;
};

uint64_t addr(const void* at) { return reinterpret_cast<uint64_t>(at); }
uint64_t load(const uint64_t* word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }

}  // namespace

TEST(host_quiet_waits_for_what_a_gpu_posted_by_copies_of_its_heads) {
    GpuJob gpu(slow_knobs());
    PeSide& from = gpu.job->pes[0];
    CHECK(from.transport->describe().find("GPU posts to 2 soft queues a rail") != std::string::npos);
    GpuView view(from.state);
    view.look_again();
    CHECK_EQ(view.state.n_chunks, 1u);
    for (uint64_t round = 1; round <= 3; ++round) {
        for (size_t i = 0; i < 16; ++i) {
            *from.word(i) = round * 1000 + i;
            CHECK(post_write(view.state, i % 2, addr(from.word(i)), addr(from.word(100 + i)), 8, 1));
        }
        CHECK(post_add(view.state, 1, addr(from.word(50)), 7, 1));
        CHECK_OK(from.transport->quiet(round % 2 ? Lane::kHost : Lane::kProxy, 1));
        for (size_t i = 0; i < 16; ++i) CHECK_EQ(load(gpu.job->pes[1].word(100 + i)), round * 1000 + i);
        CHECK_EQ(load(gpu.job->pes[1].word(50)), round * 7);
    }
    CHECK_EQ(fake_cuda_violations(), uint64_t{0});
}

TEST(what_a_gpu_posted_and_failed_is_named) {
    GpuJob gpu(default_knobs());
    PeSide& from = gpu.job->pes[0];
    GpuView view(from.state);
    view.look_again();
    CHECK(post_write(view.state, 1, addr(from.word(0)), addr(from.word(100)), 8, 1, 0, 0x5000));
    CHECK_FAILS(from.transport->quiet(Lane::kHost, 1), Code::kDevice, "PE 0 -> PE 1 (GPU queue 1 of soft0): RDMA WRITE");
    GpuView other(gpu.job->pes[1].state);
    other.look_again();
    CHECK(post_write(other.state, 0, addr(gpu.job->pes[1].word(0)), addr(gpu.job->pes[1].word(100)), 8, 0, 0, 0x5000));
    CHECK(!shared_quiet(other.state.queues[0], 0));
    CHECK_FAILS(gpu.job->pes[1].transport->progress(Lane::kProxy), Code::kDevice, "PE 1 -> PE 0 (GPU queue 0 of soft0)");
}

TEST(a_gpu_finds_what_counts_arrivals_whatever_counts) {
    for (const char* source : {"counters", "immediates"})
        for (const char* profile : {"efa3", "efa2"}) {
            if (std::strcmp(source, "counters") == 0 && std::strcmp(profile, "efa2") == 0) continue;  // it has none
            Knobs knobs = default_knobs();
            knobs.arrivals = 2;
            knobs.arrival_source = source;
            knobs.soft_profile = profile;
            GpuJob gpu(knobs);
            GpuView from(gpu.job->pes[0].state), to(gpu.job->pes[1].state);
            from.look_again();
            for (uint32_t round = 1; round <= 3; ++round) {
                for (size_t i = 0; i < 8; ++i)
                    CHECK(put_counted_nbi(from.state, gpu.job->pes[0].word(100 + i), gpu.job->pes[0].word(i), 8, 1, 1));
                CHECK(wait_arrivals(to.state, 0, 1, 8 * round));
            }
            CHECK_EQ(arrivals(to.state, 0, 1), 24u);
            CHECK_EQ(fake_cuda_violations(), uint64_t{0});
            fake_cuda_forbid_allocation(0);
            gpu.job.reset();
            CHECK_EQ(gpu.mappings(), 0);
        }
}

TEST(memory_that_comes_and_goes_is_told_while_kernels_run_without_allocating) {
    GpuJob gpu(default_knobs());
    PeSide& side = gpu.job->pes[0];
    GpuView view(side.state);
    MemHandle local;
    fake_cuda_forbid_allocation(0);  // registering itself pins
    CHECK_OK(side.transport->register_memory(side.at(4096), 128, &local));
    fake_cuda_forbid_allocation(1);
    CHECK_OK(side.transport->add_local_memory(local));
    CHECK_OK(side.transport->add_heap_chunk({local, local}));
    view.look_again();
    CHECK(view.state.n_locals == 1 && view.state.locals[0].base == addr(side.at(4096)) && view.state.locals[0].bytes == 128);
    CHECK_EQ(view.state.local_lkeys[0], local.lkey[0]);
    CHECK(view.state.n_chunks == 2 && view.state.heap_base + view.state.chunks[1].offset == addr(side.at(4096)));
    CHECK_EQ(view.state.remote_bases[3], addr(side.at(4096)));
    CHECK_OK(side.transport->release_memory(local));
    CHECK_EQ(view.state.locals[0].bytes, uint64_t{0});
    CHECK_EQ(fake_cuda_violations(), uint64_t{0});
}

TEST(a_gpu_that_serves_no_copies_is_named_at_the_deadline) {
    Knobs knobs = default_knobs();
    knobs.timeout_ms = 300;
    GpuJob gpu(knobs);
    fake_cuda_stall(1);
    const Status status = gpu.job->pes[0].transport->quiet(Lane::kHost, 1);
    fake_cuda_stall(0);
    CHECK_EQ(status.code(), Code::kTimeout);
    CHECK(std::strstr(status.message(), "a copy of GPU queues' heads on GPU 0 did not complete within 300 ms"));
}

TEST(nothing_of_the_gpu_is_left_behind) {
    for (int round = 0; round < 2; ++round) {
        GpuJob gpu(default_knobs());
        fake_cuda_forbid_allocation(0);
        gpu.job.reset();
        CHECK_EQ(gpu.mappings(), 0);
        CHECK_EQ(fake_cuda_calls("cuMemFree"), fake_cuda_calls("cuMemAlloc"));
    }
}

TEST(each_failing_driver_call_of_the_start_is_named) {
    for (const char* call : {"cuMemAlloc", "cuMemHostRegister", "cuDeviceGetAttribute", "cuMemcpyHtoDAsync"}) {
        fake_cuda_reset(1);
        fake_cuda_use_device(0);
        std::shared_ptr<soft::Engine> engine;
        const Knobs knobs = default_knobs();
        CHECK_OK(soft::Engine::open({1, 0, knobs}, &engine));
        TransportOptions options;
        options.knobs = knobs;
        options.nics.push_back(engine->make_nic(0));
        std::unique_ptr<Transport> transport;
        CHECK_OK(Transport::create(std::move(options), &transport));
        Bootstrap alone;
        alone.allgather = [](const void* send, void* recv, size_t bytes) {
            std::memcpy(recv, send, bytes);
            return Status();
        };
        alone.barrier = [] { return Status(); };
        fake_cuda_fail(call, 801, 0, 1000);
        const Status status = transport->connect(alone);
        fake_cuda_fail(call, 0, 0, 0);
        if (status.ok() || !std::strstr(status.message(), call))
            check::fail(__FILE__, __LINE__, std::string(call) + " gave: " + status.message());
        transport.reset();
        fake_cuda_use_device(-1);
    }
}

TEST_MAIN()
