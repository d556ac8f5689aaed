// SPDX-License-Identifier: Apache-2.0
// Counted puts: what a target's slots count, over real transports and software devices that reorder and write twice.
#include <set>

#include "gpu_lane_rig.h"
#include "nvshmem_efa/counted.cuh"
#include "nvshmem_efa/wait.cuh"

using namespace gpu_lane_rig;

namespace {

constexpr size_t kHeapBytes = 1 << 16;
constexpr uint32_t kSlots = 3;

Knobs counting_knobs() {
    Knobs knobs = default_knobs();
    knobs.arrivals = kSlots;
    knobs.soft_reorder_ns = 300'000;
    knobs.soft_duplicate_ppm = 300'000;
    return knobs;
}

uint64_t load(const uint64_t* word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }

// Words [from, from + n) of this PE to the same place + `shift` at the PE, each by a put of its own. Posters take rails in turn.
bool send_words(PeSide& side, size_t from, size_t n, size_t shift, int pe, uint32_t slot) {
    bool is_good = true;
    for (size_t i = from; i < from + n; ++i) {
        device::cpu_poster = static_cast<uint32_t>(i);
        is_good = put_counted_nbi(*side.state, side.word(i + shift), side.word(i), 8, pe, slot) && is_good;
    }
    return is_good;
}

}  // namespace

TEST(what_is_counted_is_there_and_each_put_counts_once) {
    for (const int64_t rails : {1, 2}) {
        Knobs knobs = counting_knobs();
        knobs.soft_rails = rails;
        constexpr size_t kN = 48;
        constexpr uint64_t kRounds = 4;
        Job job(3, knobs, kHeapBytes);
        job.on_all([&](int pe) {
            job.add_chunk(pe, 0, kHeapBytes);
            PeSide& side = job.pes[static_cast<size_t>(pe)];
            // From each PE to each, itself too; a slot a round, so that no later put is on its way when a round is counted.
            for (uint64_t round = 1; round <= kRounds; ++round) {
                const uint32_t slot = round % kSlots;
                for (size_t i = 0; i < kN; ++i) *side.word(i) = round << 32 | static_cast<uint64_t>(pe) << 16 | i;
                for (int to = 0; to < 3; ++to) CHECK(send_words(side, 0, kN, 100 * static_cast<size_t>(pe + 1), to, slot));
                for (int from = 0; from < 3; ++from) {
                    const auto rounds = static_cast<uint32_t>((round - (slot == 0 ? kSlots : slot)) / kSlots + 1);
                    CHECK(wait_arrivals(*side.state, from, slot, rounds * kN));
                    CHECK_EQ(arrivals(*side.state, from, slot), static_cast<uint32_t>(rounds * kN));
                    for (size_t i = 0; i < kN; ++i)
                        CHECK_EQ(load(side.word(100 * static_cast<size_t>(from + 1) + i)), round << 32 | static_cast<uint64_t>(from) << 16 | i);
                }
                CHECK(quiet(*side.state));
                job.barrier();
            }
            // Late second copies count nothing.
            for (int from = 0; from < 3; ++from)
                for (uint32_t slot = 0; slot < kSlots; ++slot)
                    CHECK_EQ(arrivals(*side.state, from, slot), static_cast<uint32_t>(slot == 1 ? 2 * kN : kN));
        });
    }
}

TEST_MAIN()
