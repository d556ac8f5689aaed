// SPDX-License-Identifier: Apache-2.0
// nvshmem-efa-pci: an EFA function for a virtual machine. docs/efa-in-a-vm.md.
#include <signal.h>

#include <cstdio>

#include "program.h"

namespace {

volatile int g_stop = 0;

void on_signal(int) { g_stop = 1; }

}  // namespace

int main(int argc, char** argv) {
    using namespace nvshmem_efa;
    soft::pci::ProgramOptions options;
    if (const Status status = soft::pci::parse_arguments(argc, argv, &options); !status.ok()) {
        std::fprintf(stderr, "%s\n%s", status.message(), soft::pci::kUsage);
        return 2;
    }
    if (options.shows_help) return std::fputs(soft::pci::kUsage, stdout), 0;
    if (options.shows_version) return std::puts(NVSHMEM_EFA_VERSION), 0;

    signal(SIGPIPE, SIG_IGN);  // a virtual machine that went away is an error code, not the end
    sigset_t ends;
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigaddset(&ends, SIGINT);
    sigprocmask(SIG_BLOCK, &ends, nullptr);
    struct sigaction action {};
    action.sa_handler = on_signal;
    sigaction(SIGTERM, &action, nullptr);
    sigaction(SIGINT, &action, nullptr);

    std::unique_ptr<soft::pci::Program> program;
    Status status = soft::pci::Program::create(options, &program);
    if (status.ok()) status = program->run(g_stop);
    if (status.ok()) return 0;
    std::fprintf(stderr, "%s\n", status.message());
    return status.code() == Code::kConfig || status.code() == Code::kInvalidArgument ? 2 : 3;
}
