// SPDX-License-Identifier: Apache-2.0
#include "network.h"

#include <algorithm>

#include "clock.h"
#include "ep_lanes.h"
#include "log.h"
#include "mode.h"
#include "soft_efa/engine.h"

namespace nvshmem_efa::ep {

namespace {

constexpr int64_t kArrivalSlots = 4;   // two phases, two parities
constexpr int64_t kQueuesDefault = 2;  // a rail, where NVSHMEM_EFA_GPU_QUEUES says nothing
constexpr size_t kPage = 4096;

size_t rounded(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// As open_soft_nics(), but by this group's settings and rank: a process may hold several groups.
Status open_soft(const OpenOptions& open, const Knobs& knobs, std::vector<std::unique_ptr<Nic>>* nics) {
    int rails = static_cast<int>(knobs.soft_rails);
    if (open.rails_max > 0) rails = std::min(rails, open.rails_max);
    std::shared_ptr<soft::Engine> engine;
    EFA_TRY(soft::Engine::open({rails, open.pe, knobs}, &engine));
    for (int rail = 0; rail < rails; ++rail) nics->push_back(engine->make_nic(rail));
    return Status();
}

// How the low-latency mode learns what has arrived: a slot for each phase and parity, or lines, which need none.
void choose_arrivals(const ep_options& options, const std::vector<std::unique_ptr<Nic>>& nics, Knobs* knobs) {
    const int near_ranks = options.nvlink_for_ll > 0 ? options.nvlink_ranks : options.nvlink_for_ll == 0 ? 1 : 0;
    const bool has_far_ranks = options.n_ranks > near_ranks;
    bool only_lines = options.arrivals == EP_ARRIVALS_LINES;
    if (options.arrivals == EP_ARRIVALS_AUTO)
        for (const auto& nic : nics) {
            const NicCaps& caps = nic->info().caps;
            only_lines = only_lines || (caps.data_polling_128 && !caps.completion_counters && !caps.unsolicited_write_recv);
        }
    knobs->arrivals = options.low_latency && has_far_ranks && !only_lines ? kArrivalSlots : 0;
    knobs->arrival_source = options.arrivals == EP_ARRIVALS_COUNTERS     ? "counters"
                            : options.arrivals == EP_ARRIVALS_IMMEDIATES ? "immediates"
                                                                         : "auto";
}

}  // namespace

Status Network::open(const ep_options& options, bool is_shared, GpuRuntime* gpu, std::unique_ptr<Network>* network) {
    std::unique_ptr<Network> made(new Network(options));
    made->own_bytes_ = rounded(static_cast<size_t>(options.n_ranks) * sizeof(ControlWord), kPage);
    const size_t bytes = made->own_bytes_ + (gpu ? 0 : rounded(static_cast<size_t>(options.rdma_bytes), kPage));
    if (gpu) EFA_TRY(gpu->allocate(static_cast<size_t>(options.rdma_bytes), "the symmetric buffer", &made->block_));
    if (is_shared && !gpu)
        EFA_TRY(SharedSlab::create(bytes, "the symmetric buffer", &made->buffer_));
    else
        EFA_TRY(SharedSlab::create_private(bytes, "the symmetric buffer", &made->buffer_));
    EFA_TRY(made->buffer_.commit(made->own_bytes_));
    TransportOptions transport;
    EFA_TRY(made->open_devices(&transport));
    EFA_TRY(Transport::create(std::move(transport), &made->transport_));
    *network = std::move(made);
    return Status();
}

Status Network::open_devices(TransportOptions* options) {
    std::vector<std::string> warnings;
    EFA_TRY(parse_knobs(nullptr, &options->knobs, &warnings));
    for (const std::string& warning : warnings) EFA_LOG(kWarn, "ep", "%s", warning.c_str());
    Knobs& knobs = options->knobs;
    knobs.gpu_queues = std::max(knobs.gpu_queues, kQueuesDefault);
    knobs.timeout_ms = options_.timeout_ms;
    knobs.posters_are_cpu = options_.executor == EP_EXECUTOR_CPU;
    ModeSources sources;
    sources.open_soft = [this, &knobs](const OpenOptions& open, std::vector<std::unique_ptr<Nic>>* nics) {
        OpenOptions mine = open;
        mine.pe = options_.rank;
        return open_soft(mine, knobs, nics);
    };
    ModeDecision decision;
    EFA_TRY(decide_mode(knobs, sources, &decision));
    if (decision.mode == Mode::kFallback)
        return Status::error(Code::kMissing, "set NVSHMEM_EFA_MODE=soft to use the software device",
                             "this group needs a network between its ranks, and there is no EFA: %s", decision.why.c_str());
    mode_ = mode_name(decision.mode);
    knobs.mode = mode_;
    choose_arrivals(options_, decision.nics, &knobs);
    options->nics = std::move(decision.nics);
    return Status();
}

Network::~Network() = default;

Status Network::connect(const Bootstrap& bootstrap) {
    EFA_TRY(transport_->connect(bootstrap));
    const void* state = nullptr;
    EFA_TRY(transport_->device_state(&state));
    state_ = static_cast<const DeviceState*>(state);
    return register_buffer(bootstrap);
}

Status Network::register_buffer(const Bootstrap& bootstrap) {
    // A real device pins all of it. Of a software device's, users commit what they need.
    if (mode_ != "soft") EFA_TRY(buffer_.commit(buffer_.bytes()));
    EFA_TRY(share(bootstrap, buffer_.base(), buffer_.bytes(), &handles_));
    std::vector<MemHandle> blocks;
    if (block_.data()) EFA_TRY(share(bootstrap, block_.data(), block_.bytes(), &blocks));
    EFA_TRY(transport_->add_heap_chunk(block_.data() ? blocks : handles_));
    return bootstrap.barrier();
}

Status Network::share(const Bootstrap& bootstrap, void* base, size_t bytes, std::vector<MemHandle>* handles) {
    MemHandle own;
    EFA_TRY(transport_->register_memory(base, bytes, &own));
    handles->resize(static_cast<size_t>(bootstrap.n_pes));
    EFA_TRY(bootstrap.allgather(&own, handles->data(), sizeof own));
    for (int rank = 0; rank < bootstrap.n_pes; ++rank)
        EFA_TRY(transport_->attach_peer_memory(rank, (*handles)[static_cast<size_t>(rank)]));
    return Status();
}

Status Network::barrier(const std::function<bool(int)>& take_part, const Late& late) {
    ++barriers_;
    const uint64_t at = static_cast<uint64_t>(reinterpret_cast<uint8_t*>(barrier_word(options_.rank)) - buffer_.base());
    for (int rank = 0; rank < options_.n_ranks; ++rank) {
        if (!take_part(rank)) continue;
        RmaOp put;
        put.pe = rank;
        put.remote_handle = &handles_[static_cast<size_t>(rank)];
        put.remote = put.remote_handle->base + at;
        put.local = &barriers_;
        put.bytes = sizeof barriers_;
        put.blocking = true;  // the next write to this word must not overtake it
        put.copy_source = true;
        Status sent = transport_->rma(Lane::kHost, put).with_context("barrier with rank " + std::to_string(rank));
        // A rank that has come here, too, may be gone as soon as it has our word, before its device could acknowledge it.
        if (!sent.ok() && flag_load(barrier_word(rank)) < barriers_) EFA_TRY(late(rank, std::move(sent)));
    }
    for (int rank = 0; rank < options_.n_ranks; ++rank) {
        Deadline deadline(real_clock(), static_cast<uint64_t>(options_.timeout_ms));
        // pairs with the device's store of a payload, which is a release
        while (take_part(rank) && flag_load(barrier_word(rank)) < barriers_) {
            if (deadline.passed()) {
                EFA_TRY(late(rank, Status::error(Code::kTimeout, "is its process alive? (timeout_ms)",
                                                 "rank %d waited %lld ms for the barrier of rank %d", options_.rank,
                                                 static_cast<long long>(options_.timeout_ms), rank)));
                break;
            }
            deadline.relax();
        }
    }
    return Status();
}

std::string Network::describe() const { return transport_->describe(); }

std::string Network::stats_json() const {
    const TransportStats stats = transport_->stats();
    return "\"work_requests\": " + std::to_string(stats.work_requests) +
           ", \"gpu_work_requests\": " + std::to_string(stats.gpu_work_requests) +
           ", \"bytes_put\": " + std::to_string(stats.bytes_put) + ", \"doorbells\": " + std::to_string(stats.doorbells);
}

}  // namespace nvshmem_efa::ep
