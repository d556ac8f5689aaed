// SPDX-License-Identifier: Apache-2.0
// GpuQueues over the rig's two software devices: every request writes one word of its own, and the target memory tells
// which arrived. Two ways to run posters:
//   Turns    all posters on one thread, in fibers, switched before every access to shared memory as a seed says; the
//            devices step in between, and may therefore check batches (DeviceOptions::check_batches)
//   threads  real ones, with the devices stepped by a thread of their own: for the race detector
#pragma once

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

namespace gpu_queue_test {
void step();  // runs other posters; does nothing outside Turns
}
#define NVSHMEM_EFA_STEP_HOOK ::gpu_queue_test::step

#include "nvshmem_efa/gpu_queue_owned.h"
#include "nvshmem_efa/gpu_queue_shared.h"
#include "soft_device_rig.h"
#include "soft_efa/fiber.h"

namespace gpu_queue_test {

using namespace nvshmem_efa;
using nvshmem_efa::soft::Fiber;

enum class Source { kCounter, kCq };

struct QueueOptions {
    uint32_t depth = 16;
    uint32_t max_batch = 16;  // what the queue keeps to
    Source source = Source::kCounter;
    bool is_reordered = true;
    bool checks_batches = true;
    uint32_t first_slot = 0;
    uint64_t counter_start = 0;
    uint64_t wait_ticks = 60'000'000'000;  // some 20 s
    bool req_id_64 = false;
    uint64_t seed = 1;
    size_t words = 1 << 16;
};

inline rig::RigOptions rig_options(const QueueOptions& options) {
    rig::RigOptions with;
    with.sq_depth = options.depth;
    with.cq_depth = std::max(64u, 2 * options.depth);
    with.memory_bytes = options.words * 8;
    with.seed = options.seed;
    with.req_id_64 = options.req_id_64;
    with.unresponsive_ns = 5'000'000'000;
    with.max_tx_batch_units = options.max_batch;
    with.check_batches = options.checks_batches;
    if (options.is_reordered) with.faults = {.reorder_ns = 3000, .duplicate_ppm = 100'000, .delay_ppm = 10'000};
    return with;
}

struct QueueRig {
    QueueOptions options;
    rig::Rig rig;
    alignas(64) uint64_t counters[2] = {};
    GpuQueueState state{};
    std::vector<GpuQueueNote> notes;
    GpuQueueError error{};
    GpuQueue queue{};

    explicit QueueRig(const QueueOptions& with) : options(with), rig(rig_options(with)), notes(with.depth) {
        rig::Side& a = rig.a;
        CHECK_EQ(a.qp.sq_max_batch, with.max_batch);
        counters[0] = with.counter_start;
        if (with.source == Source::kCounter) {
            uint64_t handle = 0;
            CHECK_OK(a.device->create_counter({counters, counters + 1, MemoryKind::kHost}, &handle));
            CHECK_OK(a.device->attach_counter(a.qp.handle, handle, kCountWrite));
            a.device->set_counter_for_test(handle, with.counter_start);
            queue.completions = counters;
            queue.errors = counters + 1;
        } else {
            queue.cq_consumer = a.send_cq.consumer;
        }
        queue.cq_entries = static_cast<const uint8_t*>(a.send_cq.entries);
        queue.cq_depth = a.send_cq.depth;
        queue.cq_entry_bytes = a.send_cq.entry_bytes;
        queue.slots = static_cast<uint8_t*>(a.qp.sq_slots);
        queue.doorbell = const_cast<uint32_t*>(a.qp.sq_doorbell);
        queue.state = &state;
        queue.notes = notes.data();
        queue.error = &error;
        queue.wait_ticks = with.wait_ticks;
        queue.qp_num = a.qp.qp_num;
        queue.depth = a.qp.sq_depth;
        queue.max_batch = a.qp.sq_max_batch;
        queue.req_id_64 = a.qp.req_id_64;
        CHECK(gpu_queue_init(queue, state, with.counter_start, 0, with.first_slot));
        auto* source = reinterpret_cast<uint64_t*>(a.memory.data());
        for (size_t i = 0; i < with.words; ++i) source[i] = soft::mix64(i + with.seed);
        std::fill(rig.b.memory.begin(), rig.b.memory.end(), uint8_t{0});
    }

