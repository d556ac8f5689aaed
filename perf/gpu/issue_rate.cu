// SPDX-License-Identifier: Apache-2.0
// How fast a GPU posts: issue latency and rate of gpu_queue_owned.h and gpu_queue_shared.h, beside a bare store loop of
// the same bytes and a loop with two system fences a doorbell. perf/gpu/build_issue_rate.sh builds it;
//   issue_rate [--out FILE] [--depth N] [--repeats N] [--commit ID] [--part all|quick]
// Rings, doorbells and counters lie in pinned host memory: the stores cross the same bus as stores into a NIC. No NIC, no
// wire: a thread of the CPU copies each doorbell into that queue's completion counter. It needs some 10 us for a round of
// 256 queues, in which the fastest queue fills less than a tenth of its ring. After each repeat the rings are checked.
#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "issue_rate_api.cuh"
#include "issue_rate_methods.cuh"

namespace {

using namespace issue_rate;

constexpr int kQueuesMax = 256;
constexpr int kLine = 64;  // bytes between words that different parties write

#define CUDA_CHECK(call)                                                                                    \
    do {                                                                                                    \
        if (const cudaError_t error = (call); error != cudaSuccess) {                                       \
            std::fprintf(stderr, "issue_rate: %s: %s (line %d)\n", #call, cudaGetErrorString(error), __LINE__); \
            std::exit(3);                                                                                   \
        }                                                                                                   \
    } while (0)

struct Clocks {
    unsigned long long ns, cycles;
};
__device__ Clocks clocks_now() {
    Clocks now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now.ns));
    now.cycles = clock64();
    return now;
}

template <class Method>
__global__ void latency_kernel(const GpuQueue* queues, const __grid_constant__ SendWqe base, int rounds, long long* samples,
                               Clocks* clocks, int* n_failed) {
    Method method(queues[0]);
    SendWqe wqe = base;
    clocks[0] = clocks_now();
    for (int i = 0; i < rounds; ++i) {
        number_request(wqe, i);
        const long long begin = clock64();
        const bool is_good = method.post(wqe);
        samples[i] = clock64() - begin;
        if (!is_good) break;
    }
    clocks[1] = clocks_now();
    if (!method.end()) atomicAdd(n_failed, 1);
}

// The same of a call of the device API.
template <class Call>
__global__ void api_kernel(const DeviceState* state, int rounds, long long* samples, Clocks* clocks, int* n_failed) {
    clocks[0] = clocks_now();
    bool is_good = true;
    for (int i = 0; i < rounds && is_good; ++i) {
        Call::prepare(*state, i);
        const long long begin = clock64();
        is_good = Call::call(*state, i);
        samples[i] = clock64() - begin;
    }
    clocks[1] = clocks_now();
    if (!quiet(*state) || !is_good) atomicAdd(n_failed, 1);
}

// One warp a block. `n_queues` 1: all warps post to one queue; else one queue a warp.
template <class Method, int kBatch>
__global__ void rate_kernel(const GpuQueue* queues, int n_queues, const __grid_constant__ SendWqe base, int rounds, int* n_failed) {
    if (threadIdx.x >= kBatch) return;
    Method method(queues[n_queues == 1 ? 0 : blockIdx.x]);
    SendWqe wqe = base;
    wqe.rdma.remote.addr_hi = blockIdx.x;
    bool is_good = true;
    for (int i = 0; i < rounds && is_good; ++i) {
        number_request(wqe, i * kBatch + threadIdx.x);
        is_good = method.post(wqe);
    }
    is_good = method.end() && is_good;
    if (!is_good && threadIdx.x == 0) atomicAdd(n_failed, 1);
}

// ---- the host's side ----

struct Options {
    std::string out, commit = "unknown", part = "all";
    uint32_t depth = 4096;
    int repeats = 7;
};

template <class T>
T* pinned(size_t n) {
    void* memory = nullptr;
    CUDA_CHECK(cudaHostAlloc(&memory, n * sizeof(T), cudaHostAllocMapped | cudaHostAllocPortable));
    std::memset(memory, 0, n * sizeof(T));
    return static_cast<T*>(memory);
}
template <class T>
T* on_gpu(size_t n) {
    void* memory = nullptr;
    CUDA_CHECK(cudaMalloc(&memory, n * sizeof(T)));
    CUDA_CHECK(cudaMemset(memory, 0, n * sizeof(T)));
    return static_cast<T*>(memory);
}

