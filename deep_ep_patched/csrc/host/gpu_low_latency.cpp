// SPDX-License-Identifier: Apache-2.0
#include "gpu_low_latency.h"

#include <algorithm>

#include "ep_ll_combine.cuh"
#include "ll_checks.h"
#include "ll_state.h"
#include "log.h"

namespace nvshmem_efa::ep {

namespace {

constexpr uint32_t kLeftAlone = 8;  // multiprocessors

template <class Args>
LlShape shape_in(const Args& args, int n_ranks) {
    return {static_cast<uint32_t>(args.max_tokens), static_cast<uint32_t>(args.hidden), static_cast<uint32_t>(args.n_experts),
            static_cast<uint32_t>(n_ranks)};
}

// Parts of one block of GPU memory, one behind the other.
class Parts {
 public:
    explicit Parts(uint8_t* base = nullptr) : base_(base) {}
    template <class T>
    T* take(size_t count) {
        T* const at = reinterpret_cast<T*>(base_ + end_);
        end_ += (count * sizeof(T) + 127) & ~size_t{127};
        return at;
    }
    size_t bytes() const { return end_; }

 private:
    uint8_t* base_;
    size_t end_ = 0;
};

}  // namespace

Status GpuLowLatency::open(Group& group, std::unique_ptr<ModeState>* state) {
    std::unique_ptr<GpuLowLatency> made(new GpuLowLatency(group));
    EFA_TRY(made->make_words());
    *state = std::move(made);
    return Status();
}

GpuLowLatency::~GpuLowLatency() {
    if (Status ended = gpu_.wait("what is left of low-latency kernels"); !ended.ok()) EFA_LOG(kWarn, "ep", "%s", ended.message());
}

Status GpuLowLatency::make_words() {
    const size_t n_ranks = static_cast<size_t>(group_.n_ranks());
    EFA_TRY(gpu_.allocate(64 * 1024 + n_ranks * 256, "the words of low-latency mode", &words_));
    std::vector<uint8_t*> stores(n_ranks);
    for (size_t rank = 0; rank < n_ranks; ++rank) {
        const bool is_near = group_.is_near(static_cast<int>(rank));
        stores[rank] = is_near ? group_.peer_buffer(static_cast<int>(rank)) : nullptr;
        has_far_ranks_ = has_far_ranks_ || !is_near;
    }
    EFA_TRY(gpu_.read(&state_, &group_.network()->state(), sizeof state_));
    LlView& view = common_.view;
    Parts parts(words_.data());
    common_.words = parts.take<GpuWords>(1);
    view.fault = parts.take<LlFault>(1);
    view.stores = parts.take<uint8_t*>(n_ranks);
    view.masks = parts.take<int32_t>(n_ranks);
    view.sent = parts.take<uint64_t>(4 * n_ranks);
    view.arrived = parts.take<uint32_t>(4 * n_ranks);
    EFA_TRY(gpu_.write(const_cast<uint8_t**>(view.stores), stores.data(), n_ranks * sizeof(uint8_t*)));
    view.state = has_far_ranks_ ? &group_.network()->state() : nullptr;
    view.base = group_.network()->base();
    view.rank = static_cast<uint32_t>(group_.rank());
    view.timeout_ns = static_cast<uint64_t>(group_.options().timeout_ms) * 1000000u;
    view.has_lines = has_far_ranks_ && state_.arrival_slots == 0;
    view.is_shrink = group_.options().enable_shrink != 0;
    common_.gate_ns = 3 * view.timeout_ns;
    if (view.has_lines && !(state_.flags & kWritesOnce))
        return Status::error(Code::kUnsupported, "ask for counters or immediates, or for no way in particular",
                             "arrivals by lines: not all ranks' devices place aligned 128-byte lines once and in order (128-byte data polling)");
    void *host = nullptr, *seen_by_gpu = nullptr;
    EFA_TRY(gpu_.fill_host(sizeof(GpuReport), &host, &seen_by_gpu));
    report_ = static_cast<GpuReport*>(host);
    common_.report = static_cast<GpuReport*>(seen_by_gpu);
    return Status();
}

std::string GpuLowLatency::describe() const {
    if (!has_far_ranks_) return "arrivals by stores";
    if (common_.view.has_lines) return "arrivals by lines";
    return state_.arrival_queues ? "arrivals by immediates" : "arrivals by counters";
}

std::string GpuLowLatency::stats_json() const { return "\"ll_launches\": " + std::to_string(launches_); }

Status GpuLowLatency::check() {
    EFA_TRY(group_.check_usable());
    // pairs with the release in gpu_stop()
    if (!__atomic_load_n(&report_->is_set, __ATOMIC_ACQUIRE)) return Status();
    const char* const phase = report_->phase == static_cast<uint32_t>(LlPhase::kDispatch) ? "dispatch" : "combine";
    switch (report_->stop) {
        case GpuStop::kFault: return ll_fault_error(group_, report_->fault);
        case GpuStop::kOrder:
            return group_.breaks(Status::error(Code::kInvalidArgument, "call each hook once, and before the second call behind its own",
                                               "low-latency %s: more than two were between send and receive, or nothing was to be received", phase));
        case GpuStop::kZeroCopy:
            return group_.breaks(Status::error(Code::kInvalidArgument, "a CUDA graph with zero_copy holds an even number of combines",
                                               "low-latency combine: its rows were written for the other of the two buffers"));
        default:
            return group_.breaks(Status::error(Code::kTimeout, "kernels of other streams hold the GPU for so long",
                                               "low-latency %s: rank %d's own blocks did not all run at once", phase, group_.rank()));
    }
}

// A block a token: each has about a block's worth of rows.
uint32_t GpuLowLatency::blocks_for(const LlShape& shape) const {
    // Some are left to what must run while blocks wait for each other, as the driver's copies for a software device.
    const uint32_t most = gpu_.multiprocessors() > 2 * kLeftAlone ? gpu_.multiprocessors() - kLeftAlone : 1;
    return std::clamp<uint32_t>(shape.max_tokens, 1, most);
}

// A kernel that talks to software devices waits for this host's threads, which copy GPU memory through the driver. What the
// program does next may hold the driver until the kernel has ended, as torch's .cpu() does: neither would end. So the call
// returns when the kernel has ended. In a graph it is for the program to wait for the stream before such a call.
Status GpuLowLatency::let_soft_devices_work() {
    if (!has_far_ranks_ || !group_.network()->is_soft()) return Status();
    bool is_captured = false;
    EFA_TRY(gpu_.is_capturing(&is_captured));
    return is_captured ? Status() : wait();
}

Status GpuLowLatency::make_tables(const LlShape& shape) {
    LlView& view = common_.view;
    const LlLayout at = ll_layout(shape);
    const Network& network = *group_.network();
    if (static_cast<int64_t>(at.bytes) > network.bytes())
        return Status::error(Code::kInvalidArgument, "get_low_latency_rdma_size_hint() has the size",
                             "num_rdma_bytes is %lld; M=%u, H=%u, E=%u with %u ranks need %llu", static_cast<long long>(network.bytes()),
                             shape.max_tokens, shape.hidden, shape.n_experts, shape.n_ranks, static_cast<unsigned long long>(at.bytes));
    if (has_far_ranks_) EFA_TRY(check_unread(shape, state_));
    const auto lay_out = [&](Parts& parts) {
        view.marks = parts.take<uint32_t>(size_t{2} * (shape.n_experts + shape.n_ranks) * shape.mark_words());
        view.counts = parts.take<uint32_t>(static_cast<size_t>(shape.n_ranks) * (1 + shape.local_experts()));
    };
    Parts sizes;
    lay_out(sizes);
    GpuBlock block;
    EFA_TRY(gpu_.wait("kernels of the shape before"));
    EFA_TRY(gpu_.allocate(sizes.bytes(), "tables of low-latency mode", &block));
    tables_ = std::move(block);
    Parts parts(tables_.data());
    lay_out(parts);
    view.shape = shape;
    view.local = shape.local_experts();
    view.at = at;
    return Status();
}

Status GpuLowLatency::use_shape(const LlShape& shape) {
    EFA_TRY(check());
    const LlShape& now = common_.view.shape;
    if (shape.is_same(now)) return Status();
    if (now.n_ranks == 0) return make_tables(shape);
    return Status::error(Code::kInvalidArgument, "call clean_low_latency_buffer() with it on all ranks first",
                         "the low-latency buffer is in use for M=%u, H=%u, E=%u, and this call is for M=%u, H=%u, E=%u", now.max_tokens,
                         now.hidden, now.n_experts, shape.max_tokens, shape.hidden, shape.n_experts);
}

Status GpuLowLatency::dispatch(const ep_ll_dispatch_args& args) {
    const LlShape shape = shape_in(args, group_.n_ranks());
    EFA_TRY(use_shape(shape));
    const DispatchLaunch launch{common_, args};
    EFA_TRY(gpu_.launch(kDispatchSymbol, "low-latency dispatch", blocks_for(shape), kGpuThreads, &launch));
    ++launches_;
    return let_soft_devices_work();
}

Status GpuLowLatency::combine(const ep_ll_combine_args& args) {
    const LlShape shape = shape_in(args, group_.n_ranks());
    EFA_TRY(use_shape(shape));
    const CombineLaunch launch{common_, args, combines_ + 1};
    EFA_TRY(gpu_.launch(kCombineSymbol, "low-latency combine", blocks_for(shape), kGpuThreads, &launch));
    if (args.phases & EP_SEND) ++combines_;
    ++launches_;
    return let_soft_devices_work();
}

Status GpuLowLatency::combine_buffer(const LlShape& shape, void** base, int64_t* stride_expert, int64_t* stride_row) {
    EFA_TRY(use_shape(shape));
    // The caller will write rows, later in the stream, over those of two combines ago: no request may read them any more.
    if (has_far_ranks_) EFA_TRY(reset(ResetStep::kSettle));
    EFA_TRY(let_soft_devices_work());
    *base = row_out(common_.view, combines_ + 1, 0, 0);
    *stride_row = static_cast<int64_t>(common_.view.at.row_bytes / 2);
    *stride_expert = *stride_row * static_cast<int64_t>(shape.rows_max());
    return Status();
}

Status GpuLowLatency::reset(ResetStep step) {
    const ResetLaunch launch{common_, step, 0};
    return gpu_.launch(kResetSymbol, "the reset of low-latency mode", step == ResetStep::kEmpty ? gpu_.multiprocessors() : 1, kGpuThreads, &launch);
}

// As LlState::clean(): all that any rank posted is complete behind the first barrier; no rank writes before all have
// emptied their places; epochs are those of the rank that made the most calls.
Status GpuLowLatency::clean(const LlShape& shape) {
    EFA_TRY(wait());
    GpuWords words;
    EFA_TRY(gpu_.read(&words, common_.words, sizeof words));
    for (const GpuEpochs& at : words.epochs)
        if (at.sent != at.received)
            return Status::error(Code::kInvalidArgument, "call the hooks of earlier calls first", "something is between its send and its receive half");
    if (common_.view.shape.n_ranks != 0) EFA_TRY(reset(ResetStep::kSettle));
    EFA_TRY(wait());
    EFA_TRY(group_.barrier());
    if (!shape.is_same(common_.view.shape)) EFA_TRY(make_tables(shape));
    EFA_TRY(reset(ResetStep::kEmpty));
    EFA_TRY(wait());
    EFA_TRY(group_.barrier());
    EFA_TRY(reset(ResetStep::kTell));
    EFA_TRY(wait());
    EFA_TRY(group_.barrier());
    EFA_TRY(reset(ResetStep::kTake));
    EFA_TRY(wait());
    EFA_TRY(gpu_.read(&words, common_.words, sizeof words));
    combines_ = words.epochs[static_cast<uint32_t>(LlPhase::kCombine)].sent;
    return Status();
}

Status GpuLowLatency::set_masked(int rank, bool is_masked) {
    const int32_t value = is_masked ? 1 : 0;
    EFA_TRY(gpu_.write(common_.view.masks + rank, &value, sizeof value));
    group_.set_masked(rank, is_masked);
    return Status();
}

Status GpuLowLatency::before_barrier() {
    EFA_TRY(wait());
    std::vector<int32_t> masks(static_cast<size_t>(group_.n_ranks()));
    EFA_TRY(gpu_.read(masks.data(), common_.view.masks, masks.size() * sizeof(int32_t)));
    for (size_t rank = 0; rank < masks.size(); ++rank)
        if (masks[rank]) group_.set_masked(static_cast<int>(rank), true);
    return Status();
}

Status GpuLowLatency::wait() {
    EFA_TRY(gpu_.wait("low-latency kernels"));
    return check();
}

}  // namespace nvshmem_efa::ep
