// SPDX-License-Identifier: Apache-2.0
// THE seam. Below it stands a real EFA device (verbs.cpp) or the software one (soft_efa/); above it nobody asks which.
// Control calls go through these classes. Data does not: a queue pair hands out its rings, and the caller writes
// descriptor bytes (wqe.h, ring.h) and doorbells itself.
// Threads: control calls of one Nic may come from several threads (the provider locks); rings belong to the caller.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "nvshmem_efa/ring.h"
#include "status.h"

namespace nvshmem_efa {

// What a device can do; asked once when it is opened. Names follow docs/efa-descriptors.md, "Capabilities".
struct NicCaps {
    bool rdma_read = false;
    bool rdma_write = false;  // with and without immediate
    bool rnr_retry = false;
    bool unsolicited_write_recv = false;  // a write with immediate needs no receive descriptor
    bool cq_sgid = false;
    bool cq_ext_mem = false;        // CQ in caller memory (dmabuf)
    bool inline_write = false;      // 128-byte slots, RDMA WRITE inline
    bool req_id_64 = false;         // 64-bit request ids
    bool completion_counters = false;
    bool data_polling_128 = false;  // aligned 128-byte blocks are written once and in order
    uint32_t max_sq_depth = 0;      // in 64-byte slots; half of it with 128-byte slots
    uint32_t max_rq_depth = 0;
    uint32_t max_cq_depth = 0;
    uint32_t max_inline_small = 0;  // SEND, 64-byte slot
    uint32_t max_inline_large = 0;  // SEND and WRITE, 128-byte slot; 0 when there are none
    uint32_t max_tx_batch_units = 0;  // in units of 64 bytes; 0 means no limit
    uint32_t mtu = 0;                 // longest SEND, bytes
    uint64_t max_rdma_bytes = 0;      // longest READ or WRITE
    uint32_t max_counters = 0;
    uint32_t max_qps = 0;
    uint32_t max_mrs = 0;
};

struct Gid {
    uint8_t raw[16] = {};
    bool operator==(const Gid&) const = default;
};

// What a peer must know to reach a Nic; exchanged out of band. `extra` is the provider's own (host, socket, ...).
struct PeerAddress {
    Gid gid;
    uint8_t extra[112] = {};
};
static_assert(sizeof(PeerAddress) == 128);

// Drawn by PE 0 and handed out by the job's bootstrap. Never logged.
struct JobSecret {
    uint8_t bytes[32] = {};
};

struct NicInfo {
    std::string name;      // "rdmap86s0", "soft0"
    std::string pci_path;  // realpath of .../infiniband/<name>/device; for soft a harmless directory that exists
    int numa_node = -1;
    std::string driver_version;
    NicCaps caps;
};

enum class MemoryKind : uint8_t { kHost, kCuda };

inline constexpr uint32_t kAccessLocalWrite = 1u << 0;
inline constexpr uint32_t kAccessRemoteWrite = 1u << 1;
inline constexpr uint32_t kAccessRemoteRead = 1u << 2;

struct MemoryAttr {
    void* addr = nullptr;
    size_t bytes = 0;
    MemoryKind kind = MemoryKind::kHost;
    uint32_t access = kAccessLocalWrite;
};

// How another process on this host can map the memory; the provider's own bytes, zero when it cannot.
struct MemoryShare {
    uint8_t bytes[128] = {};
};

struct MemoryRegion {
    uint32_t lkey = 0;
    uint32_t rkey = 0;
    uint64_t handle = 0;  // the provider's
    MemoryShare share;
};

struct CqAttr {
    uint32_t depth = 0;  // entries, rounded up to a power of two by the provider
    // Caller's memory for the entries, physically contiguous; kUnsupported without cq_ext_mem. Null: the provider's own.
    void* memory = nullptr;
    size_t memory_bytes = 0;
    MemoryKind memory_kind = MemoryKind::kCuda;
};

struct Cq {
    const void* entries = nullptr;
    uint32_t entry_bytes = 0;
    uint32_t depth = 0;
    uint64_t handle = 0;
    // Optional, may be null: a poller stores CqRing::consumed here (release) now and then. A soft device then tells an
    // overrun; a real one does not look.
    uint32_t* consumer = nullptr;
};
inline constexpr uint32_t kCqConsumerUnused = 0xffffffffu;  // what `*consumer` holds until the poller's first store

struct QpAttr {
    uint64_t send_cq = 0;  // Cq::handle
    uint64_t recv_cq = 0;
    uint32_t sq_depth = 0;         // slots; the provider refuses more than the device has
    uint32_t rq_depth = 0;
    bool large_slots = false;      // 128 bytes
    bool unsolicited_recv = false;
    bool req_id_64 = false;
    uint32_t qkey = 0;
};

struct Qp {
    uint32_t qp_num = 0;
    uint32_t qkey = 0;
    void* sq_slots = nullptr;
    volatile uint32_t* sq_doorbell = nullptr;
    uint32_t sq_slot_bytes = 0;
    uint32_t sq_depth = 0;
    uint32_t sq_max_batch = 0;  // in slots of this queue; 0 means no limit
    bool req_id_64 = false;
    void* rq_slots = nullptr;
    volatile uint32_t* rq_doorbell = nullptr;
    uint32_t rq_depth = 0;
    uint64_t handle = 0;
};

struct AddressHandle {
    uint16_t ahn = kAhUnknown;
    uint64_t handle = 0;
};

// Which completions a counter counts; a mask at attach. Initiator: send, read, write. Target: recv, remote_*.
enum CounterOp : uint32_t {
    kCountSend = 1u << 0,
    kCountRecv = 1u << 1,
    kCountRead = 1u << 2,
    kCountWrite = 1u << 3,
    kCountRemoteRead = 1u << 4,
    kCountRemoteWrite = 1u << 5,
};

struct CounterAttr {
    uint64_t* completions = nullptr;  // caller's words; the device writes them, software must not
    uint64_t* errors = nullptr;
    MemoryKind kind = MemoryKind::kHost;
};

class Nic {
   public:
    virtual ~Nic() = default;  // destroys what is left; rings handed out become invalid
    virtual const NicInfo& info() const = 0;
    virtual PeerAddress address() const = 0;
    // Called once, before the first address handle. Soft devices authenticate their peers with the job's secret.
    virtual Status join_job(const JobSecret& /*secret*/) { return Status(); }

