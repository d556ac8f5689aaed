// SPDX-License-Identifier: Apache-2.0
// errno of a verbs call as a Status.
#pragma once

#include <string>

#include "status.h"

namespace nvshmem_efa::verbs {

// "<call> failed on <device>: <what>: <errno text>". `error` is an errno value of either sign; 0 counts as EIO, for
// calls that returned null without one. `hint` null: one is chosen by the errno.
Status call_failed(const std::string& device, const char* call, const std::string& what, int error,
                   const char* hint = nullptr);

Code code_of_errno(int error);
std::string errno_text(int error);  // "Cannot allocate memory (errno 12)"

}  // namespace nvshmem_efa::verbs
