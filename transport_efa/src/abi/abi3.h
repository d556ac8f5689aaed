// SPDX-License-Identifier: Apache-2.0
// Plugin ABI 3 (NVSHMEM 3.2 to 3.4.5): host_ops in the middle, is_proxy, no put_signal.
#pragma once

#include "abi/nvshmem_abi.h"

namespace nvshmem_efa::abi::v3 {

using AmoVerb = AmoVerb3;
struct Transport;

struct HostOps {
    int (*can_reach_peer)(int* access, PeInfo* peer, Transport* t);
    int (*connect_endpoints)(Transport* t, int* selected_devices, int n_selected);
    int (*get_mem_handle)(MemHandleBytes* handle, void* buffer, size_t bytes, Transport* t, bool local_only);
    int (*release_mem_handle)(MemHandleBytes* handle, Transport* t);
    int (*finalize)(Transport* t);
    int (*show_info)(Transport* t, int style);
    int (*progress)(Transport* t);
    int (*rma)(Transport* t, int pe, RmaVerb verb, RmaMemdesc* remote, RmaMemdesc* local, RmaBytesdesc bytes, int is_proxy);
    int (*amo)(Transport* t, int pe, void* ret, AmoVerb verb, AmoMemdesc* target, AmoBytesdesc bytes, int is_proxy);
    int (*fence)(Transport* t, int pe, int is_proxy);
    int (*quiet)(Transport* t, int pe, int is_proxy);
    int (*enforce_cst)(Transport* t);
    int (*enforce_cst_at_target)(Transport* t);
    int (*add_device_remote_mem_handles)(Transport* t, int stride, MemHandleBytes* handles, uint64_t heap_offset,
                                         size_t bytes);
};
static_assert(sizeof(HostOps) == 14 * 8);
static_assert(offsetof(HostOps, rma) == 7 * 8 && offsetof(HostOps, enforce_cst) == 11 * 8 &&
              offsetof(HostOps, enforce_cst_at_target) == 12 * 8 &&
              offsetof(HostOps, add_device_remote_mem_handles) == 13 * 8);

struct Transport {
    int api_version;
    int type;
    int* cap;
    HostOps host_ops;
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
    void* alias_va_map;  // absent in 3.2.5
    void* egm_map;       // absent in 3.2.5
};
static_assert(offsetof(Transport, api_version) == 0x00 && offsetof(Transport, type) == 0x04 &&
              offsetof(Transport, cap) == 0x08 && offsetof(Transport, host_ops) == 0x10 &&
              offsetof(Transport, boot_handle) == 0x80 && offsetof(Transport, state) == 0x88 &&
              offsetof(Transport, type_specific_shared_state) == 0x90 && offsetof(Transport, cache_handle) == 0x98 &&
              offsetof(Transport, device_pci_paths) == 0xa0 && offsetof(Transport, attr) == 0xa8 &&
              offsetof(Transport, n_devices) == 0xac);
static_assert(offsetof(Transport, atomics_complete_on_quiet) == 0xb0 &&
              offsetof(Transport, is_successfully_initialized) == 0xb1 && offsetof(Transport, no_proxy) == 0xb2 &&
              offsetof(Transport, heap_base) == 0xb8 && offsetof(Transport, log2_cumem_granularity) == 0xc0 &&
              offsetof(Transport, max_op_len) == 0xc8 && offsetof(Transport, atomic_host_endian_min_size) == 0xd0 &&
              offsetof(Transport, index) == 0xd4 && offsetof(Transport, my_pe) == 0xd8 &&
              offsetof(Transport, n_pes) == 0xdc && offsetof(Transport, alias_va_map) == 0xe0 &&
              offsetof(Transport, egm_map) == 0xe8);
static_assert(sizeof(Transport) <= kTransportBytesMin);

}  // namespace nvshmem_efa::abi::v3
