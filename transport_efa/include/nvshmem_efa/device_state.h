// SPDX-License-Identifier: Apache-2.0
// All that a kernel needs to post: one POD, filled by the plugin, read by the device API (put.cuh and its companions).
// It has one address for its whole life. Its size and version are checked by whoever takes it (device_state_fits()).
//
// Pointers are as posters see them. "Host writes": before the state is handed out, and later only as said. "Posters
// write": GPU memory (host memory where CPU threads post), zeroed by the host at the start and only read by it after.
#pragma once

#include "nvshmem_efa/gpu_queue.h"
#include "nvshmem_efa/records.h"

namespace nvshmem_efa {

inline constexpr uint32_t kDeviceStateMagic = 0x53464544;  // "DEFS"
inline constexpr uint32_t kDeviceStateVersion = 2;         // of everything in this header, and of GpuQueue

// DeviceState::flags
inline constexpr uint32_t kCountByImmediate = 1u << 0;  // the targets' agents count data writes by their immediates
inline constexpr uint32_t kWritesOnce = 1u << 1;        // devices never place a payload twice
inline constexpr uint32_t kGatedSignals = 1u << 2;      // NVSHMEM_EFA_SIGNAL=gated: signals leave after their data's completion

// The queue of a PE's agent on one rail. Writes and reads name it too: SRD needs some queue to address.
struct DeviceTarget {
    uint16_t ahn;
    uint16_t qp_num;
    uint32_t qkey;
};

// A part of the symmetric heap: [heap_base + offset, + bytes) here, at remote_bases[] elsewhere.
struct DeviceChunk {
    uint64_t offset;
    uint64_t bytes;
};

// A registered buffer outside the heap: a source of puts, a target of gets. bytes == 0: it was taken back.
struct DeviceLocal {
    uint64_t base;
    uint64_t bytes;
};

// Where immediates tell what arrived on one rail (arrival_queue.h): entries that whoever waits takes out. Zeroed at the start.
struct ArrivalQueueState {
    alignas(64) uint32_t lock;  // 1: somebody reads entries
    uint32_t consumed;
    uint32_t has_failed;  // an entry was not one of this job's
};
struct ArrivalQueue {
    const uint8_t* cq_entries;
    uint32_t* recv_doorbell;  // of its receive queue, where it has one
    uint64_t* counts;         // DeviceState::arrival_counts, to write
    ArrivalQueueState* state;
    uint32_t cq_depth;  // a power of two
    uint32_t cq_depth_log2;
    uint32_t cq_entry_bytes;
    uint32_t recv_depth;  // receive descriptors, at most cq_depth; 0: receives are unsolicited
};

// What posters share about one PE. Zeroed at the start.
struct DevicePeer {
    alignas(64) uint32_t next_seq;  // number of the next record to that PE
    uint32_t failed;                // 1: nothing more may go there, as a record is missing or was refused
    alignas(64) uint64_t acked;     // records known to be acknowledged, all from the first on; never goes back
};
static_assert(sizeof(DevicePeer) == 128, "the host reads next_seq at fixed places");

// What posters share about everything. Zeroed at the start.
struct DeviceShared {
    // Read by every post.
    alignas(64) uint64_t arrivals;  // successful waits: from then on the program may write again what it knows arrived
    uint64_t settled;               // arrivals that are dealt with: what was in flight at that one is complete
    uint32_t failed;                // 1: the last of `errors` is taken
    uint32_t reserved;
    alignas(64) uint64_t records;   // posted to all PEs
    alignas(64) uint64_t records_quiet;  // a value of `records` of which all are known to be acknowledged
};
static_assert(sizeof(DeviceShared) == 192, "posters and host agree on this");

// What a wait of the device API waited for, in GpuQueueError::waited of the last error record; of a queue's records the
// values are GpuQueueWait. Fields then: `pe`; `slot` is a record's number; `remote_addr` an address of the failed call;
// `posted` and `completed` are what was wanted and what was there.
enum class DeviceWait : uint8_t {
    kWindow = 16,        // room among the un-acknowledged records to a PE
    kReply = 17,         // a fetched value, or the place where it goes
    kAcks = 18,          // acknowledgement of all records to a PE
    kWord = 19,          // a word of this PE, by wait_until()
    kArrivals = 20,      // counted puts of a PE to the slot in `slot`
    kUnregistered = 32,  // no wait: an address is in no registered memory, here or at the PE
    kBadArgument = 33,   // no wait: no such PE, or an atomic on a word that is not aligned
    kRefused = 34,       // no wait: the PE's agent refused a record; its log says why
    kBadSlot = 35,       // no wait: no such slot for counted puts; `slot` names it
    kStrayArrival = 36,  // no wait: a completion of arrivals that no counted put makes; `remote_addr` is its immediate
    kLostArrivals = 37,  // more counted puts came than a queue of arrivals holds, before anybody looked
};

struct DeviceState {
    uint32_t magic;
    uint32_t version;
    uint32_t bytes;  // sizeof(DeviceState)
    uint32_t flags;
    int32_t pe;
    int32_t n_pes;
    uint32_t n_rails;
    uint32_t queues_per_rail;
    uint32_t window;  // records that may be un-acknowledged at one PE; a power of two
    uint32_t chunks_max;
    uint32_t locals_max;
    uint32_t n_chunks;  // grows, also while kernels run: stored last, with release at system scope
    uint32_t n_locals;  // the same
    uint32_t reserved;

