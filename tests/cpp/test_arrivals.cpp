// SPDX-License-Identifier: Apache-2.0
// Counted puts: what a target's slots count, over real transports and software devices that reorder and write twice.
#include "gpu_lane_rig.h"
#include "nvshmem_efa/counted.cuh"
#include "nvshmem_efa/wait.cuh"

using namespace gpu_lane_rig;

namespace {

constexpr size_t kHeapBytes = 1 << 16;
constexpr uint32_t kSlots = 3;

struct Setting {
    const char* source;
    const char* profile;
    int64_t rails;
    int n_pes;
    const char* described;
};
// The second has unsolicited write receive; in the third each immediate takes a receive descriptor.
constexpr Setting kSettings[] = {{"auto", "efa3", 2, 3, "by counters in host memory"},
                                 {"immediates", "efa3", 2, 2, "by immediates in host memory"},
                                 {"auto", "efa2", 1, 2, "by immediates in host memory"}};

Knobs counting_knobs(const Setting& setting) {
    Knobs knobs = default_knobs();
    knobs.arrivals = kSlots;
    knobs.arrival_source = setting.source;
    knobs.soft_profile = setting.profile;
    knobs.soft_rails = setting.rails;
    knobs.soft_reorder_ns = 40'000;
    knobs.soft_duplicate_ppm = 300'000;
    return knobs;
}

uint64_t load(const uint64_t* word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }

// Words [0, n) of this PE to word `to` of the PE, each by a put of its own, from all rails in turn.
bool send_words(PeSide& side, size_t n, size_t to, int pe, uint32_t slot) {
    bool is_good = true;
    for (size_t i = 0; i < n; ++i) {
        device::cpu_poster = static_cast<uint32_t>(i);
        is_good = put_counted_nbi(*side.state, side.word(to + i), side.word(i), 8, pe, slot) && is_good;
    }
    return is_good;
}

// Rounds that a slot has counted when round `round` is over; round r uses slot r % kSlots, from 1 on.
uint32_t rounds_of(uint64_t round, uint32_t slot) {
    return static_cast<uint32_t>((round + kSlots - slot) / kSlots - (slot == 0 ? 1 : 0));
}

// From each PE to each, itself too; the set of a round is closed by the barrier behind it.
void exchange_rounds(Job& job, int pe) {
    constexpr size_t kN = 24;
    constexpr uint64_t kRounds = 4;
    const auto n_pes = static_cast<int>(job.pes.size());
    PeSide& side = job.pes[static_cast<size_t>(pe)];
    for (uint64_t round = 1; round <= kRounds; ++round) {
        const uint32_t slot = round % kSlots;
        for (size_t i = 0; i < kN; ++i) *side.word(i) = round << 32 | static_cast<uint64_t>(pe) << 16 | i;
        for (int to = 0; to < n_pes; ++to) CHECK(send_words(side, kN, 100 * static_cast<size_t>(pe + 1), to, slot));
        for (int from = 0; from < n_pes; ++from) {
            CHECK(wait_arrivals(*side.state, from, slot, rounds_of(round, slot) * kN));
            for (size_t i = 0; i < kN; ++i)
                CHECK_EQ(load(side.word(100 * static_cast<size_t>(from + 1) + i)), round << 32 | static_cast<uint64_t>(from) << 16 | i);
        }
        CHECK(quiet(*side.state));  // by then second copies have come too
        job.barrier();
    }
    for (int from = 0; from < n_pes; ++from)
        for (uint32_t slot = 0; slot < kSlots; ++slot)
            CHECK_EQ(arrivals(*side.state, from, slot), static_cast<uint32_t>(rounds_of(kRounds, slot) * kN));
}

}  // namespace

TEST(what_is_counted_is_there_and_each_put_counts_once_whatever_counts) {
    for (const Setting& setting : kSettings) {
        Job job(setting.n_pes, counting_knobs(setting), kHeapBytes);
        CHECK(job.pes[0].transport->describe().find(setting.described) != std::string::npos);
        CHECK_EQ(job.pes[0].state->arrival_queues == nullptr, std::strstr(setting.described, "counters") != nullptr);
        job.on_all([&](int pe) {
            job.add_chunk(pe, 0, kHeapBytes);
            exchange_rounds(job, pe);
        });
    }
}