    SendWqe write_of_word(size_t word) const {
        SendWqe wqe;
        wqe_begin(wqe, SendOpcode::kRdmaWrite, {rig.a.peer.ahn, static_cast<uint16_t>(rig.b.qp.qp_num), rig::kQkey}, 0, false, 1);
        wqe_set_remote(wqe, rig.b.addr(word * 8), 8, rig.b.region.rkey);
        wqe_set_local(wqe, rig.a.addr(word * 8), 8, rig.a.region.lkey);
        return wqe;
    }

    void step_devices() {
        for (rig::Side* side : {&rig.a, &rig.b}) side->device->step(rig.now);
        rig.now += 100;
    }

    // Words [0, n) arrived, nothing else did, and the device had nothing to complain about.
    void check_arrived(size_t n) const {
        CHECK_EQ(rig.a.device->last_diagnosis(), std::string());
        CHECK(!gpu_queue_error(&error));
        const auto* words = reinterpret_cast<const uint64_t*>(rig.b.memory.data());
        for (size_t i = 0; i < options.words; ++i) {
            if (words[i] != (i < n ? soft::mix64(i + options.seed) : 0))
                check::fail(__FILE__, __LINE__, "word " + std::to_string(i) + " of " + std::to_string(n) + " is wrong");
        }
        CHECK_EQ(rig.a.device->stats().work_requests, uint64_t{n});
    }
};

// ---- posters as fibers ----

class Turns {
   public:
    Turns(QueueRig& rig, uint64_t seed) : rig_(rig), prng_(seed) {
#if defined(__SANITIZE_THREAD__)
        SKIP("one thread: nothing for ThreadSanitizer to see");
#endif
    }
    void add(std::function<void()> poster) { fibers_.push_back(std::make_unique<Fiber>(std::move(poster))); }
    bool is_device_dead = false;

    void run(uint64_t turns_max = 50'000'000) {
        for (uint64_t turn = 0; turn < turns_max; ++turn) {
            const uint64_t draw = prng_.next();
            size_t left = 0;
            for (const auto& fiber : fibers_) left += fiber->is_done() ? 0 : 1;
            if (left == 0) return;
            if (draw % 4 == 0 && !is_device_dead) rig_.step_devices();
            Fiber& fiber = *fibers_[(draw >> 8) % fibers_.size()];
            if (fiber.is_done()) continue;
            // A poster runs a few accesses, seldom many: long and short overtakings both happen.
            run_before_switch = (draw >> 40) % 64 == 0 ? 200 : (draw >> 48) % 4;
            fiber.resume();
            if (auto failure = fiber.take_failure()) std::rethrow_exception(failure);
        }
        check::fail(__FILE__, __LINE__, "the posters do not end, seed " + std::to_string(rig_.options.seed));
    }
    static inline uint64_t run_before_switch = 0;

   private:
    QueueRig& rig_;
    soft::Prng prng_;
    std::vector<std::unique_ptr<Fiber>> fibers_;
};

inline void step() {
    if (!Fiber::current()) {  // a thread: waits must leave the processor to those waited for
        static thread_local uint32_t n = 0;
        if (++n % 64 == 0) std::this_thread::yield();
        return;
    }
    if (Turns::run_before_switch != 0) {
        --Turns::run_before_switch;
        return;
    }
    Fiber::pause();
}

// Lanes of a simulated warp: fibers or threads that post together. share() and join() are barriers.
class Lanes {
   public:
    static constexpr bool kIsOfWarp = false;
    struct Meeting {
        std::atomic<uint32_t> n_here{0};
        std::atomic<uint32_t> round{0};
        std::atomic<uint64_t> value{0};
    };
    Lanes(Meeting& meeting, uint32_t size, uint32_t rank) : meeting_(&meeting), size_(size), rank_(rank) {}
    uint32_t size() const { return size_; }
    uint32_t rank() const { return rank_; }
    uint64_t share(uint64_t value) const {
        if (rank_ == 0) meeting_->value.store(value);
        join();
        const uint64_t got = meeting_->value.load();
        join();  // nobody stores the next value before all have read this one
        return got;
    }
    void join() const {
        const uint32_t round = meeting_->round.load();
        if (meeting_->n_here.fetch_add(1) + 1 == size_) {
            meeting_->n_here.store(0);
            meeting_->round.fetch_add(1);
            return;
        }
        while (meeting_->round.load() == round) {
            order::pause();
            if (!Fiber::current()) std::this_thread::yield();
        }
    }

