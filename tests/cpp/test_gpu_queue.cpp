// SPDX-License-Identifier: Apache-2.0
// The send queue that the GPU posts to, as CPU code: every request arrives once and where it should, whoever posts, and
// a queue that cannot go on says why within its deadline.
#include "gpu_queue_rig.h"

#include <chrono>

using namespace gpu_queue_test;
using soft::Prng;

namespace {

void run_threads(QueueRig& rig, size_t n_threads, size_t from, size_t to) {
    std::atomic<int> n_failed{0};
    {
        DeviceThread device(rig);
        std::vector<std::thread> threads;
        for (size_t i = 0; i < n_threads; ++i) {
            threads.emplace_back([&, i] {
                try {
                    post_words(rig, i, n_threads, from, to, 500);
                } catch (const check::Failed&) {
                    ++n_failed;
                }
            });
        }
        for (std::thread& thread : threads) thread.join();
    }
    CHECK_EQ(n_failed.load(), 0);
}

void check_gives_up_in_time(QueueRig& rig, const std::function<bool()>& posts, GpuQueueWait waited) {
    const auto begin = std::chrono::steady_clock::now();
    while (posts()) {
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    CHECK(seconds < 5);
    const GpuQueueError* error = gpu_queue_error(&rig.error);
    CHECK(error);
    CHECK_EQ(error->waited, waited);
    CHECK_EQ(error->pe, 9u);
    CHECK_EQ(error->qp_num, rig.queue.qp_num);
    const GpuQueueError before = *error;
    CHECK(!shared_post(rig.queue, kAlone, rig.write_of_word(0), 8));
    CHECK(!shared_quiet(rig.queue, 8));
    CHECK(std::memcmp(&before, error, sizeof before) == 0);  // the first record stands
}

QueueOptions stuck() {
    QueueOptions options;
    options.depth = 8;
    options.wait_ticks = 20'000'000;
    return options;
}

}  // namespace

TEST(a_shape_that_cannot_work_is_refused) {
    QueueRig rig({});
    const auto is_good = [&](auto change) {
        GpuQueue queue = rig.queue;
        GpuQueueState state;
        change(queue);
        return gpu_queue_init(queue, state, 0, 0);
    };
    CHECK(is_good([](GpuQueue&) {}));
    CHECK(!is_good([](GpuQueue& queue) { queue.depth = 12; }));
    CHECK(!is_good([](GpuQueue& queue) { queue.depth = 65536; }));
    CHECK(!is_good([](GpuQueue& queue) { queue.slots = nullptr; }));
    CHECK(!is_good([](GpuQueue& queue) { queue.doorbell = nullptr; }));
    CHECK(!is_good([](GpuQueue& queue) { queue.error = nullptr; }));
    CHECK(!is_good([](GpuQueue& queue) { queue.wait_ticks = 0; }));
    CHECK(!is_good([](GpuQueue& queue) { queue.errors = nullptr; }));
    CHECK(!is_good([](GpuQueue& queue) { queue.cq_entry_bytes = 24; }));
    CHECK(!is_good([](GpuQueue& queue) { queue.completions = nullptr, queue.cq_entries = nullptr; }));
    CHECK(!is_good([](GpuQueue& queue) { queue.completions = nullptr, queue.cq_depth = queue.depth / 2; }));
}

TEST(the_queue_sets_phase_and_request_id_and_leaves_the_rest) {
    QueueRig rig({.depth = 16, .req_id_64 = true});
    SendWqe wqe = rig.write_of_word(3);
    for (const uint32_t slot : {0u, 15u, 16u, 0x12345678u, 0xffffffffu}) {
        const SlotBytes bytes = slot_bytes(rig.queue, slot, slot_template(wqe), 0xabcd);
        SendWqe got = wqe, want = wqe;
        std::memcpy(&got, &bytes, sizeof bytes);
        CHECK_EQ(static_cast<uint32_t>(got.meta.ctrl2 & kCtrl2Phase), slot >> 4 & 1u);
        CHECK_EQ(got.meta.req_id, static_cast<uint16_t>(slot));
        CHECK_EQ(got.meta.req_id_ex[0], static_cast<uint16_t>(slot >> 16));
        CHECK_EQ(got.meta.req_id_ex[1], 0xabcd);
        want.meta.ctrl2 = got.meta.ctrl2;
        want.meta.req_id = got.meta.req_id;
        std::memcpy(want.meta.req_id_ex, got.meta.req_id_ex, sizeof want.meta.req_id_ex);
        CHECK(std::memcmp(&got, &want, sizeof got) == 0);
    }
}

TEST(posters_that_share_a_queue_in_any_order_lose_nothing_and_keep_to_the_batch) {
    for (const QueueOptions& shape : kShapes) {
        for (uint64_t seed = 1; seed <= 6; ++seed) {
            QueueRig rig(with_seed(shape, seed));
            const size_t words = 600, n_posters = 1 + seed;
            Turns turns(rig, seed);
            for (size_t i = 0; i < n_posters; ++i)
                turns.add([&rig, i, n_posters, words] { post_words(rig, i, n_posters, 0, words, 40); });
            turns.run();
            rig.check_arrived(words);
        }
    }
}

TEST(an_owner_posts_and_rings_as_it_likes_and_keeps_to_the_batch) {
    for (const QueueOptions& shape : kShapes) {
        for (uint64_t seed = 1; seed <= 4; ++seed) {
            QueueRig rig(with_seed(shape, seed));
            Turns turns(rig, seed);
            turns.add([&] { post_owned(rig, 0, 1500, seed); });
            turns.run();
            rig.check_arrived(1500);
        }
    }
}

TEST(lanes_that_post_together_share_reservations) {
    for (const QueueOptions& shape : kShapes) {
        for (const uint32_t n_lanes : {3u, 8u, 32u}) {
            QueueRig rig(with_seed(shape, n_lanes));
            Lanes::Meeting meetings[2];
            Turns turns(rig, n_lanes);
            for (uint32_t lane = 0; lane < 2 * n_lanes; ++lane) {
                turns.add([&rig, &meetings, lane, n_lanes] {
                    const Lanes group(meetings[lane / n_lanes], n_lanes, lane % n_lanes);
                    for (size_t i = 0; i < 12; ++i)
                        CHECK(shared_post(rig.queue, group, rig.write_of_word(i * 2 * n_lanes + lane), 7));
                    if (group.rank() == 0) CHECK(shared_quiet(rig.queue, 7));
                });
            }
            turns.run();
            rig.check_arrived(12 * 2 * n_lanes);
        }
    }
}

TEST(a_warp_that_owns_a_queue_posts_with_all_lanes) {
    for (const QueueOptions& shape : kShapes) {
        QueueRig rig(with_seed(shape, 5));
        Lanes::Meeting meeting;
        Turns turns(rig, 5);
        for (uint32_t lane = 0; lane < 32; ++lane) {
            turns.add([&rig, &meeting, lane] {
                const Lanes group(meeting, 32, lane);
                OwnedCursor cursor = owned_begin(rig.queue);
                for (size_t i = 0; i < 20; ++i) {
                    CHECK(owned_post(rig.queue, cursor, group, rig.write_of_word(i * 32 + lane), 7));
                    if (i % 3 == 0) owned_ring(rig.queue, cursor, group);
                }
                CHECK(owned_quiet(rig.queue, cursor, group, 7));
                owned_end(rig.queue, cursor, group);
            });
        }
        turns.run();
        rig.check_arrived(20 * 32);
    }
}

TEST(threads_share_a_queue) {
    for (QueueOptions shape : kShapes) {
        shape.checks_batches = false;  // that rule's check looks at slots while they are written
        shape.words = 1 << 12;
        QueueRig rig(shape);
        run_threads(rig, 4, 0, 3000);
        rig.check_arrived(3000);
    }
}

TEST(an_owner_posts_beside_the_devices_thread) {
    for (QueueOptions shape : kShapes) {
        shape.checks_batches = false;
        shape.words = 1 << 12;
        QueueRig rig(shape);
        {
            DeviceThread device(rig);
            post_owned(rig, 0, 3000, 3);
        }
        rig.check_arrived(3000);
    }
}

TEST(slot_numbers_wrap_and_a_queue_passes_from_owner_to_sharers_and_back) {
    for (const Source source : {Source::kCounter, Source::kCq}) {
        // The device looks at 16 bits of the doorbell and began at slot 0, so these slot numbers begin at a multiple.
        QueueRig rig({.depth = 256, .max_batch = 16, .source = source, .is_reordered = false, .checks_batches = false,
                      .first_slot = 0xffff0000u, .words = 1 << 17});
        {
            DeviceThread device(rig);
            post_owned(rig, 0, 65'000, 1);
        }
        CHECK_EQ(rig.state.head, 0xffff0000u + 65'000);
        run_threads(rig, 3, 65'000, 66'200);  // over the wrap
        CHECK_EQ(rig.state.head, 664u);
        {
            DeviceThread device(rig);
            post_owned(rig, 66'200, 67'000, 2);
        }
        rig.check_arrived(67'000);
    }
}

TEST(the_completion_counter_wraps_at_two_to_the_31) {
    for (const uint32_t depth : {8u, 4096u}) {
        QueueRig shared({.depth = depth, .counter_start = kCounterMask31 - 300, .words = 1 << 12});
        Turns turns(shared, 1);
        for (size_t i = 0; i < 3; ++i) turns.add([&shared, i] { post_words(shared, i, 3, 0, 900, 100); });
        turns.run();
        CHECK_EQ(shared.counters[0], uint64_t{899 - 300});
        shared.check_arrived(900);
        QueueRig owned({.depth = depth, .counter_start = kCounterMask31, .words = 1 << 12});
        Turns owners(owned, 1);
        owners.add([&] { post_owned(owned, 0, 900, 1); });
        owners.run();
        owned.check_arrived(900);
    }
}

TEST(a_shared_queue_that_stays_full_is_named_within_the_deadline) {
    for (const Source source : {Source::kCounter, Source::kCq}) {
        QueueOptions options = stuck();
        options.source = source;
        QueueRig rig(options);  // nobody steps the devices
        int n = 0;
        check_gives_up_in_time(rig, [&] { return shared_post(rig.queue, kAlone, rig.write_of_word(n++), 9); }, GpuQueueWait::kCredits);
        CHECK_EQ(n, 9);
        CHECK_EQ(rig.error.slot, 8u);
        CHECK_EQ(rig.error.posted, uint64_t{9});
        CHECK_EQ(rig.error.completed, uint64_t{0});
    }
}

TEST(an_owned_queue_that_stays_full_is_named_within_the_deadline) {
    QueueRig rig(stuck());
    OwnedCursor cursor = owned_begin(rig.queue);
    check_gives_up_in_time(rig, [&] { return owned_post(rig.queue, cursor, kAlone, rig.write_of_word(0), 9); }, GpuQueueWait::kCredits);
    CHECK_EQ(*rig.queue.doorbell, 8u);  // all that is in the ring was rung, or it could never drain
    CHECK(!owned_post(rig.queue, cursor, kAlone, rig.write_of_word(0), 9));
    CHECK(!owned_quiet(rig.queue, cursor, kAlone, 9));
}

TEST(a_quiet_that_never_comes_is_named_within_the_deadline) {
    QueueRig rig(stuck());
    CHECK(shared_post(rig.queue, kAlone, rig.write_of_word(0), 9));
    check_gives_up_in_time(rig, [&] { return shared_quiet(rig.queue, 9); }, GpuQueueWait::kQuiet);
}

TEST(a_poster_that_vanished_is_named_by_those_behind_it) {
    QueueRig rig(stuck());
    __atomic_fetch_add(&rig.state.head, 1, __ATOMIC_RELAXED);  // took a slot, and never came back
    check_gives_up_in_time(rig, [&] { return shared_post(rig.queue, kAlone, rig.write_of_word(0), 9); }, GpuQueueWait::kTurn);
    CHECK_EQ(*rig.queue.doorbell, 0u);
}

// Posters post until told to stop, with no pause of their own, and the queue is never empty but for a quiet's request.
TEST(a_quiet_ends_among_posters_that_never_pause) {
    for (const QueueOptions& shape : kShapes) {
        for (uint64_t seed = 1; seed <= 3; ++seed) {
            QueueRig rig(with_seed(shape, seed));
            Turns turns(rig, seed);
            bool is_over = false;
            uint32_t next = 0;
            for (size_t i = 0; i < 4; ++i) {
                turns.add([&] {
                    while (!is_over) CHECK(shared_post(rig.queue, kAlone, rig.write_of_word(next++), 7));
                });
            }
            size_t n_left = 2;
            for (size_t i = 0; i < 2; ++i) {
                turns.add([&] {
                    for (int round = 0; round < 5; ++round) {
                        const uint32_t before = order::load_relaxed_gpu(&rig.state.head);
                        CHECK(shared_quiet(rig.queue, 7));
                        const auto completed = static_cast<uint32_t>(order::load_acquire_gpu(&rig.state.completed));
                        CHECK(static_cast<int32_t>(completed - before) >= 0);
                        // The posters go on: the hold is not kept.
                        while (order::load_relaxed_gpu(&rig.state.head) - before < 40) order::pause();
                    }
                    if (--n_left == 0) is_over = true;
                });
            }
            turns.run(3'000'000);
            QueueRig* const at = &rig;
            Turns last(rig, seed);
            last.add([at] { CHECK(shared_quiet(at->queue, 7)); });
            last.run();
            CHECK_EQ(rig.state.hold, 0u);
            rig.check_arrived(next);
        }
    }
}

TEST(a_quiet_takes_its_hold_back_when_the_queue_fails) {
    QueueRig rig({.depth = 16});
    Turns turns(rig, 1);
    bool has_failed = false;
    turns.add([&] {
        size_t word = 0;
        while (rig.state.hold == 0) CHECK(shared_post(rig.queue, kAlone, rig.write_of_word(word++ % 64), 7));
        SendWqe bad = rig.write_of_word(0);
        bad.rdma.remote.rkey ^= 0x01000000;
        CHECK(!shared_post(rig.queue, kAlone, bad, 11));  // told to pause, and then that there is no more to wait for
        has_failed = true;
    });
    for (size_t i = 0; i < 3; ++i) {
        turns.add([&] {
            while (!has_failed && shared_post(rig.queue, kAlone, rig.write_of_word(64), 7)) {
            }
        });
    }
    turns.add([&] { CHECK(!shared_quiet(rig.queue, 7)); });
    turns.run(5'000'000);
    CHECK_EQ(rig.state.hold, 0u);
    CHECK_EQ(gpu_queue_error(&rig.error)->pe, 11u);
}

TEST(a_hold_that_is_never_taken_back_is_named_within_the_deadline) {
    for (uint32_t GpuQueueState::*const word : {&GpuQueueState::hold, &GpuQueueState::host_hold}) {
        QueueRig rig(stuck());
        rig.state.*word = 1;  // a quiet that vanished
        check_gives_up_in_time(rig, [&] { return shared_post(rig.queue, kAlone, rig.write_of_word(0), 9); }, GpuQueueWait::kHold);
        CHECK_EQ(rig.error.slot, 0u);
        CHECK_EQ(*rig.queue.doorbell, 1u);  // the post itself went out
    }
}

// One of them reads the entry with the error while the others wait for its count: all must learn of it.
TEST(several_quiets_of_one_completion_queue_all_see_the_failure) {
    for (uint64_t seed = 1; seed <= 40; ++seed) {
        QueueRig rig(with_seed({.depth = 16, .source = Source::kCq}, seed));
        SendWqe bad = rig.write_of_word(3);
        bad.rdma.remote.rkey ^= 0x01000000;
        CHECK(shared_post(rig.queue, kAlone, rig.write_of_word(1), 7) && shared_post(rig.queue, kAlone, bad, 11));
        Turns turns(rig, seed);
        for (size_t i = 0; i < 3; ++i) turns.add([&] { CHECK(!shared_quiet(rig.queue, 7)); });
        turns.run();
        CHECK_EQ(gpu_queue_error(&rig.error)->pe, 11u);
    }
}

TEST(an_error_completion_names_peer_queue_status_and_address) {
    for (const Source source : {Source::kCounter, Source::kCq}) {
        for (const bool has_notes : {true, false}) {
            QueueRig rig({.depth = 16, .source = source, .req_id_64 = !has_notes});
            if (!has_notes) rig.queue.notes = nullptr;
            rig.queue.slots_are_readable = true;
            Turns turns(rig, 1);
            turns.add([&rig] {
                for (size_t word = 0; word < 40; ++word) CHECK(shared_post(rig.queue, kAlone, rig.write_of_word(word), 7));
                SendWqe bad = rig.write_of_word(50);
                bad.rdma.remote.rkey ^= 0x01000000;
                CHECK(shared_post(rig.queue, kAlone, bad, 11));
                CHECK(!shared_quiet(rig.queue, 7));
                CHECK(!shared_post(rig.queue, kAlone, rig.write_of_word(41), 7));
            });
            turns.run();
            const GpuQueueError* error = gpu_queue_error(&rig.error);
            CHECK(error);
            CHECK_EQ(error->waited, GpuQueueWait::kCompletion);
            CHECK_EQ(error->status, static_cast<uint8_t>(CqeStatus::kRemoteBadAddress));
            CHECK_EQ(error->opcode, static_cast<uint8_t>(SendOpcode::kRdmaWrite));
            CHECK_EQ(error->pe, 11u);
            CHECK_EQ(error->qp_num, rig.queue.qp_num);
            CHECK_EQ(error->slot, 40u);
            CHECK_EQ(error->remote_addr, rig.rig.b.addr(50 * 8));
        }
    }
}

TEST_MAIN()
