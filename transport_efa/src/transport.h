// SPDX-License-Identifier: Apache-2.0
// The transport, free of any NVSHMEM ABI: plugin.cpp translates to it, the simulated histories drive it directly.
// Ordering and completion follow NVSHMEM on an unordered network; docs/ordering.md has the argument.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "clock.h"
#include "fabric/fabric.h"
#include "knobs.h"
#include "status.h"
#include "words.h"

namespace nvshmem_efa {

inline constexpr int kRailsMax = 16;

// NVSHMEM lets two threads into a plugin at once. Each has its own queues; a lane also locks, for user threads.
enum class Lane : uint8_t { kHost = 0, kProxy = 1 };
inline constexpr int kLanes = 2;
// Towards the agents of other PEs, what the GPU (or CPU threads through the device API) posts is one lane more.
inline constexpr int kLaneGpu = 2;
inline constexpr int kLanesMax = 3;
inline constexpr uint32_t kGpuQueuesMax = 32;  // a rail

// What a peer needs to address a registered chunk. Travels as NVSHMEM's opaque 512-byte handle.
struct MemHandle {
    uint32_t magic = 0;
    uint16_t version = 0;
    uint8_t n_rails = 0;
    uint8_t kind = 0;  // MemoryKind
    uint64_t base = 0;
    uint64_t bytes = 0;
    uint64_t id = 0;  // the owner's registration
    uint32_t lkey[kRailsMax] = {};
    uint32_t rkey[kRailsMax] = {};
    MemoryShare share;
};
static_assert(sizeof(MemHandle) == 288 && sizeof(MemHandle) <= 512);

// The collectives that a job offers at start-up. Blocking; every PE calls them in the same order.
struct Bootstrap {
    int pe = 0;
    int n_pes = 1;
    std::function<Status(const void* send, void* recv, size_t bytes_per_pe)> allgather;
    std::function<Status()> barrier;
};

enum class RmaKind : uint8_t { kPut, kGet };

struct RmaOp {
    RmaKind kind = RmaKind::kPut;
    int pe = 0;
    uint64_t remote = 0;  // the target's own virtual address
    const MemHandle* remote_handle = nullptr;
    void* local = nullptr;
    const MemHandle* local_handle = nullptr;  // null: looked up by address; an inline-sized put is copied instead
    size_t bytes = 0;
    bool blocking = false;    // return when complete (a put: placed at the target)
    bool copy_source = false;  // P: the source is the caller's stack, copied before returning
};

struct AmoOp {
    int pe = 0;
    WordOp op = WordOp::kSet;
    WordType type = WordType::kInteger;
    uint8_t bytes = 8;
    uint64_t remote = 0;
    const MemHandle* remote_handle = nullptr;
    uint64_t operand = 0;
    uint64_t compare = 0;
    bool fetching = false;
    // A fetched value goes to {u64 value, u64 flag} here, value first; may be GPU memory. Null for non-fetching.
    void* result = nullptr;
    uint64_t result_flag = 0;
};

struct PutSignalOp {
    const RmaOp* puts = nullptr;  // all to one PE
    size_t n_puts = 0;
    AmoOp signal;  // kSet or kAdd
};

struct TransportStats {
    uint64_t puts = 0, gets = 0, amos = 0, signals = 0;
    uint64_t bytes_put = 0, bytes_got = 0;
    uint64_t work_requests = 0, doorbells = 0;
    uint64_t fence_waits = 0;    // times an operation waited because of an earlier fence
    uint64_t overlap_waits = 0;  // times a put waited for an earlier one to the same bytes
    uint64_t rnr_retries = 0;
    uint64_t agent_records = 0, agent_immediates = 0;
    uint64_t gpu_work_requests = 0;  // posted by the GPU itself, and complete
};

struct TransportOptions {
    std::vector<std::unique_ptr<Nic>> nics;  // the rails, opened
    Clock* clock = nullptr;                  // null: real_clock()
    Knobs knobs;
    bool agent_thread = true;  // false: the caller drives the agent with poll_agent() (virtual clock)
};

class Transport {
   public:
    static Status create(TransportOptions options, std::unique_ptr<Transport>* transport);
    virtual ~Transport() = default;  // stops the agent, destroys queues; a peer may still be running

    // Collective: exchanges addresses, checks that all PEs run the same version, makes all address handles.
    virtual Status connect(const Bootstrap& bootstrap) = 0;

    // Any thread, also while operations are under way. `kind` is found by asking CUDA, if CUDA is loaded.
    virtual Status register_memory(void* addr, size_t bytes, MemHandle* handle) = 0;
    virtual Status release_memory(const MemHandle& handle) = 0;
    // After handles were exchanged, on the thread that exchanged them: lets providers map what they must.
    virtual Status attach_peer_memory(int pe, const MemHandle& handle) = 0;
    // After connect(): a chunk of the symmetric heap as each PE registered it ([pe]; bytes == 0 where one has none), and a
    // buffer of this PE's own outside the heap. For what the GPU posts; the host's operations carry their handles.
    virtual Status add_heap_chunk(const std::vector<MemHandle>& /*handles*/) { return Status(); }
    virtual Status add_local_memory(const MemHandle& /*handle*/) { return Status(); }
    // The DeviceState (nvshmem_efa/device_state.h) for kernels, or for CPU threads where no GPU was current at connect():
    // its address as posters see it, which stays the same until this object ends. kUnsupported when there are no queues.
    virtual Status device_state(const void** /*at_posters*/) {
        return Status::error(Code::kUnsupported, nullptr, "this transport has no queues for the GPU");
    }

    virtual Status rma(Lane lane, const RmaOp& op) = 0;
    virtual Status amo(Lane lane, const AmoOp& op) = 0;
    virtual Status put_signal(Lane lane, const PutSignalOp& op) = 0;
    // Both also wait for what the GPU posted itself, fence() at once: the network knows no cheaper order.
    virtual Status fence(Lane lane, int pe) = 0;
    virtual Status quiet(Lane lane, int pe) = 0;
    virtual Status progress(Lane lane) = 0;  // optional help: polls completions, delivers fetched results

    virtual bool poll_agent() = 0;  // one turn of the agent; true if it did anything
    virtual TransportStats stats() const = 0;  // any thread
    virtual std::string describe() const = 0;  // "2 rails (soft0, soft1), profile efa3, agent cpu"
};

}  // namespace nvshmem_efa
