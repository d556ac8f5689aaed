// SPDX-License-Identifier: Apache-2.0
// The device API's wait for several queues at once (device_drain.h), on queues whose counters the test itself moves.
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "check.h"
#include "nvshmem_efa/wait.cuh"

using namespace nvshmem_efa;

namespace {

constexpr uint32_t kQueues = 11;  // more than are looked at together, and not a multiple of it

struct Rig {
    std::vector<GpuQueue> queues{kQueues};
    std::vector<GpuQueueState> states{kQueues};
    std::vector<GpuQueueError> errors{kQueues + 1};
    std::vector<uint64_t> completions = std::vector<uint64_t>(kQueues), errors_counted = std::vector<uint64_t>(kQueues);
    std::vector<uint8_t> slots = std::vector<uint8_t>(64 * 64), cq = std::vector<uint8_t>(64 * 16);
    uint32_t doorbell = 0;
    DeviceShared shared{};
    DeviceState state{};

    explicit Rig(uint64_t wait_ticks = 20'000'000'000) {
        for (uint32_t i = 0; i < kQueues; ++i) {
            GpuQueue& queue = queues[i];
            queue.slots = slots.data();
            queue.doorbell = &doorbell;
            queue.state = &states[i];
            queue.error = &errors[i];
            queue.completions = &completions[i];
            queue.errors = &errors_counted[i];
            queue.wait_ticks = wait_ticks;
            queue.qp_num = 100 + i;
            queue.depth = 64;
            // Counters that wrap within the test, and slots that began elsewhere.
            completions[i] = kCounterMask31 - 1;
            CHECK(gpu_queue_init(queue, states[i], completions[i], errors_counted[i], 10 * i));
        }
        state.n_pes = 1;
        state.n_rails = 1;
        state.queues_per_rail = kQueues;
        state.queues = queues.data();
        state.errors = errors.data();
        state.shared = &shared;
        state.wait_ticks = wait_ticks;
    }
    void post(uint32_t i, uint32_t n) { __atomic_fetch_add(&states[i].head, n, __ATOMIC_RELAXED); }
    void complete(uint32_t i, uint64_t n) {
        const uint64_t now = __atomic_load_n(&completions[i], __ATOMIC_RELAXED);
        __atomic_store_n(&completions[i], (now + n) & kCounterMask31, __ATOMIC_RELEASE);
    }
};

void nap() { std::this_thread::sleep_for(std::chrono::milliseconds(2)); }

}  // namespace

TEST(a_quiet_of_many_queues_ends_when_the_last_is_idle) {
    Rig rig;
    CHECK(quiet(rig.state));
    uint64_t payload[kQueues] = {};
    for (uint32_t i = 0; i < kQueues; ++i) rig.post(i, i % 4);  // some of them none
    std::atomic<int> n_done{0};
    std::thread device([&] {
        for (uint32_t i = kQueues; i-- != 0;) {
            for (uint32_t n = 0; n < i % 4; ++n) {
                nap();
                payload[i] += 1;
                if (n + 1 == i % 4) n_done.fetch_add(1);
                rig.complete(i, 1);
            }
        }
    });
    CHECK(quiet(rig.state));
    CHECK_EQ(n_done.load(), 8);  // not before the last
    for (uint32_t i = 0; i < kQueues; ++i) CHECK_EQ(payload[i], uint64_t{i % 4});  // plain words: the race detector looks
    device.join();
    for (uint32_t i = 0; i < kQueues; ++i) {
        CHECK_EQ(static_cast<uint32_t>(rig.states[i].completed), rig.states[i].head);
        CHECK_EQ(rig.states[i].cq_lock, 0u);
    }
}

TEST(a_queue_that_does_not_complete_is_named_within_the_deadline) {
    Rig rig(200'000'000);
    rig.post(3, 1);
    rig.post(9, 2);
    rig.complete(3, 1);
    rig.complete(9, 1);
    CHECK(!quiet(rig.state));
    CHECK(!gpu_queue_error(&rig.errors[3]));
    const GpuQueueError* error = gpu_queue_error(&rig.errors[9]);
    CHECK(error && error->waited == GpuQueueWait::kQuiet && error->qp_num == 109 && error->slot == 92);
    CHECK(!quiet(rig.state));  // and says so again at once
}

TEST(an_error_of_one_queue_fails_the_quiet_and_the_others_are_waited_for) {
    Rig rig;
    for (uint32_t i = 0; i < 3; ++i) rig.post(i, 1);
    __atomic_store_n(&rig.errors_counted[1], 1, __ATOMIC_RELEASE);
    rig.complete(0, 1);
    std::atomic<bool> has_completed{false};
    std::thread device([&] {
        nap();
        has_completed = true;
        rig.complete(2, 1);
    });
    CHECK(!quiet(rig.state));
    CHECK(has_completed);
    device.join();
    CHECK(gpu_queue_error(&rig.errors[1]) && !gpu_queue_error(&rig.errors[0]) && !gpu_queue_error(&rig.errors[2]));
}

// Others post on and on: the quiet asks them to pause, on the two queues where they do, and ends.
TEST(a_quiet_among_posters_that_never_pause_asks_for_it) {
    Rig rig;
    for (const uint32_t i : {2u, 10u}) rig.post(i, 1);
    std::atomic<bool> is_over{false};
    std::atomic<int> n_asked{0};
    std::thread posters([&] {
        while (!is_over) {
            for (const uint32_t i : {2u, 10u}) {
                if (__atomic_load_n(&rig.states[i].hold, __ATOMIC_RELAXED) != 0) {
                    if (__atomic_load_n(&rig.states[i].head, __ATOMIC_RELAXED) !=
                        static_cast<uint32_t>(__atomic_load_n(&rig.states[i].completed, __ATOMIC_RELAXED)))
                        n_asked.fetch_add(1);
                    if (rig.completions[i] != ((rig.states[i].head + rig.queues[i].counter_bias) & kCounterMask31)) rig.complete(i, 1);
                } else {
                    rig.post(i, 1);
                    rig.complete(i, 1);
                }
            }
            std::this_thread::yield();
        }
    });
    CHECK(quiet(rig.state));
    is_over = true;
    posters.join();
    CHECK(n_asked.load() > 0);
    CHECK_EQ(rig.states[2].hold, 0u);
    CHECK_EQ(rig.states[10].hold, 0u);
}

TEST(queues_without_counters_are_waited_for_too) {
    Rig rig(200'000'000);
    rig.queues[4].completions = nullptr;
    rig.queues[4].cq_entries = rig.cq.data();
    rig.queues[4].cq_depth = 64;
    rig.queues[4].cq_entry_bytes = 16;
    CHECK(gpu_queue_init(rig.queues[4], rig.states[4], 0, 0));
    rig.post(4, 1);
    rig.post(5, 1);
    rig.complete(5, 1);
    CHECK(!quiet(rig.state));
    CHECK(gpu_queue_error(&rig.errors[4]) && gpu_queue_error(&rig.errors[4])->waited == GpuQueueWait::kQuiet);
    CHECK(!gpu_queue_error(&rig.errors[5]));
}

TEST_MAIN()
