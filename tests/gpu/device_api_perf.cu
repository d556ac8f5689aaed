// SPDX-License-Identifier: Apache-2.0
// Timings of the device API, and of NVSHMEM's own calls through the proxy where there are two PEs. Through the software
// device these are its speeds and the CPU's, not a network's: for comparing the two ways in one run, and nothing else.
#include <algorithm>
#include <cstdio>

#include "device_api.h"

namespace gpu_ops {

namespace {

constexpr int kRounds = 1000, kWarmUp = 50;

struct Plan {
    const DeviceState* state;
    Trouble* trouble;
    char* dest;
    const char* source;
    uint64_t* words;  // [0]: for the first side, [1]: for the second
    size_t bytes;
    int first;    // PE of the side that begins; the other side is at `second`
    int second;
    uint64_t base;
    long long* samples;    // cycles
    unsigned long long* ns;  // begin, end: by the global timer
};

// Block 0 begins, block 1 answers; or, on two PEs, one block each. kIsOurs: the device API, else NVSHMEM's own calls.
template <bool kIsOurs>
__global__ void pingpong_kernel(Plan plan, int only_side) {
    const DeviceState& s = *plan.state;
    const int side = only_side >= 0 ? only_side : static_cast<int>(blockIdx.x);
    const int to = side == 0 ? plan.second : plan.first;
    for (int r = 0; r < kRounds + kWarmUp; ++r) {
        const uint64_t value = plan.base + static_cast<uint64_t>(r) + 1;
        const long long begin = clock64();
        if (r == kWarmUp && side == 0) plan.ns[0] = now_ns();
        for (int turn = 0; turn < 2; ++turn) {
            if (turn == side) {
                char* dest = plan.dest + side * plan.bytes;
                uint64_t* word = plan.words + turn;
                if (kIsOurs) EXPECT(nvshmem_efa::put_signal_nbi(s, dest, plan.source, plan.bytes, word, value, nvshmem_efa::SignalOp::kSet, to));
                else nvshmem_putmem_signal_nbi(dest, plan.source, plan.bytes, word, value, NVSHMEM_SIGNAL_SET, to);
            } else {
                bool is_good = true;
                if (kIsOurs) is_good = EXPECT(nvshmem_efa::wait_until(s, plan.words + turn, nvshmem_efa::Cmp::kGe, value));
                else is_good = wait_at_least(plan.words + turn, value, plan.trouble);
                if (!is_good) return;
            }
        }
        if (side == 0 && r >= kWarmUp) plan.samples[r - kWarmUp] = clock64() - begin;
    }
    if (side == 0) plan.ns[1] = now_ns();
    if (kIsOurs) EXPECT(nvshmem_efa::quiet(s));
    else nvshmem_quiet();
}

// All threads put, to places of their own, and one waits for all.
template <bool kIsOurs>
__global__ void rate_kernel(Plan plan, int puts) {
    const DeviceState& s = *plan.state;
    const size_t thread = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x;
    if (thread == 0) plan.ns[0] = now_ns();
    for (int i = 0; i < puts; ++i) {
        if (kIsOurs) EXPECT(nvshmem_efa::put_nbi(s, plan.dest + thread * plan.bytes, plan.source + thread * plan.bytes, plan.bytes, plan.second));
        else nvshmem_putmem_nbi(plan.dest + thread * plan.bytes, plan.source + thread * plan.bytes, plan.bytes, plan.second);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        if (kIsOurs) EXPECT(nvshmem_efa::quiet(s));
        else nvshmem_quiet();
        atomicMax(plan.ns + 1, static_cast<unsigned long long>(now_ns()));
    }
}

// What a put costs the thread that issues it.
__global__ void issue_kernel(Plan plan) {
    const DeviceState& s = *plan.state;
    plan.ns[0] = now_ns();
    const long long begin_all = clock64();
    for (int i = 0; i < kRounds; ++i) {
        const long long begin = clock64();
        EXPECT(nvshmem_efa::put_nbi(s, plan.dest, plan.source, plan.bytes, plan.second));
        plan.samples[i] = clock64() - begin;
        if (i % 16 == 15) EXPECT(nvshmem_efa::quiet(s));  // never wait for room inside a sample
    }
    plan.ns[1] = now_ns();
    plan.samples[kRounds] = clock64() - begin_all;
}

struct Bench {
    const Job& job;
    Plan plan;
    const Device<Trouble>& trouble;
    const Device<long long>& samples;
    const Device<unsigned long long>& ns;
};

void check_bench(const Bench& bench, const char* name) {
    CUDA_CHECK(cudaStreamSynchronize(bench.job.stream));
    const Trouble found = bench.trouble.read()[0];
    if (found.count != 0) die(kExitCaseFailed, "%s: call in line 0x%llx failed, %u times", name, found.where, found.count);
}

void print_latency(const Bench& bench, const char* name, const char* path, size_t bytes, int rounds, double us_per_cycle) {
    std::vector<long long> all = bench.samples.read();
    all.resize(static_cast<size_t>(rounds));
    std::sort(all.begin(), all.end());
    char text[320];
    snprintf(text, sizeof text, "\"name\":\"%s\",\"path\":\"%s\",\"bytes\":%zu,\"rounds\":%d,\"unit\":\"us\",\"p50\":%.3f,\"p99\":%.3f,\"min\":%.3f", name,
             path, bytes, rounds, all[all.size() / 2] * us_per_cycle, all[all.size() * 99 / 100] * us_per_cycle, all[0] * us_per_cycle);
    event("perf", text);
}

template <bool kIsOurs>
void measure_pingpong(Bench& bench, size_t bytes) {
    Plan& plan = bench.plan;
    plan.bytes = bytes;
    const int side = bench.job.npes == 1 ? -1 : bench.job.pe;
    meet(bench.job, "ping-pong");
    if (bench.job.pe < 2) {
        pingpong_kernel<kIsOurs><<<side < 0 ? 2 : 1, 1, 0, bench.job.stream>>>(plan, side);
        LAUNCH_CHECK();
        check_bench(bench, "ping-pong");
    }
    plan.base += kRounds + kWarmUp;
    meet(bench.job, "ping-pong");
    if (bench.job.pe != 0) return;
    const std::vector<unsigned long long> ns = bench.ns.read();
    std::vector<long long> all = bench.samples.read();
    long long cycles = 0;
    for (int i = 0; i < kRounds; ++i) cycles += all[static_cast<size_t>(i)];
    print_latency(bench, "put_signal_pingpong", kIsOurs ? "gpu" : "proxy", bytes, kRounds, double(ns[1] - ns[0]) / double(cycles) / 1000);
}

template <bool kIsOurs>
void measure_rate(Bench& bench, int blocks, int threads, int puts) {
    bench.plan.bytes = 8;
    meet(bench.job, "rate");
    if (bench.job.pe == 0) {
        CUDA_CHECK(cudaMemset(bench.plan.ns, 0, 16));
        CUDA_CHECK(cudaDeviceSynchronize());
        rate_kernel<kIsOurs><<<blocks, threads, 0, bench.job.stream>>>(bench.plan, puts);
        LAUNCH_CHECK();
        check_bench(bench, "rate");
        const std::vector<unsigned long long> ns = bench.ns.read();
        const double n = double(blocks) * threads * puts;
        char text[320];
        snprintf(text, sizeof text, "\"name\":\"put_rate\",\"path\":\"%s\",\"bytes\":8,\"blocks\":%d,\"threads\":%d,\"puts\":%.0f,\"unit\":\"M/s\",\"p50\":%.4f",
                 kIsOurs ? "gpu" : "proxy", blocks, threads, n, n / double(ns[1] - ns[0]) * 1000);
        event("perf", text);
    }
    meet(bench.job, "rate");
}

void measure_issue(Bench& bench) {
    bench.plan.bytes = 8;
    meet(bench.job, "issue");
    if (bench.job.pe == 0) {
        issue_kernel<<<1, 1, 0, bench.job.stream>>>(bench.plan);
        LAUNCH_CHECK();
        check_bench(bench, "issue");
        const std::vector<unsigned long long> ns = bench.ns.read();
        print_latency(bench, "put_issue", "gpu", 8, kRounds, double(ns[1] - ns[0]) / double(bench.samples.read()[kRounds]) / 1000);
    }
    meet(bench.job, "issue");
}

}  // namespace

void measure_device_api(const Job& job, const DeviceState* state) {
    constexpr size_t kRoom = 1 << 20;
    Symmetric<char> dest(2 * kRoom), source(kRoom);
    Symmetric<uint64_t> words(2);
    Device<Trouble> trouble(1);
    Device<long long> samples(kRounds + 1);
    Device<unsigned long long> ns(2);
    const int other = job.npes == 1 ? 0 : 1;
    Bench bench{job, {state, trouble.get(), dest.get(), source.get(), words.get(), 8, 0, other, 0, samples.get(), ns.get()}, trouble, samples, ns};
    watchdog(120, "perf");
    measure_issue(bench);
    for (const size_t bytes : {size_t{8}, size_t{7168}, kRoom}) {
        measure_pingpong<true>(bench, bytes);
        if (job.npes > 1) measure_pingpong<false>(bench, bytes);  // NVSHMEM does not go to itself through a transport
    }
    measure_rate<true>(bench, 1, 1, 2000);
    measure_rate<true>(bench, 1, 32, 1000);
    measure_rate<true>(bench, 64, 128, 20);
    if (job.npes > 1) {
        measure_rate<false>(bench, 1, 1, 2000);
        measure_rate<false>(bench, 64, 128, 2);
    }
    watchdog(0, "");
}

}  // namespace gpu_ops
