// SPDX-License-Identifier: Apache-2.0
// The relay's thread.
#include "relay.h"

#include <sched.h>
#include <sys/prctl.h>
#include <time.h>

#include <algorithm>
#include <system_error>

#include "clock.h"
#include "log.h"

namespace nvshmem_efa {
namespace {

// Like the software device's thread (soft_efa/engine.cpp): it spins while there is work and for a while after, then naps.
constexpr uint64_t kSpinManyCoresNs = 5'000'000;
constexpr uint64_t kSpinFewCoresNs = 50'000;
constexpr int kManyCores = 8;
constexpr long kNapNs = 20'000;
constexpr long kLongNapNs = 100'000;  // after kLongIdleNs of nothing
constexpr uint64_t kLongIdleNs = 50'000'000;

bool has_many_cores() {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) >= kManyCores;
}

}  // namespace

Status RelayThread::of_process(std::shared_ptr<RelayThread>* thread) {
    static std::mutex lock;
    static std::weak_ptr<RelayThread> current;
    const std::lock_guard<std::mutex> guard(lock);
    std::shared_ptr<RelayThread> found = current.lock();
    if (!found) {
        found.reset(new RelayThread);
        try {
            found->thread_ = std::thread([relay = found.get()] { relay->run(); });
        } catch (const std::system_error& error) {
            return Status::error(Code::kResource, "raise the limit of threads (ulimit -u)",
                                 "cannot start the relay's thread: %s", error.what());
        }
        current = found;
    }
    *thread = std::move(found);
    return Status();
}

RelayThread::~RelayThread() {
    is_stopping_.store(true, std::memory_order_relaxed);  // a hint to leave; join() orders the rest
    if (thread_.joinable()) thread_.join();
}

std::unique_lock<std::mutex> RelayThread::take_lock() {
    waiting_.fetch_add(1, std::memory_order_relaxed);
    std::unique_lock<std::mutex> held(lock_);
    waiting_.fetch_sub(1, std::memory_order_relaxed);
    return held;
}

void RelayThread::add(RelayQueue& queue) {
    const auto held = take_lock();
    queues_.push_back(&queue);
}

void RelayThread::remove(RelayQueue& queue) {
    const auto held = take_lock();
    std::erase(queues_, &queue);
}

bool RelayThread::turn() {
    bool did_work = false;
    for (RelayQueue* queue : queues_) did_work = queue->serve() || did_work;
    // A soft device wants time to make progress in; one device a turn is lent it.
    if (queues_.empty()) return false;
    next_lent_ = (next_lent_ + 1) % queues_.size();
    if (queues_[next_lent_]->has_work_in_flight()) queues_[next_lent_]->nic().progress();
    return did_work;
}

void RelayThread::run() {
    prctl(PR_SET_NAME, "efa-relay");
    prctl(PR_SET_TIMERSLACK, 1000);
    const bool may_spin = has_many_cores();
    const uint64_t spin_ns = may_spin ? kSpinManyCoresNs : kSpinFewCoresNs;
    uint64_t busy_ns = real_clock().now_ns();
    while (!is_stopping_.load(std::memory_order_relaxed)) {
        bool did_work = false;
        {
            const std::lock_guard<std::mutex> held(lock_);
            did_work = turn();
        }
        if (waiting_.load(std::memory_order_relaxed) != 0) sched_yield();
        if (did_work) {
            busy_ns = real_clock().now_ns();
            continue;
        }
        const uint64_t idle_ns = real_clock().now_ns() - busy_ns;
        if (idle_ns >= spin_ns) {
            const timespec nap{0, idle_ns > kLongIdleNs ? kLongNapNs : kNapNs};
            nanosleep(&nap, nullptr);
        } else if (may_spin) {
            real_clock().relax(0);
        } else {
            sched_yield();
        }
    }
}

}  // namespace nvshmem_efa
