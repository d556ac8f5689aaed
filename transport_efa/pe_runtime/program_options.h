// SPDX-License-Identifier: Apache-2.0
// The command line of nvshmem-efa-pe. What it means: docs/pe-runtime.md.
#pragma once

#include <string>

#include "pe.h"
#include "run.h"

namespace nvshmem_efa::pe {

struct ProgramOptions {
    enum class Action { kDemo, kCheck, kHelp, kVersion };
    Action action = Action::kHelp;
    PeOptions pe;
    RunOptions run;
    int spawn = 0;  // number of PEs to start; 0: this process is one
    int record_fd = 1;
};

inline constexpr const char* kUsage =
    "usage: nvshmem-efa-pe demo|check --plugin FILE (--job NAME --pe I --pes N | --spawn N) [options]\n"
    "  --abi N          plugin ABI: 3, 4, 5, 6 or 7 (3)\n"
    "  --seed S         seed of every random choice (1)\n"
    "  --tokens T --hidden BYTES --topk K --experts E --rounds R   the token exchange (128, 7168, 4, 16, 3)\n"
    "  --heap-mb M      symmetric heap at the start (64)\n"
    "  --timeout-ms MS  deadline of every wait (30000)\n"
    "  --record-fd FD   where the JSON record goes (1)      --progress-fd FD   where progress goes (none)\n"
    "  --quick          check: fewer sizes\n"
    "The plugin's settings are NVSHMEM_EFA_*; see docs/pe-runtime.md and docs/env.md.\n"
    "exit codes: 0 good, 1 wrong data, 2 usage or setting, 3 something is missing, 4 timed out or a peer died, 5 "
    "other\n";

// kInvalidArgument names the option that is wrong.
Status parse_arguments(int argc, char** argv, ProgramOptions* options);

}  // namespace nvshmem_efa::pe
