// SPDX-License-Identifier: Apache-2.0
// put_signal: SET and ADD, every scope, order of signal after data under many messages, large payloads, ping-pong.
#include "message_stream.h"
#include "nvshmem_ops.h"

namespace gpu_ops {
namespace {

template <Flag kFlag>
void run_stream(Run& run, double messages, uint32_t slot_count, uint32_t slot_bytes) {
    const Job& job = run.job;
    const size_t source_bytes = 4 << 20;
    Symmetric<char> slots(size_t(slot_count) * slot_bytes), source(source_bytes);
    Symmetric<uint64_t> flags(slot_count), acks(1);
    DeviceTrouble trouble;
    Stream s{};
    s.slots = slots.get();
    s.source = source.get();
    s.flags = flags.get();
    s.acks = acks.get();
    s.seed = run.seed;
    s.source_bytes = source_bytes;
    s.ack_every = slot_count < 8 ? 1 : 8;
    s.messages = run.scaled(messages, 64) / slot_count * slot_count;
    s.slot_count = slot_count;
    s.slot_bytes = slot_bytes;
    s.me = job.pe;
    s.to = run.peer(1);
    s.from = run.peer(-1);
    fill(job, source.get(), source_bytes, pattern_key(run.seed, job.pe));
    fill(job, slots.get(), slots.bytes(), pattern_key(run.seed, kPoisonPe));
    meet(job, run.name);
    Trouble* device_trouble = trouble.get();
    void* arguments[] = {&s, &device_trouble};
    launch_together(job, reinterpret_cast<const void*>(stream_kernel<kFlag>), dim3(2), dim3(128), arguments);
    run.check(trouble, "messages (place = message << 32 | byte)");
    run.note("%u messages a PE", s.messages);
    meet(job, run.name);
    const std::vector<uint64_t> seen = flags.read();
    for (uint32_t i = 0; i < slot_count; ++i)
        if (seen[i] != s.messages - slot_count + i + 1)
            run.fail("slot %u ends with signal %llu", i, (unsigned long long)seen[i]);
    if (acks.read()[0] != s.messages) run.fail("%llu acknowledged", (unsigned long long)acks.read()[0]);
    run.add_digest(digest(job, slots.get(), slots.bytes()));
    run.add_digest(digest(job, flags.get(), flags.bytes()));
    meet(job, run.name);
}

GPU_CASE(signal_order, "signal", 5, 120) { run_stream<Flag::kPutSignalNbi>(run, 100000, 64, 4096); }
GPU_CASE(signal_order_blocking, "signal", 20, 90) { run_stream<Flag::kPutSignal>(run, 8000, 64, 4096); }
GPU_CASE(signal_one_slot, "signal", 21, 90) { run_stream<Flag::kPutSignalNbi>(run, 4000, 1, 8192); }
GPU_CASE(signal_large, "signal", 68, 90) { run_stream<Flag::kPutSignalNbi>(run, 64, 4, 2 << 20); }
GPU_CASE(fence_then_p, "sync", 22, 90) { run_stream<Flag::kFenceThenP>(run, 8000, 64, 4096); }
GPU_CASE(fence_then_atomic, "sync", 23, 90) { run_stream<Flag::kFenceThenAtomicSet>(run, 8000, 64, 4096); }
GPU_CASE(fence_then_signal, "sync", 24, 90) { run_stream<Flag::kFenceThenSignalOp>(run, 8000, 64, 4096); }

// Ping-pong between PE 2k and 2k + 1 in all scopes, waiting with NVSHMEM's own wait.
__global__ void pingpong_kernel(char* dest, const char* source, uint64_t* flag, uint64_t seed, uint32_t rounds,
                                uint32_t max_bytes, int me, int partner, Trouble* trouble) {
    __shared__ int good;
    const uint64_t key = pattern_key(seed, partner);
    for (uint32_t r = 0; r < rounds; ++r) {
        const bool first = me % 2 == 0;
        for (int half = 0; half < 2; ++half) {
            const uint64_t bytes = 1 + mix2(seed + half, r) % (r % 16 == 0 ? max_bytes : 512), offset = mix2(seed, r) % 4096;
            if ((half == 0) == first) {
                if (r % 3 == 0) {
                    nvshmemx_putmem_signal_block(dest + offset, source + offset, bytes, flag, r + 1, NVSHMEM_SIGNAL_SET, partner);
                } else if (r % 3 == 1) {
                    if (threadIdx.x < 32)
                        nvshmemx_putmem_signal_nbi_warp(dest + offset, source + offset, bytes, flag, r + 1, NVSHMEM_SIGNAL_SET, partner);
                } else if (threadIdx.x == 0) {
                    nvshmem_putmem_signal(dest + offset, source + offset, bytes, flag, r + 1, NVSHMEM_SIGNAL_SET, partner);
                }
                continue;
            }
            if (threadIdx.x == 0) {
                // Every other round through NVSHMEM's wait (the watchdog is its deadline).
                good = 1;
                if (r % 2) nvshmem_signal_wait_until(flag, NVSHMEM_CMP_GE, r + 1);
                else good = wait_at_least(flag, r + 1, trouble);
                __threadfence_system();
            }
            __syncthreads();
            if (!good) return;
            const volatile unsigned char* at = reinterpret_cast<const unsigned char*>(dest) + offset;
            for (uint64_t b = threadIdx.x; b < bytes; b += blockDim.x) {
                const unsigned char wanted = pattern_at(key, offset + b), found = at[b];
                if (found != wanted) report(trouble, kByteWrong, uint64_t(r) << 32 | b, wanted, found);
            }
            for (uint64_t b = threadIdx.x; b < bytes; b += blockDim.x)  // so that old data cannot pass for new
                const_cast<volatile unsigned char*>(at)[b] = 0;
            __threadfence_system();
            __syncthreads();
        }
    }
    nvshmem_quiet();
}

GPU_CASE(signal_pingpong, "signal", 6, 90) {
    const Job& job = run.job;
    if (job.npes % 2) throw Skip{"needs an even number of PEs"};
    const uint32_t max_bytes = 48 << 10;
    uint32_t rounds = run.scaled(6000, 64);
    Symmetric<char> dest(max_bytes + 4096), source(max_bytes + 4096);
    Symmetric<uint64_t> flag(1);
    DeviceTrouble trouble;
    int me = job.pe, partner = job.pe ^ 1;
    uint64_t seed = mix2(job.seed, 77);
    uint32_t bytes = max_bytes;
    fill(job, source.get(), source.bytes(), pattern_key(seed, me));
    meet(job, run.name);
    char* d = dest.get();
    const char* s = source.get();
    uint64_t* f = flag.get();
    Trouble* t = trouble.get();
    void* arguments[] = {&d, &s, &f, &seed, &rounds, &bytes, &me, &partner, &t};
    launch_together(job, reinterpret_cast<const void*>(pingpong_kernel), dim3(1), dim3(256), arguments);
    run.check(trouble, "rounds (place = round << 32 | byte)");
    meet(job, run.name);
    run.add_digest(flag.read()[0]);
    run.note("%u rounds", rounds);
    meet(job, run.name);
}

// Every PE sends to every PE (itself too) with ADD to one counter a target; a phase is closed when all arrived.
__global__ void add_phases(char* dest, const char* source, uint64_t* counter, uint64_t* done, uint64_t seed, int me, int npes,
                           uint32_t phases, uint32_t each, uint32_t bytes, Trouble* trouble) {
    __shared__ int good;
    for (uint32_t phase = 0; phase < phases; ++phase) {
        for (uint32_t i = threadIdx.x / 32; i < each * npes; i += blockDim.x / 32) {
            const int to = (me + i) % npes;
            const uint32_t nth = i / npes;
            const size_t slot = (size_t(me) * each + nth) * bytes;
            // The source moves with the phase, so that data of an older phase is wrong data.
            nvshmemx_putmem_signal_nbi_warp(dest + slot, source + slot + phase, bytes, counter, 1, NVSHMEM_SIGNAL_ADD, to);
        }
        __syncthreads();
        if (threadIdx.x == 0) good = wait_at_least(counter, uint64_t(phase + 1) * each * npes, trouble);
        __syncthreads();
        if (!good) return;
        for (size_t b = threadIdx.x; b < size_t(npes) * each * bytes; b += blockDim.x) {
            const int from = b / (size_t(each) * bytes);
            const unsigned char wanted = pattern_at(pattern_key(seed, from), b + phase);
            const unsigned char found = reinterpret_cast<const volatile unsigned char*>(dest)[b];
            if (found != wanted) report(trouble, kByteWrong, uint64_t(phase) << 32 | b, wanted, found);
        }
        __syncthreads();
        // Everybody checked before anybody sends the next phase.
        if (threadIdx.x == 0) {
            nvshmem_quiet();
            for (int pe = 0; pe < npes; ++pe) nvshmemx_signal_op(done, 1, NVSHMEM_SIGNAL_ADD, pe);
            good = wait_at_least(done, uint64_t(phase + 1) * npes, trouble);
        }
        __syncthreads();
        if (!good) return;
    }
    nvshmem_quiet();
}

GPU_CASE(signal_add, "signal", 7, 90) {
    const Job& job = run.job;
    uint32_t phases = run.scaled(150, 4), each = 24, bytes = 333;
    const size_t room = size_t(job.npes) * each * bytes;
    Symmetric<char> dest(room), source(room + phases);
    Symmetric<uint64_t> counter(1), done(1);
    DeviceTrouble trouble;
    uint64_t seed = run.seed;
    int me = job.pe, npes = job.npes;
    fill(job, source.get(), source.bytes(), pattern_key(seed, me));
    meet(job, run.name);
    char* d = dest.get();
    const char* s = source.get();
    uint64_t *c = counter.get(), *o = done.get();
    Trouble* t = trouble.get();
    void* arguments[] = {&d, &s, &c, &o, &seed, &me, &npes, &phases, &each, &bytes, &t};
    launch_together(job, reinterpret_cast<const void*>(add_phases), dim3(1), dim3(256), arguments);
    run.check(trouble, "phases (place = phase << 32 | byte)");
    meet(job, run.name);
    if (counter.read()[0] != uint64_t(phases) * each * npes) run.fail("counter %llu", (unsigned long long)counter.read()[0]);
    run.add_digest(digest(job, dest.get(), room));
    run.add_digest(counter.read()[0]);
    meet(job, run.name);
}

}  // namespace
}  // namespace gpu_ops