class Bench {
   public:
    explicit Bench(const Options& options) : options_(options) {
        slots_ = pinned<uint8_t>(size_t(kQueuesMax) * options.depth * kSlotBytesSmall);
        words_ = pinned<uint8_t>(size_t(kQueuesMax) * 4 * kLine);
        errors_ = pinned<GpuQueueError>(kQueuesMax);
        states_ = on_gpu<GpuQueueState>(kQueuesMax);
        notes_ = on_gpu<GpuQueueNote>(size_t(kQueuesMax) * options.depth);
        queues_ = on_gpu<GpuQueue>(kQueuesMax);
        samples_ = on_gpu<long long>(kRounds);
        clocks_ = on_gpu<Clocks>(2);
        failed_ = pinned<int>(1);
        api_ = on_gpu<uint8_t>(4096);
        wqe_begin(base_, SendOpcode::kRdmaWrite, {1, 2, 3}, 0, false, 0);
        wqe_set_remote(base_, 0, 64, kApiRkey);
        wqe_set_local(base_, kApiHeap, 64, kApiLkey);
        consumer_ = std::thread([this] { consume(); });
    }
    ~Bench() {
        is_stopping_ = true;
        consumer_.join();
    }

    // p50 and spread of one request by one thread; the median over the repeats.
    template <class Method>
    void latency(std::string* json) {
        time_calls(json, "latency", Method::kName, 1, kRounds, true, [&] {
            latency_kernel<Method><<<1, 1>>>(queues_, base_, kRounds, samples_, clocks_, failed_);
        });
    }
    template <class Call>
    void api(std::string* json, bool is_post) {
        const int rounds = is_post ? kRounds : kRounds / 10;
        time_calls(json, "api", Call::kName, kApiRails * kApiQueuesPerRail, rounds, is_post, [&] {
            api_kernel<Call><<<1, 1>>>(state_of_api(), rounds, samples_, clocks_, failed_);
        });
    }

