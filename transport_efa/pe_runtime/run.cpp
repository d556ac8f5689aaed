// SPDX-License-Identifier: Apache-2.0
#include "run.h"

#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <thread>

namespace nvshmem_efa::pe {
namespace {

void report(const Run& run, const char* name) {
    if (run.options.progress_fd < 0) return;
    char line[160];
    const int n = std::snprintf(line, sizeof line, "{\"pe\": %d, \"phase\": \"%s\", \"done\": %d, \"total\": %d}\n",
                                run.pe.id(), name, run.phases_done, run.phases_total);
    // Nobody may be reading; that is no reason to fail.
    if (write(run.options.progress_fd, line, static_cast<size_t>(n)) < 0) return;
}

}  // namespace

Status Run::phase(const char* name, const std::function<Status()>& body) {
    report(*this, name);
    if (options.die_at == name && options.die_pe == pe.id()) (void)raise(SIGKILL);
    const uint64_t start = real_clock().now_ns();
    EFA_TRY(body().with_context(name));
    host.meter().count(Op::kBarrier, 0);
    EFA_TRY(pe.barrier_all().with_context(name));
    phase_ms.emplace_back(name, static_cast<double>(real_clock().now_ns() - start) / 1e6);
    ++phases_done;
    if (phases_done == phases_total) report(*this, name);
    return Status();
}

Status Run::on_two_threads(const std::function<Status()>& application, const std::function<Status()>& kernel) {
    Status kernel_status;
    std::thread thread([&] {
        kernel_status = kernel();
        // A kernel that gives up must not leave the application waiting for it.
        if (!kernel_status.ok()) pe.fail(kernel_status);
    });
    Status status = application();
    if (!status.ok()) pe.fail(status);
    thread.join();
    return status.ok() ? std::move(kernel_status) : std::move(status);
}

Status Run::on_both_lanes(const std::function<Status(Lane&)>& work) {
    return on_two_threads([&] { return work(host); }, [&] { return work(proxy); });
}

Status run_demo(Run& run) {
    run.phases_total = 4;
    EFA_TRY(run.phase("ops", [&] { return demo_ops(run); }));
    EFA_TRY(run.phase("amos", [&] { return demo_amos(run); }));
    EFA_TRY(run.phase("exchange", [&] { return demo_exchange(run); }));
    return run.phase("latency", [&] { return demo_latency(run); });
}

}  // namespace nvshmem_efa::pe
