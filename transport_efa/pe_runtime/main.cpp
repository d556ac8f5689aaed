// SPDX-License-Identifier: Apache-2.0
// nvshmem-efa-pe: one PE, or several, of the demo or the conformance run. docs/pe-runtime.md.
#include <signal.h>

#include <cstdio>

#include "program.h"

int main(int argc, char** argv) {
    using namespace nvshmem_efa::pe;
    signal(SIGPIPE, SIG_IGN);  // a reader that went away is an error code, not the end
    ProgramOptions options;
    if (const auto status = parse_arguments(argc, argv, &options); !status.ok()) {
        std::fprintf(stderr, "%s\n", status.message());
        return 2;
    }
    switch (options.action) {
        case ProgramOptions::Action::kHelp: std::fputs(kUsage, stdout); return 0;
        case ProgramOptions::Action::kVersion: std::puts(NVSHMEM_EFA_VERSION); return 0;
        default: return options.spawn ? run_spawned(options) : run_pe(options);
    }
}
