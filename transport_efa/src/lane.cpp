// SPDX-License-Identifier: Apache-2.0
#include "lane.h"

#include "completion_fault.h"
#include "log.h"

namespace nvshmem_efa {

namespace {

constexpr uint64_t kRetryPauseNs = 10'000, kRetryPauseMaxNs = 1'000'000;

const char* kind_text(RequestKind kind) {
    switch (kind) {
        case RequestKind::kWrite: return "RDMA WRITE";
        case RequestKind::kRead: return "RDMA READ";
        case RequestKind::kRecord: return "SEND to the agent";
        case RequestKind::kAck: return "ack";
        case RequestKind::kReply: return "reply";
    }
    return "request";
}

}  // namespace

const char* lane_name(Lane lane) { return lane == Lane::kHost ? "host lane" : "proxy lane"; }

void LaneQueues::attach(const Job& job, const MemoryTable& memory, FetchBoard& board, const Knobs& knobs,
                        const uint64_t* acks, ReplySlot* replies) {
    job_ = &job;
    memory_ = &memory;
    board_ = &board;
    gated_signals_ = knobs.signal == "gated" || !job.count_by_immediate;
    endpoints_.resize(job.n_rails);
    peers_.resize(static_cast<size_t>(job.n_pes));
    for (size_t pe = 0; pe < peers_.size(); ++pe) {
        peers_[pe].ack_word = acks + pe;
        peers_[pe].replies = replies + pe * job.window;
        peers_[pe].immediates_of.assign(job.window, 0);
        peers_[pe].reply_busy = std::make_unique<std::atomic<uint8_t>[]>(job.window);
        for (uint32_t slot = 0; slot < job.window; ++slot)
            peers_[pe].replies[slot] = reply_encode(0, reply_never(slot));
    }
}

std::string LaneQueues::name(int pe) const {
    return "PE " + std::to_string(job_->pe) + " -> PE " + std::to_string(pe) + " (" + lane_name(lane_) + ")";
}

Status LaneQueues::check_pe(int pe) const {
    if (!job_) return Status::error(Code::kInvalidArgument, nullptr, "operation before the job was connected");
    if (pe >= 0 && pe < job_->n_pes) return Status();
    return Status::error(Code::kInvalidArgument, "PEs are numbered from 0", "PE %d is out of range: the job has %d PEs", pe,
                         job_->n_pes);
}

void LaneQueues::fail_peer(int pe, Code code, std::string message) {
    LanePeer& peer = peers_[static_cast<size_t>(pe)];
    if (peer.error_code != Code::kOk) return;
    peer.error_code = code;
    peer.error = std::move(message);
}

Status LaneQueues::peer_status(int pe) const {
    const LanePeer& peer = peers_[static_cast<size_t>(pe)];
    if (peer.error_code == Code::kOk) return Status();
    return Status::error(peer.error_code, nullptr, "%s", peer.error.c_str());
}

void LaneQueues::ring_all() {
    for (Endpoint& endpoint : endpoints_) endpoint.ring();
}

void LaneQueues::on_completion(const Completion& completion, Endpoint& endpoint) {
    const Request& request = completion.request;
    const int pe = static_cast<int>(request.owner);
    LanePeer& peer = peers_[request.owner];
    if (completion.status == CqeStatus::kRnr && request.kind == RequestKind::kRecord) {
        const uint64_t now = job_->clock->now_ns();
        refused_.push_back({completion, &endpoint, now + job_->timeout_ms * 1'000'000, now + kRetryPauseNs, kRetryPauseNs});
        return;
    }
    if (request.kind == RequestKind::kRecord) {
        --peer.records_in_flight;
        open_records_.fetch_sub(1, std::memory_order_relaxed);
    } else {
        --peer.data_in_flight;
        if (request.kind == RequestKind::kWrite) peer.writes.remove(request.remote, request.bytes);
    }
    if (request.tracker) --request.tracker->outstanding;
    if (completion.status == CqeStatus::kOk) return;
    fail_peer(pe, is_peer_fault(completion.status) ? Code::kPeer : Code::kDevice,
              name(pe) + ": " + kind_text(request.kind) + " of " + std::to_string(request.bytes) + " bytes on " +
                  endpoint.nic().info().name + " failed: " + cqe_status_text(completion.status) +
                  "; hint: " + status_hint(completion.status));
}

Status LaneQueues::poll() {
    for (Endpoint& endpoint : endpoints_) {
        Completion completion;
        while (endpoint.next_completion(&completion)) on_completion(completion, endpoint);
        if (!endpoint.damage().empty()) {
            return Status::error(Code::kInternal, "report this with NVSHMEM_EFA_LOG_LEVEL=trace", "%s on %s",
                                 endpoint.damage().c_str(), endpoint.nic().info().name.c_str());
        }
    }
    return refused_.empty() ? Status() : retry_refused();
}

// The peer had no receive buffer: its agent is behind. Ask again, ever more slowly, until the deadline.
Status LaneQueues::retry_refused() {
    const uint64_t now = job_->clock->now_ns();
    for (size_t n = refused_.size(); n > 0; --n) {
        Refused refused = refused_.front();
        refused_.pop_front();
        const uint32_t pe = refused.completion.request.owner;
        if (now >= refused.give_up_ns) {
            refused.endpoint->release(refused.completion.id);
            --peers_[pe].records_in_flight;
            open_records_.fetch_sub(1, std::memory_order_relaxed);
            fail_peer(static_cast<int>(pe), Code::kPeer,
                      name(static_cast<int>(pe)) + ": SEND refused until the deadline: " + cqe_status_text(CqeStatus::kRnr) +
                          "; hint: " + status_hint(CqeStatus::kRnr));
            continue;
        }
        if (now < refused.retry_ns || !refused.endpoint->has_room_again()) {
            refused_.push_back(refused);
            continue;
        }
        refused.endpoint->post_send_again(refused.completion);
        refused.endpoint->ring();
        ++stats_.rnr_retries;
    }
    return Status();
}

void LaneQueues::read_acks(LanePeer& peer) {
    // Acquire: memory that the peer's agent changed before the ack is seen after it. Pairs with the placement of the
    // agent's ack write, which it posts after it applied the records (agent.cpp, send_acks).
    const uint64_t word = __atomic_load_n(peer.ack_word, __ATOMIC_ACQUIRE);
    const uint32_t applied = ack_applied(word);
    const int pe = static_cast<int>(&peer - peers_.data());
    if (applied - peer.ack_seen > peer.next_seq - peer.ack_seen) {
        fail_peer(pe, Code::kProtocol, name(pe) + ": that PE acknowledged records that were never sent; hint: do both "
                                                   "PEs run the same version, and is its memory intact?");
        return;
    }
    while (peer.ack_seen != applied) {
        peer.immediates -= peer.immediates_of[peer.ack_seen & (job_->window - 1)];
        ++peer.ack_seen;
    }
    if (word & kAckRefused) {
        fail_peer(pe, Code::kUnregistered,
                  name(pe) + ": that PE's agent refused a signal or atomic; hint: its log names the address");
    }
}

bool LaneQueues::is_drained(const LanePeer& peer) const {
    // Acquire pairs with the agent's release after it delivered a fetched value (agent.cpp, deliver_fetches).
    return peer.data_in_flight == 0 && peer.ack_seen == peer.next_seq && peer.fetches->load(std::memory_order_acquire) == 0;
}

Status LaneQueues::wait_for_room(Endpoint& endpoint, int pe) {
    if (endpoint.has_room()) return Status();
    return wait(pe, "a free slot in the send queue", [&] { return endpoint.has_room(); });
}

// A fence only marks; here is where its price is paid. A record needs the data before it to be placed: earlier records
// are applied before it anyway. A put needs both.
Status LaneQueues::wait_for_fence(int pe, bool is_record) {
    LanePeer& peer = peers_[static_cast<size_t>(pe)];
    if (!peer.fence_data && (is_record || !peer.fence_records)) return Status();
    ++stats_.fence_waits;
    EFA_TRY(wait(pe, "completion of what a fence ordered", [&] {
        if (peer.data_in_flight != 0) return false;
        if (is_record || !peer.fence_records) return true;
        read_acks(peer);
        return peer.ack_seen == peer.next_seq;
    }));
    peer.fence_data = false;
    if (!is_record) peer.fence_records = false;
    return Status();
}

// SRD's first rule: never two un-acknowledged writes to one word. A program may well write a buffer again whose data it
// knows to have arrived (its reader answered), while our device still waits for the acknowledgement.
Status LaneQueues::wait_for_overlap(int pe, uint64_t remote, uint64_t bytes) {
    const auto owner = static_cast<uint32_t>(pe);
    if (peers_[owner].writes.is_surely_free(remote, bytes)) return Status();
    const auto is_free = [&] {
        if (peers_[owner].writes.is_surely_free(remote, bytes)) return true;
        for (const Endpoint& endpoint : endpoints_)
            if (endpoint.is_writing(owner, remote, bytes)) return false;
        return true;
    };
    if (is_free()) return Status();
    ++stats_.overlap_waits;
    return wait(pe, "completion of an earlier put to the same bytes", is_free);
}

void LaneQueues::note_posted(const Request& request) {
    LanePeer& peer = peers_[request.owner];
    ++peer.data_in_flight;
    if (request.kind == RequestKind::kWrite) peer.writes.add(request.remote, request.bytes);
    if (request.tracker) ++request.tracker->outstanding;
}

Status LaneQueues::fence(int pe) {
    const std::lock_guard lock(mutex_);
    EFA_TRY(check_pe(pe));
    EFA_TRY(peer_status(pe));
    LanePeer& peer = peers_[static_cast<size_t>(pe)];
    peer.fence_data = peer.fence_data || peer.data_in_flight != 0;
    peer.fence_records = peer.fence_records || peer.ack_seen != peer.next_seq;
    return Status();
}

Status LaneQueues::quiet(int pe) {
    const std::lock_guard lock(mutex_);
    EFA_TRY(check_pe(pe));
    LanePeer& peer = peers_[static_cast<size_t>(pe)];
    EFA_TRY(wait(pe, "completion of all operations (quiet)", [&] {
        read_acks(peer);
        return is_drained(peer);
    }));
    peer.fence_data = peer.fence_records = false;
    return peer_status(pe);
}

Status LaneQueues::progress() {
    // Help only: a lane that is busy makes its own progress.
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock() || !job_) return Status();
    ring_all();
    return poll();
}

bool LaneQueues::help() {
    if (open_records_.load(std::memory_order_relaxed) == 0) return false;
    // An error is kept with its peer, for the lane's own next call to that PE.
    return progress().ok() && open_records_.load(std::memory_order_relaxed) == 0;
}

TransportStats LaneQueues::stats() const {
    const std::lock_guard lock(mutex_);
    TransportStats stats = stats_;
    for (const Endpoint& endpoint : endpoints_) {
        stats.work_requests += endpoint.posted();
        stats.doorbells += endpoint.doorbells();
    }
    return stats;
}

}  // namespace nvshmem_efa
