// SPDX-License-Identifier: Apache-2.0
// One set of entry points per ABI: they shuffle arguments, find our state, and let no C++ exception out.
#pragma once

#include <type_traits>

#include "abi/abi3.h"
#include "abi/abi4.h"
#include "abi/abi6.h"
#include "log.h"
#include "plugin.h"

namespace nvshmem_efa::plugin {

// Runs `body` (returning Status), turns an exception into a named error, and gives the host's status number.
template <class Body>
int guarded(const char* operation, Body&& body) noexcept {
    try {
        return report(body(), operation);
    } catch (const std::bad_alloc&) {
        return report(Status::error(Code::kResource, nullptr, "out of memory"), operation);
    } catch (const std::exception& error) {
        return report(Status::error(Code::kInternal, nullptr, "unexpected exception: %s", error.what()), operation);
    } catch (...) {
        return report(Status::error(Code::kInternal, nullptr, "unexpected exception"), operation);
    }
}

void retire(PluginState* state);  // plugin_init.cpp: ends the transport; the struct stays readable until the next init

template <class Struct, class Verb, bool kHasQps>
struct EntryPoints {
    static PluginState& state_of(Struct* t) { return *static_cast<PluginState*>(t->state); }
    // From ABI 4 on: a QP number. Before: is_proxy, 0 or 1, and so the same rule.
    static Lane lane_of(int qp) { return qp == abi::kQpHost ? Lane::kHost : Lane::kProxy; }
    static bool is_all(int qp) { return kHasQps && qp == abi::kQpAll; }
    static AmoVerb verb_of(const Verb& verb) {
        if constexpr (std::is_same_v<Verb, abi::AmoVerb6>) return {verb.desc, verb.is_float != 0};
        return {verb.desc, false};
    }

