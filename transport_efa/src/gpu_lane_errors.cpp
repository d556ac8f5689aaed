// SPDX-License-Identifier: Apache-2.0
// From error records to named errors.
#include <cinttypes>
#include <cstdio>

#include "completion_fault.h"
#include "gpu_lane.h"
#include "nvshmem_efa/gpu_queue_completions.h"

namespace nvshmem_efa {

namespace {

const char* opcode_text(uint8_t opcode) {
    switch (static_cast<SendOpcode>(opcode)) {
        case SendOpcode::kSend: return "SEND to the agent";
        case SendOpcode::kRdmaRead: return "RDMA READ";
        case SendOpcode::kRdmaWrite: return "RDMA WRITE";
    }
    return "request";
}

const char* queue_wait_text(GpuQueueWait wait) {
    switch (wait) {
        case GpuQueueWait::kCompletion: return "a completion";
        case GpuQueueWait::kCredits: return "a free slot";
        case GpuQueueWait::kBatch: return "room in the device's batch";
        case GpuQueueWait::kTurn: return "its turn behind other posters";
        case GpuQueueWait::kQuiet: return "completion of all requests (quiet)";
        case GpuQueueWait::kHold: return "the end of another poster's quiet";
    }
    return "the queue";
}

const char* device_wait_text(DeviceWait wait) {
    switch (wait) {
        case DeviceWait::kWindow: return "room in the window of signals and atomics";
        case DeviceWait::kReply: return "a fetched value";
        case DeviceWait::kAcks: return "acknowledgement of all signals and atomics";
        case DeviceWait::kWord: return "a word of this PE (wait_until)";
        default: return "a peer";
    }
}

}  // namespace

bool GpuLane::has_failed() const {
    if (is_failed_.load(std::memory_order_acquire)) return true;  // pairs with failure()
    for (size_t i = 0; i <= queues_.size(); ++i)
        if (gpu_queue_error(errors_ + i)) return true;
    return false;
}

// The first failure stays: what comes after it is often its consequence.
Status GpuLane::failure() const {
    const std::lock_guard lock(mutex_);
    for (size_t i = 0; i <= queues_.size() && failure_code_ == Code::kOk; ++i) {
        const GpuQueueError* record = gpu_queue_error(errors_ + i);
        if (!record) continue;
        const Status status = name_failure({record, i});
        failure_code_ = status.code();
        failure_ = status.message();
    }
    if (failure_code_ == Code::kOk) return Status();
    is_failed_.store(true, std::memory_order_release);  // pairs with has_failed(): failure_ does not change after it
    return Status::error(failure_code_, nullptr, "%s", failure_.c_str());
}

std::string GpuLane::name_queue(size_t index) const {
    return "GPU queue " + std::to_string(index % queues_per_rail_) + " of " + nics_[index / queues_per_rail_]->info().name;
}

// Records of queues with 64-bit request ids or notes hold the PE. Else the ring tells, if the slot still is that request's.
int GpuLane::peer_of(const GpuQueueError& record, size_t index) const {
    const GpuRingView& view = queues_[index].ring->view();
    if (record.status == kStatusUnknown && record.waited == GpuQueueWait::kCompletion) return -1;
    if (view.req_id_64 || !view.slots_are_readable || record.waited != GpuQueueWait::kCompletion) return static_cast<int>(record.pe);
    SendWqe wqe;
    memcpy(&wqe, view.slots + size_t{record.slot & (view.depth - 1)} * kSlotBytesSmall, kSlotBytesSmall);
    if (wqe.meta.req_id != (record.slot & 0xffffu)) return -1;
    const size_t rail = index / queues_per_rail_;
    for (size_t pe = 0; pe < job_.peers.size(); ++pe)
        if (job_.peers[pe].agent[rail].ah == wqe.meta.ah) return static_cast<int>(pe);
    return -1;
}

Status GpuLane::name_completion(const GpuQueueError& record, size_t index) const {
    const int pe = peer_of(record, index);
    const std::string peer = pe < 0 ? "an unknown PE" : "PE " + std::to_string(pe);
    if (record.status == kStatusUnknown) {
        return Status::error(Code::kDevice, "see docs/troubleshooting.md#device",
                             "PE %d -> %s (%s): a request failed, and no completion tells how", job_.pe, peer.c_str(),
                             name_queue(index).c_str());
    }
    const auto status = static_cast<CqeStatus>(record.status);
    char where[32] = "";
    if (record.remote_addr && record.opcode != static_cast<uint8_t>(SendOpcode::kSend))
        snprintf(where, sizeof where, " at %#" PRIx64, record.remote_addr);
    return Status::error(is_peer_fault(status) ? Code::kPeer : Code::kDevice, status_hint(status),
                         "PE %d -> %s (%s): %s%s failed: %s", job_.pe, peer.c_str(), name_queue(index).c_str(),
                         opcode_text(record.opcode), where, cqe_status_text(status));
}

Status GpuLane::name_wait(const GpuQueueError& record, size_t index) const {
    const auto waited = static_cast<DeviceWait>(record.waited);
    const auto address = static_cast<unsigned long long>(record.remote_addr);
    if (index == queues_.size()) {
        switch (waited) {
            case DeviceWait::kUnregistered:
                return Status::error(Code::kUnregistered, "use memory of the symmetric heap, or register the buffer",
                                     "PE %d -> PE %u (GPU): %#llx is in no memory registered here or there", job_.pe, record.pe, address);
            case DeviceWait::kBadArgument:
                return Status::error(Code::kInvalidArgument, "PEs are numbered from 0, words are aligned to their size",
                                     "PE %d -> PE %u (GPU): no such PE, or a word at %#llx that is not aligned", job_.pe, record.pe, address);
            case DeviceWait::kRefused:
                return Status::error(Code::kUnregistered, "its log names the address",
                                     "PE %d -> PE %u (GPU): that PE's agent refused a signal or atomic", job_.pe, record.pe);
            case DeviceWait::kBadSlot:
                return Status::error(Code::kInvalidArgument, "raise NVSHMEM_EFA_ARRIVALS on all PEs",
                                     "PE %d -> PE %u (GPU): slot %u for counted puts, of %u", job_.pe, record.pe, record.slot,
                                     job_.arrival_slots);
            case DeviceWait::kStrayArrival:
                return Status::error(Code::kPeer, "is that PE of another build, or another program?",
                                     "PE %u -> PE %d (GPU): a completion with status %llu and immediate %#llx, which no counted put makes",
                                     record.pe, job_.pe, static_cast<unsigned long long>(record.completed), address);
            case DeviceWait::kLostArrivals:
                return Status::error(Code::kResource, "wait for arrivals more often, or set NVSHMEM_EFA_ARRIVAL_SOURCE=counters",
                                     "PE %d (GPU), waiting for PE %u: more than %llu counted puts came to %s before anybody looked, and "
                                     "some are lost", job_.pe, record.pe, static_cast<unsigned long long>(record.posted),
                                     nics_[static_cast<size_t>(record.remote_addr) % nics_.size()]->info().name.c_str());
            case DeviceWait::kArrivals:
                return Status::error(Code::kTimeout, "look at that PE's log first; if it is only slow, raise NVSHMEM_EFA_TIMEOUT_MS",
                                     "PE %u -> PE %d (GPU): counted puts to slot %u did not arrive within %llu ms (%llu of %llu)",
                                     record.pe, job_.pe, record.slot, static_cast<unsigned long long>(job_.timeout_ms),
                                     static_cast<unsigned long long>(record.completed), static_cast<unsigned long long>(record.posted));
            default: break;
        }
    }
    const bool is_queue = index < queues_.size();
    return Status::error(Code::kTimeout, "look at that PE's log first; if it is only slow, raise NVSHMEM_EFA_TIMEOUT_MS",
                         "PE %d -> PE %u (%s): %s did not happen within %llu ms (%llu of %llu)", job_.pe, record.pe,
                         is_queue ? name_queue(index).c_str() : "GPU", is_queue ? queue_wait_text(record.waited) : device_wait_text(waited),
                         static_cast<unsigned long long>(job_.timeout_ms), static_cast<unsigned long long>(record.completed),
                         static_cast<unsigned long long>(record.posted));
}

Status GpuLane::name_failure(const Found& found) const {
    const bool is_completion = found.index < queues_.size() && found.record->waited == GpuQueueWait::kCompletion;
    return is_completion ? name_completion(*found.record, found.index) : name_wait(*found.record, found.index);
}

// With the posters' own code, on a look of the host's own: the same entry is found, and no record of theirs is touched.
Status GpuLane::find_counted_error(size_t index, uint32_t completed, uint32_t errors) {
    EFA_TRY(check());  // a poster was first
    const std::lock_guard lock(mutex_);
    if (failure_code_ == Code::kOk) {
        Queue& queue = queues_[index];
        queue.shadow.completed = completed;
        (void)fail_counted_error(queue.host, completed, errors);
        const Status status = name_completion(queue.found, index);
        failure_code_ = status.code();
        failure_ = status.message();
        is_failed_.store(true, std::memory_order_release);  // pairs with has_failed()
    }
    return Status::error(failure_code_, nullptr, "%s", failure_.c_str());
}

}  // namespace nvshmem_efa
