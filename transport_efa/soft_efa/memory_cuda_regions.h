// SPDX-License-Identifier: Apache-2.0
// What a CUDA memory port knows of memory: local registrations with their exports, and peers' memory mapped here.
#pragma once

#include <array>
#include <map>
#include <mutex>
#include <set>
#include <vector>

#include "memory_cuda.h"
#include "memory_cuda_share.h"

namespace nvshmem_efa::soft {

inline constexpr int kDeviceUnknown = -1;

// Lookups come from the engine's thread and take one short lock; nothing holds that lock across a driver call.
class CudaRegions {
   public:
    CudaRegions(const cuda::Driver& driver, cuda::Device device, uint64_t process, std::string sharing)
        : driver_(driver), device_(device), process_(process), sharing_(std::move(sharing)) {}

    // The context must be current in these four; application threads.
    Status add(const MemoryAttr& attr, MemoryShare* share);
    void remove(const MemoryAttr& attr);
    Status attach(const MemoryShare& share, const MemoryPort::FetchFd& fetch_fd);
    void close_all();

    int export_fd(uint64_t export_id, uint32_t index) const;
    bool reference_of(uint64_t addr, size_t bytes, PeerBytes* reference) const;
    bool resolve(const PeerBytes& reference, size_t bytes, uint64_t* addr) const;
    int device_of(uint64_t addr) const;  // kDeviceUnknown for an address that is neither registered nor attached

   private:
    struct Local {
        MemoryKind kind = MemoryKind::kHost;
        int device = kDeviceUnknown;
        uint32_t uses = 0;        // rails register the same memory
        bool is_pinned_here = false;
        bool is_shared = false;
        CudaShare share;
        std::vector<int> fds;
    };
    struct Attached {
        uint64_t base = 0;
        uint64_t bytes = 0;
        int device = kDeviceUnknown;
    };
    struct Ipc {
        uint32_t uses = 0;
        CudaMapping mapping;
    };
    using Range = std::pair<uint64_t, uint64_t>;     // address, bytes
    using ExportKey = std::pair<uint64_t, uint64_t>;  // process, export id
    using IpcKey = std::pair<uint64_t, std::array<uint8_t, 64>>;

    Status share_local(const MemoryAttr& attr, Local* local);
    void pin_local(const MemoryAttr& attr, Local* local);
    Status refuse(Status why) const;
    Status map_peer(const CudaShare& share, const MemoryPort::FetchFd& fetch_fd, uint64_t* base);
    int ask_device(uint64_t addr) const;
    const Local* find_local(uint64_t addr, size_t bytes, uint64_t* base) const;

    const cuda::Driver& driver_;
    const cuda::Device device_;
    const uint64_t process_;
    const std::string sharing_;
    std::mutex change_lock_;   // one add, remove or attach at a time; may be held across driver calls
    mutable std::mutex lock_;  // the maps; taken inside change_lock_, never the other way round
    std::map<Range, Local> locals_;
    std::map<ExportKey, Attached> attached_;
    std::map<IpcKey, Ipc> ipc_;           // change_lock_
    std::vector<CudaMapping> mappings_;   // change_lock_
    uint64_t last_export_ = 0;
};

}  // namespace nvshmem_efa::soft
