// SPDX-License-Identifier: Apache-2.0
// NVSHMEM's transport-plugin interface, the part that all ABI versions share. Our own declarations of public facts;
// every size and offset is asserted. The struct that differs between versions: abi3.h, abi4.h (also 5), abi6.h (also 7).
#pragma once

#include <climits>
#include <cstddef>
#include <cstdint>

namespace nvshmem_efa::abi {

// `api_version` is ABI number * 10000 + a minor that we do not depend on.
constexpr int abi_number(int api_version) { return api_version / 10000; }
inline constexpr int kAbiNumbers[] = {3, 4, 5, 6, 7};

// The plugin allocates the transport struct; hosts of one ABI number differ in how many trailing fields they read, and
// a zero means "absent". So: never less than this many zeroed bytes.
inline constexpr size_t kTransportBytesMin = 0x200;

enum RmaOpcode : int { kOpPut = 1, kOpP = 2, kOpPutSignal = 3, kOpGet = 4, kOpG = 5, kOpFence = 6, kOpAmo = 7, kOpQuiet = 8 };

enum AmoOpcode : int {
    kAmoAck = 1,
    kAmoInc = 2,
    kAmoSet = 3,
    kAmoAdd = 4,
    kAmoAnd = 5,
    kAmoOr = 6,
    kAmoXor = 7,
    kAmoSignal = 8,
    kAmoSignalSet = 9,
    kAmoSignalAdd = 10,
    kAmoFetch = 12,
    kAmoFetchInc = 13,
    kAmoFetchAdd = 14,
    kAmoFetchAnd = 15,
    kAmoFetchOr = 16,
    kAmoFetchXor = 17,
    kAmoSwap = 18,
    kAmoCompareSwap = 19,
};

// What the last argument of rma, amo, fence, quiet and put_signal means from ABI 4 on (before: 0 or 1, is_proxy).
inline constexpr int kQpHost = 0;
inline constexpr int kQpDefault = 1;
inline constexpr int kQpAll = INT_MAX;

// nvshmem_transport::attr: without it connect_endpoints is never called.
inline constexpr int kAttrConnected = 2;

// What can_reach_peer answers.
inline constexpr int kCapMap = 1 << 0;
inline constexpr int kCapCpuWrite = 1 << 4;
inline constexpr int kCapCpuRead = 1 << 5;
inline constexpr int kCapCpuAtomics = 1 << 6;
inline constexpr int kCapGpuWrite = 1 << 7;
inline constexpr int kCapGpuRead = 1 << 8;
inline constexpr int kCapGpuAtomics = 1 << 9;

// Return values that the host library prints by number.
enum HostStatus : int { kHostOk = 0, kHostInvalidValue = 1, kHostOutOfMemory = 2, kHostNotSupported = 3, kHostInternal = 7 };

inline constexpr size_t kMemHandleBytes = 512;
struct MemHandleBytes {  // opaque to the host, which allgathers it
    unsigned char bytes[kMemHandleBytes];
};
static_assert(sizeof(MemHandleBytes) == 512);

struct RmaVerb {
    int desc;  // RmaOpcode
    int is_nbi;
    int is_stream;
    void* stream;
};
static_assert(sizeof(RmaVerb) == 24 && offsetof(RmaVerb, is_nbi) == 4 && offsetof(RmaVerb, is_stream) == 8 &&
              offsetof(RmaVerb, stream) == 16);

struct RmaMemdesc {
    void* ptr;
    uint64_t offset;
    MemHandleBytes* handle;  // null for memory that was never registered (the source of P)
};
static_assert(sizeof(RmaMemdesc) == 24 && offsetof(RmaMemdesc, offset) == 8 && offsetof(RmaMemdesc, handle) == 16);

struct RmaBytesdesc {
    size_t nelems;
    int elembytes;
    ptrdiff_t src_stride;  // in elements
    ptrdiff_t dst_stride;
};
static_assert(sizeof(RmaBytesdesc) == 32 && offsetof(RmaBytesdesc, elembytes) == 8 &&
              offsetof(RmaBytesdesc, src_stride) == 16 && offsetof(RmaBytesdesc, dst_stride) == 24);

struct AmoVerb3 {  // ABI 3 to 5: 16 bytes, travels in registers
    int desc;      // AmoOpcode
    int is_fetch;
    int has_value;
    int has_compare;
};
static_assert(sizeof(AmoVerb3) == 16);

struct AmoVerb6 {  // ABI 6 on: 20 bytes, travels in memory
    int desc;
    int is_fetch;
    int has_value;
    int has_compare;
    int is_float;
};
static_assert(sizeof(AmoVerb6) == 20 && offsetof(AmoVerb6, is_float) == 16);

struct AmoMemdesc {
    RmaMemdesc remote;
    uint64_t ret_flag;
    void* ret_ptr;  // {u64 value, u64 flag}
    void* value_ptr;
    void* compare_ptr;
    uint64_t value;
    uint64_t compare;
    MemHandleBytes* ret_handle;
};
static_assert(sizeof(AmoMemdesc) == 80 && offsetof(AmoMemdesc, ret_flag) == 24 && offsetof(AmoMemdesc, ret_ptr) == 32 &&
              offsetof(AmoMemdesc, value_ptr) == 40 && offsetof(AmoMemdesc, compare_ptr) == 48 &&
              offsetof(AmoMemdesc, value) == 56 && offsetof(AmoMemdesc, compare) == 64 &&
              offsetof(AmoMemdesc, ret_handle) == 72);

struct AmoBytesdesc {
    int name_type;
    int elembytes;
};
static_assert(sizeof(AmoBytesdesc) == 8);

struct PeInfo {
    unsigned char pcie_id[12];
    int pe;
    uint64_t host_hash;
    unsigned char gpu_uuid[16];
};
static_assert(sizeof(PeInfo) == 40 && offsetof(PeInfo, pe) == 12 && offsetof(PeInfo, host_hash) == 16 &&
              offsetof(PeInfo, gpu_uuid) == 24);

struct BootstrapHandle {
    int version;
    int pg_rank;
    int pg_size;
    int mype_node;
    int npes_node;
    int padding;
    int (*allgather)(const void* send, void* recv, int bytes_per_pe, BootstrapHandle* handle);
    int (*alltoall)(const void* send, void* recv, int bytes_per_pe, BootstrapHandle* handle);
    int (*barrier)(BootstrapHandle* handle);
    void (*global_exit)(int status);
    int (*finalize)(BootstrapHandle* handle);
    int (*show_info)(BootstrapHandle* handle, int style);
    void* pre_init_ops;
    void* comm_state;
};
static_assert(offsetof(BootstrapHandle, pg_rank) == 4 && offsetof(BootstrapHandle, pg_size) == 8 &&
              offsetof(BootstrapHandle, mype_node) == 0xc && offsetof(BootstrapHandle, npes_node) == 0x10 &&
              offsetof(BootstrapHandle, allgather) == 0x18 && offsetof(BootstrapHandle, alltoall) == 0x20 &&
              offsetof(BootstrapHandle, barrier) == 0x28 && offsetof(BootstrapHandle, global_exit) == 0x30 &&
              offsetof(BootstrapHandle, finalize) == 0x38 && offsetof(BootstrapHandle, show_info) == 0x40 &&
              offsetof(BootstrapHandle, pre_init_ops) == 0x48 && offsetof(BootstrapHandle, comm_state) == 0x50);

// The entry point: `int nvshmemt_init(Transport** out, void* cuda_table, int api_version)`, C linkage.
using InitFn = int (*)(void** transport, void* cuda_table, int api_version);
inline constexpr const char* kInitName = "nvshmemt_init";

}  // namespace nvshmem_efa::abi
