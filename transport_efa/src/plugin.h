// SPDX-License-Identifier: Apache-2.0
// The plugin behind NVSHMEM's entry point: from the host library's calls, whatever their ABI, to a Transport.
//   plugin_init.cpp   the entry point: settings, mode, transport, the struct for the host
//   plugin_table.h    one set of entry points per ABI, nothing but argument shuffling
//   plugin_ops.cpp    rma, amo, put_signal, fence, quiet        plugin_memory.cpp  memory handles
//   plugin_connect.cpp  the collective part                     plugin_api.cpp     errors and the C API
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "abi/nvshmem_abi.h"
#include "mode.h"
#include "plugin_fuse.h"
#include "transport.h"

namespace nvshmem_efa::plugin {

// For what only a host library of another make than we know can cause.
inline constexpr const char* kReportHint = "report the NVSHMEM version: its plugin interface may have changed";

using CreateTransport = std::function<Status(TransportOptions, std::unique_ptr<Transport>*)>;

// Where the plugin gets its parts from; tests put recording fakes in.
struct PluginSources {
    ModeSources mode;
    CreateTransport create = Transport::create;
    std::string dev = "/dev";
};
PluginSources& plugin_sources();

// Memory that the plugin itself transfers to or from, registered at its first use.
struct Scratch {
    std::mutex mutex;
    std::unique_ptr<unsigned char[]> memory;
    MemHandle handle;
};
inline constexpr size_t kScratchBytes = 4096;

// One transport that the host library holds, from init to finalize. Hangs on the struct's `state`.
struct PluginState {
    std::unique_ptr<Transport> transport;
    Mode mode = Mode::kProxy;
    int abi = 0;
    int n_pes = 0;  // 0 until connect
    int my_pe = 0;
    int next_qp = 2;  // the next number for a queue pair that the program creates
    HeldPut held;  // used on ABI 3 alone
    Scratch scratch;
    std::mutex own_heap_mutex;
    MemHandle own_heap;  // the first heap chunk in GPU memory; bytes == 0 when there is none
    bool has_published_state = false;  // to modules
    std::string pci_path;
    char* pci_paths[2] = {};
};

// ---- plugin_api.cpp
// Prints a failure (once, here), remembers it for nvshmem_efa_last_error, and gives the host's number for it; 0 when ok.
int report(const Status& status, const char* operation) noexcept;
// The same without printing: for the C API, whose callers ask.
void remember(const Status& status) noexcept;
void publish_transport(PluginState* state);   // the C API shows it from now on
void withdraw_transport(PluginState* state);  // before it ends; its counts are kept
// ---- plugin_connect.cpp
Status connect(PluginState& state, abi::BootstrapHandle* boot, int my_pe, int n_pes);
// Gives numbers to queue pairs that the program creates (ABI 4 on). They share the proxy's queues.
Status assign_qps(PluginState& state, int* out_qp_indices, int n_qps);
// Allgathers and compares mode headers; the first thing that every PE does, whatever its mode.
Status agree_on_mode(Mode mode, const std::string& detail, int abi, abi::BootstrapHandle* boot);
// ---- plugin_memory.cpp
Status get_handle(PluginState& state, abi::MemHandleBytes* out, void* buffer, size_t bytes, bool is_local_only);
Status release_handle(PluginState& state, abi::MemHandleBytes* bytes);
// `handles`: per PE, `stride` of them, ours at `index`.
Status add_peer_handles(PluginState& state, const abi::MemHandleBytes* handles, int stride, int index);
// Null stays null. kProtocol for bytes that we did not make, or for which another version did.
Status open_handle(const abi::MemHandleBytes* bytes, const MemHandle** handle);
// ---- plugin_ops.cpp
struct AmoVerb {
    int desc = 0;
    bool is_float = false;
};
Status rma(PluginState& state, Lane lane, int pe, const abi::RmaVerb& verb, const abi::RmaMemdesc& remote,
           const abi::RmaMemdesc& local, const abi::RmaBytesdesc& bytes);
Status amo(PluginState& state, Lane lane, int pe, const AmoVerb& verb, const abi::AmoMemdesc& target,
           const abi::AmoBytesdesc& bytes);
struct SignalArgs {
    AmoVerb verb;
    const abi::AmoMemdesc* target = nullptr;
    abi::AmoBytesdesc bytes{};
};
Status put_signal(PluginState& state, Lane lane, int pe, const std::vector<abi::RmaMemdesc>& remote,
                  const std::vector<abi::RmaMemdesc>& local, const std::vector<abi::RmaBytesdesc>& bytes,
                  const SignalArgs& signal);
Status fence(PluginState& state, Lane lane, bool all_lanes, int pe);
Status quiet(PluginState& state, Lane lane, bool all_lanes, int pe);
Status progress(PluginState& state);
// Makes data that peers' devices wrote into this PE's GPU memory visible to its GPU.
Status flush_arrivals(PluginState& state);
// Registers the scratch memory at the first call. Call with scratch.mutex held.
Status prepare_scratch(PluginState& state);

}  // namespace nvshmem_efa::plugin

// The implementation of nvshmemt_init, in libnvshmem_efa.so. The plugin files hold nothing but a call to it.
extern "C" __attribute__((visibility("default"))) int nvshmem_efa_plugin_init(void** transport, void* cuda_table,
                                                                              int api_version) noexcept;
