// SPDX-License-Identifier: Apache-2.0
// One relayed ring. Its thread: relay.cpp.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "log.h"
#include "relay.h"

namespace nvshmem_efa {
namespace {

constexpr uint32_t kSlotsATurn = 256;  // so that one busy ring does not keep the others waiting
constexpr size_t kLine = 128;          // what is polled and what is written on another side stand apart
constexpr size_t kFlagsAt = offsetof(TxCqe, flags);

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// 16 bytes a store, ascending: a write-combining mapping merges them into one burst.
void copy_slot(uint8_t* to, const uint8_t* from) {
    using Piece = uint64_t __attribute__((vector_size(16), may_alias));
    for (size_t at = 0; at < kSlotBytesSmall; at += sizeof(Piece))
        *reinterpret_cast<volatile Piece*>(to + at) = *reinterpret_cast<const Piece*>(from + at);
}

}  // namespace

Status RelayQueue::open(Nic& nic, const GpuRingAttr& attr, std::unique_ptr<RelayQueue>* queue) {
    std::unique_ptr<RelayQueue> made(new RelayQueue(nic));
    EFA_TRY(made->open_device_queue(attr).with_context("relay ring on " + nic.info().name));
    EFA_TRY(made->make_memory().with_context("relay ring on " + nic.info().name));
    *queue = std::move(made);
    return Status();
}

RelayQueue::~RelayQueue() {
    if (qp_.handle) (void)nic_.destroy_qp(qp_.handle);
    if (cq_.handle) (void)nic_.destroy_cq(cq_.handle);
    if (memory_) munmap(memory_, memory_bytes_);
}

Status RelayQueue::open_device_queue(const GpuRingAttr& attr) {
    const NicCaps& caps = nic_.info().caps;
    if (!is_power_of_two(attr.depth))
        return Status::error(Code::kInvalidArgument, "use a power of two", "a send queue of %u slots", attr.depth);
    const uint32_t depth = std::min(attr.depth, caps.max_sq_depth);
    EFA_TRY(nic_.create_cq({.depth = depth}, &cq_));
    QpAttr qp;
    qp.send_cq = qp.recv_cq = cq_.handle;  // it receives nothing
    qp.sq_depth = depth;
    qp.req_id_64 = caps.req_id_64;
    qp.unsolicited_recv = caps.unsolicited_write_recv;  // as the agents it sends to: both ends must agree
    qp.qkey = attr.qkey;
    EFA_TRY(nic_.create_qp(qp, &qp_));
    const bool is_good = qp_.sq_depth == depth && qp_.sq_slot_bytes == kSlotBytesSmall && cq_.depth >= depth &&
                         send_ring_init(ring_, qp_.sq_slots, qp_.sq_doorbell, qp_.sq_slot_bytes, depth, qp_.sq_max_batch) &&
                         cq_ring_init(completions_, cq_.entries, cq_.entry_bytes, cq_.depth);
    if (is_good) return Status();
    return Status::error(Code::kUnsupported, "report this with the device's name and driver version",
                         "the device gave %u slots of %u bytes and %u completion entries of %u bytes for %u slots of 64",
                         qp_.sq_depth, qp_.sq_slot_bytes, cq_.depth, cq_.entry_bytes, depth);
}

Status RelayQueue::make_memory() {
    const uint32_t depth = ring_.depth;
    const size_t doorbell_at = size_t{depth} * kSlotBytesSmall;
    const size_t words_at = round_up(doorbell_at, kLine) + kLine;
    const size_t errors_at = words_at + kLine;
    view_.cq_depth = 2 * depth;  // a counted error is looked for among the newest cq_depth - depth
    view_.cq_entry_bytes = sizeof(TxCqe);
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    memory_bytes_ = round_up(errors_at + size_t{view_.cq_depth} * sizeof(TxCqe), page);
    void* memory = mmap(nullptr, memory_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return Status::error(Code::kResource, "free memory, or use fewer or less deep queues",
                             "cannot allocate %zu bytes: %s", memory_bytes_, strerror(errno));
    memory_ = static_cast<uint8_t*>(memory);
    words_ = reinterpret_cast<uint64_t*>(memory_ + words_at);
    error_entries_ = memory_ + errors_at;
    view_.slots = view_.slots_at_gpu = memory_;
    view_.doorbell = view_.doorbell_at_gpu = reinterpret_cast<uint32_t*>(memory_ + round_up(doorbell_at, kLine));
    view_.completions = view_.completions_at_gpu = words_;
    view_.errors = view_.errors_at_gpu = words_ + 1;
    view_.cq_entries = view_.cq_entries_at_gpu = error_entries_;
    view_.depth = depth;
    view_.max_batch = 0;  // the device's limit is the relay's to keep
    view_.qp_num = qp_.qp_num;
    view_.qkey = qp_.qkey;
    view_.req_id_64 = qp_.req_id_64;
    view_.slots_are_readable = true;
    return Status();
}

void RelayQueue::start_at_for_test(uint32_t slot, uint32_t completions) {
    ring_.posted = ring_.rung = ring_.completed = slot;
    *view_.doorbell = slot;
    n_good_ = completions;
    words_[0] = completions & kCounterMask31;
}

bool RelayQueue::serve() {
    if (is_stopped_) return false;
    const bool has_counted = count_completions();
    return (!is_stopped_ && forward()) || has_counted;
}

bool RelayQueue::count_completions() {
    uint32_t good = 0, bad = 0;
    while (const uint8_t* at = cq_ring_peek(completions_)) {
        TxCqe entry;
        std::memcpy(&entry, at, sizeof entry);
        if (!send_ring_complete(ring_, 1)) {
            publish(good, bad);
            stop("the device completed more requests than were in flight");
            return true;
        }
        if (entry.status == static_cast<uint8_t>(CqeStatus::kOk)) {
            ++good;
        } else {
            mirror_error(entry);
            ++bad;
        }
        cq_ring_pop(completions_);
    }
    if (good + bad == 0) return false;
    // Release: the entries were read before the device learns that their places are free; pairs with the soft device's
    // acquire in cq_push() (tables.cpp).
    if (cq_.consumer) __atomic_store_n(cq_.consumer, completions_.consumed, __ATOMIC_RELEASE);
    publish(good, bad);
    return true;
}

// Before an error is counted, where posters look it up: GpuQueue's fail_counted_error().
void RelayQueue::mirror_error(TxCqe entry) {
    const uint32_t index = completions_.consumed;
    uint8_t* to = error_entries_ + size_t{index & (view_.cq_depth - 1)} * sizeof(TxCqe);
    const uint32_t phase = (index >> log2_exact(view_.cq_depth) & 1u) ^ 1u;
    const auto flags = static_cast<uint8_t>((entry.flags & ~kCqePhase) | phase);
    const auto* from = reinterpret_cast<const uint8_t*>(&entry);
    std::memcpy(to, from, kFlagsAt);
    std::memcpy(to + kFlagsAt + 1, from + kFlagsAt + 1, sizeof entry - kFlagsAt - 1);
    __atomic_store_n(to + kFlagsAt, flags, __ATOMIC_RELEASE);  // pairs with the acquire in cq_entry_read()
}

// Completions before errors: who sees an error counted must see all that completed before it, or he looks in the wrong
// place for its entry. Both releases pair with the acquires in completions_read_counter() (gpu_queue_completions.h),
// and make visible what the device's completion made visible to us.
void RelayQueue::publish(uint32_t good, uint32_t bad) {
    n_good_ += good;
    n_bad_ += bad;
    if (good != 0) __atomic_store_n(words_, uint64_t{n_good_ & kCounterMask31}, __ATOMIC_RELEASE);
    if (bad != 0) __atomic_store_n(words_ + 1, uint64_t{n_bad_ & kCounterMask31}, __ATOMIC_RELEASE);
}

bool RelayQueue::forward() {
    // Acquire pairs with the fence and store of order::store_doorbell(): all slots before the value are written.
    const uint32_t doorbell = __atomic_load_n(view_.doorbell, __ATOMIC_ACQUIRE);
    const uint32_t announced = doorbell - ring_.posted;
    if (announced == 0) return false;
    const uint32_t credits = send_ring_credits(ring_);
    if (announced > credits) {
        stop("the doorbell went from " + std::to_string(ring_.posted) + " to " + std::to_string(doorbell) + ", but " +
             std::to_string(credits) + " slots were free");
        return true;
    }
    // A slot is copied before its completion can be counted, so its poster cannot write it again meanwhile.
    for (uint32_t n = std::min(announced, kSlotsATurn); n != 0; --n) {
        if (send_ring_batch_is_full(ring_)) ring_device();
        uint32_t slot = 0;
        (void)send_ring_reserve(ring_, slot);  // there are credits, and the batch has room
        copy_slot(send_ring_slot(ring_, slot), view_.slots + size_t{slot & (ring_.depth - 1)} * kSlotBytesSmall);
    }
    ring_device();
    return true;
}

void RelayQueue::ring_device() {
    send_ring_ring(ring_);
    ++doorbells_;
}

void RelayQueue::stop(const std::string& what) {
    if (is_stopped_) return;
    is_stopped_ = true;
    {
        const std::lock_guard<std::mutex> guard(failure_lock_);
        failure_ = what;
    }
    EFA_LOG(kError, "relay", "queue %u of %s stopped: %s", qp_.qp_num, nic_.info().name.c_str(), what.c_str());
    TxCqe entry{};
    entry.status = static_cast<uint8_t>(CqeStatus::kQpInternal);
    entry.qp_num = static_cast<uint16_t>(qp_.qp_num);
    entry.req_id = static_cast<uint16_t>(ring_.posted);
    mirror_error(entry);
    publish(0, 1);
}

Status RelayQueue::failure() const {
    const std::lock_guard<std::mutex> guard(failure_lock_);
    if (failure_.empty()) return Status();
    return Status::error(Code::kDevice, "a program wrote over memory of the queue, or posted to it by other means than the "
                         "device API; NVSHMEM_EFA_LOG_LEVEL=debug tells more",
                         "relay queue %u of %s stopped: %s", qp_.qp_num, nic_.info().name.c_str(), failure_.c_str());
}

}  // namespace nvshmem_efa
