// SPDX-License-Identifier: Apache-2.0
// The CUDA driver library, loaded at run time: the few calls that this library makes, declared in our own words.
// No CUDA header is needed to build and no libcuda to start; a process that never uses GPU memory never loads it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "fabric/fabric.h"
#include "status.h"

namespace nvshmem_efa::cuda {

using Result = int;  // 0 is success
using Device = int;
using DevicePtr = uint64_t;
using AllocationHandle = uint64_t;
using Context = struct ContextTag*;
using Stream = struct StreamTag*;
using Module = struct ModuleTag*;
using Function = struct FunctionTag*;

inline constexpr Result kSuccess = 0;
inline constexpr Result kErrorInvalidValue = 1;
inline constexpr Result kErrorOutOfMemory = 2;
inline constexpr Result kErrorNotReady = 600;
inline constexpr Result kErrorNotSupported = 801;

inline constexpr unsigned kStreamNonBlocking = 1;
inline constexpr unsigned kHostPortable = 1;  // pinned for every context; allocation and registration alike
inline constexpr unsigned kHostDeviceMap = 2;  // of a registration: the GPU gets an address for it
inline constexpr unsigned kHostIoMemory = 4;   // of a registration: a device's memory, not RAM
inline constexpr int kDeviceClockKhz = 13;     // of cuDeviceGetAttribute: the rate of clock64()
inline constexpr unsigned kIpcLazyPeerAccess = 1;
inline constexpr int kHandlePosixFd = 1;
inline constexpr int kLocationDevice = 1;
inline constexpr int kAccessReadWrite = 3;

// What cuPointerGetAttribute is asked.
inline constexpr int kAttrMemoryType = 2;
inline constexpr int kAttrBufferId = 7;
inline constexpr int kAttrDeviceOrdinal = 9;
inline constexpr int kAttrMappingBytes = 18;  // since CUDA 12; an older driver answers kErrorInvalidValue
inline constexpr int kAttrMappingBase = 19;
inline constexpr int kAttrMemoryBlockId = 20;
inline constexpr unsigned kMemoryTypeDevice = 2;

// Writes default to a full memory barrier before the value lands: everything earlier in the stream is then visible.
inline constexpr unsigned kWriteValueDefault = 0;
inline constexpr int kMemOpWriteValue32 = 2;
inline constexpr int kMemOpWriteValue64 = 5;

// One element of cuStreamBatchMemOp: the write-value member of the driver's 48-byte union.
struct MemOp {
    int32_t operation = 0;
    uint32_t reserved = 0;
    DevicePtr addr = 0;
    uint64_t value = 0;
    uint32_t flags = kWriteValueDefault;
    uint32_t reserved2 = 0;
    DevicePtr alias = 0;  // the driver's own
    uint64_t reserved3 = 0;
};
static_assert(sizeof(MemOp) == 48 && offsetof(MemOp, value) == 16 && offsetof(MemOp, flags) == 24);

struct IpcHandle {
    uint8_t bytes[64] = {};
};

struct AccessDesc {
    int32_t location_type = kLocationDevice;
    int32_t location_id = 0;
    int32_t flags = kAccessReadWrite;
};
static_assert(sizeof(AccessDesc) == 12);

// X(field, exported symbol, return type, parameters). The versioned names are those that both CUDA 12 and 13 drivers
// export; asking for the unversioned one of a pair would give an older signature.
#define EFA_CUDA_FUNCTIONS(X)                                                                                         \
    X(init, "cuInit", Result, (unsigned flags))                                                                        \
    X(get_error_name, "cuGetErrorName", Result, (Result error, const char** text))                                     \
    X(get_error_string, "cuGetErrorString", Result, (Result error, const char** text))                                 \
    X(driver_get_version, "cuDriverGetVersion", Result, (int* version))                                                \
    X(ctx_get_current, "cuCtxGetCurrent", Result, (Context * context))                                                 \
    X(ctx_push_current, "cuCtxPushCurrent_v2", Result, (Context context))                                              \
    X(ctx_pop_current, "cuCtxPopCurrent_v2", Result, (Context * context))                                              \
    X(ctx_get_device, "cuCtxGetDevice", Result, (Device * device))                                                     \
    X(ctx_get_stream_priority_range, "cuCtxGetStreamPriorityRange", Result, (int* least, int* greatest))               \
    X(pointer_get_attribute, "cuPointerGetAttribute", Result, (void* data, int attribute, DevicePtr addr))             \
    X(stream_create, "cuStreamCreateWithPriority", Result, (Stream * stream, unsigned flags, int priority))            \
    X(stream_destroy, "cuStreamDestroy_v2", Result, (Stream stream))                                                   \
    X(stream_query, "cuStreamQuery", Result, (Stream stream))                                                          \
    X(stream_is_capturing, "cuStreamIsCapturing", Result, (Stream stream, int* state))                                \
    X(stream_write_value32, "cuStreamWriteValue32_v2", Result,                                                         \
      (Stream stream, DevicePtr addr, uint32_t value, unsigned flags))                                                 \
    X(stream_write_value64, "cuStreamWriteValue64_v2", Result,                                                         \
      (Stream stream, DevicePtr addr, uint64_t value, unsigned flags))                                                 \
    X(stream_batch_mem_op, "cuStreamBatchMemOp_v2", Result,                                                            \
      (Stream stream, unsigned count, MemOp* ops, unsigned flags))                                                     \
    X(memcpy_async, "cuMemcpyAsync", Result, (DevicePtr to, DevicePtr from, size_t bytes, Stream stream))              \
    X(memcpy_htod_async, "cuMemcpyHtoDAsync_v2", Result,                                                               \
      (DevicePtr to, const void* from, size_t bytes, Stream stream))                                                   \
    X(memcpy_dtoh_async, "cuMemcpyDtoHAsync_v2", Result, (void* to, DevicePtr from, size_t bytes, Stream stream))      \
    X(device_get_attribute, "cuDeviceGetAttribute", Result, (int* value, int attribute, Device device))                \
    X(mem_alloc, "cuMemAlloc_v2", Result, (DevicePtr * addr, size_t bytes))                                            \
    X(mem_free, "cuMemFree_v2", Result, (DevicePtr addr))                                                              \
    X(mem_host_alloc, "cuMemHostAlloc", Result, (void** memory, size_t bytes, unsigned flags))                         \
    X(mem_free_host, "cuMemFreeHost", Result, (void* memory))                                                          \
    X(mem_host_register, "cuMemHostRegister_v2", Result, (void* memory, size_t bytes, unsigned flags))                 \
    X(mem_host_unregister, "cuMemHostUnregister", Result, (void* memory))                                              \
    X(mem_host_get_device_pointer, "cuMemHostGetDevicePointer_v2", Result,                                             \
      (DevicePtr * addr, void* memory, unsigned flags))                                                                \
    X(mem_get_address_range, "cuMemGetAddressRange_v2", Result, (DevicePtr * base, size_t* bytes, DevicePtr addr))     \
    X(ipc_get_mem_handle, "cuIpcGetMemHandle", Result, (IpcHandle * handle, DevicePtr addr))                           \
    X(ipc_open_mem_handle, "cuIpcOpenMemHandle_v2", Result, (DevicePtr * addr, IpcHandle handle, unsigned flags))      \
    X(ipc_close_mem_handle, "cuIpcCloseMemHandle", Result, (DevicePtr addr))                                           \
    X(mem_retain_allocation_handle, "cuMemRetainAllocationHandle", Result, (AllocationHandle * handle, void* addr))    \
    X(mem_export_to_shareable_handle, "cuMemExportToShareableHandle", Result,                                          \
      (void* shareable, AllocationHandle handle, int type, unsigned long long flags))                                  \
    X(mem_import_from_shareable_handle, "cuMemImportFromShareableHandle", Result,                                      \
      (AllocationHandle * handle, void* shareable, int type))                                                          \
    X(mem_release, "cuMemRelease", Result, (AllocationHandle handle))                                                  \
    X(mem_address_reserve, "cuMemAddressReserve", Result,                                                              \
      (DevicePtr * addr, size_t bytes, size_t alignment, DevicePtr wanted, unsigned long long flags))                  \
    X(mem_address_free, "cuMemAddressFree", Result, (DevicePtr addr, size_t bytes))                                    \
    X(mem_map, "cuMemMap", Result,                                                                                     \
      (DevicePtr addr, size_t bytes, size_t offset, AllocationHandle handle, unsigned long long flags))                \
    X(mem_unmap, "cuMemUnmap", Result, (DevicePtr addr, size_t bytes))                                                 \
    X(mem_set_access, "cuMemSetAccess", Result,                                                                        \
      (DevicePtr addr, size_t bytes, const AccessDesc* access, size_t count))                                          \
    X(module_load_data, "cuModuleLoadData", Result, (Module * module, const void* image))                              \
    X(module_unload, "cuModuleUnload", Result, (Module module))                                                        \
    X(module_get_function, "cuModuleGetFunction", Result, (Function * function, Module module, const char* name))      \
    X(module_get_global, "cuModuleGetGlobal_v2", Result,                                                               \
      (DevicePtr * addr, size_t* bytes, Module module, const char* name))                                              \
    X(launch_kernel, "cuLaunchKernel", Result,                                                                         \
      (Function function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,       \
       unsigned block_z, unsigned shared_bytes, Stream stream, void** parameters, void** extra))

struct Driver {
#define EFA_CUDA_MEMBER(field, symbol, result, parameters) result(*field) parameters = nullptr;
    EFA_CUDA_FUNCTIONS(EFA_CUDA_MEMBER)
#undef EFA_CUDA_MEMBER
};

// Fills `driver` by asking `lookup` for every symbol; the first absent one is kTooOld, by name.
using Lookup = void* (*)(void* library, const char* symbol);
Status driver_fill(Lookup lookup, void* library, Driver* driver);

// The process's driver table. Loads libcuda.so.1 at the first call that finds it; kMissing names the library. Any thread.
Status driver_load(const Driver** driver);
// The same, but never loads the library: null when nothing in this process has loaded it.
const Driver* driver_if_loaded();

// "cuMemMap failed on GPU 0: CUDA_ERROR_OUT_OF_MEMORY (out of memory)". `hint` may be null.
Status driver_error(const Driver& driver, Result result, const std::string& what, const char* hint = nullptr);

// Host or GPU memory? Host where CUDA is not loaded in this process or does not know the address. Managed memory counts
// as GPU memory.
MemoryKind memory_kind_of(const void* addr);

// Makes a context current on this thread for a scope; costs one driver call where it already is.
class ScopedContext {
   public:
    ScopedContext(const Driver& driver, Context context);
    ~ScopedContext();
    ScopedContext(const ScopedContext&) = delete;
    ScopedContext& operator=(const ScopedContext&) = delete;
    Result result() const { return result_; }

   private:
    const Driver& driver_;
    Result result_ = kSuccess;
    bool pushed_ = false;
};

}  // namespace nvshmem_efa::cuda
