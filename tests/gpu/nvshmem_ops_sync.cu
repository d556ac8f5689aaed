// SPDX-License-Identifier: Apache-2.0
// quiet, barrier_all (device, host, on stream) and signals on a stream.
#include "nvshmem_ops.h"

namespace gpu_ops {
namespace {

constexpr uint32_t kRegion = 3000;

// Round r writes kRegion bytes that start at source offset r: older data is wrong data.
__device__ void check_region(const char* region, uint64_t key, uint64_t first, uint64_t tag, Trouble* trouble) {
    const volatile unsigned char* at = reinterpret_cast<const unsigned char*>(region);
    for (uint32_t b = threadIdx.x; b < kRegion; b += blockDim.x) {
        const unsigned char wanted = pattern_at(key, first + b), found = at[b];
        if (found != wanted) report(trouble, kByteWrong, tag << 32 | b, wanted, found);
    }
}

struct QuietTest {
    char* regions;  // symmetric: one region a sender
    char* scratch;  // symmetric: two regions
    const char* source;
    uint64_t *asked, *answered;  // symmetric
    uint64_t seed;
    uint32_t rounds;
    int me, npes;
};

// Block 0 puts in pieces to `target`, quiets, reads back, then asks a third PE (itself when there are two) to look.
// Block 1 is the third PE of somebody else. After quiet, everybody must see the data.
__global__ void quiet_kernel(QuietTest t, Trouble* trouble) {
    __shared__ int good;
    const int shift_third = t.npes > 2 ? 2 : 0;
    if (blockIdx.x == 0) {
        const int target = (t.me + 1) % t.npes, third = (t.me + shift_third) % t.npes;
        for (uint32_t r = 0; r < t.rounds; ++r) {
            if (threadIdx.x < 8) {
                const uint32_t piece = kRegion / 8, at = threadIdx.x * piece;
                nvshmem_putmem_nbi(t.regions + t.me * kRegion + at, t.source + r + at, piece, target);
                nvshmem_quiet();
            }
            __syncthreads();
            nvshmemx_getmem_block(t.scratch, t.regions + t.me * kRegion, kRegion, target);
            __syncthreads();
            check_region(t.scratch, pattern_key(t.seed, t.me), r, r, trouble);
            __syncthreads();
            if (threadIdx.x == 0) {
                nvshmemx_signal_op(t.asked, r + 1, NVSHMEM_SIGNAL_SET, third);
                good = wait_at_least(t.answered, r + 1, trouble);
            }
            __syncthreads();
            if (!good) return;
        }
    } else {
        const int origin = (t.me - shift_third + t.npes) % t.npes, target = (origin + 1) % t.npes;
        for (uint32_t r = 0; r < t.rounds; ++r) {
            if (threadIdx.x == 0) good = wait_at_least(t.asked, r + 1, trouble);
            __syncthreads();
            if (!good) return;
            nvshmemx_getmem_block(t.scratch + kRegion, t.regions + origin * kRegion, kRegion, target);
            __syncthreads();
            check_region(t.scratch + kRegion, pattern_key(t.seed, origin), r, r, trouble);
            __syncthreads();
            if (threadIdx.x == 0) nvshmemx_signal_op(t.answered, r + 1, NVSHMEM_SIGNAL_SET, origin);
        }
    }
    nvshmem_quiet();
}

GPU_CASE(quiet, "sync", 16, 90) {
    const Job& job = run.job;
    uint32_t rounds = run.scaled(500, 8);
    Symmetric<char> regions(size_t(job.npes) * kRegion), scratch(2 * kRegion), source(kRegion + rounds);
    Symmetric<uint64_t> words(2);
    DeviceTrouble trouble;
    fill(job, source.get(), source.bytes(), pattern_key(run.seed, job.pe));
    meet(job, run.name);
    QuietTest t{regions.get(), scratch.get(), source.get(), words.get(), words.get() + 1, run.seed, rounds, job.pe, job.npes};
    Trouble* device_trouble = trouble.get();
    void* arguments[] = {&t, &device_trouble};
    launch_together(job, reinterpret_cast<const void*>(quiet_kernel), dim3(2), dim3(128), arguments);
    run.check(trouble, "rounds (place = round << 32 | byte)");
    meet(job, run.name);
    const size_t from = run.peer(-1);
    run.add_digest(digest(job, regions.get() + from * kRegion, kRegion));
    meet(job, run.name);
}

// Every PE writes to everybody, barrier inside the kernel, check, barrier.
__global__ void barrier_kernel(char* regions, const char* source, uint64_t* rounds_seen, uint64_t seed, uint32_t rounds, int me,
                               int npes, Trouble* trouble) {
    for (uint32_t r = 0; r < rounds; ++r) {
        for (int shift = 0; shift < npes; ++shift) {
            const int pe = (me + shift) % npes;
            if (threadIdx.x == 0) nvshmem_uint64_p(rounds_seen + me, r + 1, pe);
            nvshmemx_putmem_nbi_block(regions + me * kRegion, source + r, kRegion, pe);
        }
        if (r % 2) {
            nvshmemx_barrier_all_block();
        } else {
            __syncthreads();
            if (threadIdx.x == 0) nvshmem_barrier_all();
            __syncthreads();
        }
        for (int pe = 0; pe < npes; ++pe) check_region(regions + pe * kRegion, pattern_key(seed, pe), r, r, trouble);
        if (threadIdx.x < npes) {
            const uint64_t seen = reinterpret_cast<volatile uint64_t*>(rounds_seen)[threadIdx.x];
            if (seen != r + 1) report(trouble, kValueWrong, threadIdx.x, r + 1, seen);
        }
        __syncthreads();
        nvshmemx_barrier_all_block();
    }
}

GPU_CASE(barrier_device, "sync", 17, 90) {
    const Job& job = run.job;
    uint32_t rounds = run.scaled(200, 8);
    Symmetric<char> regions(size_t(job.npes) * kRegion), source(kRegion + rounds);
    Symmetric<uint64_t> seen(job.npes);
    DeviceTrouble trouble;
    fill(job, source.get(), source.bytes(), pattern_key(run.seed, job.pe));
    meet(job, run.name);
    char* regions_at = regions.get();
    const char* source_at = source.get();
    uint64_t* seen_at = seen.get();
    uint64_t seed = run.seed;
    int me = job.pe, npes = job.npes;
    Trouble* device_trouble = trouble.get();
    void* arguments[] = {&regions_at, &source_at, &seen_at, &seed, &rounds, &me, &npes, &device_trouble};
    launch_together(job, reinterpret_cast<const void*>(barrier_kernel), dim3(1), dim3(128), arguments);
    run.check(trouble, "rounds (place = round << 32 | byte)");
    meet(job, run.name);
    run.add_digest(digest(job, regions.get(), regions.bytes()));
    meet(job, run.name);
}

__global__ void put_to_all(char* regions, const char* source, int me, int npes) {
    for (int pe = 0; pe < npes; ++pe) nvshmemx_putmem_nbi_block(regions + me * kRegion, source, kRegion, pe);
}
__global__ void check_all(const char* regions, uint64_t seed, uint64_t round, int npes, Trouble* trouble) {
    for (int pe = 0; pe < npes; ++pe) check_region(regions + pe * kRegion, pattern_key(seed, pe), round, round, trouble);
}

__global__ void check_one(const char* region, uint64_t seed, int pe, uint64_t round, Trouble* trouble) {
    check_region(region, pattern_key(seed, pe), round, round, trouble);
}

// Puts by the GPU without quiet, or by the host, then the host's barrier: all must have arrived.
GPU_CASE(barrier_host, "sync", 18, 90) {
    const Job& job = run.job;
    const int rounds = run.scaled(60, 6);
    Symmetric<char> regions(size_t(job.npes) * kRegion), source(kRegion + rounds);
    DeviceTrouble trouble;
    fill(job, source.get(), source.bytes(), pattern_key(run.seed, job.pe));
    meet(job, run.name);
    for (int r = 0; r < rounds; ++r) {
        if (r % 2 == 0) {
            put_to_all<<<1, 128, 0, job.stream>>>(regions.get(), source.get() + r, job.pe, job.npes);
            LAUNCH_CHECK();
        } else {
            for (int pe = 0; pe < job.npes; ++pe)
                nvshmem_putmem_nbi(regions.get() + job.pe * kRegion, source.get() + r, kRegion, pe);
        }
        meet(job, run.name);
        check_all<<<1, 128, 0, job.stream>>>(regions.get(), run.seed, r, job.npes, trouble.get());
        LAUNCH_CHECK();
        meet(job, run.name);
    }
    run.check(trouble, "rounds (place = round << 32 | byte)");
    run.add_digest(digest(job, regions.get(), regions.bytes()));
    meet(job, run.name);
}

// No host synchronisation between the rounds: order comes from the stream alone.
GPU_CASE(barrier_stream, "stream", 19, 90) {
    const Job& job = run.job;
    const int rounds = run.scaled(100, 8);
    Symmetric<char> regions(size_t(job.npes) * kRegion), source(kRegion + rounds);
    DeviceTrouble trouble;
    fill(job, source.get(), source.bytes(), pattern_key(run.seed, job.pe));
    meet(job, run.name);
    for (int r = 0; r < rounds; ++r) {
        for (int pe = 0; pe < job.npes; ++pe) {
            char* dest = regions.get() + job.pe * kRegion;
            if (r % 2) nvshmemx_putmem_on_stream(dest, source.get() + r, kRegion, pe, job.stream);
            else nvshmemx_putmem_nbi_on_stream(dest, source.get() + r, kRegion, pe, job.stream);
        }
        nvshmemx_barrier_all_on_stream(job.stream);
        check_all<<<1, 128, 0, job.stream>>>(regions.get(), run.seed, r, job.npes, trouble.get());
        LAUNCH_CHECK();
        nvshmemx_barrier_all_on_stream(job.stream);
    }
    run.check(trouble, "rounds (place = round << 32 | byte)");
    run.add_digest(digest(job, regions.get(), regions.bytes()));
    meet(job, run.name);
}

GPU_CASE(signal_stream, "stream", 9, 90) {
    const Job& job = run.job;
    const int rounds = run.scaled(200, 8), to = run.peer(1), from = run.peer(-1);
    Symmetric<char> regions(size_t(job.npes) * kRegion), source(kRegion + rounds);
    Symmetric<uint64_t> flag(1), done(1);
    DeviceTrouble trouble;
    fill(job, source.get(), source.bytes(), pattern_key(run.seed, job.pe));
    meet(job, run.name);
    for (int r = 0; r < rounds; ++r) {
        char* dest = regions.get() + job.pe * kRegion;
        const bool add = r % 3 == 2;
        const uint64_t value = add ? 1 : r + 1;
        const int op = add ? NVSHMEM_SIGNAL_ADD : NVSHMEM_SIGNAL_SET;
        if (r % 2) nvshmemx_putmem_signal_on_stream(dest, source.get() + r, kRegion, flag.get(), value, op, to, job.stream);
        else nvshmemx_putmem_signal_nbi_on_stream(dest, source.get() + r, kRegion, flag.get(), value, op, to, job.stream);
        nvshmemx_signal_wait_until_on_stream(flag.get(), NVSHMEM_CMP_GE, r + 1, job.stream);
        check_one<<<1, 128, 0, job.stream>>>(regions.get() + from * kRegion, run.seed, from, r, trouble.get());
        LAUNCH_CHECK();
        nvshmemx_signal_op_on_stream(done.get(), r + 1, NVSHMEM_SIGNAL_SET, from, job.stream);
        nvshmemx_signal_wait_until_on_stream(done.get(), NVSHMEM_CMP_GE, r + 1, job.stream);
    }
    run.check(trouble, "rounds (place = round << 32 | byte)");
    meet(job, run.name);
    if (flag.read()[0] != static_cast<uint64_t>(rounds)) run.fail("flag ends at %llu", (unsigned long long)flag.read()[0]);
    run.add_digest(digest(job, regions.get() + from * kRegion, kRegion));
    meet(job, run.name);
}

}  // namespace
}  // namespace gpu_ops