    const GpuQueue* queues;       // [rail * queues_per_rail + i]
    const DeviceTarget* targets;  // [pe * n_rails + rail]
    DevicePeer* peers;            // [pe]; posters write
    DeviceShared* shared;         // posters write
    const uint64_t* acks;         // [pe]: pinned host memory, written by the PE's agent (records.h)
    const ReplySlot* replies;     // [pe * window + (seq & (window - 1))]: the same; starts as reply_never()
    uint32_t* reply_busy;         // the same index; 1: a fetch waits there. Posters write

    uint64_t heap_base;      // this PE's
    uint64_t segment_bytes;  // longest single transfer, at most 2^31
    uint64_t stripe_bytes;   // transfers of at least twice as much are spread over the rails
    uint64_t wait_ticks;     // deadline of every wait, in ticks of order::clock_ticks()

    const DeviceChunk* chunks;      // [chunks_max]
    const uint32_t* lkeys;          // [chunk * n_rails + rail]
    const uint64_t* remote_bases;   // [chunk * n_pes + pe]: address of that chunk at the PE; 0: the PE has none
    const uint32_t* rkeys;          // [(chunk * n_pes + pe) * n_rails + rail]
    const DeviceLocal* locals;      // [locals_max]
    const uint32_t* local_lkeys;    // [local * n_rails + rail]

    GpuQueueError* errors;  // pinned; [n_rails * queues_per_rail] of the queues, and one more: see DeviceWait

    // Counted puts (counted.cuh); null where arrival_slots is 0. Index of all three: [(pe * arrival_slots + slot) * n_rails + rail].
    const DeviceTarget* arrival_targets;  // the queue at the PE which counts what we send to its slot
    const uint64_t* arrival_counts;       // what the PE sent to our slot, modulo 2^31: written by the device, or see arrival_queues
    const uint32_t* arrival_biases;       // what those held at the start
    uint32_t arrival_slots;               // of each PE; 0: no counted puts
    // How many counted puts of one PE may have come on a rail and not been looked at by arrivals() or wait_arrivals(), of
    // whatever PE and slot; beyond, some may be lost or refused. Devices' counters have no such bound: 2^31.
    uint32_t arrival_unread_max;
    const ArrivalQueue* arrival_queues;  // [rail]; null: devices' counters count
};
NVSHMEM_EFA_LAYOUT(sizeof(DeviceTarget) == 8 && sizeof(DeviceChunk) == 16 && sizeof(DeviceLocal) == 16);
NVSHMEM_EFA_LAYOUT(offsetof(DeviceState, pe) == 16 && offsetof(DeviceState, window) == 32 && offsetof(DeviceState, n_chunks) == 44);
NVSHMEM_EFA_LAYOUT(offsetof(DeviceState, n_locals) == 48 && offsetof(DeviceState, queues) == 56 && offsetof(DeviceState, acks) == 88);
NVSHMEM_EFA_LAYOUT(offsetof(DeviceState, heap_base) == 112 && offsetof(DeviceState, chunks) == 144);
NVSHMEM_EFA_LAYOUT(offsetof(DeviceState, errors) == 192 && offsetof(DeviceState, arrival_targets) == 200);
NVSHMEM_EFA_LAYOUT(offsetof(DeviceState, arrival_slots) == 224 && offsetof(DeviceState, arrival_queues) == 232);
NVSHMEM_EFA_LAYOUT(sizeof(DeviceState) == 240 && sizeof(ArrivalQueue) == 48 && sizeof(ArrivalQueueState) == 64);
NVSHMEM_EFA_LAYOUT(offsetof(DevicePeer, acked) == 64 && offsetof(DeviceShared, records) == 64);

// Whether this header's code can work with a state of which the plugin says that it has this version and size.
NVSHMEM_EFA_HD constexpr bool device_state_fits(uint32_t version, size_t bytes) {
    return version == kDeviceStateVersion && bytes == sizeof(DeviceState);
}

}  // namespace nvshmem_efa
