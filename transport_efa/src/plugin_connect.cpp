// SPDX-License-Identifier: Apache-2.0
#include <climits>

#include "cuda_driver.h"
#include "log.h"
#include "module_registry.h"
#include "nvshmem_locate.h"
#include "plugin.h"
#include "start_line.h"

namespace nvshmem_efa::plugin {

namespace {

Status boot_allgather(abi::BootstrapHandle* boot, const void* send, void* recv, size_t bytes_per_pe) {
    if (bytes_per_pe > INT_MAX) {
        return Status::error(Code::kInternal, kReportHint, "an allgather of %zu bytes per PE is too long", bytes_per_pe);
    }
    const int result = boot->allgather(send, recv, static_cast<int>(bytes_per_pe), boot);
    if (result == 0) return Status();
    return Status::error(Code::kPeer, "look at the other PEs' first error",
                         "the job's bootstrap failed an allgather of %zu bytes on PE %d (it returned %d)", bytes_per_pe,
                         boot->pg_rank, result);
}

Status boot_barrier(abi::BootstrapHandle* boot) {
    const int result = boot->barrier(boot);
    if (result == 0) return Status();
    return Status::error(Code::kPeer, "look at the other PEs' first error",
                         "the job's bootstrap failed a barrier on PE %d (it returned %d)", boot->pg_rank, result);
}

Status check_boot(const abi::BootstrapHandle* boot) {
    if (boot && boot->allgather && boot->barrier && boot->pg_size > 0 && boot->pg_rank >= 0 &&
        boot->pg_rank < boot->pg_size) {
        return Status();
    }
    return Status::error(Code::kInvalidArgument, kReportHint,
                         "connect_endpoints was called without a usable bootstrap handle");
}

// Modules find the device state in symbols of their own, where there is one.
Status publish_state(PluginState& state) {
    const void* at_posters = nullptr;
    const Status has_state = state.transport->device_state(&at_posters);
    if (!has_state.ok()) return Status();  // no queues for the GPU were asked for
    state.has_published_state = true;
    return module_registry_publish(at_posters, cuda::memory_kind_of(at_posters));
}

}  // namespace

Status agree_on_mode(Mode mode, const std::string& detail, int abi, abi::BootstrapHandle* boot) {
    EFA_TRY(check_boot(boot));
    const ModeHeader own = make_mode_header(mode, detail, abi);
    std::vector<ModeHeader> all(static_cast<size_t>(boot->pg_size));
    EFA_TRY(boot_allgather(boot, &own, all.data(), sizeof own));
    return check_mode_headers(own, boot->pg_rank, all.data(), boot->pg_size);
}

Status connect(PluginState& state, abi::BootstrapHandle* boot, int my_pe, int n_pes) {
    EFA_TRY(check_boot(boot));
    if (boot->pg_rank != my_pe || boot->pg_size != n_pes) {
        return Status::error(Code::kInternal, kReportHint,
                             "the host says PE %d of %d, its bootstrap %d of %d", my_pe, n_pes, boot->pg_rank,
                             boot->pg_size);
    }
    log_set_pe(my_pe);
    EFA_TRY(agree_on_mode(state.mode, "", state.abi, boot));
    Bootstrap bootstrap;
    bootstrap.pe = my_pe;
    bootstrap.n_pes = n_pes;
    bootstrap.allgather = [boot](const void* send, void* recv, size_t bytes) {
        return boot_allgather(boot, send, recv, bytes);
    };
    bootstrap.barrier = [boot] { return boot_barrier(boot); };
    EFA_TRY(state.transport->connect(bootstrap));
    state.my_pe = my_pe;
    state.n_pes = n_pes;
    {
        // Now, on this thread: registering pins memory, which may not happen beside a spinning kernel.
        const std::lock_guard<std::mutex> lock(state.scratch.mutex);
        EFA_TRY(prepare_scratch(state));
    }
    EFA_TRY(publish_state(state));
    if (my_pe == 0) {
        const StartFacts facts{mode_name(state.mode), state.transport->describe(), n_pes, state.abi, nvshmem_version()};
        EFA_LOG(kInfo, "start", "%s", start_line(facts).c_str());
    }
    return Status();
}

Status assign_qps(PluginState& state, int* out_qp_indices, int n_qps) {
    if (n_qps < 0 || n_qps > INT_MAX - state.next_qp) {
        return Status::error(Code::kInvalidArgument, kReportHint, "%d queue pairs were asked for", n_qps);
    }
    for (int i = 0; out_qp_indices && i < n_qps; ++i) out_qp_indices[i] = state.next_qp++;
    return Status();
}

}  // namespace nvshmem_efa::plugin