   private:
    Meeting* meeting_;
    uint32_t size_, rank_;
};

// ---- what posters do ----

inline constexpr OneThread kAlone{};

// Each poster writes the words poster, poster + n_posters, ... below `words`, waits for all now and then, and then finds
// its own words at the target: a quiet that returns early is caught.
inline void post_words(QueueRig& rig, size_t poster, size_t n_posters, size_t from, size_t to, size_t quiet_each) {
    const auto* arrived = reinterpret_cast<const uint64_t*>(rig.rig.b.memory.data());
    size_t n = 0, oldest = from + poster;
    for (size_t word = from + poster; word < to; word += n_posters) {
        CHECK(shared_post(rig.queue, kAlone, rig.write_of_word(word), 7));
        if (++n % quiet_each != 0 && word + n_posters < to) continue;
        CHECK(shared_quiet(rig.queue, 7));
        for (; oldest <= word; oldest += n_posters) {
            if (arrived[oldest] != soft::mix64(oldest + rig.options.seed)) check::fail(__FILE__, __LINE__, "quiet, but not arrived");
        }
    }
}

inline void post_owned(QueueRig& rig, size_t from, size_t to, uint64_t seed) {
    soft::Prng prng(seed);
    OwnedCursor cursor = owned_begin(rig.queue);
    for (size_t word = from; word < to; ++word) {
        CHECK(owned_post(rig.queue, cursor, kAlone, rig.write_of_word(word), 7));
        if (prng.below(5) == 0) owned_ring(rig.queue, cursor, kAlone);
        if (prng.below(200) == 0) CHECK(owned_quiet(rig.queue, cursor, kAlone, 7));
    }
    CHECK(owned_quiet(rig.queue, cursor, kAlone, 7));
    owned_end(rig.queue, cursor, kAlone);
}

inline const QueueOptions kShapes[] = {
    {.depth = 8, .max_batch = 1, .source = Source::kCounter},
    {.depth = 8, .max_batch = 4, .source = Source::kCq},
    {.depth = 8, .max_batch = 16, .source = Source::kCounter},
    {.depth = 16, .max_batch = 1, .source = Source::kCq},
    {.depth = 16, .max_batch = 4, .source = Source::kCounter},
    {.depth = 64, .max_batch = 16, .source = Source::kCq, .req_id_64 = true},
    {.depth = 16, .max_batch = 5, .source = Source::kCounter},
    {.depth = 4096, .max_batch = 16, .source = Source::kCounter},
    {.depth = 4096, .max_batch = 16, .source = Source::kCq},
    {.depth = 32, .max_batch = 0, .source = Source::kCounter},
};

inline QueueOptions with_seed(QueueOptions shape, uint64_t seed) {
    shape.seed = seed;
    shape.words = 1 << 12;
    return shape;
}

// ---- posters as threads ----

// The devices' own thread, for the time of a scope.
class DeviceThread {
   public:
    explicit DeviceThread(QueueRig& rig) : rig_(rig), thread_([this] {
        while (!is_stopping_.load(std::memory_order_relaxed)) {
            rig_.step_devices();
            std::this_thread::yield();
        }
    }) {}
    ~DeviceThread() {
        is_stopping_ = true;
        thread_.join();
    }

   private:
    QueueRig& rig_;
    std::atomic<bool> is_stopping_{false};
    std::thread thread_;
};

}  // namespace gpu_queue_test
