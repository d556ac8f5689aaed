// SPDX-License-Identifier: Apache-2.0
// Reductions of whole numbers: arithmetic.
#include "nvshmem_ops_reduce.h"

namespace gpu_ops {
namespace {

REDUCE_FORMS(int, int, sum)
REDUCE_FORMS(longlong, long long, max)

void check_these(Run& run, Where where) {
    check_reduce<Sum, int>(run, where, "int sum", int_sum_run);
    check_reduce<Max, long long>(run, where, "longlong max", longlong_max_run);
}

GPU_CASE(reduce_int_host, "coll", 50, 120) { check_these(run, Where::kHost); }
GPU_CASE(reduce_int_stream, "coll", 51, 120) { check_these(run, Where::kStream); }
GPU_CASE(reduce_int_device, "coll", 52, 120) { check_these(run, Where::kDevice); }

}  // namespace
}  // namespace gpu_ops
