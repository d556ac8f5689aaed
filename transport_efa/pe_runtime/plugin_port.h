// SPDX-License-Identifier: Apache-2.0
// One plugin file, loaded, and spoken to in one version of NVSHMEM's plugin ABI. Knows how the versions differ and
// nothing else; who calls what when is pe.cpp's and proxy.cpp's.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "abi/nvshmem_abi.h"
#include "status.h"

namespace nvshmem_efa::pe {

// Which of the two threads calls: is_proxy 0 and 1 in ABI 3, QP HOST and DEFAULT from ABI 4.
enum class Caller : int { kHost = abi::kQpHost, kProxy = abi::kQpDefault };

// As NVSHMEM with its P2P transport built in and ours behind it: two transports, ours is the second.
inline constexpr int kTransportStride = 2;
inline constexpr int kTransportIndex = 1;

// What the host library writes into the plugin's struct after nvshmemt_init, before anything else is called.
struct HostFields {
    abi::BootstrapHandle* boot_handle = nullptr;
    void* heap_base = nullptr;
    size_t log2_cumem_granularity = 29;
    int* cap = nullptr;
    int my_pe = 0;
    int n_pes = 1;
};

struct RmaCall {
    abi::RmaOpcode opcode = abi::kOpPut;
    bool is_nbi = false;
    int pe = 0;
    abi::RmaMemdesc remote{};
    abi::RmaMemdesc local{};
    size_t n_elements = 0;
    int element_bytes = 1;
    ptrdiff_t local_stride = 1;  // in elements
    ptrdiff_t remote_stride = 1;
};

struct AmoCall {
    abi::AmoOpcode opcode = abi::kAmoSet;
    int pe = 0;
    int bytes = 8;
    bool is_float = false;  // ABI 6 on
    abi::AmoMemdesc target{};
};

class PluginPort {
   public:
    // dlopen, nvshmemt_init(api_version = abi * 10000), and a check that everything needed is there.
    static Status load(const std::string& path, int abi, std::unique_ptr<PluginPort>* port);
    virtual ~PluginPort() = default;  // finalizes the plugin if finalize() was not called, and unloads it

    virtual void share(const HostFields& fields) = 0;
    virtual int n_devices() const = 0;
    virtual bool has_put_signal() const = 0;
    virtual uint64_t max_op_bytes() const = 0;  // 0: unlimited

    virtual Status can_reach_peer(abi::PeInfo* peer, int* access) = 0;
    virtual Status connect_endpoints(std::vector<int>& devices) = 0;
    virtual Status get_mem_handle(abi::MemHandleBytes* handle, void* buffer, size_t bytes, bool local_only) = 0;
    virtual Status release_mem_handle(abi::MemHandleBytes* handle) = 0;
    // `handles`: kTransportStride for each PE. Nothing where the plugin has no such entry.
    virtual Status add_remote_handles(abi::MemHandleBytes* handles, uint64_t heap_offset, size_t bytes) = 0;
    virtual Status show_info() = 0;
    virtual Status finalize() = 0;

    virtual Status progress() = 0;
    virtual Status rma(Caller caller, RmaCall& call) = 0;
    virtual Status amo(Caller caller, AmoCall& call) = 0;
    virtual Status fence(Caller caller, int pe) = 0;
    virtual Status quiet(Caller caller, int pe) = 0;
    // ABI 4 on; from the proxy and, with QP HOST, from the application.
    virtual Status put_signal(Caller caller, std::vector<RmaCall>& puts, AmoCall& signal) = 0;

    // Mode and devices in words, or "" where the plugin does not say.
    virtual std::string describe() const = 0;
    // The plugin's counters as JSON, or "null" where it exports none. After finalize too.
    virtual std::string stats_json() const = 0;
    virtual const std::string& path() const = 0;
    virtual int api_version() const = 0;
};

}  // namespace nvshmem_efa::pe
