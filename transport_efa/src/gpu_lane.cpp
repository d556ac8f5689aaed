// SPDX-License-Identifier: Apache-2.0
// Making the state. Waiting: gpu_lane_drain.cpp. Memory: gpu_lane_memory.cpp. Failures: gpu_lane_errors.cpp.
#include "gpu_lane.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace nvshmem_efa {

namespace {

constexpr size_t kAlign = 128;
constexpr size_t kPage = 65536;  // the largest base page of the machines we know
constexpr uint64_t kSegmentMax = uint64_t{1} << 31;  // the lengths of descriptors are 32 bits

}  // namespace

Status GpuLane::create(const Job& job, const Knobs& knobs, ConnectedQueues& queues, const std::vector<Nic*>& nics,
                       std::unique_ptr<GpuLane>* lane) {
    std::unique_ptr<GpuLane> made(new GpuLane(job, nics));
    EFA_TRY(made->open(knobs, queues).with_context("GPU queues"));
    *lane = std::move(made);
    return Status();
}

GpuLane::~GpuLane() {
    arrivals_.reset();
    queues_.clear();  // before the memory that their posters' descriptions point into
    errors_map_.unmap();
    words_map_.unmap();
    if (errors_) munmap(errors_, errors_bytes_);
}

Status GpuLane::open(const Knobs& knobs, ConnectedQueues& queues) {
    queues_ = std::vector<Queue>(queues.gpu.size());
    for (size_t i = 0; i < queues_.size(); ++i) queues_[i].ring = std::move(queues.gpu[i]);
    queues_per_rail_ = queues_.size() / job_.n_rails;
    arrivals_ = std::move(queues.arrivals);
    lay_out();
    EFA_TRY(PosterMemory::create(queues.posters, layout_.end, layout_.live_end, static_cast<int64_t>(job_.timeout_ms), &memory_));
    uint64_t ticks = 0;
    EFA_TRY(memory_->ticks_per_ms(&ticks));
    wait_ticks_ = ticks * job_.timeout_ms;
    EFA_TRY(map_host_memory(queues));
    std::vector<uint8_t> image(layout_.end, 0);
    EFA_TRY(fill_state(knobs, &image));
    return memory_->write(0, image.data(), image.size());
}

void GpuLane::lay_out() {
    const auto n_pes = static_cast<size_t>(job_.n_pes);
    size_t depth_max = 0;
    bool has_notes = false;
    for (const Queue& queue : queues_) {
        depth_max = std::max<size_t>(depth_max, queue.ring->view().depth);
        has_notes = has_notes || !(queue.ring->view().req_id_64 || queue.ring->view().slots_are_readable);
    }
    size_t at = 0;
    const auto take = [&at](size_t bytes) {
        const size_t start = at;
        at = (at + bytes + kAlign - 1) / kAlign * kAlign;
        return start;
    };
    layout_.queue_states = take(queues_.size() * sizeof(GpuQueueState));
    layout_.peers = take(n_pes * sizeof(DevicePeer));
    layout_.live_end = at;
    layout_.shared = take(sizeof(DeviceShared));
    layout_.state = take(sizeof(DeviceState));
    layout_.queues = take(queues_.size() * sizeof(GpuQueue));
    layout_.targets = take(n_pes * job_.n_rails * sizeof(DeviceTarget));
    layout_.reply_busy = take(n_pes * job_.window * sizeof(uint32_t));
    layout_.chunks = take(kChunksMax * sizeof(DeviceChunk));
    layout_.lkeys = take(kChunksMax * job_.n_rails * sizeof(uint32_t));
    layout_.remote_bases = take(kChunksMax * n_pes * sizeof(uint64_t));
    layout_.rkeys = take(kChunksMax * n_pes * job_.n_rails * sizeof(uint32_t));
    layout_.locals = take(kLocalsMax * sizeof(DeviceLocal));
    layout_.local_lkeys = take(kLocalsMax * job_.n_rails * sizeof(uint32_t));
    layout_.notes = take(has_notes ? queues_.size() * depth_max * sizeof(GpuQueueNote) : 0);
    const size_t n_arrivals = arrivals_ ? arrivals_->targets().size() : 0;
    layout_.arrival_targets = take(n_arrivals * sizeof(DeviceTarget));
    layout_.arrival_biases = take(n_arrivals * sizeof(uint32_t));
    const size_t n_arrival_queues = arrivals_ ? arrivals_->queues().size() : 0;
    layout_.arrival_counts = take(n_arrival_queues ? n_arrivals * sizeof(uint64_t) : 0);
    layout_.arrival_states = take(n_arrival_queues * sizeof(ArrivalQueueState));
    layout_.arrival_queues = take(n_arrival_queues * sizeof(ArrivalQueue));
    layout_.end = at;
}