    template <class Method, int kBatch>
    void rate(std::string* json, int warps, int n_queues) {
        const int rounds = std::clamp(16'000'000 / (warps * kBatch), 500, 20'000);
        cudaEvent_t begin, end;
        CUDA_CHECK(cudaEventCreate(&begin));
        CUDA_CHECK(cudaEventCreate(&end));
        std::vector<double> rates;
        for (int repeat = 0; repeat <= options_.repeats; ++repeat) {
            start(n_queues);
            CUDA_CHECK(cudaEventRecord(begin));
            rate_kernel<Method, kBatch><<<warps, 32>>>(queues_, n_queues, base_, rounds, failed_);
            CUDA_CHECK(cudaEventRecord(end));
            finish(Method::kName);
            for (int q = 0; q < n_queues; ++q)
                check(Method::kName, q, uint32_t(rounds) * kBatch * (n_queues == 1 ? warps : 1), kBatch, n_queues == warps);
            float ms = 0;
            CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
            if (repeat != 0) rates.push_back(double(rounds) * kBatch * warps / ms / 1000);
        }
        CUDA_CHECK(cudaEventDestroy(begin));
        CUDA_CHECK(cudaEventDestroy(end));
        std::sort(rates.begin(), rates.end());
        row(json, {"rate", Method::kName, warps, n_queues, kBatch, "M/s"}, rates, -1);
    }

   private:
    static constexpr int kRounds = 20'000;

    template <class Launch>
    void time_calls(std::string* json, const char* kind, const char* name, int n_queues, int rounds, bool is_post, const Launch& launch) {
        std::vector<double> p50, p99;
        for (int repeat = 0; repeat <= options_.repeats; ++repeat) {
            start(n_queues);
            launch();
            finish(name);
            if (is_post) check(name, 0, rounds, 1, true);
            std::vector<long long> samples(rounds);
            Clocks clocks[2];
            CUDA_CHECK(cudaMemcpy(samples.data(), samples_, rounds * sizeof(long long), cudaMemcpyDefault));
            CUDA_CHECK(cudaMemcpy(clocks, clocks_, sizeof clocks, cudaMemcpyDefault));
            const double us = double(clocks[1].ns - clocks[0].ns) / double(clocks[1].cycles - clocks[0].cycles) / 1000;
            std::sort(samples.begin(), samples.end());
            if (repeat == 0) continue;  // warm-up
            p50.push_back(samples[rounds / 2] * us);
            p99.push_back(samples[rounds * 99 / 100] * us);
        }
        std::sort(p50.begin(), p50.end());
        std::sort(p99.begin(), p99.end());
        row(json, {kind, name, 1, n_queues, 1, "us"}, p50, p99[p99.size() / 2]);
    }

    // A state of one PE, of the queues as start() left them.
    const DeviceState* state_of_api() {
        uint8_t* at = api_;
        const auto put = [&](const auto& value) {
            CUDA_CHECK(cudaMemcpy(at, &value, sizeof value, cudaMemcpyDefault));
            at += (sizeof value + 127) / 128 * 128;
            return at - (sizeof value + 127) / 128 * 128;
        };
        DeviceState state{};
        state.magic = kDeviceStateMagic;
        state.version = kDeviceStateVersion;
        state.bytes = sizeof state;
        state.n_pes = 1;
        state.n_rails = kApiRails;
        state.queues_per_rail = kApiQueuesPerRail;
        state.window = state.chunks_max = state.n_chunks = 1;
        state.heap_base = kApiHeap;
        state.segment_bytes = state.stripe_bytes = 1 << 20;
        state.wait_ticks = 2'000'000'000;
        state.queues = queues_;
        state.errors = errors_;
        struct Targets { DeviceTarget of_rail[kApiRails]; };
        struct Keys { uint32_t of_rail[kApiRails]; };
        state.targets = reinterpret_cast<DeviceTarget*>(put(Targets{{{1, 2, 3}, {1, 2, 3}}}));
        state.peers = reinterpret_cast<DevicePeer*>(put(DevicePeer{}));
        state.shared = reinterpret_cast<DeviceShared*>(put(DeviceShared{}));
        state.chunks = reinterpret_cast<DeviceChunk*>(put(DeviceChunk{0, kApiHeapBytes}));
        state.remote_bases = reinterpret_cast<uint64_t*>(put(kApiRemote));
        state.rkeys = reinterpret_cast<uint32_t*>(put(Keys{{kApiRkey, kApiRkey}}));
        state.lkeys = reinterpret_cast<uint32_t*>(put(Keys{{kApiLkey, kApiLkey}}));
        return reinterpret_cast<const DeviceState*>(put(state));
    }

    uint32_t* doorbell(int q) const { return reinterpret_cast<uint32_t*>(words_ + size_t(4 * q) * kLine); }
    uint64_t* counter(int q) const { return reinterpret_cast<uint64_t*>(words_ + size_t(4 * q + 1) * kLine); }
    uint64_t* error_counter(int q) const { return reinterpret_cast<uint64_t*>(words_ + size_t(4 * q + 2) * kLine); }

    void consume() {
        while (!is_stopping_.load(std::memory_order_relaxed)) {
            for (int q = 0, n = n_used_.load(std::memory_order_acquire); q < n; ++q) {
                // Acquire pairs with the poster's fence before its doorbell, release with completions_read_counter().
                const uint32_t rung = __atomic_load_n(doorbell(q), __ATOMIC_ACQUIRE);
                const auto before = static_cast<uint32_t>(*counter(q));
                if (before == (rung & kCounterMask31)) continue;
                if (((rung - before) & kCounterMask31) > options_.depth) n_backwards_.fetch_add(1);
                __atomic_store_n(counter(q), rung & kCounterMask31, __ATOMIC_RELEASE);
            }
            n_rounds_.fetch_add(1, std::memory_order_release);
        }
    }

    void start(int n_queues) {
        n_used_.store(0, std::memory_order_release);
        for (const uint64_t seen = n_rounds_.load(); n_rounds_.load() < seen + 2;) std::this_thread::yield();
        std::vector<GpuQueue> queues(n_queues);
        std::vector<GpuQueueState> states(n_queues);
        for (int q = 0; q < n_queues; ++q) {
            std::memset(words_ + size_t(4 * q) * kLine, 0, 4 * kLine);
            GpuQueue& queue = queues[q] = GpuQueue{};
            queue.slots = slots_ + size_t(q) * options_.depth * kSlotBytesSmall;
            queue.doorbell = doorbell(q);
            queue.state = states_ + q;
            queue.slots_are_readable = true;
            queue.cq_consumer = reinterpret_cast<uint32_t*>(notes_ + size_t(q) * options_.depth);
            queue.error = errors_ + q;
            queue.completions = counter(q);
            queue.errors = error_counter(q);
            queue.wait_ticks = 2'000'000'000;  // about a second of the GPU's clock
            queue.qp_num = q;
            queue.depth = options_.depth;
            queue.max_batch = 0;  // host memory has no limit; batches are as long as the method makes them
            if (!gpu_queue_init(queue, states[q], 0, 0)) std::exit((std::fprintf(stderr, "issue_rate: bad queue shape\n"), 2));
            queue.ring_at = 32;
        }
        std::memset(slots_, 0xee, size_t(n_queues) * options_.depth * kSlotBytesSmall);
        CUDA_CHECK(cudaMemcpy(queues_, queues.data(), n_queues * sizeof(GpuQueue), cudaMemcpyDefault));
        CUDA_CHECK(cudaMemcpy(states_, states.data(), n_queues * sizeof(GpuQueueState), cudaMemcpyDefault));
        CUDA_CHECK(cudaDeviceSynchronize());
        n_used_.store(n_queues, std::memory_order_release);
    }

    void finish(const char* what) {
        CUDA_CHECK(cudaGetLastError());
        CUDA_CHECK(cudaDeviceSynchronize());
        if (n_backwards_.load() != 0 && std::strncmp(what, "bare", 4) != 0 && std::strcmp(what, "two_fences") != 0)
            wrong(what, 0, 0, "a doorbell went back, or told of more slots than the ring has");
        n_backwards_.store(0);
        if (*failed_ == 0) return;
        for (int q = 0; q < kQueuesMax; ++q) {
            if (const GpuQueueError* error = gpu_queue_error(errors_ + q))
                std::fprintf(stderr, "issue_rate: %s: queue %d failed: waited %d, posted %llu, completed %llu\n", what, q,
                             int(error->waited), (unsigned long long)error->posted, (unsigned long long)error->completed);
        }
        std::exit(1);
    }

    [[noreturn]] void wrong(const char* what, int q, uint32_t slot, const char* why) const {
        std::fprintf(stderr, "issue_rate: %s: queue %d, slot %u: %s\n", what, q, slot, why);
        std::exit(1);
    }

    // The ring's last lap: each slot holds a request of its own batch, each request once, with the right phase and id.
    void check(const char* what, int q, uint32_t posted, uint32_t batch, bool has_one_poster) const {
        if (__atomic_load_n(doorbell(q), __ATOMIC_ACQUIRE) != posted) wrong(what, q, *doorbell(q), "is the last doorbell, and not what was posted");
        const uint32_t lap = std::min(posted / batch * batch, options_.depth);
        std::vector<uint64_t> seen;
        for (uint32_t slot = posted - lap; slot != posted; ++slot) {
            SendWqe wqe{};
            std::memcpy(&wqe, slots_ + (size_t(q) * options_.depth + (slot & (options_.depth - 1))) * kSlotBytesSmall, kSlotBytesSmall);
            const uint32_t number = wqe.rdma.remote.addr_lo;
            if ((wqe.meta.ctrl2 & kCtrl2Phase) != (slot / options_.depth & 1)) wrong(what, q, slot, "wrong phase");
            if (wqe.meta.req_id != (slot & 0xffff)) wrong(what, q, slot, "wrong request id");
            if (std::memcmp(&wqe.rdma.local, &base_.rdma.local, sizeof(Sge)) != 0) wrong(what, q, slot, "wrong bytes");
            if (has_one_poster && number / batch != slot / batch) wrong(what, q, slot, "a request of another batch");
            seen.push_back(uint64_t(wqe.rdma.remote.addr_hi) << 32 | number);
        }
        std::sort(seen.begin(), seen.end());
        if (std::adjacent_find(seen.begin(), seen.end()) != seen.end()) wrong(what, q, posted, "a request was written twice");
    }

    struct Row {
        const char *kind, *method;
        int warps, queues, batch;
        const char* unit;
    };
    void row(std::string* json, const Row& what, const std::vector<double>& sorted, double p99) const {
        const auto& [kind, method, warps, queues, batch, unit] = what;
        char text[400];
        const double median = sorted[sorted.size() / 2];
        int n = std::snprintf(text, sizeof text,
                              "{\"kind\":\"%s\",\"method\":\"%s\",\"warps\":%d,\"queues\":%d,\"batch\":%d,\"unit\":\"%s\","
                              "\"median\":%.4f,\"low\":%.4f,\"high\":%.4f,\"repeats\":%zu",
                              kind, method, warps, queues, batch, unit, median, sorted.front(), sorted.back(), sorted.size());
        if (p99 >= 0) n += std::snprintf(text + n, sizeof text - n, ",\"p99\":%.4f,\"samples\":%d", p99, kRounds);
        std::snprintf(text + n, sizeof text - n, "}");
        *json += std::string(json->empty() ? "" : ",\n  ") + text;
        std::printf("%-8s %-12s %3d warps %3d queues batch %2d: %9.3f (%.3f-%.3f) %s", kind, method, warps, queues, batch, median,
                    sorted.front(), sorted.back(), unit);
        std::printf(p99 >= 0 ? " p99 %.3f\n" : "\n", p99);
        std::fflush(stdout);
    }

    Options options_;
    uint8_t* slots_;
    uint8_t* words_;
    GpuQueueError* errors_;
    GpuQueueState* states_;
    GpuQueueNote* notes_;
    GpuQueue* queues_;
    long long* samples_;
    Clocks* clocks_;
    int* failed_;
    uint8_t* api_;  // what state_of_api() fills
    SendWqe base_{};
    std::atomic<int> n_used_{0};
    std::atomic<uint64_t> n_rounds_{0};
    std::atomic<uint64_t> n_backwards_{0};
    std::atomic<bool> is_stopping_{false};
    std::thread consumer_;
};

template <int kBatch>
void measure_batch(Bench& bench, std::string* json) {
    for (int warps : {1, 4, 16, 64, 256}) {
        bench.rate<Owned<kBatch>, kBatch>(json, warps, warps);
        bench.rate<Bare<kBatch>, kBatch>(json, warps, warps);
        bench.rate<TwoFences<kBatch>, kBatch>(json, warps, warps);
        bench.rate<Shared<kBatch>, kBatch>(json, warps, warps);
    }
    for (int warps : {1, 256}) bench.rate<OwnedNotes<kBatch>, kBatch>(json, warps, warps);
    for (int warps : {1, 256}) {
        if constexpr (kBatch == 1 || kBatch == 16) break;  // what tells parts apart: one short batch and one long
        bench.rate<Owned<kBatch, false>, kBatch>(json, warps, warps);
        bench.rate<Shared<kBatch, false>, kBatch>(json, warps, warps);
        bench.rate<Bare<kBatch, Bell::kFence>, kBatch>(json, warps, warps);
        bench.rate<Bare<kBatch, Bell::kAllLanes>, kBatch>(json, warps, warps);
        bench.rate<Bare<kBatch, Bell::kRelease, Extra::kTakeSlots>, kBatch>(json, warps, warps);
        bench.rate<Bare<kBatch, Bell::kRelease, Extra::kPassTurn>, kBatch>(json, warps, warps);
    }
    for (int warps : {4, 16, 64}) bench.rate<Shared<kBatch>, kBatch>(json, warps, 1);
}

template <int kBatch>
void measure_one_warp(Bench& bench, std::string* json) {
    bench.rate<Owned<kBatch>, kBatch>(json, 1, 1);
    bench.rate<Bare<kBatch>, kBatch>(json, 1, 1);
    bench.rate<TwoFences<kBatch>, kBatch>(json, 1, 1);
    bench.rate<Shared<kBatch>, kBatch>(json, 1, 1);
    bench.rate<Bare<kBatch, Bell::kRelease, Extra::kBoth>, kBatch>(json, 1, 1);
    bench.rate<Owned<kBatch>, kBatch>(json, 256, 256);
    bench.rate<Shared<kBatch>, kBatch>(json, 256, 256);
}

std::string first_line(const char* path) {
    char line[200] = "unknown";
    if (FILE* file = std::fopen(path, "r")) {
        if (!std::fgets(line, sizeof line, file)) line[0] = 0;
        std::fclose(file);
    }
    line[std::strcspn(line, "\n\"\\")] = 0;
    return line;
}

}  // namespace

