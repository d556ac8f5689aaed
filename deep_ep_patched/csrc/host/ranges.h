// SPDX-License-Identifier: Apache-2.0
// Arguments that lie outside their range, named.
#pragma once

#include "status.h"

namespace nvshmem_efa::ep {

inline Status in_range(const char* what, int64_t value, int64_t low, int64_t high) {
    if (value >= low && value <= high) return Status();
    return Status::error(Code::kInvalidArgument, nullptr, "%s is %lld; it must be %lld to %lld", what, static_cast<long long>(value),
                         static_cast<long long>(low), static_cast<long long>(high));
}

}  // namespace nvshmem_efa::ep
