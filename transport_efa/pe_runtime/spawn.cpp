// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <vector>

#include "clock.h"
#include "program.h"

namespace nvshmem_efa::pe {
namespace {

constexpr uint64_t kGraceMs = 3000;  // beyond the deadline, for those who must notice that a PE failed

std::string random_job() {
    unsigned char bytes[16] = {};
    if (getrandom(bytes, sizeof bytes, 0) != static_cast<ssize_t>(sizeof bytes)) return "";
    std::string name;
    for (const unsigned char byte : bytes) {
        char hex[3];
        std::snprintf(hex, sizeof hex, "%02x", byte);
        name += hex;
    }
    return name;
}

int code_of(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : 5; }

struct Child {
    pid_t pid = -1;
    bool is_running = false;
};

// Takes up the children that have ended. Returns the code of the first failure seen so far.
int reap(std::vector<Child>& children, int first_failure) {
    for (size_t pe = 0; pe < children.size(); ++pe) {
        int status = 0;
        if (!children[pe].is_running || waitpid(children[pe].pid, &status, WNOHANG) != children[pe].pid) continue;
        children[pe].is_running = false;
        if (WIFSIGNALED(status)) std::fprintf(stderr, "PE %zu was ended by signal %d\n", pe, WTERMSIG(status));
        if (!first_failure) first_failure = code_of(status);
    }
    return first_failure;
}

bool any_running(const std::vector<Child>& children) {
    for (const Child& child : children)
        if (child.is_running) return true;
    return false;
}

void kill_all(std::vector<Child>& children) {
    for (Child& child : children)
        if (child.is_running) {
            (void)kill(child.pid, SIGKILL);
            (void)waitpid(child.pid, nullptr, 0);
            child.is_running = false;
        }
}

}  // namespace

int run_spawned(const ProgramOptions& options) {
    ProgramOptions child_options = options;
    child_options.pe.job = random_job();
    child_options.pe.n_pes = options.spawn;
    std::vector<Child> children(static_cast<size_t>(options.spawn));
    const pid_t parent = getpid();
    for (size_t pe = 0; pe < children.size(); ++pe) {
        const pid_t pid = fork();
        if (pid < 0) {
            std::fprintf(stderr, "cannot start PE %zu: %s; hint: raise the limit of processes (ulimit -u)\n", pe,
                         strerror(errno));
            kill_all(children);
            return 3;
        }
        if (pid == 0) {
            (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (getppid() != parent) _exit(5);  // it died before the line above
            child_options.pe.pe = static_cast<int>(pe);
            const int code = run_pe(child_options);
            std::fflush(nullptr);
            std::exit(code);
        }
        children[pe] = {pid, true};
    }
    int first_failure = 0;
    uint64_t kill_at_ns = 0;
    for (uint32_t turn = 0; any_running(children); ++turn) {
        first_failure = reap(children, first_failure);
        const uint64_t now = real_clock().now_ns();
        if (first_failure && !kill_at_ns) kill_at_ns = now + (options.pe.timeout_ms + kGraceMs) * 1'000'000;
        if (kill_at_ns && now > kill_at_ns) {
            std::fprintf(stderr, "PEs that did not end in time were killed\n");
            kill_all(children);
        }
        usleep(2000);
    }
    return first_failure;
}

}  // namespace nvshmem_efa::pe
