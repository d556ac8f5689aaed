// SPDX-License-Identifier: Apache-2.0
#include "agent.h"

#include <algorithm>

#include "log.h"

namespace nvshmem_efa {

namespace {
constexpr size_t kReceivesPerTurn = 64;  // a bound on one turn, so that acks and replies are never far behind
constexpr size_t kBatchMax = 64;

uint32_t source_key(uint16_t ah, uint16_t qp_num) { return (uint32_t{ah} << 16) | qp_num; }
}  // namespace

void Agent::attach(const Job& job, const MemoryTable& memory, FetchBoard& board, std::unique_ptr<WordEngine> cuda) {
    job_ = &job;
    memory_ = &memory;
    board_ = &board;
    cuda_ = std::move(cuda);
    endpoints_.resize(job.n_rails);
    sources_.resize(static_cast<size_t>(job.n_pes) * kLanesMax);
    source_of_.resize(job.n_rails);
    for (uint32_t index = 0; index < sources_.size(); ++index) {
        Source& source = sources_[index];
        source.pe = static_cast<int>(index / kLanesMax);
        source.lane = static_cast<int>(index % kLanesMax);
        const Peer& peer = job.peers[static_cast<size_t>(source.pe)];
        if (!peer.card.ack_words[source.lane]) continue;  // the PE has no such lane
        source.slots.resize(job.window);
        for (size_t rail = 0; rail < job.n_rails; ++rail) {
            const RailCard& card = peer.card.rails[rail];
            if (source.lane != kLaneGpu) source_of_[rail][source_key(peer.agent[rail].ah, card.lane_qp_num[source.lane])] = index;
            // Any of its queues may carry any record or data of the GPU lane: the number alone gives the order.
            for (size_t i = 0; source.lane == kLaneGpu && i < kGpuQueuesMax && card.gpu_qp_num[i]; ++i)
                source_of_[rail][source_key(peer.agent[rail].ah, card.gpu_qp_num[i])] = index;
        }
    }
    requests_.reserve(kBatchMax);
    applied_.reserve(kBatchMax);
}

void Agent::fail(const std::string& why) {
    if (board_->stopped()) return;
    const std::string error = "signal agent of PE " + std::to_string(job_->pe) + " stopped: " + why;
    EFA_LOG(kError, "agent", "%s", error.c_str());
    board_->stop(error);
}

bool Agent::poll() {
    if (board_->stopped()) return false;
    bool busy = poll_receives();
    busy |= apply_ready();
    busy |= poll_completions();
    busy |= send_acks();
    busy |= deliver_fetches();
    if (busy) count_posted();
    return busy;
}

void Agent::count_posted() {
    uint64_t posted = 0, doorbells = 0;
    for (const Endpoint& endpoint : endpoints_) {
        posted += endpoint.posted();
        doorbells += endpoint.doorbells();
    }
    work_requests_.store(posted, std::memory_order_relaxed);
    doorbells_.store(doorbells, std::memory_order_relaxed);
}

bool Agent::poll_receives() {
    bool busy = false;
    for (size_t rail = 0; rail < endpoints_.size(); ++rail) {
        const RxCqeEx* cqe;
        for (size_t n = 0; n < kReceivesPerTurn && endpoints_[rail].next_receive(&cqe); ++n) {
            on_receive(rail, *cqe);
            endpoints_[rail].pop_receive();
            busy = true;
        }
        if (!endpoints_[rail].damage().empty()) fail(endpoints_[rail].damage());
    }
    return busy;
}

void Agent::on_receive(size_t rail, const RxCqeEx& cqe) {
    if (static_cast<CqeStatus>(cqe.base.status) != CqeStatus::kOk) {
        fail(std::string("a receive failed: ") + cqe_status_text(static_cast<CqeStatus>(cqe.base.status)));
        return;
    }
    const auto found = source_of_[rail].find(source_key(cqe.base.ah, cqe.base.src_qp_num));
    if (found == source_of_[rail].end()) {
        EFA_LOG(kWarn, "agent", "message from an unknown sender (ah %u, QP %u) on %s was ignored", cqe.base.ah,
                cqe.base.src_qp_num, endpoints_[rail].nic().info().name.c_str());
        return;
    }
    Source& source = sources_[found->second];
    if (cqe_opcode(cqe.base.flags) == static_cast<uint8_t>(SendOpcode::kRdmaWrite)) {
        immediates_.fetch_add(1, std::memory_order_relaxed);
        const uint32_t seq = cqe.base.immediate;
        if (seq - source.next >= job_->window) {
            fail("PE " + std::to_string(source.pe) + " sent data numbered " + std::to_string(seq) + ", outside its window");
            return;
        }
        ++source.slots[seq & (job_->window - 1)].arrived;
        if (seq == source.next) touch(source);
        return;
    }
    const uint8_t* bytes = endpoints_[rail].receive_buffer(cqe.base.req_id);
    if (!bytes || cqe.base.length != sizeof(AgentRecord)) {
        fail("PE " + std::to_string(source.pe) + " sent a record of " + std::to_string(cqe.base.length) + " bytes");
        return;
    }
    AgentRecord record;
    memcpy(&record, bytes, sizeof record);
    on_record(source, record);
}

void Agent::on_record(Source& source, const AgentRecord& record) {
    records_.fetch_add(1, std::memory_order_relaxed);
    Slot& slot = source.slots[record.seq & (job_->window - 1)];
    if (record.seq - source.next >= job_->window || slot.has_record) {
        fail("PE " + std::to_string(source.pe) + " sent record " + std::to_string(record.seq) + " out of its window or twice");
        return;
    }
    slot.record = record;
    slot.has_record = true;
    if (record.seq == source.next) touch(source);
}

void Agent::touch(Source& source) {
    if (source.touched) return;
    source.touched = true;
    ready_.push_back(static_cast<uint32_t>(&source - sources_.data()));
}

// Records whose turn it is, whose data has all arrived, and whose reply slot is free.
void Agent::collect(Source& source, size_t limit) {
    const auto index = static_cast<uint32_t>(&source - sources_.data());
    for (uint32_t seq = source.next; applied_.size() < limit && seq - source.next < job_->window; ++seq) {
        const Slot& slot = source.slots[seq & (job_->window - 1)];
        if (!slot.has_record || slot.arrived < slot.record.n_writes || slot.reply_in_flight) break;
        WordRequest request;
        Applied applied{index, seq, MemoryKind::kHost, (slot.record.flags & kRecordFetch) != 0, false};
        applied.refused = !record_to_request(source, slot.record, &request, &applied.kind);
        requests_.push_back(request);
        applied_.push_back(applied);
    }
}

bool Agent::record_to_request(const Source& source, const AgentRecord& record, WordRequest* request, MemoryKind* kind) {
    request->addr = record.addr;
    request->operand = record.operand;
    request->compare = record.compare;
    request->bytes = static_cast<uint8_t>(1u << record.bytes_log2);
    request->op = static_cast<WordOp>(record.op);
    request->type = record.flags & kRecordFloat ? WordType::kFloat : WordType::kInteger;
    request->needs_fetch = (record.flags & kRecordFetch) != 0;
    const bool sound = record.op <= static_cast<uint8_t>(WordOp::kCompareSwap) && request->bytes >= 2 && request->bytes <= 8 &&
                       record.addr % request->bytes == 0;
    if (sound && memory_->holds(record.addr, request->bytes, kind) && (*kind == MemoryKind::kHost || cuda_)) return true;
    EFA_LOG(kError, "agent",
            "PE %d asked for a signal or atomic on %#llx (%u bytes), which is not a registered word here; hint: was the "
            "heap freed, or is CUDA missing in this process?",
            source.pe, static_cast<unsigned long long>(record.addr), request->bytes);
    return false;
}

bool Agent::apply_ready() {
    if (ready_.empty()) return false;
    // Every fetch must find room for its reply, so that nothing here ever waits for a queue.
    size_t limit = kBatchMax;
    for (Endpoint& endpoint : endpoints_) limit = std::min<size_t>(limit, endpoint.room());
    if (limit == 0) return false;
    std::vector<uint32_t> batch;
    batch.swap(ready_);
    for (const uint32_t index : batch) {
        sources_[index].touched = false;
        collect(sources_[index], limit);
    }
    const bool busy = !applied_.empty();
    if (busy && apply_batch()) finish_batch();
    requests_.clear();
    applied_.clear();
    for (const uint32_t index : batch) {  // what is left over (limit, reply slot busy) gets another turn
        Source& source = sources_[index];
        const Slot& next = source.slots[source.next & (job_->window - 1)];
        if (next.has_record && next.arrived >= next.record.n_writes) touch(source);
    }
    return busy;
}

// In order, in runs of one memory kind; a refused record ends a run.
bool Agent::apply_batch() {
    for (size_t start = 0; start < applied_.size();) {
        size_t end = start;
        while (end < applied_.size() && !applied_[end].refused && applied_[end].kind == applied_[start].kind) ++end;
        if (end == start) {
            ++start;
            continue;
        }
        WordEngine& engine = applied_[start].kind == MemoryKind::kHost ? *cpu_ : *cuda_;
        if (const Status status = engine.apply(&requests_[start], end - start); !status.ok()) {
            fail(status.message());
            return false;
        }
        start = end;
    }
    return true;
}

void Agent::finish_batch() {
    for (size_t i = 0; i < applied_.size(); ++i) {
        Source& source = sources_[applied_[i].source];
        Slot& slot = source.slots[applied_[i].seq & (job_->window - 1)];
        slot.has_record = false;
        slot.arrived = 0;
        source.next = applied_[i].seq + 1;
        source.refused = source.refused || applied_[i].refused;
        if (applied_[i].fetch && !applied_[i].refused) send_reply(source, applied_[i].seq, requests_[i].fetched);
        if (!source.owes_ack) owe_ack_.push_back(applied_[i].source);
        source.owes_ack = true;
    }
    for (Endpoint& endpoint : endpoints_) endpoint.ring();
}

void Agent::send_reply(Source& source, uint32_t seq, uint64_t value) {
    if (source.gone) return;
    const uint32_t index = seq & (job_->window - 1);
    const Peer& peer = job_->peers[static_cast<size_t>(source.pe)];
    const size_t rail = seq % job_->n_rails;
    const ReplySlot reply = reply_encode(value, seq);
    Request request;
    request.kind = RequestKind::kReply;
    request.owner = static_cast<uint32_t>(&source - sources_.data());
    request.slot = index;
    request.bytes = sizeof reply;
    const uint64_t slots = peer.card.reply_slots[source.lane];
    const uint64_t to = slots + (static_cast<uint64_t>(job_->pe) * job_->window + index) * sizeof(ReplySlot);
    source.slots[index].reply_in_flight = true;  // no second write to that slot before this one's completion
    endpoints_[rail].post_write_copy({peer.agent[rail], to, peer.card.rails[rail].control_rkey}, &reply, sizeof reply, request);
}

// One ack word per (source, us), so at most one un-acknowledged write to it: the next carries all that happened since.
bool Agent::send_acks() {
    bool busy = false;
    size_t kept = 0;
    for (size_t i = 0; i < owe_ack_.size(); ++i) {
        Source& source = sources_[owe_ack_[i]];
        Endpoint& endpoint = endpoint_for(static_cast<uint32_t>(source.pe));
        const size_t rail = static_cast<uint32_t>(source.pe) % job_->n_rails;
        if (source.ack_in_flight || !endpoint.has_room()) {
            owe_ack_[kept++] = owe_ack_[i];
            continue;
        }
        source.owes_ack = false;
        if (source.gone) continue;
        const Peer& peer = job_->peers[static_cast<size_t>(source.pe)];
        const uint64_t word = source.next | (source.refused ? kAckRefused : 0);
        Request request;
        request.kind = RequestKind::kAck;
        request.owner = owe_ack_[i];
        request.bytes = sizeof word;
        const uint64_t to = peer.card.ack_words[source.lane] + static_cast<uint64_t>(job_->pe) * sizeof word;
        endpoint.post_write_copy({peer.agent[rail], to, peer.card.rails[rail].control_rkey}, &word, sizeof word, request);
        endpoint.ring();
        source.ack_in_flight = true;
        busy = true;
    }
    owe_ack_.resize(kept);
    return busy;
}

bool Agent::poll_completions() {
    bool busy = false;
    for (Endpoint& endpoint : endpoints_) {
        Completion completion;
        while (endpoint.next_completion(&completion)) {
            busy = true;
            Source& source = sources_[completion.request.owner];
            if (completion.request.kind == RequestKind::kAck) {
                source.ack_in_flight = false;
            } else {
                source.slots[completion.request.slot].reply_in_flight = false;
                touch(source);
            }
            if (completion.status == CqeStatus::kOk || source.gone) continue;
            source.gone = true;
            EFA_LOG(kWarn, "agent", "PE %d does not take our acks any more: %s; its own waits will say why", source.pe,
                    cqe_status_text(completion.status));
        }
    }
    return busy;
}

bool Agent::deliver(const PendingFetch& fetch, uint64_t value) {
    if (fetch.result_kind == MemoryKind::kHost) {
        fetch.result[0] = value;
        __atomic_store_n(&fetch.result[1], fetch.flag, __ATOMIC_RELEASE);  // pairs with the requester's poll of the flag
        return true;
    }
    if (!cuda_) {
        fail("a fetched value is wanted in GPU memory, and CUDA is not available in this process");
        return false;
    }
    WordRequest words[2];
    words[0].addr = reinterpret_cast<uint64_t>(&fetch.result[0]);
    words[0].operand = value;
    words[1].addr = reinterpret_cast<uint64_t>(&fetch.result[1]);
    words[1].operand = fetch.flag;
    for (WordRequest& word : words) word.op = WordOp::kSet;
    if (const Status status = cuda_->apply(words, 2); !status.ok()) {
        fail(status.message());
        return false;
    }
    return true;
}

bool Agent::deliver_fetches() {
    board_->take(&fetches_);
    bool busy = false;
    for (size_t i = 0; i < fetches_.size();) {
        uint64_t value;
        if (!reply_decode(*fetches_[i].reply, fetches_[i].seq, &value)) {
            ++i;
            continue;
        }
        fetches_[i].slot_is_busy->store(0, std::memory_order_release);  // pairs with wait_for_window() in amo.cpp
        if (!deliver(fetches_[i], value)) return true;
        // Release: the value is in place before quiet() sees the count drop. Pairs with is_drained() in lane.cpp.
        fetches_[i].outstanding->fetch_sub(1, std::memory_order_release);
        fetches_[i] = fetches_.back();
        fetches_.pop_back();
        busy = true;
    }
    return busy;
}

}  // namespace nvshmem_efa
