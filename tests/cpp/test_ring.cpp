// SPDX-License-Identifier: Apache-2.0
// The arithmetic of the rings: phases and counters over their wraps, credits, batches, doorbells, refusals.
#include "nvshmem_efa/ring.h"

#include <vector>

#include "check.h"

using namespace nvshmem_efa;

namespace {

struct SendFixture {
    alignas(64) std::vector<uint64_t> slots;
    volatile uint32_t doorbell = 0;
    SendRing ring;

    SendFixture(uint32_t slot_bytes, uint32_t depth, uint32_t max_batch = 0)
        : slots(static_cast<size_t>(slot_bytes) * depth / 8, 0) {
        CHECK(send_ring_init(ring, slots.data(), &doorbell, slot_bytes, depth, max_batch));
    }
    // As if `count` slots had been posted, rung and completed before.
    void skip_to(uint32_t count) { ring.posted = ring.rung = ring.completed = count; }
};

bool same(const SendRing& a, const SendRing& b) {
    return a.slots == b.slots && a.doorbell == b.doorbell && a.slot_bytes == b.slot_bytes && a.depth == b.depth &&
           a.depth_log2 == b.depth_log2 && a.max_batch == b.max_batch && a.posted == b.posted && a.rung == b.rung &&
           a.completed == b.completed;
}

}  // namespace

TEST(a_send_ring_refuses_a_bad_shape) {
    uint64_t slots[64] = {};
    volatile uint32_t doorbell = 0;
    SendRing ring;
    for (uint32_t depth : {0u, 3u, 6u, 1000u, 0xffffffffu}) {
        CHECK(!send_ring_init(ring, slots, &doorbell, 64, depth, 0));
    }
    for (uint32_t slot_bytes : {0u, 32u, 63u, 65u, 96u, 256u}) {
        CHECK(!send_ring_init(ring, slots, &doorbell, slot_bytes, 4, 0));
    }
    CHECK(send_ring_init(ring, slots, &doorbell, 128, 4, 0));
    CHECK_EQ(ring.depth_log2, 2u);
    CHECK(send_ring_init(ring, slots, &doorbell, 64, 1, 0));
    CHECK_EQ(ring.depth_log2, 0u);
}

TEST(the_send_phase_starts_at_zero_and_flips_on_every_lap) {
    SendFixture fixture(64, 4);
    const uint32_t expected[] = {0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1};
    for (uint32_t index = 0; index < 13; ++index) CHECK_EQ(send_ring_phase(fixture.ring, index), expected[index]);
}

TEST(the_send_phase_stays_right_over_the_16_and_32_bit_wrap) {
    for (uint32_t depth : {1u, 4u, 4096u, 65536u}) {
        SendRing ring;
        volatile uint32_t doorbell = 0;
        uint64_t slot[8];
        CHECK(send_ring_init(ring, slot, &doorbell, 64, depth, 0));
        for (uint64_t around : {uint64_t{0x10000}, uint64_t{0x100000000}}) {
            for (uint64_t index = around - 3; index < around + 3; ++index) {
                const uint64_t lap = index / depth;  // counted in 64 bits, where nothing wraps
                CHECK_EQ(send_ring_phase(ring, static_cast<uint32_t>(index)), static_cast<uint32_t>(lap % 2));
            }
        }
    }
}

TEST(slots_follow_each_other_and_wrap) {
    for (uint32_t slot_bytes : {64u, 128u}) {
        SendFixture fixture(slot_bytes, 4);
        uint8_t* base = fixture.ring.slots;
        CHECK(send_ring_slot(fixture.ring, 0) == base);
        CHECK(send_ring_slot(fixture.ring, 3) == base + 3 * slot_bytes);
        CHECK(send_ring_slot(fixture.ring, 4) == base);
        CHECK(send_ring_slot(fixture.ring, 0xffffffffu) == base + 3 * slot_bytes);
        CHECK(send_ring_slot(fixture.ring, 0x10001u) == base + slot_bytes);
    }
}

