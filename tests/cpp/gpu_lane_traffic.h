// SPDX-License-Identifier: Apache-2.0
// Traffic of a job whose PEs post themselves: for jobs on software devices and on devices.
#pragma once

#include <string>

#include "gpu_lane_rig.h"

namespace gpu_lane_rig {

struct Traffic {
    static constexpr size_t kThreads = 3, kEach = 120, kCount = kThreads * kEach;
    static constexpr size_t kSum = 0, kFrom = 16, kTo = kFrom + kCount, kWords = kTo + kCount;
};

// Posters of one PE: each thread writes its share of words to the other PE and adds to that PE's sum.
inline void post_traffic(PeSide& side, int other) {
    using T = Traffic;
    const auto at = [&](size_t word) { return reinterpret_cast<uint64_t>(side.word(word)); };
    std::atomic<int> failed{0};
    std::vector<std::thread> posters;
    for (size_t t = 0; t < T::kThreads; ++t) {
        posters.emplace_back([&, t] {
            for (size_t i = t * T::kEach; i < (t + 1) * T::kEach; ++i) {
                failed += post_write(*side.state, i % 2, at(T::kFrom + i), at(T::kTo + i), 8, other) ? 0 : 1;
                std::this_thread::yield();  // posters wait without leaving the processor, and here they outnumber it
            }
            for (size_t i = 0; i < 4; ++i) failed += post_add(*side.state, t % 2, at(T::kSum), 5, other) ? 0 : 1;
        });
    }
    for (std::thread& poster : posters) poster.join();
    CHECK_EQ(failed.load(), 0);
}

// A job of two PEs, whose description must name `kind`. The host's quiet says that all that was posted is there.
inline void run_traffic(Job& job, const char* kind) {
    using T = Traffic;
    job.on_all([&](int pe) { job.add_chunk(pe, 0, T::kWords * 8); });
    const std::string text = job.pes[0].transport->describe();
    if (text.find(kind) == std::string::npos) check::fail(__FILE__, __LINE__, std::string(kind) + " is not in: " + text);
    job.on_all([&](int pe) {
        PeSide& side = job.pes[static_cast<size_t>(pe)];
        const int other = 1 - pe;
        for (size_t i = 0; i < T::kCount; ++i) *side.word(T::kFrom + i) = (i + 1) << (8 * pe);
        post_traffic(side, other);
        CHECK_OK(side.transport->quiet(Lane::kHost, other));
        job.barrier();
        CHECK_EQ(__atomic_load_n(side.word(T::kSum), __ATOMIC_ACQUIRE), uint64_t{T::kThreads * 4 * 5});
        // As a device's atomic stores: the two sides of a wire map its memory twice, so a race detector sees no order between them.
        for (size_t i = 0; i < T::kCount; ++i)
            CHECK_EQ(__atomic_load_n(side.word(T::kTo + i), __ATOMIC_ACQUIRE), (i + 1) << (8 * other));
        job.barrier();
    });
}

}  // namespace gpu_lane_rig
