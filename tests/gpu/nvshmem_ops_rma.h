// SPDX-License-Identifier: Apache-2.0
// Drivers of the put and get cases: the same plan, the same check, whoever starts the operations.
#pragma once

#include "nvshmem_ops.h"

namespace gpu_ops {

// What one PE does in one round: `count` operations towards (or from) `pe`.
struct Round {
    char* dest;
    const char* source;
    const Op* device_ops;
    const std::vector<Op>* ops;
    int count;
    int pe;
    int shift;
};
using Issue = std::function<void(const Round&)>;

// Random operations of 1..max_bytes to (get: from) every other PE, all gaps checked. Puts need not be complete when
// `issue` returns, gets must be when the stream is synchronised.
void check_plan(Run& run, bool get, int count, size_t max_bytes, const Issue& issue);
// Single transfers of 1 B .. job.max_bytes (256 MiB) at odd places.
void check_large(Run& run, bool get, const Issue& issue);

using IssueStrided = std::function<void(int* dest, const int* source, ptrdiff_t dest_stride, ptrdiff_t source_stride,
                                        size_t count, int pe, bool get)>;
void check_strided(Run& run, const IssueStrided& issue);

}  // namespace gpu_ops