    // The capabilities that NVSHMEM's own proxy-driven transports report: the CPU starts every operation. Claiming the
    // GPU ones would say that kernels may post without the proxy. Every peer is reachable, this PE and those that P2P
    // reaches included: NVSHMEM prefers P2P where it may use it, and needs us where it may not.
    static int can_reach_peer(int* access, abi::PeInfo*, Struct*) {
        if (!access) return abi::kHostInvalidValue;
        *access = abi::kCapCpuWrite | abi::kCapCpuRead | abi::kCapCpuAtomics;
        return abi::kHostOk;
    }
    static int connect_3(Struct* t, int*, int) {
        return guarded("connect_endpoints", [&] { return connect(state_of(t), t->boot_handle, t->my_pe, t->n_pes); });
    }
    // Called again, later, when the program creates queue pairs of its own.
    static int connect_4(Struct* t, int*, int, int* out_qps, int n_qps) {
        return guarded("connect_endpoints", [&] {
            PluginState& state = state_of(t);
            if (state.n_pes == 0) EFA_TRY(connect(state, t->boot_handle, t->my_pe, t->n_pes));
            return assign_qps(state, out_qps, n_qps);
        });
    }
    static int get_mem_handle(abi::MemHandleBytes* handle, void* buffer, size_t bytes, Struct* t, bool local_only) {
        return guarded("get_mem_handle", [&] { return get_handle(state_of(t), handle, buffer, bytes, local_only); });
    }
    static int release_mem_handle(abi::MemHandleBytes* handle, Struct* t) {
        return guarded("release_mem_handle", [&] { return release_handle(state_of(t), handle); });
    }
    static int add_device_remote_mem_handles(Struct* t, int stride, abi::MemHandleBytes* handles, uint64_t, size_t) {
        return guarded("add_device_remote_mem_handles",
                       [&] { return add_peer_handles(state_of(t), handles, stride, t->index); });
    }
    static int finalize(Struct* t) {
        return guarded("finalize", [&] {
            PluginState* const state = static_cast<PluginState*>(t->state);
            if (!state) return Status();
            t->state = nullptr;
            t->device_pci_paths = nullptr;
            t->n_devices = 0;
            retire(state);
            return Status();
        });
    }
    static int show_info(Struct* t, int) {
        return guarded("show_info", [&] {
            log_print(LogLevel::kInfo, "plugin", "%s", state_of(t).transport->describe().c_str());
            return Status();
        });
    }
    static int progress(Struct* t) {
        return guarded("progress", [&] { return plugin::progress(state_of(t)); });
    }
    static int rma(Struct* t, int pe, abi::RmaVerb verb, abi::RmaMemdesc* remote, abi::RmaMemdesc* local,
                   abi::RmaBytesdesc bytes, int qp) {
        return guarded("rma", [&] { return plugin::rma(state_of(t), lane_of(qp), pe, verb, *remote, *local, bytes); });
    }
    static int amo(Struct* t, int pe, void*, Verb verb, abi::AmoMemdesc* target, abi::AmoBytesdesc bytes, int qp) {
        return guarded("amo", [&] { return plugin::amo(state_of(t), lane_of(qp), pe, verb_of(verb), *target, bytes); });
    }
    static int fence_3(Struct* t, int pe, int is_proxy) {
        return guarded("fence", [&] { return plugin::fence(state_of(t), lane_of(is_proxy), false, pe); });
    }
    static int fence_4(Struct* t, int pe, int qp, int is_multi) {
        return guarded("fence", [&] { return plugin::fence(state_of(t), lane_of(qp), is_multi || is_all(qp), pe); });
    }
    static int quiet(Struct* t, int pe, int qp) {
        return guarded("quiet", [&] { return plugin::quiet(state_of(t), lane_of(qp), is_all(qp), pe); });
    }
    static int put_signal(Struct* t, int pe, abi::RmaVerb, std::vector<abi::RmaMemdesc>& remote,
                          std::vector<abi::RmaMemdesc>& local, std::vector<abi::RmaBytesdesc>& bytes, Verb verb,
                          abi::AmoMemdesc* target, abi::AmoBytesdesc signal_bytes, int qp) {
        return guarded("put_signal", [&] {
            const SignalArgs signal{verb_of(verb), target, signal_bytes};
            return plugin::put_signal(state_of(t), lane_of(qp), pe, remote, local, bytes, signal);
        });
    }
    static int enforce_cst(Struct* t) {
        return guarded("enforce_cst", [&] { return flush_arrivals(state_of(t)); });
    }

    // Fills what the plugin owns. enforce_cst_at_target stays null: it would cost every device-side wait a round trip
    // through the proxy.
    static void fill(Struct* t, PluginState* state, int api_version) {
        t->api_version = api_version;
        t->state = state;
        t->attr = abi::kAttrConnected;
        // One device, although we may use many rails: with more, the host library would choose among them by distance.
        t->n_devices = 1;
        t->device_pci_paths = state->pci_paths;
        t->is_successfully_initialized = true;
        auto& ops = t->host_ops;
        ops.can_reach_peer = can_reach_peer;
        ops.get_mem_handle = get_mem_handle;
        ops.release_mem_handle = release_mem_handle;
        ops.finalize = finalize;
        ops.show_info = show_info;
        ops.progress = progress;
        ops.rma = rma;
        ops.amo = amo;
        ops.quiet = quiet;
        ops.enforce_cst = enforce_cst;
        ops.add_device_remote_mem_handles = add_device_remote_mem_handles;
        if constexpr (kHasQps) {
            ops.connect_endpoints = connect_4;
            ops.fence = fence_4;
            ops.put_signal = put_signal;
        } else {
            ops.connect_endpoints = connect_3;
            ops.fence = fence_3;
        }
    }
};

using Entry3 = EntryPoints<abi::v3::Transport, abi::AmoVerb3, false>;
using Entry4 = EntryPoints<abi::v4::Transport, abi::AmoVerb3, true>;
using Entry6 = EntryPoints<abi::v6::Transport, abi::AmoVerb6, true>;

}  // namespace nvshmem_efa::plugin
