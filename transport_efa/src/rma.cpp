// SPDX-License-Identifier: Apache-2.0
// Puts and gets: checked, cut into pieces over the rails, posted as RDMA WRITE and READ.
#include <algorithm>

#include "lane.h"

namespace nvshmem_efa {

Status LaneQueues::check_remote(int pe, uint64_t remote, size_t bytes, const MemHandle* handle) const {
    if (!handle || handle->magic != kMemHandleMagic) {
        return Status::error(Code::kUnregistered, "the target must be in the symmetric heap",
                             "%s: no memory handle for remote address %#llx", name(pe).c_str(),
                             static_cast<unsigned long long>(remote));
    }
    if (handle_covers(*handle, remote, bytes) && handle->n_rails >= job_->n_rails) return Status();
    return Status::error(Code::kUnregistered, "the target must be in the symmetric heap",
                         "%s: remote range [%#llx, +%zu) is outside the registered [%#llx, +%llu)", name(pe).c_str(),
                         static_cast<unsigned long long>(remote), bytes, static_cast<unsigned long long>(handle->base),
                         static_cast<unsigned long long>(handle->bytes));
}

Status LaneQueues::find_local(const RmaOp& op, MemHandle* found, const MemHandle** handle) const {
    const auto addr = reinterpret_cast<uint64_t>(op.local);
    *handle = op.local_handle;
    if (op.local_handle && op.local_handle->magic == kMemHandleMagic && handle_covers(*op.local_handle, addr, op.bytes))
        return Status();
    *handle = found;
    return memory_->find(addr, op.bytes, found).with_context(name(op.pe));
}

// How a transfer is cut: into stripes, one a rail, when it is long enough, and these into what one request can carry.
LaneQueues::Cut LaneQueues::cut(uint64_t bytes) const {
    const uint64_t stripes = std::max<uint64_t>(1, std::min<uint64_t>(job_->n_rails, bytes / job_->stripe_bytes));
    constexpr uint64_t kAlign = 256;  // so that no two rails write one cache line
    Cut cut;
    cut.stripe_bytes = stripes == 1 ? bytes : ((bytes + stripes - 1) / stripes + kAlign - 1) / kAlign * kAlign;
    cut.segment_bytes = std::min(cut.stripe_bytes, job_->segment_bytes);
    cut.pieces = 0;
    for (uint64_t start = 0; start < bytes; start += cut.stripe_bytes) {
        const uint64_t stripe = std::min(cut.stripe_bytes, bytes - start);
        cut.pieces += static_cast<uint32_t>((stripe + cut.segment_bytes - 1) / cut.segment_bytes);
    }
    return cut;
}

Status LaneQueues::post_piece(const RmaOp& op, const MemHandle& local, uint64_t offset, uint32_t bytes,
                              const uint32_t* immediate, Tracker* tracker) {
    const size_t rail = next_rail_;
    Endpoint& endpoint = endpoints_[rail];
    EFA_TRY(wait_for_room(endpoint, op.pe));
    const Endpoint::Remote to{job_->peers[static_cast<size_t>(op.pe)].agent[rail], op.remote + offset,
                              op.remote_handle->rkey[rail]};
    const Endpoint::Local from{reinterpret_cast<uint64_t>(op.local) + offset, local.lkey[rail]};
    Request request;
    request.kind = op.kind == RmaKind::kPut ? RequestKind::kWrite : RequestKind::kRead;
    request.owner = static_cast<uint32_t>(op.pe);
    request.bytes = bytes;
    request.remote = to.addr;
    request.tracker = tracker;
    if (op.kind == RmaKind::kPut) {
        endpoint.post_write(to, from, bytes, immediate, request);
    } else {
        endpoint.post_read(to, from, bytes, request);
    }
    note_posted(request);
    return Status();
}

// P: the value is on the caller's stack, so it travels in the descriptor or in the request's staging cell.
Status LaneQueues::post_copy(const RmaOp& op, const uint32_t* immediate, Tracker* tracker) {
    if (op.bytes > kCellBytes) {
        return Status::error(Code::kInvalidArgument, "use a put from registered memory",
                             "%s: a copied put of %zu bytes; at most %u fit", name(op.pe).c_str(), op.bytes, kCellBytes);
    }
    if (immediate) return Status::error(Code::kInternal, nullptr, "a copied put cannot carry an immediate");
    Endpoint& endpoint = endpoints_[next_rail_];
    EFA_TRY(wait_for_room(endpoint, op.pe));
    Request request;
    request.owner = static_cast<uint32_t>(op.pe);
    request.bytes = static_cast<uint32_t>(op.bytes);
    request.remote = op.remote;
    request.tracker = tracker;
    endpoint.post_write_copy({job_->peers[request.owner].agent[next_rail_], op.remote, op.remote_handle->rkey[next_rail_]},
                             op.local, request.bytes, request);
    note_posted(request);
    return Status();
}

Status LaneQueues::post_rma(const RmaOp& op, const uint32_t* immediate, Tracker* tracker) {
    if (op.kind == RmaKind::kPut) EFA_TRY(wait_for_overlap(op.pe, op.remote, op.bytes));
    if (op.copy_source) {
        EFA_TRY(post_copy(op, immediate, tracker));
        endpoints_[next_rail_].ring();
        turn_rail();
        return Status();
    }
    MemHandle found;
    const MemHandle* local;
    EFA_TRY(find_local(op, &found, &local));
    const Cut plan = cut(op.bytes);
    for (uint64_t start = 0; start < op.bytes; start += plan.stripe_bytes) {
        const uint64_t end = std::min<uint64_t>(start + plan.stripe_bytes, op.bytes);
        for (uint64_t at = start; at < end; at += plan.segment_bytes) {
            const auto bytes = static_cast<uint32_t>(std::min(plan.segment_bytes, end - at));
            EFA_TRY(post_piece(op, *local, at, bytes, immediate, tracker));
        }
        turn_rail();
    }
    ring_all();
    return Status();
}

Status LaneQueues::finish_blocking(int pe, Tracker* tracker, Status posted) {
    if (posted.ok() && tracker->outstanding)
        posted = wait(pe, "completion of a blocking transfer", [&] { return tracker->outstanding == 0; });
    // The tracker is on the caller's stack: an operation given up must leave nothing that points at it.
    if (tracker->outstanding)
        for (Endpoint& endpoint : endpoints_) endpoint.forget(tracker);
    return posted;
}

Status LaneQueues::rma(const RmaOp& op) {
    const std::lock_guard lock(mutex_);
    EFA_TRY(check_pe(op.pe));
    EFA_TRY(peer_status(op.pe));
    if (op.bytes == 0) return Status();
    EFA_TRY(check_remote(op.pe, op.remote, op.bytes, op.remote_handle));
    if (op.kind == RmaKind::kPut) {
        EFA_TRY(wait_for_fence(op.pe, false));
        ++stats_.puts;
        stats_.bytes_put += op.bytes;
    } else {
        ++stats_.gets;
        stats_.bytes_got += op.bytes;
    }
    if (!op.blocking) return post_rma(op, nullptr, nullptr);
    Tracker tracker;
    return finish_blocking(op.pe, &tracker, post_rma(op, nullptr, &tracker));
}

}  // namespace nvshmem_efa
