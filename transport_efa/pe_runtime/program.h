// SPDX-License-Identifier: Apache-2.0
// One PE as a program, and the launcher of several.
#pragma once

#include "program_options.h"

namespace nvshmem_efa::pe {

int exit_code_of(const Status& status);

// Runs this process as one PE and writes its record, whatever happens. Returns the exit code.
int run_pe(const ProgramOptions& options);

// Starts options.spawn PEs as children, which end when this process does, and waits for all. When one fails the others
// get a little time to say what they saw, then are killed. Returns the exit code of the first that failed.
int run_spawned(const ProgramOptions& options);

}  // namespace nvshmem_efa::pe
