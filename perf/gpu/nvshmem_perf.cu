// SPDX-License-Identifier: Apache-2.0
// NVSHMEM operations timed from inside kernels: nvshmem_perf --pe P --npes N --dir DIR [--repeats R] [--p2p].
// PE 0 measures against PE 1 (the other PEs only take part in barriers). Started by perf/gpu/run.py. One "perf" event per
// repeat; medians over repeats are the script's. Data and alignment do not matter here: tests/gpu checks the bytes.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "image.h"

namespace {

using namespace gpu_ops;

// Puts in flight go to different bytes: a put to bytes that an earlier one still writes must wait for it on SRD.
constexpr size_t kRoom = size_t(256) << 20;

// Samples are taken with the SM's clock; %globaltimer, which ticks coarsely, gives the scale over the whole kernel.
struct Clocks {
    unsigned long long ns, cycles;
};

__device__ void mark(Clocks* at) {
    at->ns = now_ns();
    at->cycles = clock64();
}

// Even PE: send, wait for the answer; odd PE: answer. A block of 128 threads, as a real sender of payload would be.
__global__ void pingpong(char* dest, const char* source, uint64_t* word, size_t bytes, int rounds, int warm_up, int me,
                         int partner, long long* samples, Clocks* clocks, uint64_t base) {
    for (int r = 0; r < rounds + warm_up; ++r) {
        if (r == warm_up && threadIdx.x == 0) mark(&clocks[0]);
        const long long begin = clock64();
        const uint64_t value = base + r + 1;
        if (me == 0) nvshmemx_putmem_signal_nbi_block(dest, source, bytes, word, value, NVSHMEM_SIGNAL_SET, partner);
        if (threadIdx.x == 0) nvshmem_signal_wait_until(word, NVSHMEM_CMP_GE, value);
        __syncthreads();
        if (me == 1) nvshmemx_putmem_signal_nbi_block(dest, source, bytes, word, value, NVSHMEM_SIGNAL_SET, partner);
        if (threadIdx.x == 0 && r >= warm_up) samples[r - warm_up] = clock64() - begin;
        __syncthreads();
    }
    if (threadIdx.x == 0) mark(&clocks[1]);
    nvshmem_quiet();
}

// One thread posts `count` puts, then waits for all.
__global__ void put_rate(char* dest, const char* source, size_t bytes, int count, int slots, int pe, Clocks* clocks) {
    mark(&clocks[0]);
    for (int i = 0; i < count; ++i) nvshmem_putmem_nbi(dest + (i % slots) * bytes, source + (i % slots) * bytes, bytes, pe);
    nvshmem_quiet();
    mark(&clocks[1]);
}

enum Single { kGet, kG, kPut, kFetchAdd, kAdd };

// One operation after the other, each complete before the next.
__global__ void single(int what, char* dest, const char* source, uint64_t* word, size_t bytes, int rounds, int warm_up, int pe,
                       long long* samples, Clocks* clocks) {
    uint64_t sum = 0;
    for (int r = 0; r < rounds + warm_up; ++r) {
        if (r == warm_up) mark(&clocks[0]);
        const long long begin = clock64();
        switch (what) {
            case kGet: nvshmem_getmem(dest, source, bytes, pe); break;
            case kG: sum += nvshmem_uint64_g(word, pe); break;
            case kPut: nvshmem_putmem_nbi(dest, source, bytes, pe); nvshmem_quiet(); break;
            case kFetchAdd: sum += nvshmem_uint64_atomic_fetch_add(word, 1, pe); break;
            case kAdd: nvshmem_uint64_atomic_add(word, 1, pe); nvshmem_quiet(); break;
        }
        if (r >= warm_up) samples[r - warm_up] = clock64() - begin;
    }
    mark(&clocks[1]);
    if (sum == 1) word[1] = sum;  // keeps the results alive
}

struct Bench {
    Job job;
    char* dest;
    char* source;
    uint64_t* words;
    Device<long long> samples{1 << 16};
    Device<Clocks> clocks{2};
    uint64_t signal_base = 0;
};

double ns_per_cycle(const Bench& bench) {
    const std::vector<Clocks> c = bench.clocks.read();
    return double(c[1].ns - c[0].ns) / double(c[1].cycles - c[0].cycles);
}

void print_samples(const Bench& bench, const char* name, size_t bytes, int rounds) {
    std::vector<long long> all = bench.samples.read();
    all.resize(rounds);
    std::sort(all.begin(), all.end());
    const double scale = ns_per_cycle(bench) / 1000;
    char text[512];
    snprintf(text, sizeof text,
             "\"name\":\"%s\",\"bytes\":%zu,\"rounds\":%d,\"unit\":\"us\",\"p50\":%.3f,\"p99\":%.3f,\"min\":%.3f,\"max\":%.3f", name,
             bytes, rounds, all[rounds / 2] * scale, all[size_t(rounds * 0.99)] * scale, all.front() * scale, all.back() * scale);
    event("perf", text);
}

void measure_pingpong(Bench& bench, size_t bytes, int rounds) {
    const int warm_up = 20;
    meet(bench.job, "put_signal ping-pong");
    if (bench.job.pe < 2) {
        pingpong<<<1, 128, 0, bench.job.stream>>>(bench.dest, bench.source, bench.words, bytes, rounds, warm_up, bench.job.pe,
                                                  1 - bench.job.pe, bench.samples.get(), bench.clocks.get(), bench.signal_base);
        LAUNCH_CHECK();
    }
    bench.signal_base += rounds + warm_up;
    meet(bench.job, "put_signal ping-pong");
    if (bench.job.pe == 0) print_samples(bench, "put_signal_pingpong", bytes, rounds);
}

void measure_rate(Bench& bench, const char* name, size_t bytes, int count) {
    const int slots = static_cast<int>(std::min<size_t>(kRoom / bytes, 65536));
    meet(bench.job, name);
    if (bench.job.pe == 0) {
        put_rate<<<1, 1, 0, bench.job.stream>>>(bench.dest, bench.source, bytes, std::max(2, count / 10), slots, 1, bench.clocks.get());
        put_rate<<<1, 1, 0, bench.job.stream>>>(bench.dest, bench.source, bytes, count, slots, 1, bench.clocks.get());
        LAUNCH_CHECK();
        CUDA_CHECK(cudaStreamSynchronize(bench.job.stream));
        const std::vector<Clocks> c = bench.clocks.read();
        const double seconds = double(c[1].ns - c[0].ns) * 1e-9;
        char text[512];
        snprintf(text, sizeof text,
                 "\"name\":\"%s\",\"bytes\":%zu,\"rounds\":%d,\"unit\":\"%s\",\"p50\":%.4f,\"millions_per_s\":%.4f,\"GB_per_s\":%.3f", name,
                 bytes, count, bytes < 65536 ? "M/s" : "GB/s",
                 bytes < 65536 ? count / seconds * 1e-6 : double(bytes) * count / seconds * 1e-9, count / seconds * 1e-6,
                 double(bytes) * count / seconds * 1e-9);
        event("perf", text);
    }
    meet(bench.job, name);
}

void measure_single(Bench& bench, const char* name, int what, size_t bytes, int rounds) {
    meet(bench.job, name);
    if (bench.job.pe == 0) {
        single<<<1, 1, 0, bench.job.stream>>>(what, bench.dest, bench.source, bench.words + 8, bytes, rounds, 20, 1,
                                              bench.samples.get(), bench.clocks.get());
        LAUNCH_CHECK();
        CUDA_CHECK(cudaStreamSynchronize(bench.job.stream));
        print_samples(bench, name, bytes, rounds);
    }
    meet(bench.job, name);
}

void measure_all(Bench& bench) {
    const size_t kKiB = 1024, kMiB = 1 << 20;
    measure_pingpong(bench, 8, 2000);
    measure_pingpong(bench, 7 * kKiB, 2000);
    measure_pingpong(bench, kMiB, 400);
    measure_rate(bench, "put_nbi_rate", 8, 20000);
    measure_rate(bench, "put_nbi_rate", 7 * kKiB, 10000);
    measure_rate(bench, "put_bandwidth", kMiB, 1000);
    measure_rate(bench, "put_bandwidth", 64 * kMiB, 40);
    measure_single(bench, "put_quiet", kPut, 8, 1000);
    measure_single(bench, "get", kGet, 8, 1000);
    measure_single(bench, "get", kGet, 7 * kKiB, 1000);
    measure_single(bench, "get", kGet, kMiB, 200);
    measure_single(bench, "g", kG, 8, 1000);
    measure_single(bench, "amo_fetch_add", kFetchAdd, 8, 1000);
    measure_single(bench, "amo_add_quiet", kAdd, 8, 1000);
}

}  // namespace

