// SPDX-License-Identifier: Apache-2.0
// Plugin ABI 4 and 5 (NVSHMEM 3.5 and 3.6): host_ops at the end, QP indices, put_signal.
#pragma once

#include <vector>

#include "abi/nvshmem_abi.h"

namespace nvshmem_efa::abi::v4 {

using AmoVerb = AmoVerb3;
struct Transport;

struct HostOps {
    int (*can_reach_peer)(int* access, PeInfo* peer, Transport* t);
    int (*connect_endpoints)(Transport* t, int* selected_devices, int n_selected, int* out_qp_indices, int n_qps);
    int (*get_mem_handle)(MemHandleBytes* handle, void* buffer, size_t bytes, Transport* t, bool local_only);
    int (*release_mem_handle)(MemHandleBytes* handle, Transport* t);
    int (*finalize)(Transport* t);
    int (*show_info)(Transport* t, int style);
    int (*progress)(Transport* t);
    int (*rma)(Transport* t, int pe, RmaVerb verb, RmaMemdesc* remote, RmaMemdesc* local, RmaBytesdesc bytes, int qp_index);
    int (*amo)(Transport* t, int pe, void* ret, AmoVerb verb, AmoMemdesc* target, AmoBytesdesc bytes, int qp_index);
    int (*fence)(Transport* t, int pe, int qp_index, int is_multi);
    int (*quiet)(Transport* t, int pe, int qp_index);
    int (*put_signal)(Transport* t, int pe, RmaVerb verb, std::vector<RmaMemdesc>& remote, std::vector<RmaMemdesc>& local,
                      std::vector<RmaBytesdesc>& bytes, AmoVerb signal_verb, AmoMemdesc* signal,
                      AmoBytesdesc signal_bytes, int qp_index);
    int (*enforce_cst)(Transport* t);
    int (*enforce_cst_at_target)(Transport* t);
    int (*add_device_remote_mem_handles)(Transport* t, int stride, MemHandleBytes* handles, uint64_t heap_offset,
                                         size_t bytes);
};
static_assert(sizeof(HostOps) == 15 * 8);
static_assert(offsetof(HostOps, rma) == 7 * 8 && offsetof(HostOps, put_signal) == 11 * 8 &&
              offsetof(HostOps, enforce_cst) == 12 * 8 && offsetof(HostOps, enforce_cst_at_target) == 13 * 8 &&
              offsetof(HostOps, add_device_remote_mem_handles) == 14 * 8);
static_assert(sizeof(std::vector<RmaMemdesc>) == 24, "libstdc++'s vector, by reference, is part of the interface");

struct Transport {
    int api_version;
    int type;
    int* cap;
    BootstrapHandle* boot_handle;
    void* state;
    void* type_specific_shared_state;
    void* cache_handle;
    char** device_pci_paths;
    int attr;
    int n_devices;
    bool atomics_complete_on_quiet;
    bool is_successfully_initialized;
    bool no_proxy;
    void* heap_base;
    size_t log2_cumem_granularity;
    uint64_t max_op_len;
    uint32_t atomic_host_endian_min_size;
    int index;
    int my_pe;
    int n_pes;
    void* alias_va_map;
    void* egm_map;
    HostOps host_ops;
};
static_assert(offsetof(Transport, api_version) == 0x00 && offsetof(Transport, type) == 0x04 &&
              offsetof(Transport, cap) == 0x08 && offsetof(Transport, boot_handle) == 0x10 &&
              offsetof(Transport, state) == 0x18 && offsetof(Transport, type_specific_shared_state) == 0x20 &&
              offsetof(Transport, cache_handle) == 0x28 && offsetof(Transport, device_pci_paths) == 0x30 &&
              offsetof(Transport, attr) == 0x38 && offsetof(Transport, n_devices) == 0x3c);
static_assert(offsetof(Transport, atomics_complete_on_quiet) == 0x40 &&
              offsetof(Transport, is_successfully_initialized) == 0x41 && offsetof(Transport, no_proxy) == 0x42 &&
              offsetof(Transport, heap_base) == 0x48 && offsetof(Transport, log2_cumem_granularity) == 0x50 &&
              offsetof(Transport, max_op_len) == 0x58 && offsetof(Transport, atomic_host_endian_min_size) == 0x60 &&
              offsetof(Transport, index) == 0x64 && offsetof(Transport, my_pe) == 0x68 &&
              offsetof(Transport, n_pes) == 0x6c && offsetof(Transport, alias_va_map) == 0x70 &&
              offsetof(Transport, egm_map) == 0x78 && offsetof(Transport, host_ops) == 0x80);
static_assert(sizeof(Transport) <= kTransportBytesMin);

}  // namespace nvshmem_efa::abi::v4