TEST(a_full_send_ring_is_refused_and_nothing_changes) {
    SendFixture fixture(64, 4);
    uint32_t index = 99;
    for (uint32_t i = 0; i < 4; ++i) {
        CHECK_EQ(send_ring_credits(fixture.ring), 4 - i);
        CHECK(send_ring_reserve(fixture.ring, index));
        CHECK_EQ(index, i);
    }
    const SendRing before = fixture.ring;
    index = 77;
    CHECK(!send_ring_reserve(fixture.ring, index));
    CHECK(same(before, fixture.ring));
    CHECK_EQ(index, 77u);
    CHECK_EQ(send_ring_credits(fixture.ring), 0u);
    CHECK_EQ(send_ring_in_flight(fixture.ring), 4u);

    CHECK(send_ring_complete(fixture.ring, 1));
    CHECK(send_ring_reserve(fixture.ring, index));
    CHECK_EQ(index, 4u);
    CHECK(!send_ring_reserve(fixture.ring, index));
}

TEST(credits_survive_the_wrap_of_the_32_bit_counters) {
    SendFixture fixture(64, 4);
    fixture.skip_to(0xfffffffeu);
    uint32_t index = 0;
    const uint32_t expected[] = {0xfffffffeu, 0xffffffffu, 0u, 1u};
    for (uint32_t want : expected) {
        CHECK(send_ring_reserve(fixture.ring, index));
        CHECK_EQ(index, want);
    }
    CHECK(!send_ring_reserve(fixture.ring, index));
    CHECK_EQ(send_ring_in_flight(fixture.ring), 4u);
    CHECK(send_ring_complete(fixture.ring, 3));
    CHECK_EQ(fixture.ring.completed, 1u);
    CHECK_EQ(send_ring_credits(fixture.ring), 3u);
    send_ring_ring(fixture.ring);
    CHECK_EQ(uint32_t{fixture.doorbell}, 2u);
}

TEST(more_completions_than_requests_are_refused_and_nothing_changes) {
    SendFixture fixture(64, 8);
    uint32_t index;
    CHECK(!send_ring_complete(fixture.ring, 1));
    CHECK(send_ring_reserve(fixture.ring, index));
    CHECK(send_ring_reserve(fixture.ring, index));
    const SendRing before = fixture.ring;
    CHECK(!send_ring_complete(fixture.ring, 3));
    CHECK(!send_ring_complete(fixture.ring, 0xffffffffu));
    CHECK(same(before, fixture.ring));
    CHECK(send_ring_complete(fixture.ring, 0));
    CHECK(send_ring_complete(fixture.ring, 2));
    CHECK_EQ(send_ring_credits(fixture.ring), 8u);
}

TEST(a_batch_limit_asks_for_a_doorbell_before_the_next_slot) {
    SendFixture fixture(64, 16, 3);
    uint32_t index;
    for (int i = 0; i < 3; ++i) {
        CHECK(!send_ring_batch_is_full(fixture.ring));
        CHECK(send_ring_reserve(fixture.ring, index));
    }
    CHECK(send_ring_batch_is_full(fixture.ring));
    const SendRing before = fixture.ring;
    CHECK(!send_ring_reserve(fixture.ring, index));
    CHECK(same(before, fixture.ring));
    send_ring_ring(fixture.ring);
    CHECK_EQ(send_ring_unrung(fixture.ring), 0u);
    CHECK(send_ring_reserve(fixture.ring, index));
    CHECK_EQ(index, 3u);
}

TEST(a_batch_limit_survives_the_counter_wrap) {
    SendFixture fixture(64, 16, 2);
    fixture.skip_to(0xffffffffu);
    uint32_t index;
    CHECK(send_ring_reserve(fixture.ring, index));
    CHECK(send_ring_reserve(fixture.ring, index));
    CHECK_EQ(send_ring_unrung(fixture.ring), 2u);
    CHECK(!send_ring_reserve(fixture.ring, index));
}

TEST(no_batch_limit_means_the_depth_is_the_limit) {
    SendFixture fixture(128, 8, 0);
    uint32_t index;
    for (int i = 0; i < 8; ++i) CHECK(send_ring_reserve(fixture.ring, index));
    CHECK(!send_ring_batch_is_full(fixture.ring));
    CHECK(!send_ring_reserve(fixture.ring, index));
}