int main(int argc, char** argv) {
    Job job;
    int repeats = 5;
    for (int i = 1; i < argc; ++i) {
        const std::string name = argv[i];
        const char* value = i + 1 < argc ? argv[i + 1] : "";
        if (name == "--p2p") { job.p2p = true; continue; }
        if (name == "--pe") job.pe = atoi(value);
        else if (name == "--npes") job.npes = atoi(value);
        else if (name == "--dir") job.dir = value;
        else if (name == "--repeats") repeats = atoi(value);
        else { fprintf(stderr, "usage: nvshmem_perf --pe P --npes N --dir DIR [--repeats R] [--p2p]\n"); return kExitUsage; }
        ++i;
    }
    if (job.npes < 2 || job.pe < 0 || job.pe >= job.npes || job.dir.empty()) {
        fprintf(stderr, "nvshmem_perf: bad --pe, --npes or --dir\n");
        return kExitUsage;
    }
    watchdog(90, "start");
    start_pe(job);
    {
        Symmetric<char> dest(kRoom), source(kRoom);
        Symmetric<uint64_t> words(64);
        fill(job, source.get(), kRoom, pattern_key(12345, job.pe));
        Bench bench{job, dest.get(), source.get(), words.get()};
        for (int repeat = 0; repeat < repeats; ++repeat) {
            event("begin", "\"case\":\"repeat " + std::to_string(repeat) + "\"");
            watchdog(120, "repeat");
            measure_all(bench);
            event("case", "\"case\":\"repeat " + std::to_string(repeat) + "\"");
        }
        meet(job, "end");
    }
    watchdog(60, "finish");
    finish_pe(job);
    event("finished", "");
    return kExitGood;
}
