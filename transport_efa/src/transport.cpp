// SPDX-License-Identifier: Apache-2.0
// Puts the parts together: two lanes, the agent and its thread, the memory table.
#include "transport.h"

#include <algorithm>
#include <atomic>
#include <thread>

#include "agent.h"
#include "connect.h"
#include "gpu_lane.h"
#include "lane.h"
#include "log.h"

namespace nvshmem_efa {

namespace {

constexpr uint32_t kHelpEveryTurns = 512;

class TransportImpl final : public Transport {
   public:
    explicit TransportImpl(TransportOptions options)
        : options_(std::move(options)), clock_(options_.clock ? *options_.clock : real_clock()), memory_(options_.nics) {}
    ~TransportImpl() override;

    Status connect(const Bootstrap& bootstrap) override;
    Status register_memory(void* addr, size_t bytes, MemHandle* handle) override { return memory_.add(addr, bytes, handle); }
    Status release_memory(const MemHandle& handle) override {
        if (gpu_) gpu_->forget(handle);
        return memory_.remove(handle);
    }
    Status attach_peer_memory(int pe, const MemHandle& handle) override;
    Status add_heap_chunk(const std::vector<MemHandle>& handles) override { return gpu_ ? gpu_->add_chunk(handles) : Status(); }
    Status add_local_memory(const MemHandle& handle) override { return gpu_ ? gpu_->add_local(handle) : Status(); }
    Status device_state(const void** at_posters) override;

    Status rma(Lane lane, const RmaOp& op) override {
        EFA_TRY(check_gpu());
        return queues(lane).rma(op);
    }
    Status amo(Lane lane, const AmoOp& op) override {
        EFA_TRY(check_gpu());
        return queues(lane).amo(op);
    }
    Status put_signal(Lane lane, const PutSignalOp& op) override {
        EFA_TRY(check_gpu());
        return queues(lane).put_signal(op);
    }
    Status fence(Lane lane, int pe) override {
        EFA_TRY(queues(lane).fence(pe));
        return gpu_ ? gpu_->drain(pe) : Status();
    }
    Status quiet(Lane lane, int pe) override {
        EFA_TRY(queues(lane).quiet(pe));
        return gpu_ ? gpu_->drain(pe) : Status();
    }
    Status progress(Lane lane) override {
        EFA_TRY(check_gpu());
        return queues(lane).progress();
    }
    bool poll_agent() override;
    TransportStats stats() const override;
    std::string describe() const override;

   private:
    LaneQueues& queues(Lane lane) { return lane == Lane::kHost ? *host_lane_ : *proxy_lane_; }
    // What the GPU posted has failed: said by the next operation, whichever it is.
    Status check_gpu() const { return gpu_ ? gpu_->check() : Status(); }
    void run_agent();
    bool help_lanes();

