// SPDX-License-Identifier: Apache-2.0
// Waiting for what was posted. The posters' heads and record numbers are read once; then the devices' counters and the
// agents' acknowledgements must reach them. Exact when nobody posts meanwhile: completions come in any order and are only
// counted, so those of later requests can pass for earlier ones (docs/gpu-posts.md, "Known defect").
#include "gpu_lane.h"

namespace nvshmem_efa {

namespace {

// Counters and record numbers wrap: whether `counter` has come as far as `target`, neither being far behind the other.
bool has_reached31(uint32_t counter, uint32_t target) {
    const uint32_t lag = counter_lag31(target, counter);
    return lag == 0 || lag > kCounterMask31 / 2;
}
bool has_reached32(uint32_t counter, uint32_t target) { return static_cast<int32_t>(counter - target) >= 0; }

}  // namespace

Status GpuLane::take_target(int pe, Target* target) {
    std::vector<size_t> offsets;
    for (size_t i = 0; i < queues_.size(); ++i)
        offsets.push_back(layout_.queue_states + i * sizeof(GpuQueueState) + offsetof(GpuQueueState, head));
    // What was posted before this call shows in both words, whatever the order in which a copy reads them.
    offsets.push_back(layout_.peers + static_cast<size_t>(pe) * sizeof(DevicePeer) + offsetof(DevicePeer, next_seq));
    const std::lock_guard lock(mutex_);
    (void)count_requests();
    EFA_TRY(memory_->read_words(offsets, &target->heads));
    target->next_seq = target->heads.back();
    target->heads.pop_back();
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

Status GpuLane::is_reached(const Target& target, int pe, bool* reached) {
    *reached = true;
    for (size_t i = 0; i < queues_.size(); ++i) {
        uint32_t completed = 0, errors = 0;
        EFA_TRY(read_counters(i, &completed, &errors));
        // Nobody may be posting any more who would notice.
        if (errors != 0) return find_counted_error(i, completed, errors);
        EFA_TRY(queues_[i].ring->failure().with_context(name_queue(i)));
        *reached = *reached && has_reached31(completed, target.heads[i]);
    }
    // Acquire pairs with the placement of the agent's ack write, posted after it applied the records (agent.cpp,
    // send_acks).
    const uint64_t word = __atomic_load_n(acks_ + pe, __ATOMIC_ACQUIRE);
    if (word & kAckRefused) {
        return Status::error(Code::kUnregistered, "its log names the address",
                             "PE %d -> PE %d (GPU queues): that PE's agent refused a signal or atomic", job_.pe, pe);
    }
    *reached = *reached && has_reached32(ack_applied(word), target.next_seq);
    return Status();
}

Status GpuLane::name_timeout(const Target& target, int pe) {
    std::string open;
    for (size_t i = 0; i < queues_.size(); ++i) {
        uint32_t completed = 0, errors = 0;
        EFA_TRY(read_counters(i, &completed, &errors));
        if (has_reached31(completed, target.heads[i])) continue;
        open += (open.empty() ? "" : ", ") + std::to_string(counter_lag31(target.heads[i], completed)) + " requests in " + name_queue(i);
    }
    const uint32_t applied = ack_applied(__atomic_load_n(acks_ + pe, __ATOMIC_ACQUIRE));  // as in is_reached()
    if (!has_reached32(applied, target.next_seq))
        open += (open.empty() ? "" : ", ") + std::to_string(target.next_seq - applied) + " signals or atomics at PE " + std::to_string(pe);
    return Status::error(Code::kTimeout, "look at that PE's log first; if it is only slow, raise NVSHMEM_EFA_TIMEOUT_MS",
                         "PE %d -> PE %d: what the GPU posted was not complete within %llu ms (open: %s)", job_.pe, pe,
                         static_cast<unsigned long long>(job_.timeout_ms), open.c_str());
}

Status GpuLane::drain(int pe) {
    EFA_TRY(check());
    Target target;
    EFA_TRY(take_target(pe, &target));
    Deadline deadline(*job_.clock, job_.timeout_ms);
    while (true) {
        bool reached = false;
        EFA_TRY(is_reached(target, pe, &reached));
        EFA_TRY(check());
        if (reached) return Status();
        if (deadline.passed()) return name_timeout(target, pe);
        for (Nic* nic : nics_) nic->progress();
        deadline.relax();
    }
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
