// SPDX-License-Identifier: Apache-2.0
// Reductions of whole numbers: bits.
#include "nvshmem_ops_reduce.h"

namespace gpu_ops {
namespace {

REDUCE_FORMS(uint64, uint64_t, xor)
REDUCE_FORMS(uint, unsigned, and)

void check_these(Run& run, Where where) {
    check_reduce<Xor, uint64_t>(run, where, "uint64 xor", uint64_xor_run);
    check_reduce<And, unsigned>(run, where, "uint and", uint_and_run);
}

GPU_CASE(reduce_bits_host, "coll", 51, 120) { check_these(run, Where::kHost); }
GPU_CASE(reduce_bits_stream, "coll", 52, 120) { check_these(run, Where::kStream); }
GPU_CASE(reduce_bits_device, "coll", 53, 120) { check_these(run, Where::kDevice); }

}  // namespace
}  // namespace gpu_ops
