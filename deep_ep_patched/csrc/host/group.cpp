// SPDX-License-Identifier: Apache-2.0
#include "group.h"

#include "log.h"

namespace nvshmem_efa::ep {

namespace {

Domain domain_of(const ep_options& options) {
    Domain domain;
    domain.first = options.rank / options.nvlink_ranks * options.nvlink_ranks;
    domain.n_ranks = options.nvlink_ranks;
    domain.index = options.rank - domain.first;
    domain.timeout_ms = static_cast<uint64_t>(options.timeout_ms);
    domain.is_spinning = options.executor == EP_EXECUTOR_GPU;
    return domain;
}

}  // namespace

Group::Group(const ep_options& options)
    : options_(options), domain_(domain_of(options)), control_(domain_), masks_(static_cast<size_t>(options.n_ranks)) {}

Group::~Group() {
    if (gpu_normal_)
        if (Status ended = gpu_normal_->wait(); !ended.ok()) EFA_LOG(kWarn, "ep", "%s", ended.message());
    low_latency_.reset();
    network_.reset();
    control_.leave();
}

uint8_t* Group::peer_buffer(int rank) const {
    if (!network_ || !is_in_domain(rank)) return nullptr;
    if (rank == options_.rank) return network_->base();
    if (gpu_) return peer_blocks_.empty() ? nullptr : peer_blocks_[static_cast<size_t>(rank - domain_.first)].data();
    const SharedSlab& slab = peer_buffers_[static_cast<size_t>(rank - domain_.first)];
    return slab.base() ? slab.base() + network_->own_bytes() : nullptr;
}

Status Group::forgive(int rank, Status late) {
    if (!options_.enable_shrink || (late.code() != Code::kTimeout && late.code() != Code::kPeer && late.code() != Code::kDevice)) return late;
    EFA_LOG(kWarn, "ep", "rank %d is masked: %s", rank, late.message());
    set_masked(rank, true);
    return Status();
}

Status Group::barrier() {
    EFA_TRY(check_usable());
    if (gpu_normal_) EFA_TRY(breaks(gpu_normal_->wait()));
    if (low_latency_) EFA_TRY(breaks(low_latency_->before_barrier()));
    EFA_TRY(breaks(control_.barrier([this](int i) { return is_masked(domain_.rank_of(i)); },
                                    [this](int i, Status late) { return forgive(domain_.rank_of(i), std::move(late)); })));
    if (!network_) return Status();
    return breaks(network_->barrier([this](int rank) { return !is_in_domain(rank) && !is_masked(rank); },
                                    [this](int rank, Status late) { return forgive(rank, std::move(late)); }));
}

Status Group::check_usable() const {
    if (broken_.empty()) return Status();
    return Status::error(Code::kPeer, "close it, and open a new one", "this group is of no use since: %s", broken_.c_str());
}

Status Group::breaks(Status status) {
    if (!status.ok() && broken_.empty()) broken_ = status.message();
    return status;
}

std::string Group::describe() const {
    std::string text = std::to_string(options_.n_ranks) + (options_.n_ranks == 1 ? " rank, " : " ranks, ") +
                       std::to_string(options_.nvlink_ranks) + " of NVLink each";
    if (gpu_) text += ", on GPUs";
    if (network_) text += "; " + network_->describe();
    if (low_latency_ && !low_latency_->describe().empty()) text += ", " + low_latency_->describe();
    return text;
}

std::string Group::stats_json() const {
    std::string members = "\"exchanges\": " + std::to_string(control_.epoch()) + ", \"exchange_wait_ns\": " + std::to_string(control_.waited_ns());
    if (network_) members += ", " + network_->stats_json();
    const std::string more = low_latency_ ? low_latency_->stats_json() : "";
    if (!more.empty()) members += ", ";
    return "{" + members + more + "}";
}

}  // namespace nvshmem_efa::ep
