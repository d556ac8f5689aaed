// SPDX-License-Identifier: Apache-2.0
#include "ll_state.h"

#include <algorithm>
#include <cstring>

#include "ll_checks.h"

namespace nvshmem_efa::ep {

namespace {

const char* phase_name(uint32_t phase) { return phase == static_cast<uint32_t>(LlPhase::kDispatch) ? "dispatch" : "combine"; }

const char* wait_name(LlWait what) {
    switch (what) {
        case LlWait::kCredit: return "the credit";
        case LlWait::kRecord: return "the counts";
        case LlWait::kTokens: return "the tokens";
        case LlWait::kRows: return "the rows";
        default: return "an answer";
    }
}

}  // namespace

LlState::LlState(Group& group) : group_(group), stores_(static_cast<size_t>(group.n_ranks())) {
    const size_t n_ranks = stores_.size();
    for (int rank = 0; rank < group.n_ranks(); ++rank) {
        const bool is_near = group.is_near(rank);
        stores_[static_cast<size_t>(rank)] = is_near ? group.peer_buffer(rank) : nullptr;
        has_far_ranks_ = has_far_ranks_ || !is_near;
    }
    sent_.resize(4 * n_ranks);
    arrived_.resize(4 * n_ranks);
    waits_.resize(n_ranks);
    view_.state = has_far_ranks_ ? &group.network()->state() : nullptr;
    view_.base = group.network()->base();
    view_.stores = stores_.data();
    view_.masks = group.mask_words();
    view_.sent = sent_.data();
    view_.arrived = arrived_.data();
    view_.fault = &fault_;
    view_.rank = static_cast<uint32_t>(group.rank());
    view_.timeout_ns = static_cast<uint64_t>(group.options().timeout_ms) * 1000000u;
    view_.has_lines = has_far_ranks_ && view_.state->arrival_slots == 0;
    view_.is_shrink = group.options().enable_shrink != 0;
}

Status LlState::open(Group& group, std::unique_ptr<ModeState>* state) {
    std::unique_ptr<LlState> made(new LlState(group));
    EFA_TRY(made->check_arrivals());
    *state = std::move(made);
    return Status();
}

Status LlState::check_arrivals() {
    if (!view_.has_lines || (view_.state->flags & kWritesOnce)) return Status();
    return Status::error(Code::kUnsupported, "ask for counters or immediates, or for no way in particular",
                         "arrivals by lines: not all ranks' devices place lines whole and once (128-byte data polling)");
}

std::string LlState::describe() const {
    if (!has_far_ranks_) return "arrivals by stores";
    if (view_.has_lines) return "arrivals by lines";
    return view_.state->arrival_queues ? "arrivals by immediates" : "arrivals by counters";
}

std::string LlState::stats_json() const {
    return "\"ll_dispatches\": " + std::to_string(epochs_[0].received) + ", \"ll_combines\": " + std::to_string(epochs_[1].received) +
           ", \"ll_wait_ns\": " + std::to_string(waited_ns_);
}

Status LlState::use_shape(const LlShape& shape, bool rows_out) {
    const bool is_new = view_.shape.n_ranks == 0;
    if (!is_new && !shape.is_same(view_.shape))
        return Status::error(Code::kInvalidArgument, "call clean_low_latency_buffer() with it on all ranks first",
                             "the low-latency buffer is in use for M=%u, H=%u, E=%u, and this call is for M=%u, H=%u, E=%u",
                             view_.shape.max_tokens, view_.shape.hidden, view_.shape.n_experts, shape.max_tokens, shape.hidden,
                             shape.n_experts);
    return make_tables(shape, rows_out);
}

Status LlState::make_tables(const LlShape& shape, bool rows_out) {
    const LlLayout at = ll_layout(shape);
    Network& network = *group_.network();
    if (static_cast<int64_t>(at.bytes) > network.bytes())
        return Status::error(Code::kInvalidArgument, "get_low_latency_rdma_size_hint() has the size",
                             "num_rdma_bytes is %lld; M=%u, H=%u, E=%u with %u ranks need %llu", static_cast<long long>(network.bytes()),
                             shape.max_tokens, shape.hidden, shape.n_experts, shape.n_ranks, static_cast<unsigned long long>(at.bytes));
    if (view_.state) EFA_TRY(check_unread(shape, *view_.state));
    EFA_TRY(network.commit(static_cast<int64_t>(rows_out ? at.bytes : at.rows_out)));
    if (shape.is_same(view_.shape)) return Status();
    view_.shape = shape;
    view_.local = shape.local_experts();
    view_.at = at;
    marks_.assign(size_t{2} * (shape.n_experts + shape.n_ranks) * shape.mark_words(), 0);
    counts_.assign(static_cast<size_t>(shape.n_ranks) * (1 + shape.local_experts()), 0);
    view_.marks = marks_.data();
    view_.counts = counts_.data();
    return Status();
}

Status LlState::begin_send(LlPhase phase, uint64_t* epoch) {
    Epochs& at = epochs_[static_cast<size_t>(phase)];
    if (at.sent - at.received >= 2)
        return Status::error(Code::kInvalidArgument, "call the hook of an earlier one",
                             "a third %s was begun while two were not yet received", phase_name(static_cast<uint32_t>(phase)));
    *epoch = ++at.sent;
    return Status();
}

Status LlState::begin_receive(LlPhase phase, uint64_t* epoch) {
    Epochs& at = epochs_[static_cast<size_t>(phase)];
    if (at.sent == at.received)
        return Status::error(Code::kInvalidArgument, "call each hook once", "no %s was sent that is not yet received",
                             phase_name(static_cast<uint32_t>(phase)));
    *epoch = ++at.received;
    return Status();
}

Status ll_fault_error(Group& group, const LlFault& fault) {
    const unsigned rank = fault.rank;
    const char* const phase = phase_name(fault.phase);
    const auto wanted = static_cast<unsigned long long>(fault.wanted), seen = static_cast<unsigned long long>(fault.seen);
    switch (fault.what) {
        case LlWait::kNetwork: {
            Status named = group.network()->transport().quiet(Lane::kHost, static_cast<int>(rank));
            if (named.ok()) named = Status::error(Code::kInternal, nullptr, "a request to rank %u could not be posted", rank);
            return group.breaks(std::move(named).with_context(std::string("low-latency ") + phase));
        }
        case LlWait::kShape:
            return group.breaks(Status::error(Code::kMismatch, "pass the same sizes and formats on all ranks",
                                              "low-latency dispatch: rank %u sends in another shape or format than rank %d receives",
                                              rank, group.rank()));
        case LlWait::kContent:
            return group.breaks(Status::error(Code::kInternal, "report it",
                                              "low-latency %s: what rank %u sent is not what its counts said (%llu, %llu)", phase, rank,
                                              wanted, seen));
        default:
            return group.breaks(Status::error(Code::kTimeout, "is its process alive, and does it make the same calls? (timeout_ms)",
                                              "low-latency %s: rank %d waited %lld ms for %s of rank %u (wanted %llu, have %llu)", phase,
                                              group.rank(), static_cast<long long>(group.options().timeout_ms), wait_name(fault.what), rank,
                                              wanted, seen));
    }
}

Status LlState::fault() {
    if (!__atomic_load_n(&fault_.is_set, __ATOMIC_ACQUIRE)) return Status();  // set by the workers of a step, which is over
    return ll_fault_error(group_, fault_);
}

int64_t* LlState::begin_waits() {
    std::fill(waits_.begin(), waits_.end(), 0);
    return waits_.data();
}

void LlState::end_waits(int64_t* users) {
    for (size_t rank = 0; rank < waits_.size(); ++rank) {
        waited_ns_ += waits_[rank];
        if (users) users[rank] += waits_[rank];
    }
}

// ---- clean ----

Status LlState::clean(const LlShape& shape) {
    for (const Epochs& at : epochs_)
        if (at.sent != at.received)
            return Status::error(Code::kInvalidArgument, "call the hooks of earlier calls first",
                                 "something is between its send and its receive half");
    // All that any rank posted is complete behind the first barrier; no rank writes before all have emptied their places.
    if (!ll_settle(view_, LlPhase::kDispatch)) return fault();
    EFA_TRY(group_.barrier());
    EFA_TRY(make_tables(shape, false));
    EFA_TRY(empty_places());
    EFA_TRY(group_.barrier());
    return agree_on_epochs();
}

Status LlState::empty_places() {
    // Word by word: devices wrote some that nobody has read.
    for (uint64_t i = 0; i < view_.at.control_bytes / 8; ++i) __atomic_store_n(word_at(view_.base, 0, i), 0, __ATOMIC_RELAXED);
    // Tags that another shape's content left where this one's lines have theirs.
    if (view_.has_lines) std::memset(view_.base + view_.at.tokens_in, 0, view_.at.rows_out - view_.at.tokens_in);
    std::fill(sent_.begin(), sent_.end(), 0);
    std::fill(marks_.begin(), marks_.end(), 0);
    if (!view_.state || view_.has_lines) return Status();
    const uint32_t n_ranks = view_.shape.n_ranks;
    for (uint32_t slot = 0; slot < 4; ++slot)
        for (uint32_t rank = 0; rank < n_ranks; ++rank)
            if (by_network(view_, rank)) arrived_[slot * n_ranks + rank] = arrivals(*view_.state, static_cast<int>(rank), slot);
    return Status();
}

// A rank that was masked has made fewer calls than others. All go on from the highest epoch.
Status LlState::agree_on_epochs() {
    uint64_t* own = word_at(view_.base, view_.at.epochs_out, 0);
    *own = std::max(epochs_[0].sent, epochs_[1].sent) + 1;
    for (uint32_t rank = 0; rank < view_.shape.n_ranks; ++rank) {
        if (group_.is_masked(static_cast<int>(rank))) continue;
        const OneLane lane;
        if (!by_network(view_, rank)) {
            flag_store(lane, word_at(view_.stores[rank], view_.at.epochs_in, view_.rank), *own);
            continue;
        }
        uint64_t* there = word_at(view_.base, view_.at.epochs_in, view_.rank);
        if (!ll_put(view_, lane, LlPhase::kDispatch, there, own, 8, rank)) return fault();
    }
    if (!ll_settle(view_, LlPhase::kDispatch)) return fault();
    EFA_TRY(group_.barrier());
    uint64_t highest = *own;
    for (uint32_t rank = 0; rank < view_.shape.n_ranks; ++rank)
        highest = std::max(highest, flag_load(word_at(view_.base, view_.at.epochs_in, rank)));
    for (Epochs& at : epochs_) at.sent = at.received = (highest + 1) / 2 * 2;
    return Status();
}

}  // namespace nvshmem_efa::ep
