// SPDX-License-Identifier: Apache-2.0
// What a program and the libraries that it opens agree on in the test of modules on a GPU (modules.cu).
#pragma once

#include <cstdint>

// What a kernel of this module sees, as module_probe.cu has it: {1 if there is a state, version, bytes, pe, n_pes}.
// False: a CUDA call failed; seen[1] is its error.
using LookFunction = bool (*)(int32_t seen[5]);
