// SPDX-License-Identifier: Apache-2.0
// The device API against an oracle: what is put, got and signalled, with tiny rings, reordering and second copies.
#include "device_api_rig.h"

using namespace device_api_test;

namespace {

uint8_t pattern(uint64_t key, size_t at) { return static_cast<uint8_t>(mix64(key * 1'000'003 + at) >> 16); }

// ---- transfers ----

constexpr size_t kRegion = 3000;
constexpr uint32_t kWriters = 3;  // posters of a PE
constexpr size_t kSourcesAt = 0, kLandingAt = 50'000;
// Where that writer writes at every PE. One of the regions lies over the border of the two chunks.
size_t region_of(int pe, uint32_t poster) { return kChunkBytes - 4 * kRegion - kRegion / 2 + (static_cast<size_t>(pe) * kWriters + poster) * kRegion; }

// Puts to places that do not overlap, a quiet or fence, a look at the target's memory; gets of what is there.
void write_and_look(Rig& rig, int pe, uint32_t poster, soft::Prng& prng, int rounds) {
    const DeviceState& state = rig.state(pe);
    uint8_t* source = rig.pe(pe).at<uint8_t>(kSourcesAt + poster * kRegion);
    uint8_t* landing = rig.pe(pe).at<uint8_t>(kLandingAt + poster * kRegion);
    const size_t at = region_of(pe, poster);
    for (int round = 0; round < rounds; ++round) {
        const int to = static_cast<int>(prng.below(static_cast<uint64_t>(rig.options.n_pes)));
        uint8_t* dest = rig.pe(pe).at<uint8_t>(at);
        for (size_t i = 0; i < kRegion; ++i) source[i] = pattern(prng.next(), i);
        std::vector<uint8_t> wanted(rig.pe(to).at<uint8_t>(at), rig.pe(to).at<uint8_t>(at) + kRegion);
        for (size_t start = prng.below(100); start < kRegion;) {
            const size_t bytes = std::min<size_t>(prng.below(4) == 0 ? prng.below(kRegion) : prng.below(200), kRegion - start);
            CHECK(put_nbi(state, dest + start, source + start, bytes, to));
            std::copy_n(source + start, bytes, wanted.begin() + static_cast<ptrdiff_t>(start));
            start += bytes + prng.below(300);
        }
        CHECK(prng.below(2) ? quiet(state) : fence(state, to));
        CHECK(std::equal(wanted.begin(), wanted.end(), rig.pe(to).at<uint8_t>(at)));
        const size_t from = prng.below(kRegion), bytes = prng.below(kRegion - from);
        if (prng.below(2)) {
            CHECK(get_nbi(state, landing, dest + from, bytes, to));
            CHECK(quiet(state));
        } else {
            CHECK(get(state, landing, dest + from, bytes, to));
        }
        CHECK(std::equal(landing, landing + bytes, wanted.begin() + static_cast<ptrdiff_t>(from)));
    }
}

void run_transfers(const Options& options) {
    Rig rig(options);
    for (int pe = 0; pe < options.n_pes; ++pe)
        for (uint32_t i = 0; i < kWriters; ++i) rig.poster(pe, i, [&rig, pe, i](soft::Prng& prng) { write_and_look(rig, pe, i, prng, 6); });
    rig.run();
    rig.check_no_errors();
}

// ---- messages with signals ----

constexpr size_t kMail = 600;          // bytes of a mailbox
constexpr size_t kSourceSlots = 8;     // a source is written again only behind a quiet
constexpr uint32_t kStreams = 2;       // from each PE to its neighbour
constexpr size_t kSourceAt = 4096, kWordsAt = 1024;
size_t mail_at(uint32_t stream) { return kChunkBytes - 300 + stream * kMail; }  // the first lies over the chunks' border
size_t sent_word(uint32_t stream) { return kWordsAt + stream * 16; }
size_t answer_word(uint32_t stream) { return kWordsAt + stream * 16 + 8; }
uint64_t message_key(int from, uint32_t stream, uint64_t k) { return (static_cast<uint64_t>(from) * 16 + stream) * 100'000 + k; }
size_t message_bytes(uint64_t key) { return mix64(key) % (kMail + 1); }

// Each message goes to the place of the one before, as soon as that was answered.
void send_messages(Rig& rig, int pe, uint32_t stream, uint64_t n) {
    const DeviceState& state = rig.state(pe);
    Pe& self = rig.pe(pe);
    const int to = (pe + 1) % rig.options.n_pes;
    for (uint64_t k = 1; k <= n; ++k) {
        if (k % kSourceSlots == 0) CHECK(quiet(state));
        uint8_t* source = self.at<uint8_t>(kSourceAt + (stream * kSourceSlots + k % kSourceSlots) * kMail);
        const uint64_t key = message_key(pe, stream, k);
        const size_t bytes = message_bytes(key);
        for (size_t i = 0; i < bytes; ++i) source[i] = pattern(key, i);
        CHECK(put_signal_nbi(state, self.at<uint8_t>(mail_at(stream)), source, bytes, self.at<uint64_t>(sent_word(stream)), 1, SignalOp::kAdd, to));
        CHECK(wait_until(state, self.at<uint64_t>(answer_word(stream)), Cmp::kGe, k));
    }
    CHECK(quiet(state));
}

// Looks at all bytes at the signal, and again after others have run: nothing older may appear over them.
void take_messages(Rig& rig, int pe, uint32_t stream, uint64_t n, soft::Prng& prng) {
    const DeviceState& state = rig.state(pe);
    Pe& self = rig.pe(pe);
    const int from = (pe + rig.options.n_pes - 1) % rig.options.n_pes;
    const uint8_t* mail = self.at<uint8_t>(mail_at(stream));
    for (uint64_t k = 1; k <= n; ++k) {
        CHECK(wait_until(state, self.at<uint64_t>(sent_word(stream)), Cmp::kGe, k));
        CHECK_EQ(*self.at<uint64_t>(sent_word(stream)), k);
        const uint64_t key = message_key(from, stream, k);
        for (int look = 0; look < 2; ++look) {
            for (size_t i = 0; i < message_bytes(key); ++i)
                if (mail[i] != pattern(key, i))
                    check::fail(__FILE__, __LINE__, "byte " + std::to_string(i) + " of message " + std::to_string(k) + " is old, look " +
                                                        std::to_string(look) + ", seed " + std::to_string(rig.options.seed));
            for (uint64_t i = prng.below(k % 4 == 0 ? 400 : 8); i > 0; --i) step();
        }
        CHECK(signal_op(state, self.at<uint64_t>(answer_word(stream)), k, SignalOp::kSet, from));
    }
}

void run_messages(const Options& options, uint64_t n = 30) {
    Rig rig(options);
    for (int pe = 0; pe < options.n_pes; ++pe) {
        for (uint32_t stream = 0; stream < kStreams; ++stream) {
            rig.poster(pe, stream, [&rig, pe, stream, n](soft::Prng&) { send_messages(rig, pe, stream, n); });
            rig.poster(pe, kStreams + stream, [&rig, pe, stream, n](soft::Prng& prng) { take_messages(rig, pe, stream, n, prng); });
        }
    }
    rig.run();
    rig.check_no_errors();
}

}  // namespace

TEST(puts_and_gets_arrive_whole_and_nowhere_else) {
    for (uint64_t seed = 1; seed <= 4; ++seed) run_transfers({.n_pes = 3, .max_batch = seed % 2 ? 1u : 4u, .seed = seed});
    run_transfers({.n_pes = 2, .rails = 2, .queues = 2, .segment_bytes = 257, .stripe_bytes = 300, .seed = 5});
    run_transfers({.n_pes = 3, .queues = 3, .max_batch = 4, .segment_bytes = 100, .seed = 6});
}

TEST(queues_without_counters_read_their_completions_from_the_cq) {
    run_transfers({.n_pes = 2, .seed = 7, .is_counting = false});
    run_messages({.n_pes = 2, .queues = 2, .seed = 8, .is_counting = false});
}

TEST(a_signal_is_never_seen_before_its_data_and_old_bytes_never_come_back) {
    const soft::Faults faults{.reorder_ns = 1000, .duplicate_ppm = 300'000, .delay_ppm = 20'000, .far_delay_ns = 20'000};
    for (uint64_t seed = 1; seed <= 8; ++seed)
        run_messages({.n_pes = 2, .rails = seed % 2 ? 1 : 2, .queues = 1 + static_cast<uint32_t>(seed % 3), .seed = seed, .use_timing = seed % 4 == 0, .faults = faults});
    run_messages({.n_pes = 3, .max_batch = 1, .window = 8, .seed = 10, .faults = faults});
    run_messages({.n_pes = 1, .max_batch = 4, .seed = 11, .faults = faults});
}

TEST(long_messages_and_gated_signals_keep_the_same_promise) {
    const soft::Faults faults{.reorder_ns = 3000, .duplicate_ppm = 300'000, .far_delay_ns = 20'000};
    run_messages({.n_pes = 2, .segment_bytes = 190, .seed = 21, .faults = faults});  // up to 4 requests
    run_messages({.n_pes = 2, .queues = 2, .flags = kCountByImmediate | kGatedSignals, .seed = 22, .faults = faults});
    run_messages({.n_pes = 2, .rails = 2, .flags = 0, .segment_bytes = 100, .seed = 23, .faults = faults});
}

TEST(a_signal_by_count_is_two_requests_and_a_gated_one_waits_in_between) {
    for (const bool is_gated : {false, true}) {
        Rig rig({.flags = kCountByImmediate | (is_gated ? kGatedSignals : 0), .faults = {}});
        rig.poster(0, 0, [&](soft::Prng&) {
            Pe& self = rig.pe(0);
            CHECK(put_signal_nbi(rig.state(0), self.at<uint8_t>(0), self.at<uint8_t>(512), 64, self.at<uint64_t>(1024), 1, SignalOp::kSet, 1));
            // With one post still under way, two slots taken; the gated one has seen the first complete.
            CHECK_EQ(self.queue_states[0].head, 2u);
            if (is_gated) CHECK(self.queue_states[0].completed >= 1);
            CHECK(quiet(rig.state(0), 1));
            CHECK_EQ(*rig.pe(1).at<uint64_t>(1024), uint64_t{1});
        });
        rig.run();
        rig.check_no_errors();
        CHECK_EQ(rig.pe(1).agent->immediates(), uint64_t{is_gated ? 0u : 1u});
        CHECK_EQ(rig.pe(1).agent->records(), uint64_t{1});
    }
}

TEST(registered_buffers_outside_the_heap_are_sources_and_targets) {
    Rig rig({});
    rig.poster(0, 0, [&](soft::Prng&) {
        Pe& self = rig.pe(0);
        for (size_t i = 0; i < 2048; ++i) self.local_memory[i] = pattern(77, i);
        CHECK(put(rig.state(0), self.at<uint8_t>(100), self.local_memory.data(), 2048, 1));
        CHECK(std::equal(self.local_memory.begin(), self.local_memory.begin() + 2048, rig.pe(1).at<uint8_t>(100)));
        CHECK(get(rig.state(0), self.local_memory.data() + 2048, self.at<uint8_t>(100), 2048, 1));
        CHECK(std::equal(self.local_memory.begin(), self.local_memory.begin() + 2048, self.local_memory.begin() + 2048));
    });
    rig.run();
    rig.check_no_errors();
}

TEST(a_source_may_lie_over_the_border_of_two_registrations) {
    Rig rig({});
    rig.poster(0, 0, [&](soft::Prng&) {
        uint8_t* source = rig.pe(0).at<uint8_t>(kChunkBytes - 100);
        for (size_t i = 0; i < 300; ++i) source[i] = pattern(78, i);
        CHECK(put(rig.state(0), rig.pe(0).at<uint8_t>(64), source, 300, 1));
        CHECK(std::equal(source, source + 300, rig.pe(1).at<uint8_t>(64)));
        CHECK(put_signal_nbi(rig.state(0), rig.pe(0).at<uint8_t>(1064), source, 300, rig.pe(0).at<uint64_t>(0), 1, SignalOp::kSet, 1));
        CHECK(quiet(rig.state(0), 1));
        CHECK(std::equal(source, source + 300, rig.pe(1).at<uint8_t>(1064)));
    });
    rig.run();
    rig.check_no_errors();
    CHECK_EQ(rig.pe(1).agent->immediates(), uint64_t{2});
}

TEST(a_chunk_that_is_added_later_can_be_used) {
    Rig rig({.chunks = 1});
    bool is_added = false;
    rig.poster(0, 0, [&](soft::Prng&) {
        Pe& self = rig.pe(0);
        for (size_t i = 0; !is_added; i = (i + 64) % 1024) CHECK(put_nbi(rig.state(0), self.at<uint8_t>(i), self.at<uint8_t>(4096), 64, 1));
        *self.at<uint64_t>(4096) = 5;
        CHECK(quiet(rig.state(0)));
        CHECK(put(rig.state(0), self.at<uint8_t>(kChunkBytes + 8), self.at<uint8_t>(4096), 8, 1));
        CHECK_EQ(*rig.pe(1).at<uint64_t>(kChunkBytes + 8), uint64_t{5});
    });
    rig.poster(0, 1, [&](soft::Prng&) {
        for (int i = 0; i < 500; ++i) step();
        __atomic_store_n(&rig.pe(0).state.n_chunks, 2u, __ATOMIC_RELEASE);
        is_added = true;
    });
    rig.run();
    rig.check_no_errors();
}

TEST(quiet_ends_beside_posters_that_never_pause) {
    Rig rig({.n_pes = 2, .faults = {.reorder_ns = 1000}});
    bool is_done = false;
    rig.poster(0, 0, [&](soft::Prng&) {
        for (int i = 0; i < 10; ++i) {
            *rig.pe(0).at<uint64_t>(4096) = static_cast<uint64_t>(i);
            CHECK(put_nbi(rig.state(0), rig.pe(0).at<uint8_t>(0), rig.pe(0).at<uint8_t>(4096), 8, 1));
            CHECK(quiet(rig.state(0)));
            CHECK_EQ(*rig.pe(1).at<uint64_t>(0), static_cast<uint64_t>(i));
        }
        is_done = true;
    });
    for (uint32_t other = 1; other < 5; ++other) {
        rig.poster(0, other, [&, other](soft::Prng&) {
            while (!is_done) CHECK(put_nbi(rig.state(0), rig.pe(0).at<uint8_t>(64 * other), rig.pe(0).at<uint8_t>(8192), 64, 1));
        });
    }
    rig.run();
    rig.check_no_errors();
}

TEST_MAIN()
