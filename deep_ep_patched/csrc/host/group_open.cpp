// SPDX-License-Identifier: Apache-2.0
// How a group comes to be: cards are exchanged, slabs mapped, the network brought up. A rank that fails in a step says so
// in the next exchange, so that no rank waits for one which has given up.
#include <cstdio>
#include <cstring>

#include "gpu_low_latency.h"
#include "group.h"
#include "ll_state.h"
#include "log.h"
#include "ranges.h"

namespace nvshmem_efa::ep {

// What the ranks tell each other first. Of one layout in all versions up to `version`.
struct Card {
    uint32_t magic = 0;
    uint32_t version = 0;
    ep_options options = {};
    SlabName control = {}, buffer = {};
    GpuShare gpu_buffer, gpu_flags;
    uint64_t buffer_bytes = 0;
    int32_t error_code = 0;
    char error[512] = {};
};

namespace {

constexpr uint32_t kCardMagic = 0x44524345;  // "ECRD"
constexpr uint32_t kCardVersion = 3;
constexpr int32_t kRanksMax = 1024;
constexpr int64_t kTimeoutMaxMs = 86400000;

Bootstrap make_bootstrap(const ep_options& options, ep_allgather allgather, void* context) {
    Bootstrap bootstrap;
    bootstrap.pe = options.rank;
    bootstrap.n_pes = options.n_ranks;
    const int rank = options.rank;
    bootstrap.allgather = [=](const void* send, void* recv, size_t bytes) {
        const int result = allgather(context, send, recv, static_cast<int64_t>(bytes));
        if (result == 0) return Status();
        return Status::error(Code::kPeer, "look at the other ranks' first error", "the allgather of rank %d failed (it returned %d)", rank, result);
    };
    const size_t n_ranks = static_cast<size_t>(options.n_ranks);
    bootstrap.barrier = [gather = bootstrap.allgather, n_ranks] {
        const uint64_t here = 1;
        std::vector<uint64_t> all(n_ranks);
        return gather(&here, all.data(), sizeof here);
    };
    return bootstrap;
}

struct Outcome {
    int32_t code = 0;
    char text[508] = {};
};

// Collective: the first rank's error for all; the own one as it is.
Status agree(const Bootstrap& bootstrap, Status own) {
    Outcome mine;
    mine.code = static_cast<int32_t>(own.code());
    std::snprintf(mine.text, sizeof mine.text, "%s", own.message());
    std::vector<Outcome> all(static_cast<size_t>(bootstrap.n_pes));
    Status gathered = bootstrap.allgather(&mine, all.data(), sizeof mine);
    EFA_TRY(std::move(own));
    EFA_TRY(std::move(gathered));
    for (size_t rank = 0; rank < all.size(); ++rank)
        if (all[rank].code != 0)
            return Status::error(static_cast<Code>(all[rank].code), nullptr, "rank %zu: %.500s", rank, all[rank].text);
    return Status();
}

Status differs(const char* what, int rank, int64_t theirs, int own_rank, int64_t own) {
    return Status::error(Code::kMismatch, "open with the same sizes and switches on all ranks", "%s is %lld on rank %d and %lld on rank %d", what,
                         static_cast<long long>(theirs), rank, static_cast<long long>(own), own_rank);
}

Status check_card(const Card& card, const ep_options& own, int rank) {
    if (card.magic != kCardMagic || card.version != kCardVersion)
        return Status::error(Code::kMismatch, "install one version of nvshmem-efa on every machine", "rank %d runs another version", rank);
    if (card.error_code != 0)
        return Status::error(static_cast<Code>(card.error_code), nullptr, "rank %d: %.500s", rank, card.error);
    const ep_options& theirs = card.options;
    const struct {
        const char* name;
        int64_t theirs, own;
    } same[] = {{"rank", theirs.rank, rank},
                {"n_ranks", theirs.n_ranks, own.n_ranks},
                {"nvlink_ranks", theirs.nvlink_ranks, own.nvlink_ranks},
                {"low_latency", theirs.low_latency, own.low_latency},
                {"nvlink_for_ll", theirs.nvlink_for_ll, own.nvlink_for_ll},
                {"executor", theirs.executor, own.executor},
                {"arrivals", theirs.arrivals, own.arrivals},
                {"rdma_bytes", theirs.rdma_bytes, own.rdma_bytes},
                {"enable_shrink", theirs.enable_shrink, own.enable_shrink}};
    for (const auto& field : same)
        if (field.theirs != field.own) return differs(field.name, rank, field.theirs, own.rank, field.own);
    return Status();
}

bool has_normal_mode(const ep_options& options) {
    return options.nvlink_ranks == options.n_ranks && options.n_ranks >= 2 && options.n_ranks <= kNormalRanksMax;
}
bool needs_network(const ep_options& options) { return options.low_latency || options.nvlink_ranks < options.n_ranks; }

}  // namespace

Status check_options(const ep_options& options) {
    const struct {
        const char* name;
        int64_t value, low, high;
    } fields[] = {{"n_ranks", options.n_ranks, 1, kRanksMax},
                  {"rank", options.rank, 0, int64_t{options.n_ranks} - 1},
                  {"nvlink_ranks", options.nvlink_ranks, 1, kDomainRanksMax},
                  {"low_latency", options.low_latency, 0, 1},
                  {"nvlink_for_ll", options.nvlink_for_ll, -1, 1},
                  {"executor", options.executor, EP_EXECUTOR_CPU, EP_EXECUTOR_GPU},
                  {"arrivals", options.arrivals, EP_ARRIVALS_AUTO, EP_ARRIVALS_LINES},
                  {"workers", options.workers, 1, 16},
                  {"nvl_bytes", options.nvl_bytes, 0, int64_t{1} << 46},
                  {"rdma_bytes", options.rdma_bytes, 0, int64_t{1} << 46},
                  {"timeout_ms", options.timeout_ms, 1, kTimeoutMaxMs},
                  {"enable_shrink", options.enable_shrink, 0, 1}};
    for (const auto& field : fields)
        EFA_TRY(in_range(field.name, field.value, field.low, field.high));
    if (options.n_ranks % options.nvlink_ranks != 0)
        return Status::error(Code::kInvalidArgument, "NVLink domains are of equal size", "nvlink_ranks is %d, which does not divide n_ranks, %d",
                             options.nvlink_ranks, options.n_ranks);
    return Status();
}

Status Group::open_parts() {
    EFA_TRY(check_options(options_));
    workers_ = std::make_unique<Workers>(options_.workers);
    EFA_TRY(control_.create());
    if (options_.executor == EP_EXECUTOR_GPU) {
        EFA_TRY(GpuRuntime::open(options_.timeout_ms, &gpu_));
        EFA_TRY(GpuNormal::create(*gpu_, options_, &gpu_normal_));
    }
    EFA_TRY(arena_.open(static_cast<size_t>(options_.nvl_bytes), gpu_.get()));
    if (!needs_network(options_)) return Status();
    return Network::open(options_, domain_.n_ranks > 1, gpu_.get(), &network_).with_context("network");
}

Status Group::fill_card(Card* card) const {
    card->control = control_.name();
    if (gpu_normal_ && has_normal_mode(options_)) EFA_TRY(gpu_->share(gpu_normal_->flags(), &card->gpu_flags));
    if (!network_) return Status();
    card->buffer_bytes = gpu_ ? network_->block().bytes() : network_->slab().bytes();
    if (!gpu_) card->buffer = network_->slab().name();
    return gpu_ && domain_.n_ranks > 1 ? gpu_->share(network_->block(), &card->gpu_buffer) : Status();
}

Status Group::map_parts(const std::vector<Card>& cards) {
    std::vector<SlabName> names;
    peer_buffers_.resize(static_cast<size_t>(domain_.n_ranks));
    peer_blocks_.resize(static_cast<size_t>(domain_.n_ranks));
    for (int i = 0; i < domain_.n_ranks; ++i) {
        const int rank = domain_.rank_of(i);
        const Card& card = cards[static_cast<size_t>(rank)];
        names.push_back(card.control);
        if (gpu_normal_ && has_normal_mode(options_) && rank != options_.rank) EFA_TRY(gpu_normal_->map_peer(rank, card.gpu_flags));
        if (!network_ || rank == options_.rank) continue;
        const uint64_t own_bytes = gpu_ ? network_->block().bytes() : network_->slab().bytes();
        if (card.buffer_bytes != own_bytes)
            return differs("the symmetric buffer's size", rank, static_cast<int64_t>(card.buffer_bytes), options_.rank,
                           static_cast<int64_t>(own_bytes));
        if (gpu_) {
            EFA_TRY(gpu_->open_shared(card.gpu_buffer, &peer_blocks_[static_cast<size_t>(i)]).with_context("rank " + std::to_string(rank)));
            continue;
        }
        EFA_TRY(SharedSlab::open(card.buffer, card.buffer_bytes, "the symmetric buffer", &peer_buffers_[static_cast<size_t>(i)])
                    .with_context("rank " + std::to_string(rank)));
    }
    return control_.map_peers(names);
}

Status Group::connect(const Bootstrap& bootstrap) {
    EFA_TRY(agree(bootstrap, control_.exchange(CallKind::kOpen, arena_, [](int, uint8_t*) {})));
    control_.unlink();
    arena_.unlink(kSlabsMax);
    if (!network_) return Status();
    network_->slab().unlink();
    EFA_TRY(agree(bootstrap, network_->connect(bootstrap).with_context("network")));
    if (!options_.low_latency) return Status();
    return agree(bootstrap, (gpu_ ? GpuLowLatency::open(*this, &low_latency_) : LlState::open(*this, &low_latency_)).with_context("low latency"));
}

Status Group::open(const ep_options& options, ep_allgather allgather, void* context, std::unique_ptr<Group>* group) {
    // Without these two nobody can be told of anything.
    if (!allgather) return Status::error(Code::kInvalidArgument, nullptr, "ep_open needs an allgather");
    if (options.n_ranks < 1 || options.n_ranks > kRanksMax || options.rank < 0 || options.rank >= options.n_ranks) return check_options(options);
    const Bootstrap bootstrap = make_bootstrap(options, allgather, context);
    Card own;
    own.magic = kCardMagic;
    own.version = kCardVersion;
    own.options = options;
    std::unique_ptr<Group> made;
    Status opened = check_options(options);
    if (opened.ok()) {
        made.reset(new Group(options));
        opened = made->open_parts();
    }
    if (opened.ok()) opened = made->fill_card(&own);
    own.error_code = static_cast<int32_t>(opened.code());
    std::snprintf(own.error, sizeof own.error, "%s", opened.message());
    std::vector<Card> cards(static_cast<size_t>(options.n_ranks));
    Status gathered = bootstrap.allgather(&own, cards.data(), sizeof own);
    EFA_TRY(std::move(opened));
    EFA_TRY(std::move(gathered));
    // All ranks have all cards, so if one refuses here, each does: nobody stays behind in the next exchange.
    for (int rank = 0; rank < options.n_ranks; ++rank) EFA_TRY(check_card(cards[static_cast<size_t>(rank)], options, rank));
    EFA_TRY(agree(bootstrap, made->map_parts(cards)));
    EFA_TRY(made->connect(bootstrap));
    *group = std::move(made);
    return Status();
}

}  // namespace nvshmem_efa::ep