    virtual Status register_memory(const MemoryAttr& attr, MemoryRegion* region) = 0;
    virtual Status deregister_memory(const MemoryRegion& region) = 0;
    // A peer's registered memory, before it is the source of a transfer to this Nic. Real devices need nothing; a soft
    // device maps GPU memory here, on the caller's thread, because mapping may not happen beside a spinning kernel.
    virtual Status attach_peer_memory(const PeerAddress& /*owner*/, const MemoryShare& /*share*/) { return Status(); }
    virtual Status create_cq(const CqAttr& attr, Cq* cq) = 0;
    virtual Status destroy_cq(uint64_t handle) = 0;
    virtual Status create_qp(const QpAttr& attr, Qp* qp) = 0;  // returned ready to send
    virtual Status destroy_qp(uint64_t handle) = 0;
    // Both sides must hold a handle for each other before any operation between them (the device's rule).
    virtual Status create_address_handle(const PeerAddress& peer, AddressHandle* ah) = 0;
    virtual Status destroy_address_handle(const AddressHandle& ah) = 0;
    virtual Status create_counter(const CounterAttr& attr, uint64_t* handle) = 0;  // kUnsupported without the capability
    // Before the queue's first descriptor: a real device takes the queue through RESET for it.
    virtual Status attach_counter(uint64_t qp_handle, uint64_t counter_handle, uint32_t counter_ops) = 0;
    virtual Status destroy_counter(uint64_t handle) = 0;

    // A wait loop may call this on every turn. Real devices: nothing. Soft: lends the caller's time to the model.
    virtual void progress() {}
};

// Everything a provider needs to know of the job when it opens devices.
struct OpenOptions {
    std::string device_filter = {};  // comma-separated names; empty means all
    int rails_max = 0;               // 0 means the provider's choice
    std::string gpu_pci_id = {};     // "0000:53:00.0"; empty: the GPU current on this thread, or none
    int pe = -1;                // if known; the soft provider's planned faults name it
};

// Opens the EFA devices of this machine, nearest to the GPU first. An error lists everything that is missing.
Status open_verbs_nics(const OpenOptions& options, std::vector<std::unique_ptr<Nic>>* nics);
// Opens software devices, configured by the NVSHMEM_EFA_SOFT_* knobs and driven by a thread of this process.
Status open_soft_nics(const OpenOptions& options, std::vector<std::unique_ptr<Nic>>* nics);

}  // namespace nvshmem_efa
