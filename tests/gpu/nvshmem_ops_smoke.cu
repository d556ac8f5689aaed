// SPDX-License-Identifier: Apache-2.0
// The first thing to run on a new machine: one put, one signal, one p, one g, one atomic, each told apart.
#include "nvshmem_ops.h"

namespace gpu_ops {
namespace {

constexpr int kBytes = 1000;

__global__ void smoke_kernel(char* dest, const char* source, uint64_t* words, int peer, uint64_t* fetched, Trouble* trouble) {
    nvshmem_putmem(dest + 3, source + 5, kBytes, peer);
    nvshmem_quiet();
    nvshmem_uint64_p(words + 0, 0x1122334455667788ull, peer);
    nvshmem_quiet();
    nvshmem_uint64_atomic_add(words + 1, 41, peer);
    nvshmem_quiet();
    fetched[0] = nvshmem_uint64_atomic_fetch_add(words + 1, 1, peer);
    fetched[1] = nvshmem_uint64_g(words + 0, peer);
    nvshmem_putmem_signal(dest + 2048, source + 9, kBytes, words + 2, 7, NVSHMEM_SIGNAL_SET, peer);
    if (!wait_at_least(words + 2, 7, trouble)) return;
    nvshmem_quiet();
}

GPU_CASE(smoke, "smoke", 0, 60) {
    const Job& job = run.job;
    const int to = run.peer(1), from = run.peer(-1);
    Symmetric<char> dest(8192), source(8192);
    Symmetric<uint64_t> words(8);
    Device<uint64_t> fetched(2);
    Device<char> expected(8192);
    DeviceTrouble trouble;
    const void* mapped = nvshmem_ptr(dest.get(), to);
    if (!job.p2p && mapped) run.fail("PE %d is mapped at %p: P2P is on, so no transport is under test", to, mapped);
    if (job.p2p && !mapped) run.fail("PE %d is not mapped: this P2P baseline does not use P2P", to);

    const uint64_t poison = pattern_key(run.seed, kPoisonPe);
    fill(job, source.get(), 8192, pattern_key(run.seed, job.pe));
    fill(job, dest.get(), 8192, poison);
    fill(job, expected.get(), 8192, poison);
    Device<Op> ops(std::vector<Op>{{3, 5, kBytes}, {2048, 9, kBytes}});
    paint(job, expected.get(), ops.get(), 2, pattern_key(run.seed, from));
    meet(job, "smoke: ready");
    stage("smoke: put, p, atomic, g, put_signal from a kernel");
    smoke_kernel<<<1, 1, 0, job.stream>>>(dest.get(), source.get(), words.get(), to, fetched.get(), trouble.get());
    LAUNCH_CHECK();
    run.check(trouble, "kernel");
    meet(job, "smoke: done");
    compare(job, dest.get(), expected.get(), 8192, trouble.get());
    run.check(trouble, "what the puts left");
    const std::vector<uint64_t> seen = words.read(), got = fetched.read();
    const uint64_t want[3] = {0x1122334455667788ull, 42, 7};
    static const char* const kName[3] = {"p", "atomic add + fetch_add", "signal"};
    for (int i = 0; i < 3; ++i)
        if (seen[i] != want[i])
            run.fail("%s left 0x%llx, not 0x%llx", kName[i], (unsigned long long)seen[i], (unsigned long long)want[i]);
    if (got[0] != 41) run.fail("fetch_add returned %llu, not 41", (unsigned long long)got[0]);
    if (got[1] != want[0]) run.fail("g returned 0x%llx", (unsigned long long)got[1]);
    run.add_digest(digest(job, dest.get(), 8192));
    run.add_digest(seen[1]);
    meet(job, "smoke: end");
}

}  // namespace
}  // namespace gpu_ops
