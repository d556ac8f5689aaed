// SPDX-License-Identifier: Apache-2.0
// Reductions of reals.
#include "nvshmem_ops_reduce.h"

namespace gpu_ops {
namespace {

REDUCE_FORMS(float, float, sum)
REDUCE_FORMS(double, double, min)

void check_these(Run& run, Where where) {
    check_reduce<Sum, float>(run, where, "float sum", float_sum_run);
    check_reduce<Min, double>(run, where, "double min", double_min_run);
}

GPU_CASE(reduce_real_host, "coll", 52, 120) { check_these(run, Where::kHost); }
GPU_CASE(reduce_real_stream, "coll", 53, 120) { check_these(run, Where::kStream); }
GPU_CASE(reduce_real_device, "coll", 54, 120) { check_these(run, Where::kDevice); }

}  // namespace
}  // namespace gpu_ops
