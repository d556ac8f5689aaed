// SPDX-License-Identifier: Apache-2.0
// The device API's posting of two requests in one reservation, by lanes that post together, on one queue by itself.
#include "gpu_queue_rig.h"
#include "nvshmem_efa/device_post.h"

using namespace gpu_queue_test;

TEST(pairs_of_lanes_arrive_once_each_whatever_the_batch) {
    for (const QueueOptions& shape : kShapes) {
        for (const uint32_t n_lanes : {1u, 3u, 8u, 32u}) {
            QueueRig rig(with_seed(shape, n_lanes));
            Lanes::Meeting meetings[2];
            Turns turns(rig, n_lanes);
            for (uint32_t lane = 0; lane < 2 * n_lanes; ++lane) {
                turns.add([&rig, &meetings, lane, n_lanes] {
                    const Lanes group(meetings[lane / n_lanes], n_lanes, lane % n_lanes);
                    for (size_t i = 0; i < 8; ++i) {
                        const size_t word = (i * 2 * n_lanes + lane) * 2;
                        CHECK(device::shared_post_two(rig.queue, group, rig.write_of_word(word), rig.write_of_word(word + 1), 7));
                    }
                    if (group.rank() == 0) CHECK(shared_quiet(rig.queue, 7));
                });
            }
            turns.run();
            rig.check_arrived(8 * 2 * 2 * n_lanes);
        }
    }
}

TEST(a_pair_that_fits_goes_out_with_one_doorbell) {
    QueueRig rig({.depth = 16, .max_batch = 16, .words = 64});
    CHECK(device::shared_post_two(rig.queue, OneThread{}, rig.write_of_word(0), rig.write_of_word(1), 7));
    const Turn turn = turn_unpack(rig.state.turn);
    CHECK_EQ(turn.written, 2u);
    CHECK_EQ(turn.unsettled, 2u);  // both by the last doorbell; of two doorbells, the first would be known to be out
    Turns turns(rig, 1);
    turns.add([&rig] { CHECK(shared_quiet(rig.queue, 7)); });
    turns.run();
    rig.check_arrived(2);
}

TEST(a_pair_on_a_failed_queue_is_refused) {
    QueueRig rig({.depth = 16, .max_batch = 16, .words = 64});
    CHECK(!fail_wait(rig.queue, GpuQueueWait::kQuiet, 7, 0));
    CHECK(!device::shared_post_two(rig.queue, OneThread{}, rig.write_of_word(0), rig.write_of_word(1), 7));
}

TEST_MAIN()