TEST(the_doorbell_takes_the_absolute_producer_counter) {
    SendFixture fixture(64, 4);
    uint32_t index;
    fixture.doorbell = 0xabcd;
    send_ring_ring(fixture.ring);  // nothing new: the doorbell stays as it is
    CHECK_EQ(uint32_t{fixture.doorbell}, 0xabcdu);
    CHECK(send_ring_reserve(fixture.ring, index));
    CHECK(send_ring_reserve(fixture.ring, index));
    CHECK_EQ(send_ring_doorbell_value(fixture.ring), 2u);
    CHECK_EQ(uint32_t{fixture.doorbell}, 0xabcdu);
    send_ring_ring(fixture.ring);
    CHECK_EQ(uint32_t{fixture.doorbell}, 2u);
    fixture.skip_to(0x10000);
    CHECK(send_ring_reserve(fixture.ring, index));
    send_ring_ring(fixture.ring);
    CHECK_EQ(uint32_t{fixture.doorbell}, 0x10001u);  // 32 bits: not cut to 16
}

TEST(a_slot_write_touches_its_own_bytes_only) {
    for (uint32_t slot_bytes : {64u, 128u}) {
        SendFixture fixture(slot_bytes, 4);
        for (uint64_t& word : fixture.slots) word = 0x5a5a5a5a5a5a5a5a;
        SendWqe wqe;
        auto* bytes = reinterpret_cast<uint8_t*>(&wqe);
        for (size_t i = 0; i < sizeof wqe; ++i) bytes[i] = static_cast<uint8_t>(i + 1);
        send_ring_write(fixture.ring, 6, wqe);
        const auto* memory = reinterpret_cast<const uint8_t*>(fixture.slots.data());
        for (uint32_t i = 0; i < 4 * slot_bytes; ++i) {
            const bool inside = i >= 2 * slot_bytes && i < 3 * slot_bytes;
            CHECK_EQ(memory[i], inside ? static_cast<uint8_t>(i - 2 * slot_bytes + 1) : uint8_t{0x5a});
        }
    }
}

TEST(hardware_counters_are_compared_in_31_bits) {
    CHECK_EQ(counter_lag31(0, 0), 0u);
    CHECK_EQ(counter_lag31(5, 3), 2u);
    CHECK_EQ(counter_lag31(0x80000000u, 0), 0u);            // the counter wrapped to 0 at 2^31
    CHECK_EQ(counter_lag31(0x80000001u, 0x7fffffffu), 2u);  // just before its wrap
    CHECK_EQ(counter_lag31(0u, 0x7fffffffu), 1u);           // our own 32-bit wrap
    CHECK_EQ(counter_lag31(2u, 2u), 0u);
    CHECK_EQ(counter_lag31(0xffffffffu, 0x7ffffffeu), 1u);
    CHECK_EQ(counter_lag31(1u, 2u), kCounterMask31);  // "behind" reads as nearly a whole lap
}

TEST(a_receive_ring_is_refused_when_full_and_nothing_changes) {
    RecvWqe slots[4] = {};
    volatile uint32_t doorbell = 0;
    RecvRing ring;
    CHECK(!recv_ring_init(ring, slots, &doorbell, 3));
    CHECK(!recv_ring_init(ring, slots, &doorbell, 0));
    CHECK(recv_ring_init(ring, slots, &doorbell, 4));
    uint32_t index = 9;
    for (uint32_t i = 0; i < 4; ++i) {
        CHECK(recv_ring_reserve(ring, index));
        CHECK_EQ(index, i);
        CHECK(recv_ring_slot(ring, index) == slots + i);
    }
    index = 9;
    CHECK(!recv_ring_reserve(ring, index));
    CHECK_EQ(index, 9u);
    CHECK_EQ(ring.posted, 4u);
    CHECK(!recv_ring_complete(ring, 5));
    CHECK_EQ(ring.completed, 0u);
    CHECK(recv_ring_complete(ring, 1));
    CHECK(recv_ring_reserve(ring, index));
    CHECK(recv_ring_slot(ring, index) == slots);
}

TEST(the_receive_doorbell_is_16_bits_of_the_counter) {
    RecvWqe slots[4] = {};
    volatile uint32_t doorbell = 0xffffffffu;
    RecvRing ring;
    CHECK(recv_ring_init(ring, slots, &doorbell, 4));
    ring.posted = ring.completed = 0xfffe;
    uint32_t index;
    const uint32_t expected[] = {0xffff, 0x0000, 0x0001};
    for (uint32_t want : expected) {
        CHECK(recv_ring_reserve(ring, index));
        recv_ring_ring(ring);
        CHECK_EQ(uint32_t{doorbell}, want);
    }
    ring.posted = ring.completed = 0xffffffffu;  // and over the 32-bit wrap
    CHECK(recv_ring_reserve(ring, index));
    CHECK_EQ(index, 0xffffffffu);
    CHECK(recv_ring_slot(ring, index) == slots + 3);
    recv_ring_ring(ring);
    CHECK_EQ(uint32_t{doorbell}, 0u);
}