    TransportOptions options_;
    Clock& clock_;
    Job job_;
    MemoryTable memory_;
    ControlMemory control_;
    FetchBoard board_;
    // Lanes answer "not connected" before connect(), so they exist from the start.
    std::unique_ptr<LaneQueues> host_lane_ = std::make_unique<LaneQueues>(Lane::kHost, std::vector<Endpoint>{});
    std::unique_ptr<LaneQueues> proxy_lane_ = std::make_unique<LaneQueues>(Lane::kProxy, std::vector<Endpoint>{});
    std::unique_ptr<GpuLane> gpu_;  // null without NVSHMEM_EFA_GPU_QUEUES
    std::unique_ptr<Agent> agent_;
    std::atomic<bool> stop_{false};
    std::thread agent_thread_;
};

TransportImpl::~TransportImpl() {
    stop_.store(true, std::memory_order_relaxed);
    if (agent_thread_.joinable()) agent_thread_.join();
    // Queues before the memory they point into, address handles before their devices.
    host_lane_.reset();
    proxy_lane_.reset();
    gpu_.reset();
    agent_.reset();
    for (const Peer& peer : job_.peers)
        for (size_t rail = 0; rail < job_.n_rails; ++rail)
            if (peer.ah[rail].handle) (void)options_.nics[rail]->destroy_address_handle(peer.ah[rail]);
}

Status TransportImpl::connect(const Bootstrap& bootstrap) {
    ConnectedQueues queues;
    job_.clock = &clock_;
    EFA_TRY(connect_job(bootstrap, options_.nics, options_.knobs, control_, &job_, &queues));
    std::unique_ptr<WordEngine> cuda;
    Status with_cuda = make_cuda_words(&cuda);
    if (!with_cuda.ok() && with_cuda.code() != Code::kMissing) return with_cuda;
    if (!with_cuda.ok()) EFA_LOG(kDebug, "agent", "no CUDA: %s", with_cuda.message());
    host_lane_ = std::make_unique<LaneQueues>(Lane::kHost, std::move(queues.lanes[0]));
    proxy_lane_ = std::make_unique<LaneQueues>(Lane::kProxy, std::move(queues.lanes[1]));
    host_lane_->attach(job_, memory_, board_, options_.knobs, queues.ack_words[0], queues.replies[0]);
    proxy_lane_->attach(job_, memory_, board_, options_.knobs, queues.ack_words[1], queues.replies[1]);
    if (!queues.gpu.empty()) {
        std::vector<Nic*> nics;
        for (const auto& nic : options_.nics) nics.push_back(nic.get());
        EFA_TRY(GpuLane::create(job_, options_.knobs, queues, nics, &gpu_));
    }
    agent_ = std::make_unique<Agent>(std::move(queues.agent));
    agent_->attach(job_, memory_, board_, std::move(cuda));
    if (options_.agent_thread) agent_thread_ = std::thread([this] { run_agent(); });
    // Nobody sends before everybody can receive and has all address handles.
    return bootstrap.barrier();
}

bool TransportImpl::poll_agent() {
    if (!agent_) return false;
    return agent_->poll() || help_lanes();
}

bool TransportImpl::help_lanes() {
    const bool host = host_lane_->help(), proxy = proxy_lane_->help();
    return host || proxy;
}

void TransportImpl::run_agent() {
    uint32_t idle = 0;
    while (!stop_.load(std::memory_order_relaxed)) {
        // Helping takes a lane's lock, so it waits until the lane's own thread has had the time to look itself.
        if (agent_->poll() || (idle % kHelpEveryTurns == kHelpEveryTurns - 1 && help_lanes())) {
            idle = 0;
        } else {
            clock_.relax(idle++);
        }
    }
}

Status TransportImpl::attach_peer_memory(int pe, const MemHandle& handle) {
    if (pe < 0 || pe >= job_.n_pes)
        return Status::error(Code::kInvalidArgument, nullptr, "memory of PE %d, in a job of %d PEs", pe, job_.n_pes);
    if (pe == job_.pe) return Status();
    const PeCard& card = job_.peers[static_cast<size_t>(pe)].card;
    return options_.nics[0]->attach_peer_memory(card.rails[0].address, handle.share)
        .with_context("memory of PE " + std::to_string(pe));
}

Status TransportImpl::device_state(const void** at_posters) {
    *at_posters = nullptr;
    if (!gpu_) {
        return Status::error(Code::kUnsupported, "set NVSHMEM_EFA_GPU_QUEUES to 1 or more before NVSHMEM starts",
                             "there is no device state: %s", job_.n_pes ? "the GPU has no queues of its own" : "the job is not connected yet");
    }
    *at_posters = gpu_->state_at_posters();
    return Status();
}

TransportStats TransportImpl::stats() const {
    TransportStats sum = host_lane_->stats();
    const TransportStats proxy = proxy_lane_->stats();
    sum.puts += proxy.puts;
    sum.gets += proxy.gets;
    sum.amos += proxy.amos;
    sum.signals += proxy.signals;
    sum.bytes_put += proxy.bytes_put;
    sum.bytes_got += proxy.bytes_got;
    sum.work_requests += proxy.work_requests;
    sum.doorbells += proxy.doorbells;
    sum.fence_waits += proxy.fence_waits;
    sum.overlap_waits += proxy.overlap_waits;
    sum.rnr_retries += proxy.rnr_retries;
    if (agent_) {
        sum.agent_records = agent_->records();
        sum.agent_immediates = agent_->immediates();
        sum.work_requests += agent_->work_requests();
        sum.doorbells += agent_->doorbells();
    }
    if (gpu_) sum.gpu_work_requests = gpu_->work_requests();
    return sum;
}

std::string TransportImpl::describe() const {
    std::string text = std::to_string(job_.n_rails ? job_.n_rails : options_.nics.size()) + " rails (";
    for (size_t rail = 0; rail < options_.nics.size(); ++rail) {
        if (rail) text += ", ";
        text += options_.nics[rail]->info().name;
    }
    text += "), agent ";
    text += agent_ ? agent_->engine_name() : "not started";
    return gpu_ ? text + ", " + gpu_->describe() : text;
}

}  // namespace

Status Transport::create(TransportOptions options, std::unique_ptr<Transport>* transport) {
    if (options.nics.empty())
        return Status::error(Code::kMissing, "run nvshmem-efa doctor", "a transport needs at least one device");
    if (options.nics.size() > kRailsMax)
        return Status::error(Code::kConfig, "set NVSHMEM_EFA_RAILS", "%zu devices; at most %d are used", options.nics.size(), kRailsMax);
    for (const auto& nic : options.nics) {
        if (!nic->info().caps.rdma_write || !nic->info().caps.rdma_read) {
            return Status::error(Code::kUnsupported, "p5 and later instances have it",
                                 "device %s lacks RDMA read or write", nic->info().name.c_str());
        }
    }
    *transport = std::make_unique<TransportImpl>(std::move(options));
    return Status();
}

}  // namespace nvshmem_efa
