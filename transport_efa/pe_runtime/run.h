// SPDX-License-Identifier: Apache-2.0
// What the phases of a program share.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "metered_lane.h"
#include "oracle.h"
#include "pe.h"
#include "record.h"

namespace nvshmem_efa::pe {

struct DemoOptions {
    uint64_t seed = 1;
    uint32_t tokens = 128;
    uint32_t hidden_bytes = 7168;
    uint32_t topk = 4;
    uint32_t experts = 16;
    uint32_t rounds = 3;
};

struct RunOptions {
    DemoOptions demo;
    bool is_quick = false;
    int progress_fd = -1;
    bool corrupt = false;   // tests: PE 0 flips a byte before it checks
    bool in_place = false;  // tests: experts change tokens where they arrived
    std::string die_at;     // tests: PE die_pe kills itself at this phase
    int die_pe = -1;
};

struct Run {
    Run(Pe& pe_in, const RunOptions& options_in)
        : pe(pe_in), options(options_in), host(pe_in, false), proxy(pe_in, true) {}

    // Runs one phase: progress, its time, and the test hook that kills a PE. A barrier ends it.
    Status phase(const char* name, const std::function<Status()>& body);
    // Runs `work` on the application's thread with the host lane and on a thread of its own, a "kernel", with the proxy's.
    Status on_both_lanes(const std::function<Status(Lane&)>& work);
    Status on_two_threads(const std::function<Status()>& application, const std::function<Status()>& kernel);
    template <class T>
    Status allocate(size_t count, T** block) {
        void* raw = nullptr;
        EFA_TRY(pe.malloc(count * sizeof(T), &raw));
        *block = static_cast<T*>(raw);
        return Status();
    }

    Pe& pe;
    const RunOptions& options;
    Lane host, proxy;
    Checker checker;
    int phases_total = 0;
    int phases_done = 0;
    std::vector<std::pair<std::string, double>> phase_ms;
};

// Each is collective. A wrong byte is counted in run.checker; a Status is something else that failed.
Status run_demo(Run& run);
Status run_conformance(Run& run);

Status demo_ops(Run& run);
Status demo_amos(Run& run);
Status demo_exchange(Run& run);
Status demo_latency(Run& run);

}  // namespace nvshmem_efa::pe