int main(int argc, char** argv) {
    Options options;
    for (int i = 1; i < argc; i += 2) {
        const std::string name = argv[i];
        if (i + 1 == argc) return std::fprintf(stderr, "issue_rate: %s needs a value\n", argv[i]), 2;
        if (name == "--out") options.out = argv[i + 1];
        else if (name == "--depth") options.depth = std::atoi(argv[i + 1]);
        else if (name == "--repeats") options.repeats = std::atoi(argv[i + 1]);
        else if (name == "--commit") options.commit = argv[i + 1];
        else if (name == "--part") options.part = argv[i + 1];
        else return std::fprintf(stderr, "issue_rate: unknown option %s; --out --depth --repeats --commit --part\n", argv[i]), 2;
    }
    if (!is_power_of_two(options.depth) || options.depth > kGpuQueueDepthMax || options.repeats < 1 || options.depth < 64)
        return std::fprintf(stderr, "issue_rate: --depth is a power of two from 64 to 32768, --repeats at least 1\n"), 2;
    cudaDeviceProp gpu;
    if (cudaGetDeviceProperties(&gpu, 0) != cudaSuccess) return std::fprintf(stderr, "issue_rate: no CUDA device\n"), 3;
    std::string json;
    Bench bench(options);
    bench.latency<Owned<1>>(&json);
    bench.latency<OwnedNotes<1>>(&json);
    bench.latency<Shared<1>>(&json);
    bench.latency<Owned<1, false>>(&json);
    bench.latency<Shared<1, false>>(&json);
    bench.latency<Bare<1>>(&json);
    bench.latency<Bare<1, Bell::kFence>>(&json);
    bench.latency<Bare<1, Bell::kRelease, Extra::kTakeSlots>>(&json);
    bench.latency<Bare<1, Bell::kRelease, Extra::kPassTurn>>(&json);
    bench.latency<Bare<1, Bell::kRelease, Extra::kBoth>>(&json);
    bench.latency<TwoFences<1>>(&json);
    bench.api<ApiPut>(&json, true);
    bench.api<ApiQuiet<0>>(&json, false);
    bench.api<ApiQuiet<1>>(&json, false);
    bench.api<ApiQuiet<8>>(&json, false);
    if (options.part == "quick") {
        measure_one_warp<4>(bench, &json);
        measure_one_warp<32>(bench, &json);
    } else {
        measure_batch<1>(bench, &json);
        measure_batch<4>(bench, &json);
        measure_batch<16>(bench, &json);
        measure_batch<32>(bench, &json);
    }
    if (options.out.empty()) return 0;
    FILE* file = std::fopen(options.out.c_str(), "w");
    if (!file) return std::fprintf(stderr, "issue_rate: cannot write %s\n", options.out.c_str()), 1;
    std::fprintf(file,
                 "{\"schema\": 1, \"what\": \"issue_rate\", \"machine\": {\"gpu\": \"%s\", \"sms\": %d, \"driver\": \"%s\", "
                 "\"nvcc\": \"%d.%d.%d\", \"cpus\": %u, \"commit\": \"%s\"},\n \"settings\": {\"depth\": %u, \"slot_bytes\": 64, "
                 "\"ring\": \"pinned host memory\", \"consumer\": \"one CPU thread, doorbell to counter\"},\n"
                 " \"rows\": [\n  %s\n]}\n",
                 gpu.name, gpu.multiProcessorCount, first_line("/proc/driver/nvidia/version").c_str(), __CUDACC_VER_MAJOR__,
                 __CUDACC_VER_MINOR__, __CUDACC_VER_BUILD__, std::thread::hardware_concurrency(), options.commit.c_str(),
                 options.depth, json.c_str());
    return std::fclose(file) == 0 ? 0 : 1;
}