// What devices and agents write, or the host reads at any time, stays in host memory.
Status GpuLane::map_host_memory(ConnectedQueues& queues) {
    acks_ = queues.ack_words[kLaneGpu];
    replies_ = queues.replies[kLaneGpu];
    const size_t n_replies = static_cast<size_t>(job_.n_pes) * job_.window;
    for (size_t i = 0; i < n_replies; ++i)
        replies_[i] = reply_encode(0, reply_never(static_cast<uint32_t>(i & (job_.window - 1))));
    errors_bytes_ = ((queues_.size() + 1) * sizeof(GpuQueueError) + kPage - 1) / kPage * kPage;
    void* memory = mmap(nullptr, errors_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return Status::error(Code::kResource, "free memory", "no memory for error records: %s", strerror(errno));
    errors_ = static_cast<GpuQueueError*>(memory);
    if (memory_->kind() == MemoryKind::kHost) return Status();
    EFA_TRY(errors_map_.map(errors_, errors_bytes_, 0, "the error records"));
    auto* const words = const_cast<uint64_t*>(acks_);
    const size_t bytes = reinterpret_cast<uint8_t*>(replies_ + n_replies) - reinterpret_cast<uint8_t*>(words);
    return words_map_.map(words, bytes, 0, "the agents' answers");
}

Status GpuLane::describe_queue(size_t index, GpuQueue* queue, GpuQueueState* state) {
    Queue& own = queues_[index];
    const GpuRingView& view = own.ring->view();
    if (!view.completions_at_gpu) {
        return Status::error(Code::kUnsupported, "use NVSHMEM_EFA_MODE=relay", "a %s ring without completion counters: the "
                             "host could not wait for what the GPU posts", own.ring->kind());
    }
    *queue = GpuQueue{};
    queue->slots = view.slots_at_gpu;
    queue->doorbell = view.doorbell_at_gpu;
    queue->state = memory_->at<GpuQueueState>(layout_.queue_states + index * sizeof(GpuQueueState));
    if (!view.req_id_64 && !view.slots_are_readable)
        queue->notes = memory_->at<GpuQueueNote>(layout_.notes + index * view.depth * sizeof(GpuQueueNote));
    const bool is_gpu = memory_->kind() == MemoryKind::kCuda;
    queue->error = is_gpu ? errors_map_.at_gpu(errors_ + index) : errors_ + index;
    queue->completions = view.completions_at_gpu;
    queue->errors = view.errors_at_gpu;
    queue->cq_entries = view.cq_entries_at_gpu;
    queue->cq_depth = view.cq_depth;
    queue->cq_entry_bytes = view.cq_entry_bytes;
    queue->wait_ticks = wait_ticks_;
    queue->qp_num = view.qp_num;
    queue->depth = view.depth;
    queue->max_batch = view.max_batch;
    queue->req_id_64 = view.req_id_64;
    queue->slots_are_readable = view.slots_are_readable;
    uint32_t completed = 0, errors = 0;
    own.host = *queue;  // read_counters() takes the bias from it: none yet
    EFA_TRY(read_counters(index, &completed, &errors));
    if (!gpu_queue_init(*queue, *state, completed, errors)) {
        return Status::error(Code::kInternal, "report this with the device's name and driver version",
                             "a %s ring of %u slots, batches of %u and a completion queue of %u entries is not a shape that "
                             "GPU queues can have", own.ring->kind(), view.depth, view.max_batch, view.cq_depth);
    }
    own.host = *queue;
    own.host.slots = view.slots;
    own.host.state = &own.shadow;
    own.host.error = &own.found;
    own.host.cq_entries = view.cq_entries;
    own.host.slots_are_readable = view.slots_are_readable && view.slots;
    if (is_gpu) own.host.notes = nullptr;
    return Status();
}

Status GpuLane::fill_state(const Knobs& knobs, std::vector<uint8_t>* image) {
    uint8_t* const base = image->data();
    auto* const queues = reinterpret_cast<GpuQueue*>(base + layout_.queues);
    auto* const states = reinterpret_cast<GpuQueueState*>(base + layout_.queue_states);
    for (size_t i = 0; i < queues_.size(); ++i) EFA_TRY(describe_queue(i, queues + i, states + i));
    auto* const targets = reinterpret_cast<DeviceTarget*>(base + layout_.targets);
    for (size_t pe = 0; pe < job_.peers.size(); ++pe)
        for (size_t rail = 0; rail < job_.n_rails; ++rail) {
            const WqeTarget& agent = job_.peers[pe].agent[rail];
            targets[pe * job_.n_rails + rail] = {agent.ah, agent.qp_num, agent.qkey};
        }
    const bool is_gpu = memory_->kind() == MemoryKind::kCuda;
    DeviceState& state = *reinterpret_cast<DeviceState*>(base + layout_.state);
    state.magic = kDeviceStateMagic;
    state.version = kDeviceStateVersion;
    state.bytes = sizeof(DeviceState);
    state.flags = (job_.count_by_immediate ? kCountByImmediate : 0) | (job_.writes_once ? kWritesOnce : 0) |
                  (knobs.signal == "gated" ? kGatedSignals : 0);
    state.pe = job_.pe;
    state.n_pes = job_.n_pes;
    state.n_rails = static_cast<uint32_t>(job_.n_rails);
    state.queues_per_rail = static_cast<uint32_t>(queues_per_rail_);
    state.window = job_.window;
    state.chunks_max = kChunksMax;
    state.locals_max = kLocalsMax;
    state.queues = memory_->at<const GpuQueue>(layout_.queues);
    state.targets = memory_->at<const DeviceTarget>(layout_.targets);
    state.peers = memory_->at<DevicePeer>(layout_.peers);
    state.shared = memory_->at<DeviceShared>(layout_.shared);
    state.acks = is_gpu ? words_map_.at_gpu(acks_) : acks_;
    state.replies = is_gpu ? words_map_.at_gpu(replies_) : replies_;
    state.reply_busy = memory_->at<uint32_t>(layout_.reply_busy);
    state.segment_bytes = std::min(job_.segment_bytes, kSegmentMax);
    state.stripe_bytes = job_.stripe_bytes;
    state.wait_ticks = wait_ticks_;
    state.chunks = memory_->at<const DeviceChunk>(layout_.chunks);
    state.lkeys = memory_->at<const uint32_t>(layout_.lkeys);
    state.remote_bases = memory_->at<const uint64_t>(layout_.remote_bases);
    state.rkeys = memory_->at<const uint32_t>(layout_.rkeys);
    state.locals = memory_->at<const DeviceLocal>(layout_.locals);
    state.local_lkeys = memory_->at<const uint32_t>(layout_.local_lkeys);
    state.errors = is_gpu ? errors_map_.at_gpu(errors_) : errors_;
    fill_arrivals(base, &state);
    return Status();
}

void GpuLane::fill_arrivals(uint8_t* image, DeviceState* state) const {
    if (!arrivals_) return;
    const std::vector<DeviceTarget>& targets = arrivals_->targets();
    const std::vector<uint32_t>& biases = arrivals_->biases();
    memcpy(image + layout_.arrival_targets, targets.data(), targets.size() * sizeof targets[0]);
    memcpy(image + layout_.arrival_biases, biases.data(), biases.size() * sizeof biases[0]);
    state->arrival_targets = memory_->at<const DeviceTarget>(layout_.arrival_targets);
    state->arrival_biases = memory_->at<const uint32_t>(layout_.arrival_biases);
    state->arrival_counts = arrivals_->counts_at_posters();
    state->arrival_slots = job_.arrival_slots;
    state->arrival_unread_max = arrivals_->unread_max();
    const std::vector<ArrivalQueue>& queues = arrivals_->queues();
    if (queues.empty()) return;
    auto* const counts = memory_->at<uint64_t>(layout_.arrival_counts);
    for (size_t i = 0; i < queues.size(); ++i) {
        ArrivalQueue queue = queues[i];
        queue.counts = counts;
        queue.state = memory_->at<ArrivalQueueState>(layout_.arrival_states + i * sizeof(ArrivalQueueState));
        memcpy(image + layout_.arrival_queues + i * sizeof queue, &queue, sizeof queue);
    }
    state->arrival_counts = counts;
    state->arrival_queues = memory_->at<const ArrivalQueue>(layout_.arrival_queues);
}

std::string GpuLane::describe() const {
    std::string text = memory_->kind() == MemoryKind::kCuda ? "GPU posts to " : "CPU threads post to ";
    std::string kinds = queues_.front().ring->kind();
    for (const Queue& queue : queues_)
        if (kinds.find(queue.ring->kind()) == std::string::npos) kinds += std::string(" or ") + queue.ring->kind();
    return text + std::to_string(queues_per_rail_) + " " + kinds + " queues a rail" +
           (arrivals_ ? ", " + arrivals_->describe() : "");
}

}  // namespace nvshmem_efa