TEST(the_completion_phase_starts_at_one_and_flips_on_every_lap) {
    for (uint32_t depth : {1u, 8u, 65536u}) {
        CqRing ring;
        uint8_t entry[32];
        CHECK(cq_ring_init(ring, entry, 32, depth));
        for (uint64_t around : {uint64_t{depth}, uint64_t{2} * depth, uint64_t{0x100000000}}) {
            for (uint64_t index = around - 1; index < around + 2; ++index) {
                const uint64_t lap = index / depth;
                CHECK_EQ(cq_ring_phase(ring, static_cast<uint32_t>(index)), static_cast<uint32_t>(1 - lap % 2));
            }
        }
        CHECK_EQ(cq_ring_phase(ring, 0), 1u);
    }
}

TEST(a_completion_ring_refuses_a_bad_shape) {
    CqRing ring;
    uint8_t entries[64];
    for (uint32_t bytes : {0u, 8u, 24u, 64u}) CHECK(!cq_ring_init(ring, entries, bytes, 2));
    CHECK(!cq_ring_init(ring, entries, 32, 0));
    CHECK(!cq_ring_init(ring, entries, 32, 12));
    CHECK(cq_ring_init(ring, entries, 16, 2));
    CHECK(cq_ring_entry(ring, 3) == entries + 16);
    CHECK(cq_ring_init(ring, entries, 32, 2));
    CHECK(cq_ring_entry(ring, 3) == entries + 32);
}

TEST(a_completion_is_seen_only_when_its_phase_is_written) {
    alignas(8) uint8_t entries[2 * 32] = {};
    CqRing ring;
    CHECK(cq_ring_init(ring, entries, 32, 2));
    CHECK(cq_ring_peek(ring) == nullptr);
    for (int i = 0; i < 32; ++i) entries[i] = i == 3 ? 0 : 0xff;  // all written but the phase: not there yet
    CHECK(cq_ring_peek(ring) == nullptr);
    entries[3] = 0xfe;  // every flag but the phase
    CHECK(cq_ring_peek(ring) == nullptr);
    entries[3] = 0x01;
    CHECK(cq_ring_peek(ring) == entries);
    CHECK(cq_ring_peek(ring) == entries);  // a peek takes nothing
    cq_ring_pop(ring);
    CHECK(cq_ring_peek(ring) == nullptr);
    entries[32 + 3] = 0x01;
    CHECK(cq_ring_peek(ring) == entries + 32);
    cq_ring_pop(ring);
    CHECK(cq_ring_peek(ring) == nullptr);  // second lap: what the first one left reads as stale
    entries[3] = 0x00;
    CHECK(cq_ring_peek(ring) == entries);
}

TEST(completions_are_followed_over_the_32_bit_wrap) {
    alignas(8) uint8_t entries[4 * 16] = {};
    CqRing ring;
    CHECK(cq_ring_init(ring, entries, 16, 4));
    ring.consumed = 0xfffffffeu;  // lap 2^30 - 1, odd: phase 0; the lap after it is even: phase 1
    for (int i = 0; i < 4; ++i) entries[i * 16 + 3] = 0x01;
    CHECK(cq_ring_peek(ring) == nullptr);
    entries[2 * 16 + 3] = entries[3 * 16 + 3] = 0x00;
    CHECK(cq_ring_peek(ring) == entries + 2 * 16);
    cq_ring_pop(ring);
    CHECK(cq_ring_peek(ring) == entries + 3 * 16);
    cq_ring_pop(ring);
    CHECK_EQ(ring.consumed, 0u);
    CHECK(cq_ring_peek(ring) == entries);
}

TEST(powers_of_two_and_their_logarithms) {
    for (uint32_t shift = 0; shift < 32; ++shift) {
        CHECK(is_power_of_two(1u << shift));
        CHECK_EQ(log2_exact(1u << shift), shift);
    }
    for (uint32_t other : {0u, 3u, 5u, 6u, 7u, 9u, 0x80000001u}) CHECK(!is_power_of_two(other));
}

TEST_MAIN()
