// SPDX-License-Identifier: Apache-2.0
#include "nvshmem_ops_rma.h"

#include <cstdio>

namespace gpu_ops {

void check_plan(Run& run, bool get, int count, size_t max_bytes, const Issue& issue) {
    const Job& job = run.job;
    const size_t source_bytes = 1 << 20;
    size_t room = 0;
    std::vector<std::vector<Op>> plans(job.npes * job.npes);  // [doer][shift]
    for (int doer = 0; doer < job.npes; ++doer)
        for (int shift = 1; shift < job.npes; ++shift) {
            size_t extent = 0;
            plans[doer * job.npes + shift] =
                random_plan(mix2(run.seed, doer * 64 + shift), count, max_bytes, source_bytes, &extent);
            room = extent > room ? extent : room;
        }
    Symmetric<char> dest(room), source(source_bytes);
    Device<char> expected(room);
    DeviceTrouble trouble;
    fill(job, source.get(), source_bytes, pattern_key(run.seed, job.pe));
    for (int shift = 1; shift < job.npes; ++shift) {
        char where[64];
        snprintf(where, sizeof where, "%s: shift %d", run.name, shift);
        const uint64_t poison = pattern_key(mix2(run.seed, shift), kPoisonPe);
        // A put lands at the peer, so what is here was done by the PE before us; a get is our own doing.
        const int doer = get ? job.pe : run.peer(-shift);
        const int owner = get ? run.peer(shift) : doer;
        const std::vector<Op>& mine = plans[job.pe * job.npes + shift];
        Device<Op> my_ops(mine), done_ops(plans[doer * job.npes + shift]);
        fill(job, dest.get(), room, poison);
        fill(job, expected.get(), room, poison);
        paint(job, expected.get(), done_ops.get(), count, pattern_key(run.seed, owner));
        meet(job, where);
        issue(Round{dest.get(), source.get(), my_ops.get(), &mine, count, run.peer(shift), shift});
        meet(job, where);
        compare(job, dest.get(), expected.get(), room, trouble.get());
        run.check(trouble, where);
        run.add_digest(digest(job, dest.get(), room));
        meet(job, where);
    }
}

void check_large(Run& run, bool get, const Issue& issue) {
    const Job& job = run.job;
    const size_t kMiB = 1 << 20;
    std::vector<size_t> sizes = {1, 4097, kMiB - 1, kMiB, 16 * kMiB + 7, 64 * kMiB - 3, 256 * kMiB};
    while (sizes.size() > 1 && sizes.back() > job.max_bytes) sizes.pop_back();
    const size_t room = sizes.back() + 256;
    Symmetric<char> dest(room), source(room);
    Device<char> expected(room);
    DeviceTrouble trouble;
    fill(job, source.get(), room, pattern_key(run.seed, job.pe));
    for (size_t i = 0; i < sizes.size(); ++i) {
        char where[64];
        snprintf(where, sizeof where, "%s: %zu bytes", run.name, sizes[i]);
        const int shift = 1 + static_cast<int>(i) % (job.npes - 1);
        const std::vector<Op> ops = {{5 + 2 * i, 3 + 4 * i, sizes[i]}};
        const uint64_t poison = pattern_key(mix2(run.seed, i), kPoisonPe);
        Device<Op> device_ops(ops);
        fill(job, dest.get(), room, poison);
        fill(job, expected.get(), room, poison);
        fill(job, expected.get() + ops[0].dest, ops[0].bytes, pattern_key(run.seed, run.peer(get ? shift : -shift)),
             ops[0].source);
        meet(job, where);
        issue(Round{dest.get(), source.get(), device_ops.get(), &ops, 1, run.peer(shift), static_cast<int>(i)});
        meet(job, where);
        compare(job, dest.get(), expected.get(), room, trouble.get());
        run.check(trouble, where);
        run.add_digest(digest(job, dest.get(), room));
        meet(job, where);
    }
}

void check_strided(Run& run, const IssueStrided& issue) {
    const Job& job = run.job;
    const size_t kCount = 301, kDest = 3, kSource = 2, room = kCount * 4 * sizeof(int);
    Symmetric<char> dest(room), source(room);
    Device<char> expected(room);
    DeviceTrouble trouble;
    std::vector<Op> ops;
    for (size_t i = 0; i < kCount; ++i) ops.push_back({i * kDest * sizeof(int), i * kSource * sizeof(int), sizeof(int)});
    Device<Op> device_ops(ops);
    fill(job, source.get(), room, pattern_key(run.seed, job.pe));
    for (bool get : {false, true}) {
        const char* where = get ? "iget" : "iput";
        const uint64_t poison = pattern_key(mix2(run.seed, get), kPoisonPe);
        fill(job, dest.get(), room, poison);
        fill(job, expected.get(), room, poison);
        paint(job, expected.get(), device_ops.get(), kCount, pattern_key(run.seed, run.peer(get ? 1 : -1)));
        meet(job, where);
        issue(reinterpret_cast<int*>(dest.get()), reinterpret_cast<const int*>(source.get()), kDest, kSource, kCount,
              run.peer(1), get);
        meet(job, where);
        compare(job, dest.get(), expected.get(), room, trouble.get());
        run.check(trouble, where);
        run.add_digest(digest(job, dest.get(), room));
        meet(job, where);
    }
}

}  // namespace gpu_ops
