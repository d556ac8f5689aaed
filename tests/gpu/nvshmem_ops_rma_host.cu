// SPDX-License-Identifier: Apache-2.0
// The same plans started by the host: blocking, nbi, on a stream.
#include "nvshmem_ops_rma.h"

namespace gpu_ops {
namespace {

template <class F>
void each(const Round& round, F&& call) {
    for (const Op& op : *round.ops) call(round.dest + op.dest, round.source + op.source, op.bytes, round.pe);
}

GPU_CASE(put_host, "host", 30, 60) {
    check_plan(run, false, 200, 64 << 10, [&](const Round& round) { each(round, nvshmem_putmem); });
}
GPU_CASE(put_nbi_host, "host", 31, 60) {
    check_plan(run, false, 200, 64 << 10, [&](const Round& round) { each(round, nvshmem_putmem_nbi); });
}
GPU_CASE(get_host, "host", 32, 60) {
    check_plan(run, true, 200, 64 << 10, [&](const Round& round) { each(round, nvshmem_getmem); });
}
GPU_CASE(get_nbi_host, "host", 33, 60) {
    check_plan(run, true, 200, 64 << 10, [&](const Round& round) {
        each(round, nvshmem_getmem_nbi);
        nvshmem_quiet();
    });
}
GPU_CASE(put_stream, "stream", 34, 60) {
    check_plan(run, false, 200, 64 << 10, [&](const Round& round) {
        each(round, [&](void* d, const void* s, size_t n, int pe) { nvshmemx_putmem_on_stream(d, s, n, pe, run.job.stream); });
    });
}
GPU_CASE(put_nbi_stream, "stream", 35, 60) {
    check_plan(run, false, 200, 64 << 10, [&](const Round& round) {
        each(round, [&](void* d, const void* s, size_t n, int pe) { nvshmemx_putmem_nbi_on_stream(d, s, n, pe, run.job.stream); });
        nvshmemx_quiet_on_stream(run.job.stream);
    });
}
GPU_CASE(get_stream, "stream", 36, 60) {
    check_plan(run, true, 200, 64 << 10, [&](const Round& round) {
        each(round, [&](void* d, const void* s, size_t n, int pe) { nvshmemx_getmem_on_stream(d, s, n, pe, run.job.stream); });
    });
}
GPU_CASE(get_nbi_stream, "stream", 37, 60) {
    check_plan(run, true, 200, 64 << 10, [&](const Round& round) {
        each(round, [&](void* d, const void* s, size_t n, int pe) { nvshmemx_getmem_nbi_on_stream(d, s, n, pe, run.job.stream); });
        nvshmemx_quiet_on_stream(run.job.stream);
    });
}

GPU_CASE(put_host_large, "large", 64, 90) {
    check_large(run, false, [&](const Round& round) { each(round, nvshmem_putmem); });
}
GPU_CASE(get_host_large, "large", 65, 90) {
    check_large(run, true, [&](const Round& round) { each(round, nvshmem_getmem); });
}
GPU_CASE(put_stream_large, "large", 66, 90) {
    check_large(run, false, [&](const Round& round) {
        each(round, [&](void* d, const void* s, size_t n, int pe) { nvshmemx_putmem_on_stream(d, s, n, pe, run.job.stream); });
    });
}
GPU_CASE(get_stream_large, "large", 67, 90) {
    check_large(run, true, [&](const Round& round) {
        each(round, [&](void* d, const void* s, size_t n, int pe) { nvshmemx_getmem_on_stream(d, s, n, pe, run.job.stream); });
    });
}

// Single elements: p and g of the host, and on a stream.
void check_elements(Run& run, bool on_stream) {
    const Job& job = run.job;
    const int kCount = 64;
    Symmetric<uint64_t> words(kCount), results(kCount);
    Symmetric<double> reals(kCount);
    const int to = run.peer(1), from = run.peer(-1);
    for (int i = 0; i < kCount; ++i) {
        const uint64_t value = mix2(run.seed, job.pe * 1000 + i);
        if (on_stream) {
            nvshmemx_uint64_p_on_stream(words.get() + i, value, to, job.stream);
            nvshmemx_double_p_on_stream(reals.get() + i, job.pe * 1000 + i + 0.25, to, job.stream);
        } else {
            nvshmem_uint64_p(words.get() + i, value, to);
            nvshmem_double_p(reals.get() + i, job.pe * 1000 + i + 0.25, to);
        }
    }
    meet(job, "p");
    const std::vector<uint64_t> got = words.read();
    const std::vector<double> got_reals = reals.read();
    for (int i = 0; i < kCount; ++i) {
        const uint64_t wanted = mix2(run.seed, from * 1000 + i);
        if (got[i] != wanted) run.fail("p: word %d is %llx, not %llx", i, (unsigned long long)got[i], (unsigned long long)wanted);
        if (got_reals[i] != from * 1000 + i + 0.25) run.fail("p: double %d is %g", i, got_reals[i]);
        // What the peer holds was put there by us. Without P2P, NVSHMEM 3.4.5 has no g of the host, nor on a stream.
        if (!job.p2p) continue;
        const uint64_t back = on_stream ? nvshmemx_uint64_g_on_stream(words.get() + i, to, job.stream)
                                        : nvshmem_uint64_g(words.get() + i, to);
        if (back != mix2(run.seed, job.pe * 1000 + i)) run.fail("g: word %d is %llx", i, (unsigned long long)back);
    }
    for (int i = 0; i < kCount; ++i) run.add_digest(got[i]);
    meet(job, "g");
}
GPU_CASE(p_g_host, "host", 38, 60) { check_elements(run, false); }
GPU_CASE(p_g_stream, "stream", 39, 60) {
    // Seen on 3.4.5: p_on_stream hands the transport the address of its own parameter, which is gone by then. We refuse
    // such a put by name ("local buffer ... is not registered") instead of sending whatever lies there.
    if (!run.job.p2p) throw Skip{"NVSHMEM 3.4.5's p_on_stream and g_on_stream work over P2P only"};
    check_elements(run, true);
}

GPU_CASE(strided_host, "strided", 91, 60) {
    if (!run.job.p2p) throw Skip{"NVSHMEM's host iput and iget work over P2P only"};
    check_strided(run, [&](int* dest, const int* source, ptrdiff_t dst, ptrdiff_t sst, size_t count, int pe, bool get) {
        if (get) nvshmem_int_iget(dest, source, dst, sst, count, pe);
        else nvshmem_int_iput(dest, source, dst, sst, count, pe);
    });
}
GPU_CASE(strided_stream, "strided", 92, 60) {
    if (!run.job.p2p) throw Skip{"NVSHMEM's host iput and iget work over P2P only"};
    check_strided(run, [&](int* dest, const int* source, ptrdiff_t dst, ptrdiff_t sst, size_t count, int pe, bool get) {
        if (get) nvshmemx_int_iget_on_stream(dest, source, dst, sst, count, pe, run.job.stream);
        else nvshmemx_int_iput_on_stream(dest, source, dst, sst, count, pe, run.job.stream);
    });
}

}  // namespace
}  // namespace gpu_ops
