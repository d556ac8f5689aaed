// SPDX-License-Identifier: Apache-2.0
// The sending side of one of the two threads that NVSHMEM lets into a plugin: its queues on every rail, what is in
// flight to each PE, and the waits. Every public call takes the lane's lock; nothing is shared between lanes.
// Methods stand in rma.cpp (puts, gets), amo.cpp (records, signals, atomics) and lane.cpp (completions, fence, quiet).
#pragma once

#include <atomic>
#include <deque>
#include <mutex>
#include <string>
#include <vector>

#include "agent_record.h"
#include "endpoint.h"
#include "fetch_board.h"
#include "in_flight.h"
#include "job.h"
#include "memory_table.h"

namespace nvshmem_efa {

// What one lane knows of one peer.
struct LanePeer {
    uint32_t data_in_flight = 0;     // RDMA writes and reads without completion
    uint32_t records_in_flight = 0;  // SENDs without completion
    uint32_t next_seq = 0;           // records sent so far
    uint32_t ack_seen = 0;           // records known to be applied
    uint32_t immediates = 0;         // data writes that count at the agent, of records not yet acknowledged
    InFlightRanges writes;           // where those of them that are writes go
    std::vector<uint16_t> immediates_of;  // per record in the window
    bool fence_data = false;     // the next put, signal or atomic waits for data_in_flight == 0
    bool fence_records = false;  // the next put waits until all records are applied
    const uint64_t* ack_word = nullptr;  // in control memory, written by the peer's agent
    ReplySlot* replies = nullptr;        // [window], likewise
    std::unique_ptr<std::atomic<uint32_t>> fetches = std::make_unique<std::atomic<uint32_t>>(0);
    // Per reply slot: a reply is awaited or not yet read. An acknowledged record only says that the reply was sent.
    std::unique_ptr<std::atomic<uint8_t>[]> reply_busy;
    Code error_code = Code::kOk;  // first error of this peer; its operations fail from then on, others go on
    std::string error;
};

class LaneQueues {
   public:
    LaneQueues(Lane lane, std::vector<Endpoint> endpoints) : lane_(lane), endpoints_(std::move(endpoints)) {}
    ~LaneQueues() {
        for (Endpoint& endpoint : endpoints_) endpoint.close();
    }
    // After the job is connected. `acks` is u64 [n_pes], `replies` ReplySlot [n_pes][window].
    void attach(const Job& job, const MemoryTable& memory, FetchBoard& board, const Knobs& knobs, const uint64_t* acks,
                ReplySlot* replies);

    Status rma(const RmaOp& op);
    Status amo(const AmoOp& op);
    Status put_signal(const PutSignalOp& op);
    Status fence(int pe);
    Status quiet(int pe);
    Status progress();
    // For the agent's thread: moves on records that nobody may be waiting for here, although a peer's program does (a
    // refused SEND is only repeated by someone who looks). Returns at once when there are none, or the lane is busy.
    bool help();

    const std::vector<Endpoint>& endpoints() const { return endpoints_; }
    TransportStats stats() const;

   private:
    // lane.cpp. Pre: lock held.
    Status check_pe(int pe) const;
    Status poll();
    void on_completion(const Completion& completion, Endpoint& endpoint);
    Status retry_refused();
    void ring_all();
    void read_acks(LanePeer& peer);
    void fail_peer(int pe, Code code, std::string message);
    Status peer_status(int pe) const;
    bool is_drained(const LanePeer& peer) const;
    std::string name(int pe) const;  // "PE 0 -> PE 3 (proxy lane)"
    // Polls until `done()`, the peer's first error, or the deadline, whose error says what was awaited.
    template <class Done>
    Status wait(int pe, const char* what, Done done);
    Status wait_for_room(Endpoint& endpoint, int pe);
    Status wait_for_fence(int pe, bool is_record);
    Status wait_for_overlap(int pe, uint64_t remote, uint64_t bytes);
    void note_posted(const Request& request);

    // rma.cpp. Pre: lock held.
    Status check_remote(int pe, uint64_t remote, size_t bytes, const MemHandle* handle) const;
    Status find_local(const RmaOp& op, MemHandle* found, const MemHandle** handle) const;
    struct Cut {
        uint64_t stripe_bytes, segment_bytes;
        uint32_t pieces;
    };
    Cut cut(uint64_t bytes) const;
    void turn_rail() { next_rail_ = next_rail_ + 1 == job_->n_rails ? 0 : next_rail_ + 1; }
    Status post_rma(const RmaOp& op, const uint32_t* immediate, Tracker* tracker);
    Status post_piece(const RmaOp& op, const MemHandle& local, uint64_t offset, uint32_t bytes, const uint32_t* immediate,
                      Tracker* tracker);
    Status post_copy(const RmaOp& op, const uint32_t* immediate, Tracker* tracker);
    Status finish_blocking(int pe, Tracker* tracker, Status posted);

    // amo.cpp. Pre: lock held.
    Status check_word(const AmoOp& op) const;
    Status post_record(const AmoOp& op, uint32_t n_writes);
    Status wait_for_window(int pe, uint32_t immediates, bool is_fetching);
    Status signal_by_count(const PutSignalOp& op, uint32_t pieces);
    void expect_reply(const AmoOp& op, uint32_t seq);
    Status signal_when_complete(const PutSignalOp& op);

    const Lane lane_;
    mutable std::mutex mutex_;
    std::vector<Endpoint> endpoints_;  // one a rail
    std::vector<LanePeer> peers_;
    struct Refused {
        Completion completion;
        Endpoint* endpoint;
        uint64_t give_up_ns, retry_ns, pause_ns;
    };
    std::deque<Refused> refused_;
    std::atomic<uint32_t> open_records_{0};  // SENDs without completion to all PEs; changed under the lock
    const Job* job_ = nullptr;
    const MemoryTable* memory_ = nullptr;
    FetchBoard* board_ = nullptr;
    bool gated_signals_ = false;
    size_t next_rail_ = 0;
    TransportStats stats_;
};

template <class Done>
Status LaneQueues::wait(int pe, const char* what, Done done) {
    if (done()) return Status();
    ring_all();
    Deadline deadline(*job_->clock, job_->timeout_ms);
    while (!done()) {
        EFA_TRY(poll());
        EFA_TRY(peer_status(pe));
        if (board_->stopped()) return Status::error(Code::kInternal, nullptr, "%s", board_->why_stopped().c_str());
        if (done()) break;
        if (deadline.passed()) {
            return Status::error(Code::kTimeout,
                                 "look at that PE's log first; if it is only slow, raise NVSHMEM_EFA_TIMEOUT_MS",
                                 "%s: %s did not happen within %llu ms (%u writes or reads and %u of %u records open)",
                                 name(pe).c_str(), what, static_cast<unsigned long long>(job_->timeout_ms),
                                 peers_[static_cast<size_t>(pe)].data_in_flight,
                                 peers_[static_cast<size_t>(pe)].next_seq - peers_[static_cast<size_t>(pe)].ack_seen,
                                 peers_[static_cast<size_t>(pe)].next_seq);
        }
        for (Endpoint& endpoint : endpoints_) endpoint.nic().progress();
        deadline.relax();
    }
    return Status();
}

const char* lane_name(Lane lane);

}  // namespace nvshmem_efa
