// SPDX-License-Identifier: Apache-2.0
// Waiting for what was posted. Completions come in any order and are only counted; so each queue must be seen with nothing
// in flight, as by the posters' own quiet (shared_quiet()). When posters go on, they are made to pause for that moment.
#include "gpu_lane.h"
#include "log.h"
#include "nvshmem_efa/gpu_queue_shared.h"

namespace nvshmem_efa {

namespace {

// Counters and record numbers wrap: whether `counter` has come as far as `target`, neither being far behind the other.
bool has_reached31(uint32_t counter, uint32_t target) {
    const uint32_t lag = counter_lag31(target, counter);
    return lag == 0 || lag > kCounterMask31 / 2;
}
bool has_reached32(uint32_t counter, uint32_t target) { return static_cast<int32_t>(counter - target) >= 0; }

}  // namespace

Status GpuLane::read_heads(int pe, Drain* drain) {
    std::vector<size_t> offsets;
    for (size_t i = 0; i < queues_.size(); ++i)
        offsets.push_back(layout_.queue_states + i * sizeof(GpuQueueState) + offsetof(GpuQueueState, head));
    // What was posted before this call shows in both words, whatever the order in which a copy reads them.
    offsets.push_back(layout_.peers + static_cast<size_t>(pe) * sizeof(DevicePeer) + offsetof(DevicePeer, next_seq));
    const std::lock_guard lock(mutex_);
    (void)count_requests();
    EFA_TRY(memory_->read_words(offsets, &drain->heads));
    const uint32_t next_seq = drain->heads.back();
    drain->heads.pop_back();
    if (!drain->goals.empty()) return Status();
    drain->goals = drain->heads;
    drain->next_seq = next_seq;
    return Status();
}

// Slots completed well, modulo 2^31, and with an error, since the start.
Status GpuLane::read_counters(size_t index, uint32_t* completed, uint32_t* errors) {
    const Queue& queue = queues_[index];
    const GpuRingView& view = queue.ring->view();
    uint64_t words[2] = {};
    // Errors before completions, as posters do: an error's entry is then looked for far enough back.
    const uint64_t* const host[2] = {view.errors, view.completions};
    const uint64_t* const gpu[2] = {view.errors_at_gpu, view.completions_at_gpu};
    for (int i = 0; i < 2; ++i) {
        if (host[i]) {
            // Acquire pairs with the device's write of its counter (soft device: Device::count(); relay: its publish()):
            // what it counts is placed.
            words[i] = __atomic_load_n(host[i], __ATOMIC_ACQUIRE);
        } else {
            const std::lock_guard lock(mutex_);
            EFA_TRY(memory_->read_gpu_word(gpu[i], &words[i]));
        }
    }
    *errors = (static_cast<uint32_t>(words[0]) - queue.host.errors_before) & kCounterMask31;
    *completed = (static_cast<uint32_t>(words[1]) - queue.host.counter_bias) & kCounterMask31;
    return Status();
}

// The counters first, then the heads: a queue of which nothing was posted beyond what is complete has nothing in flight.
// The other way round, completions of new requests would pass for those of old ones, as they come in any order.
Status GpuLane::look_at_queues(int pe, Drain* drain) {
    const bool is_first = drain->goals.empty();
    bool is_worth_a_copy = is_first;
    std::vector<uint32_t> completed(queues_.size());
    for (size_t i = 0; i < queues_.size(); ++i) {
        uint32_t errors = 0;
        EFA_TRY(read_counters(i, &completed[i], &errors));
        // Nobody may be posting any more who would notice.
        if (errors != 0) return find_counted_error(i, completed[i], errors);
        EFA_TRY(queues_[i].ring->failure().with_context(name_queue(i)));
        is_worth_a_copy = is_worth_a_copy || (!drain->is_settled[i] && has_reached31(completed[i], drain->goals[i]));
    }
    if (!is_worth_a_copy) return Status();
    EFA_TRY(read_heads(pe, drain));
    for (size_t i = 0; i < queues_.size(); ++i) {
        if (drain->is_settled[i]) continue;
        if (counter_lag31(drain->heads[i], completed[i]) == 0) {
            drain->is_settled[i] = true;
            drain->hold.release(i);
        } else if (has_reached31(completed[i], drain->goals[i]) && ++drain->looks_late[i] >= kLooksBeforeHold) {
            // As many are complete as there were at the start: without others' new requests we would be done.
            EFA_TRY(drain->hold.set(i));
        }
    }
    return Status();
}

Status GpuLane::is_reached(int pe, Drain* drain, bool* reached) {
    EFA_TRY(look_at_queues(pe, drain));
    // Acquire pairs with the placement of the agent's ack write, posted after it applied the records (agent.cpp,
    // send_acks).
    const uint64_t word = __atomic_load_n(acks_ + pe, __ATOMIC_ACQUIRE);
    if (word & kAckRefused) {
        return Status::error(Code::kUnregistered, "its log names the address",
                             "PE %d -> PE %d (GPU queues): that PE's agent refused a signal or atomic", job_.pe, pe);
    }
    *reached = has_reached32(ack_applied(word), drain->next_seq);
    for (const bool is_settled : drain->is_settled) *reached = *reached && is_settled;
    return Status();
}

Status GpuLane::name_timeout(const Drain& drain, int pe) {
    std::string open;
    for (size_t i = 0; i < queues_.size(); ++i) {
        uint32_t completed = 0, errors = 0;
        EFA_TRY(read_counters(i, &completed, &errors));
        if (drain.is_settled[i] || has_reached31(completed, drain.heads[i])) continue;
        open += (open.empty() ? "" : ", ") + std::to_string(counter_lag31(drain.heads[i], completed)) + " requests in " + name_queue(i);
    }
    const uint32_t applied = ack_applied(__atomic_load_n(acks_ + pe, __ATOMIC_ACQUIRE));  // as in is_reached()
    if (!has_reached32(applied, drain.next_seq))
        open += (open.empty() ? "" : ", ") + std::to_string(drain.next_seq - applied) + " signals or atomics at PE " + std::to_string(pe);
    if (open.empty()) open = "its queues were never seen at rest, as posters went on";
    return Status::error(Code::kTimeout, "look at that PE's log first; if it is only slow, raise NVSHMEM_EFA_TIMEOUT_MS",
                         "PE %d -> PE %d: what the GPU posted was not complete within %llu ms (open: %s)", job_.pe, pe,
                         static_cast<unsigned long long>(job_.timeout_ms), open.c_str());
}

Status GpuLane::drain(int pe) {
    EFA_TRY(check());
    Drain drain(*this);
    Deadline deadline(*job_.clock, job_.timeout_ms);
    while (true) {
        bool reached = false;
        EFA_TRY(is_reached(pe, &drain, &reached));
        EFA_TRY(check());
        if (reached) return Status();
        if (deadline.passed()) return name_timeout(drain, pe);
        for (Nic* nic : nics_) nic->progress();
        deadline.relax();
    }
}

// ---- holds ----

GpuLane::Hold::~Hold() {
    for (size_t i = 0; i < is_held_.size(); ++i) release(i);
}

Status GpuLane::Hold::set(size_t queue) {
    if (is_held_[queue]) return Status();
    is_held_[queue] = true;  // also if telling the posters fails: then it is taken back
    return lane_.change_holds(queue, 1);
}

void GpuLane::Hold::release(size_t queue) {
    if (!is_held_[queue]) return;
    is_held_[queue] = false;
    const Status status = lane_.change_holds(queue, -1);
    if (!status.ok()) EFA_LOG(kWarn, "gpu", "letting posters of %s go on: %s", lane_.name_queue(queue).c_str(), status.message());
}

// Two threads of the host may drain at a time, and posters see one word.
Status GpuLane::change_holds(size_t queue, int by) {
    const std::lock_guard lock(mutex_);
    const bool was_held = queues_[queue].holds != 0;
    queues_[queue].holds += by;
    const bool is_held = queues_[queue].holds != 0;
    if (was_held == is_held) return Status();
    const size_t offset = layout_.queue_states + queue * sizeof(GpuQueueState) + offsetof(GpuQueueState, host_hold);
    return memory_->publish32(offset, is_held ? 1 : 0);
}

uint64_t GpuLane::count_requests() {
    uint64_t sum = 0;
    for (Queue& queue : queues_) {
        const GpuRingView& view = queue.ring->view();
        if (!view.completions) continue;
        const auto counter = static_cast<uint32_t>(__atomic_load_n(view.completions, __ATOMIC_RELAXED));
        queue.counted += counter_lag31(counter - queue.host.counter_bias, static_cast<uint32_t>(queue.counted));
        sum += queue.counted;
    }
    return sum;
}

uint64_t GpuLane::work_requests() {
    const std::lock_guard lock(mutex_);
    return count_requests();
}

}  // namespace nvshmem_efa
