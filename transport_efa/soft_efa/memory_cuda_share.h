// SPDX-License-Identifier: Apache-2.0
// GPU memory between processes of one host: exported as a CUDA IPC handle (cudaMalloc) or as file descriptors (memory
// made with the driver's virtual memory calls, which is how NVSHMEM's heap is made), and mapped on the other side.
#pragma once

#include <vector>

#include "cuda_driver.h"
#include "memory_port.h"

namespace nvshmem_efa::soft {

enum class ShareKind : uint8_t { kRefused = 1, kIpc = 2, kFds = 3 };

inline constexpr uint32_t kShareMagic = 0x48534643;  // "CFSH"
inline constexpr uint32_t kSharePiecesMax = 256;
inline constexpr uint32_t kSharePiecesListed = 8;

// The 128 bytes of a MemoryShare. All zero: host memory, which is not shared here.
struct CudaShare {
    uint32_t magic = 0;
    uint8_t version = 0;
    ShareKind kind = ShareKind::kRefused;
    uint16_t n_pieces = 0;     // kFds: allocations, each with a file descriptor
    uint64_t process = 0;
    uint64_t export_id = 0;
    uint64_t base_offset = 0;  // of the registered memory in the mapping
    uint64_t bytes = 0;        // of the registered memory
    uint64_t mapping_bytes = 0;  // of everything that has to be mapped
    union {
        cuda::IpcHandle ipc;
        // Up to kSharePiecesListed pieces: the bytes of each. More: of all but the last, and of the last.
        uint64_t piece_bytes[kSharePiecesListed];
    };
    uint8_t reserved[16] = {};
    CudaShare() : ipc{} {}
};
static_assert(sizeof(CudaShare) == 128 && sizeof(CudaShare) == sizeof(MemoryShare));

uint64_t share_piece_bytes(const CudaShare& share, uint32_t index);
// kProtocol when the bytes, which came from another process, contradict themselves.
Status share_check(const CudaShare& share);

// Fills kind, sizes and handle for [addr, addr + bytes); kRefused when CUDA gives no handle, with the reason in `why`.
// The file descriptors are the caller's. The context must be current, here and below.
void share_export(const cuda::Driver& driver, uint64_t addr, uint64_t bytes, CudaShare* share, std::vector<int>* fds,
                  Status* why);

// Another process's memory, mapped here.
struct CudaMapping {
    ShareKind kind = ShareKind::kRefused;
    cuda::DevicePtr base = 0;
    uint64_t bytes = 0;
    std::vector<uint64_t> pieces;  // bytes of each, kFds
};

Status mapping_open(const cuda::Driver& driver, cuda::Device device, const CudaShare& share,
                    const MemoryPort::FetchFd& fetch_fd, CudaMapping* mapping);
void mapping_close(const cuda::Driver& driver, const CudaMapping& mapping);

}  // namespace nvshmem_efa::soft