TEST(a_put_is_cut_where_chunks_and_segments_end_and_says_how_often) {
    for (const Setting& setting : {kSettings[0], kSettings[1]}) {
        Knobs knobs = counting_knobs(setting);
        knobs.segment_bytes = 3000;
        knobs.soft_duplicate_ppm = 0;  // a race detector minds a second copy of so many bytes that arrives while they are read
        Job job(2, knobs, kHeapBytes);
        job.on_all([&](int pe) {
            job.add_chunk(pe, 0, kHeapBytes / 2);
            job.add_chunk(pe, kHeapBytes / 2, kHeapBytes / 2);
            PeSide& side = job.pes[static_cast<size_t>(pe)];
            constexpr size_t kBytes = 10000, kTo = kHeapBytes / 2 - 4096;  // 3000 + 1096, then 3000 + 2904
            CHECK_EQ(counted_requests(*side.state, side.at(kTo), side.at(0), kBytes, 1 - pe), 4u);
            CHECK_EQ(counted_requests(*side.state, side.at(kTo), side.at(0), 3000, 1 - pe), 1u);
            CHECK_EQ(counted_requests(*side.state, side.at(kTo), side.at(0), 0, 1 - pe), 0u);
            CHECK_EQ(counted_requests(*side.state, side.at(0) + kHeapBytes, side.at(0), 8, 1 - pe), 0u);
            for (size_t i = 0; i < kBytes; ++i) side.at(0)[i] = static_cast<uint8_t>(i * 7 + static_cast<size_t>(pe));
            CHECK(put_counted_nbi(*side.state, side.at(kTo), side.at(0), kBytes, 1 - pe, 2));
            CHECK(put_counted_nbi(*side.state, side.at(kTo), side.at(0), 0, 1 - pe, 2));
            CHECK(wait_arrivals(*side.state, 1 - pe, 2, 4));
            for (size_t i = 0; i < kBytes; ++i)
                CHECK_EQ(__atomic_load_n(side.at(kTo) + i, __ATOMIC_ACQUIRE), static_cast<uint8_t>(i * 7 + static_cast<size_t>(1 - pe)));
            CHECK(quiet(*side.state));
            job.barrier();
            CHECK_EQ(arrivals(*side.state, 1 - pe, 2), 4u);
        });
    }
}

// Each slot has a sender thread of its own on one PE and a waiting thread of its own on the other: with immediates, who
// reads an entry is mostly not the one who waits for it.
TEST(many_wait_at_once_and_each_is_told_of_its_own_slot) {
    for (const Setting& setting : {kSettings[0], kSettings[1]}) {
        Job job(2, counting_knobs(setting), kHeapBytes);
        job.on_all([&](int pe) { job.add_chunk(pe, 0, kHeapBytes); });
        std::atomic<int> failures{0};
        std::vector<std::thread> threads;
        for (uint32_t slot = 0; slot < kSlots; ++slot) {
            threads.emplace_back([&, slot] {
                const DeviceState& state = *job.pes[1].state;
                for (uint32_t n = 8; n <= 40 && failures == 0; n += 8) failures += wait_arrivals(state, 0, slot, n) && arrivals(state, 0, slot) >= n ? 0 : 1;
            });
            threads.emplace_back([&, slot] {
                PeSide& side = job.pes[0];
                for (uint32_t n = 0; n < 40; ++n) {
                    device::cpu_poster = slot + n;
                    failures += put_counted_nbi(*side.state, side.word(200 + 64 * slot + n), side.word(0), 8, 1, slot) ? 0 : 1;
                    std::this_thread::yield();
                }
            });
        }
        for (std::thread& thread : threads) thread.join();
        CHECK_EQ(failures.load(), 0);
        for (uint32_t slot = 0; slot < kSlots; ++slot) CHECK_EQ(arrivals(*job.pes[1].state, 0, slot), 40u);
        CHECK_EQ(arrivals(*job.pes[0].state, 1, 0), 0u);
    }
}

TEST(counts_go_over_the_wrap_at_31_bits) {
    for (const uint32_t seen : {0u, 5u, kCounterMask31 - 3, kCounterMask31}) {
        CHECK(device::has_arrived(seen, seen) && device::has_arrived((seen + 6) & kCounterMask31, seen));
        CHECK(!device::has_arrived(seen, (seen + 1) & kCounterMask31) && !device::has_arrived(seen, (seen + 6) & kCounterMask31));
    }
    for (const Setting& setting : kSettings) {
        Job job(2, counting_knobs(setting), kHeapBytes);
        job.on_all([&](int pe) { job.add_chunk(pe, 0, kHeapBytes); });
        // As after 2^31 - 5 arrivals on the last rail, and 2^31 - 1 on the first, where there are two.
        std::vector<uint32_t> biases(job.pes[1].state->n_rails * kSlots * 2, 1);
        for (size_t i = job.pes[1].state->n_rails - 1; i < biases.size(); i += job.pes[1].state->n_rails) biases[i] = 5;
        DeviceState state = *job.pes[1].state;
        state.arrival_biases = biases.data();
        const uint32_t before = (0u - (setting.rails == 2 ? 6 : 5)) & kCounterMask31;
        CHECK_EQ(arrivals(state, 0, 1), before);
        CHECK(wait_arrivals(state, 0, 1, before));
        for (uint32_t round = 1; round <= 3; ++round) {
            CHECK(send_words(job.pes[0], 4, 100, 1, 1));
            CHECK(wait_arrivals(state, 0, 1, before + 4 * round));
            CHECK(quiet(*job.pes[0].state));
            CHECK_EQ(arrivals(state, 0, 1), (before + 4 * round) & kCounterMask31);
        }
    }
}

