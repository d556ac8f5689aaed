// SPDX-License-Identifier: Apache-2.0
// Atomics started by the host: all PEs on the words of each PE.
#include "nvshmem_ops.h"

namespace gpu_ops {
namespace {

GPU_CASE(amo_host, "amo_host", 94, 60) {
    // "not implemented" over P2P and over remote transports alike, and the host library goes on with wrong values.
    throw Skip{"NVSHMEM 3.4.5 does not implement atomics of the host"};
    const Job& job = run.job;
    const int times = 50;
    Symmetric<uint64_t> words(8);
    Symmetric<int> small(8);
    words.write({5, 0, 0, 0xfffffff0ull, 0, 0, 77, 0});
    small.write({-3, 0, 0, 0, 0, 0, 0, 77});
    meet(job, run.name);
    uint64_t drawn = 0;
    for (int time = 0; time < times; ++time)
        for (int shift = 0; shift < job.npes; ++shift) {
            const int pe = run.peer(shift);
            nvshmem_uint64_atomic_add(words.get(), 3, pe);
            nvshmem_uint64_atomic_inc(words.get() + 1, pe);
            const uint64_t ticket = nvshmem_uint64_atomic_fetch_add(words.get() + 3, 1, pe) - 0xfffffff0ull;
            if (ticket >= uint64_t(times) * job.npes) run.fail("fetch_add gave ticket %llu", (unsigned long long)ticket);
            drawn += ticket;
            nvshmem_int_atomic_add(small.get(), -2, pe);
            nvshmem_uint64_atomic_or(words.get() + 4, 1ull << (job.pe * 8 + time % 8), pe);
            uint64_t seen = nvshmem_uint64_atomic_fetch(words.get() + 5, pe);
            for (;;) {
                const uint64_t before = nvshmem_uint64_atomic_compare_swap(words.get() + 5, seen, seen + 1, pe);
                if (before == seen) break;
                seen = before;
            }
        }
    meet(job, run.name);
    const uint64_t all = uint64_t(times) * job.npes;
    const std::vector<uint64_t> got = words.read();
    const std::vector<int> got_small = small.read();
    uint64_t bits = 0;
    for (int pe = 0; pe < job.npes; ++pe) bits |= 0xffull << (pe * 8);
    const uint64_t wanted[8] = {5 + 3 * all, all, 0, 0xfffffff0ull + all, bits, all, 77, 0};
    for (int i = 0; i < 8; ++i)
        if (got[i] != wanted[i]) run.fail("word %d is 0x%llx, not 0x%llx", i, (unsigned long long)got[i], (unsigned long long)wanted[i]);
    if (got_small[0] != -3 - 2 * int(all)) run.fail("int is %d", got_small[0]);
    // All tickets of all PEs' words together: each drawn once.
    Symmetric<uint64_t> sum(1);
    meet(job, run.name);
    nvshmem_uint64_atomic_add(sum.get(), drawn, 0);
    meet(job, run.name);
    const uint64_t tickets = all * (all - 1) / 2 * job.npes;
    if (job.pe == 0 && sum.read()[0] != tickets) run.fail("tickets sum to %llu", (unsigned long long)sum.read()[0]);
    for (uint64_t word : got) run.add_digest(word);
    meet(job, run.name);
}

}  // namespace
}  // namespace gpu_ops
