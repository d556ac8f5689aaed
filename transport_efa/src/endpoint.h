// SPDX-License-Identifier: Apache-2.0
// One queue pair of one rail, as its owner uses it: builds descriptors, posts them, tells completions apart by request
// id. One thread at a time (the lane's lock, or the agent). Nothing is allocated after open().
#pragma once

#include <vector>

#include "clock.h"
#include "control_memory.h"
#include "fabric/fabric.h"

namespace nvshmem_efa {

// Counts the descriptors of one blocking operation.
struct Tracker {
    uint32_t outstanding = 0;
};

enum class RequestKind : uint8_t { kWrite, kRead, kRecord, kAck, kReply };

// What a posted descriptor was for. Kept until its completion, found by request id.
struct Request {
    RequestKind kind = RequestKind::kWrite;
    uint32_t owner = 0;  // a PE (lanes), or a source and slot (agent)
    uint32_t slot = 0;
    uint32_t bytes = 0;
    uint64_t remote = 0;  // a write's first byte at the target
    Tracker* tracker = nullptr;
    WqeTarget target{};  // to post a refused SEND again
};

struct Completion {
    Request request;
    CqeStatus status = CqeStatus::kOk;
    uint32_t id = 0;
};

struct EndpointAttr {
    size_t rail = 0;
    uint32_t sq_depth = 0;
    uint32_t rq_depth = 0;       // 0: this endpoint receives nothing
    uint32_t recv_cq_depth = 0;
    uint32_t qkey = 0;
};

// A request id is 16 bits on every device: 12 for the index, 4 for its generation.
inline constexpr uint32_t kIdIndexBits = 12;
inline constexpr uint32_t kIdIndexMask = (1u << kIdIndexBits) - 1;
inline constexpr uint32_t kSqDepthMax = 1u << kIdIndexBits;

inline constexpr uint32_t kCellBytes = 128;  // staging for a descriptor's payload: one cell a request
inline constexpr uint32_t kRecvBytes = 64;   // a receive buffer

class Endpoint {
   public:
    static size_t control_bytes(const EndpointAttr& attr) {
        return ControlMemory::aligned(size_t{attr.sq_depth} * kCellBytes) +
               ControlMemory::aligned(size_t{attr.rq_depth} * kRecvBytes);
    }
    Status open(Nic& nic, const EndpointAttr& attr, ControlMemory& memory);
    void close();

    bool has_room() const;        // a descriptor can be posted now
    bool has_room_again() const;  // for post_send_again(), which has its request id already
    uint32_t room() const;  // descriptors that can be posted, doorbells in between
    // Each posts one descriptor. Pre: has_room(). The doorbell is the caller's, by ring(); only where the device takes no
    // more slots without one (its batch limit) is it rung at once.
    struct Remote {
        WqeTarget target;
        uint64_t addr;
        uint32_t rkey;
    };
    struct Local {
        uint64_t addr;
        uint32_t lkey;
    };
    void post_write(const Remote& remote, const Local& local, uint32_t bytes, const uint32_t* immediate, const Request& request);
    void post_read(const Remote& remote, const Local& local, uint32_t bytes, const Request& request);
    // The bytes are copied: into the descriptor where the device can, else into the request's cell. At most kCellBytes.
    void post_write_copy(const Remote& remote, const void* bytes, uint32_t n, const Request& request);
    void post_send_copy(const WqeTarget& target, const void* bytes, uint32_t n, Request request);
    // Posts a SEND again that the peer refused as not ready; its bytes are still in its cell.
    void post_send_again(const Completion& refused);
    void ring();

    // The next completion, or false. Frees its request id, except for a SEND refused with RNR, which the caller
    // posts again or gives up with release().
    bool next_completion(Completion* completion);
    void release(uint32_t id);
    // A write to PE `owner` is in flight that touches [addr, addr + bytes). Looks at every request.
    bool is_writing(uint32_t owner, uint64_t addr, uint64_t bytes) const;
    void forget(const Tracker* tracker);  // of an operation that was given up: its completions no longer count

    // Receive side.
    void post_receives();  // fills the receive ring
    bool next_receive(const RxCqeEx** cqe);
    const uint8_t* receive_buffer(uint16_t req_id) const;
    void pop_receive();  // ends with next_receive()'s entry; reposts its buffer if it used one

    Nic& nic() const { return *nic_; }
    const Qp& qp() const { return qp_; }
    uint32_t in_flight() const { return send_ring_in_flight(ring_); }
    uint64_t posted() const { return posted_; }
    uint64_t doorbells() const { return doorbells_; }
    const std::string& damage() const { return damage_; }  // what a device or program did to our queues; empty if nothing

   private:
    uint32_t take_id(const Request& request);
    void begin(SendWqe& wqe, SendOpcode opcode, const WqeTarget& target, uint32_t id, uint32_t* index);
    void commit(const SendWqe& wqe, uint32_t index) {
        send_ring_write(ring_, index, wqe);
        ++posted_;
    }
    uint64_t cell(uint32_t id) const { return reinterpret_cast<uint64_t>(cells_) + uint64_t{id & kIdIndexMask} * kCellBytes; }

    Nic* nic_ = nullptr;
    Qp qp_;
    Cq send_cq_, recv_cq_;
    SendRing ring_;
    CqRing cq_ring_, recv_cq_ring_;
    RecvRing recv_ring_;
    uint8_t* cells_ = nullptr;
    uint8_t* recv_buffers_ = nullptr;
    uint32_t lkey_ = 0;
    uint32_t inline_write_max_ = 0, inline_send_max_ = 0;
    uint32_t recv_buffers_count_ = 0;
    std::vector<Request> requests_;  // by id
    std::vector<uint8_t> is_open_;   // by id: posted, not completed
    std::vector<uint8_t> generation_;  // of each id, bumped when it is freed: tells a stale completion
    std::vector<uint16_t> free_ids_;
    uint64_t posted_ = 0, doorbells_ = 0;
    std::string damage_;
};

}  // namespace nvshmem_efa