TEST(what_does_not_arrive_is_named_with_its_pe_at_the_deadline) {
    for (const Setting& setting : {kSettings[0], kSettings[2]}) {
        Knobs knobs = counting_knobs(setting);
        knobs.timeout_ms = 300;
        Job job(2, knobs, kHeapBytes);
        job.on_all([&](int pe) { job.add_chunk(pe, 0, kHeapBytes); });
        CHECK(send_words(job.pes[1], 3, 100, 0, 2));
        CHECK(wait_arrivals(*job.pes[0].state, 1, 2, 3));
        CHECK(!wait_arrivals(*job.pes[0].state, 1, 2, 5));
        CHECK_FAILS(job.pes[0].transport->progress(Lane::kHost), Code::kTimeout,
                    "PE 1 -> PE 0 (GPU): counted puts to slot 2 did not arrive within 300 ms (3 of 5)");
        CHECK_OK(job.pes[1].transport->quiet(Lane::kHost, 0));
    }
}

TEST(more_unread_puts_than_receive_descriptors_fail_at_the_sender_by_name) {
    Knobs knobs = counting_knobs(kSettings[2]);
    knobs.soft_reorder_ns = 0;
    knobs.soft_duplicate_ppm = 0;
    Job job(2, knobs, kHeapBytes);
    job.on_all([&](int pe) { job.add_chunk(pe, 0, kHeapBytes); });
    PeSide& side = job.pes[0];
    const uint32_t fit = 2 * side.state->arrival_unread_max;  // of both PEs
    bool is_good = true;
    for (uint32_t i = 0; i < fit + 1 && is_good; ++i)
        is_good = put_counted_nbi(*side.state, side.word(100 + i % 512), side.word(0), 8, 1, i % kSlots);
    CHECK(!is_good || !quiet(*side.state));
    CHECK_FAILS(side.transport->progress(Lane::kHost), Code::kPeer, "RNR (the peer had no receive buffer posted)");
    uint32_t sum = 0;
    for (uint32_t slot = 0; slot < kSlots; ++slot) sum += arrivals(*job.pes[1].state, 0, slot);
    CHECK_EQ(sum, fit);  // all the others are there
}

TEST(a_slot_or_pe_that_is_not_there_is_named) {
    Knobs knobs = counting_knobs(kSettings[0]);
    Job job(2, knobs, kHeapBytes);
    job.on_all([&](int pe) { job.add_chunk(pe, 0, kHeapBytes); });
    PeSide& side = job.pes[0];
    CHECK(!put_counted_nbi(*side.state, side.word(9), side.word(0), 8, 1, kSlots));
    CHECK_FAILS(side.transport->progress(Lane::kHost), Code::kInvalidArgument, "PE 0 -> PE 1 (GPU): slot 3 for counted puts, of 3; hint: raise");
    CHECK(!wait_arrivals(*job.pes[1].state, 2, 0, 1));
    CHECK_FAILS(job.pes[1].transport->progress(Lane::kHost), Code::kInvalidArgument, "no such PE");
    knobs.arrivals = 0;
    Job without(2, knobs, kHeapBytes);
    CHECK(!put_counted_nbi(*without.pes[0].state, side.word(9), side.word(0), 8, 1, 0));
    CHECK_FAILS(without.pes[0].transport->progress(Lane::kHost), Code::kInvalidArgument, "slot 0 for counted puts, of 0");
}

TEST(pes_that_disagree_on_the_knob_do_not_start) {
    auto meeting = std::make_shared<Meeting>(2);
    std::atomic<int> refused{0};
    std::vector<std::thread> threads;
    for (int pe = 0; pe < 2; ++pe)
        threads.emplace_back([&, pe, meeting] {
            TransportOptions options;
            options.knobs = counting_knobs(kSettings[0]);
            options.knobs.arrivals = 1 + pe;
            options.nics = open_soft(pe, options.knobs);
            std::unique_ptr<Transport> transport;
            if (!Transport::create(std::move(options), &transport).ok()) return;
            Bootstrap bootstrap;
            bootstrap.pe = pe;
            bootstrap.n_pes = 2;
            bootstrap.allgather = [&](const void* send, void* recv, size_t bytes) {
                meeting->allgather(pe, send, recv, bytes);
                return Status();
            };
            bootstrap.barrier = [] { return Status(); };
            const Status status = transport->connect(bootstrap);
            const char* const text = pe == 0 ? "PE 1 runs with NVSHMEM_EFA_ARRIVALS=2, this PE 0 with 1" : "PE 0 runs with NVSHMEM_EFA_ARRIVALS=1";
            refused += status.code() == Code::kMismatch && std::strstr(status.message(), text) ? 1 : 0;
        });
    for (std::thread& thread : threads) thread.join();
    CHECK_EQ(refused.load(), 2);
}

TEST_MAIN()
