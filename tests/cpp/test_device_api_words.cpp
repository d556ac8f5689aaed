// SPDX-License-Identifier: Apache-2.0
// The device API: atomics, single values, and what happens when something goes wrong.
#include <set>

#include "device_api_rig.h"

using namespace device_api_test;

namespace {

// Words of PE 0 that all posters change.
struct Words {
    uint64_t sum, tickets, exclusive, any, all, swaps, compares, counted;
    uint32_t half, half_guard;
    float real;
    uint32_t real_guard;
    double wide;
};

struct Wanted {
    uint64_t sum = 0, exclusive = 0, any = 0, all = ~uint64_t{0}, counted = 0, last_swaps = 0;
    uint32_t half = 0;
    double real = 0;
    std::set<uint64_t> tickets;
    std::multiset<uint64_t> swapped_in, swapped_out;
    uint64_t compares = 0, operations = 0;
};

void change_words(Rig& rig, int pe, soft::Prng& prng, Wanted& wanted, int n) {
    const DeviceState& s = rig.state(pe);
    Words* words = rig.pe(pe).at<Words>(kChunkBytes + 512);
    for (int i = 0; i < n; ++i, ++wanted.operations) {
        const uint64_t value = prng.next();
        uint64_t old = 0;
        switch (prng.below(13)) {
            case 0: CHECK(atomic_add(s, &words->sum, value, 0)); wanted.sum += value; break;
            case 1: CHECK(atomic_xor(s, &words->exclusive, value, 0)); wanted.exclusive ^= value; break;
            case 2: CHECK(atomic_or(s, &words->any, value & value << 7, 0)); wanted.any |= value & value << 7; break;
            case 3: CHECK(atomic_fetch_and(s, &words->all, value | value << 9, 0, &old)); wanted.all &= value | value << 9; break;
            case 4: CHECK(atomic_inc(s, &words->counted, 0)); ++wanted.counted; break;
            case 5: CHECK(atomic_add(s, &words->half, static_cast<uint32_t>(value), 0)); wanted.half += static_cast<uint32_t>(value); break;
            case 6: CHECK(atomic_add(s, &words->real, 0.5f, 0)); wanted.real += 0.5; break;
            case 7: CHECK(atomic_add(s, &words->wide, 0.25, 0)); break;
            case 8: case 9:
                CHECK(atomic_fetch_add(s, &words->tickets, uint64_t{1}, 0, &old));
                if (!wanted.tickets.insert(old).second) check::fail(__FILE__, __LINE__, "ticket " + std::to_string(old) + " was drawn twice");
                break;
            case 10:
                CHECK(atomic_swap(s, &words->swaps, value, 0, &old));
                wanted.swapped_in.insert(value);
                wanted.swapped_out.insert(old);
                break;
            default:  // an increment by compare_swap, tried until it holds
                CHECK(atomic_fetch(s, &words->compares, 0, &old));
                while (true) {
                    const uint64_t seen = old;
                    CHECK(atomic_compare_swap(s, &words->compares, seen, seen + 1, 0, &old));
                    if (old == seen) break;
                    CHECK(old > seen);
                }
                ++wanted.compares;
        }
    }
    CHECK(quiet(s));
}

void run_words(const Options& options) {
    Rig rig(options);
    Words& words = *rig.pe(0).at<Words>(kChunkBytes + 512);
    words = {};
    words.all = ~uint64_t{0};
    words.half_guard = words.real_guard = 0xabcdabcd;
    Wanted wanted;
    for (int pe = 0; pe < options.n_pes; ++pe)
        for (uint32_t i = 0; i < 4; ++i) rig.poster(pe, i, [&rig, &wanted, pe](soft::Prng& prng) { change_words(rig, pe, prng, wanted, 25); });
    rig.run();
    rig.check_no_errors();
    CHECK_EQ(wanted.operations, static_cast<uint64_t>(options.n_pes) * 100);
    CHECK_EQ(words.sum, wanted.sum);
    CHECK_EQ(words.exclusive, wanted.exclusive);
    CHECK_EQ(words.any, wanted.any);
    CHECK_EQ(words.all, wanted.all);
    CHECK_EQ(words.counted, wanted.counted);
    CHECK_EQ(words.half, wanted.half);
    CHECK_EQ(words.half_guard, 0xabcdabcdu);
    CHECK_EQ(words.real_guard, 0xabcdabcdu);
    CHECK_EQ(static_cast<double>(words.real), wanted.real);
    CHECK_EQ(words.tickets, wanted.tickets.size());
    if (!wanted.tickets.empty()) CHECK_EQ(*wanted.tickets.rbegin(), wanted.tickets.size() - 1);
    CHECK_EQ(words.compares, wanted.compares);
    // What was swapped in came out again, but for the value that is there; the first that came out was 0.
    if (!wanted.swapped_in.empty()) {
        wanted.swapped_in.insert(0);
        wanted.swapped_out.insert(words.swaps);
        CHECK(wanted.swapped_in == wanted.swapped_out);
    }
}

// One poster on PE 0 does `body`, and nothing may take longer than the deadline.
template <class Body>
void run_failing(const Options& options, Body body) {
    Rig rig(options);
    bool is_done = false;
    rig.poster(0, 0, [&](soft::Prng&) {
        body(rig);
        is_done = true;
    });
    CHECK_OK(rig.world().run());
    CHECK(is_done);
}

void check_failed(Rig& rig, DeviceWait what, uint32_t pe) {
    const GpuQueueError* record = rig.pe(0).error();
    CHECK(record != nullptr);
    CHECK_EQ(static_cast<int>(record->waited), static_cast<int>(what));
    CHECK_EQ(record->pe, pe);
    CHECK(record == &rig.pe(0).errors.back());
}

constexpr uint64_t kSoon = 20'000'000;  // ticks: some 10 ms

}  // namespace

TEST(no_atomic_is_lost_or_applied_twice_and_fetched_values_are_right) {
    for (uint64_t seed = 1; seed <= 4; ++seed)
        run_words({.n_pes = 3, .queues = static_cast<uint32_t>(1 + seed % 2), .max_batch = seed % 2 ? 1u : 4u, .seed = seed});
    run_words({.n_pes = 2, .rails = 2, .queues = 2, .window = 8, .seed = 5});
    run_words({.n_pes = 1, .window = 4, .seed = 6});
    run_words({.n_pes = 2, .seed = 7, .is_counting = false});
}

TEST(single_values_are_put_and_got) {
    Rig rig({.n_pes = 2, .seed = 3});
    struct Values { uint16_t two[4]; float four[2]; uint64_t eight; };
    for (int pe = 0; pe < 2; ++pe) {
        rig.poster(pe, 0, [&rig, pe](soft::Prng& prng) {
            const DeviceState& s = rig.state(pe);
            Values* mine = rig.pe(pe).at<Values>(64);
            const Values* theirs = rig.pe(1 - pe).at<Values>(64);
            for (uint64_t i = 1; i < 20; ++i) {
                const auto two = static_cast<uint16_t>(prng.next());
                const auto four = static_cast<float>(prng.below(1000)) * 0.5f;
                const uint64_t eight = prng.next();
                CHECK(p(s, &mine->two[1], two, 1 - pe) && p(s, &mine->four[1], four, 1 - pe) && p(s, &mine->eight, eight, 1 - pe));
                CHECK(quiet(s, 1 - pe));
                CHECK_EQ(theirs->two[1], two);
                CHECK_EQ(theirs->four[1], four);
                CHECK_EQ(theirs->eight, eight);
                CHECK(theirs->two[0] == 0 && theirs->two[2] == 0 && theirs->four[0] == 0);
                uint16_t got_two = 0;
                float got_four = 0;
                uint64_t got_eight = 0;
                CHECK(g(s, &got_two, &mine->two[1], 1 - pe) && g(s, &got_four, &mine->four[1], 1 - pe) && g(s, &got_eight, &mine->eight, 1 - pe));
                CHECK(got_two == two && got_four == four && got_eight == eight);
            }
        });
    }
    rig.run();
    rig.check_no_errors();
}

TEST(calls_with_bad_arguments_say_so_and_post_nothing) {
    run_failing({}, [](Rig& rig) {
        uint8_t outside[64];
        CHECK(!put_nbi(rig.state(0), rig.pe(0).at<uint8_t>(0), outside, sizeof outside, 1));
        check_failed(rig, DeviceWait::kUnregistered, 1);
        CHECK_EQ(rig.pe(0).error()->remote_addr, device::address(outside));
        CHECK_EQ(rig.pe(0).queue_states[0].head, 0u);
    });
    run_failing({}, [](Rig& rig) {
        uint8_t outside[64];
        CHECK(!get_nbi(rig.state(0), rig.pe(0).at<uint8_t>(0), outside, sizeof outside, 1));
        check_failed(rig, DeviceWait::kUnregistered, 1);
    });
    run_failing({.chunks = 1}, [](Rig& rig) {  // the chunk is not there yet
        CHECK(!put_signal_nbi(rig.state(0), rig.pe(0).at<uint8_t>(kChunkBytes), rig.pe(0).at<uint8_t>(0), 8, rig.pe(0).at<uint64_t>(64), 1, SignalOp::kSet, 1));
        check_failed(rig, DeviceWait::kUnregistered, 1);
        CHECK_EQ(rig.pe(0).peers[1].next_seq, 0u);
    });
    for (const int pe : {-1, 2}) {
        run_failing({}, [pe](Rig& rig) {
            CHECK(!put_nbi(rig.state(0), rig.pe(0).at<uint8_t>(0), rig.pe(0).at<uint8_t>(64), 8, pe));
            check_failed(rig, DeviceWait::kBadArgument, static_cast<uint32_t>(pe));
            CHECK(!signal_op(rig.state(0), rig.pe(0).at<uint64_t>(0), 1, SignalOp::kSet, pe));
            CHECK(!quiet(rig.state(0), pe));
        });
    }
    run_failing({}, [](Rig& rig) {
        CHECK(!atomic_inc(rig.state(0), rig.pe(0).at<uint64_t>(4), 1));
        check_failed(rig, DeviceWait::kBadArgument, 1);
        // The PE is not lost: what is right still works.
        CHECK(atomic_inc(rig.state(0), rig.pe(0).at<uint64_t>(8), 1) && quiet(rig.state(0)));
        CHECK_EQ(*rig.pe(1).at<uint64_t>(8), uint64_t{1});
    });
}

TEST(a_refused_record_is_told_and_stops_what_goes_to_that_pe) {
    run_failing({.n_pes = 3}, [](Rig& rig) {
        rig.pe(0).remote_bases[1] = 0x10000;  // of the first chunk at PE 1: not its memory
        CHECK(signal_op(rig.state(0), rig.pe(0).at<uint64_t>(0), 1, SignalOp::kSet, 1));
        CHECK(!quiet(rig.state(0)));
        check_failed(rig, DeviceWait::kRefused, 1);
        CHECK(!atomic_inc(rig.state(0), rig.pe(0).at<uint64_t>(kChunkBytes), 1));
        CHECK(atomic_inc(rig.state(0), rig.pe(0).at<uint64_t>(kChunkBytes), 2) && quiet(rig.state(0), 2));
    });
    run_failing({}, [](Rig& rig) {
        rig.pe(0).remote_bases[1] = 0x10000;
        uint64_t old = 0;
        CHECK(!atomic_fetch_add(rig.state(0), rig.pe(0).at<uint64_t>(0), uint64_t{1}, 1, &old));
        check_failed(rig, DeviceWait::kRefused, 1);
    });
}

TEST(every_wait_ends_at_its_deadline_and_names_what_it_waited_for) {
    const Options soon{.wait_ticks = kSoon};
    run_failing(soon, [](Rig& rig) {
        CHECK(!wait_until(rig.state(0), rig.pe(0).at<uint64_t>(0), Cmp::kNe, uint64_t{0}));
        check_failed(rig, DeviceWait::kWord, 0);
        CHECK_EQ(rig.pe(0).error()->remote_addr, device::address(rig.pe(0).at<uint64_t>(0)));
    });
    run_failing(soon, [](Rig& rig) {
        CHECK(!wait_until_for(rig.state(0), rig.pe(0).at<uint32_t>(0), Cmp::kGt, 5u, kSoon / 10));
        CHECK(rig.pe(0).error() == nullptr);
        CHECK(!test(rig.state(0), rig.pe(0).at<uint32_t>(0), Cmp::kEq, 5u) && test(rig.state(0), rig.pe(0).at<uint32_t>(0), Cmp::kEq, 0u));
    });
    // An agent that answers nothing.
    run_failing(soon, [](Rig& rig) {
        rig.pe(1).board.stop("the test");
        for (int i = 0; i < 4; ++i) CHECK(signal_op(rig.state(0), rig.pe(0).at<uint64_t>(0), 1, SignalOp::kSet, 1));
        CHECK(!signal_op(rig.state(0), rig.pe(0).at<uint64_t>(0), 1, SignalOp::kSet, 1));
        check_failed(rig, DeviceWait::kWindow, 1);
        CHECK(!quiet(rig.state(0), 1));
        CHECK(quiet(rig.state(0), 0));
    });
    for (const int pe : {0, 1}) {
        run_failing(soon, [pe](Rig& rig) {
            rig.pe(pe).board.stop("the test");
            CHECK(signal_op(rig.state(0), rig.pe(0).at<uint64_t>(0), 1, SignalOp::kSet, pe));
            CHECK(!quiet(rig.state(0)));
            check_failed(rig, DeviceWait::kAcks, static_cast<uint32_t>(pe));
        });
    }
    run_failing(soon, [](Rig& rig) {
        rig.pe(1).board.stop("the test");
        uint64_t value = 0;
        CHECK(!g(rig.state(0), &value, rig.pe(0).at<uint64_t>(0), 1));
        check_failed(rig, DeviceWait::kReply, 1);
        CHECK(!g(rig.state(0), &value, rig.pe(0).at<uint64_t>(0), 1));
    });
}

TEST(a_dead_pe_is_told_by_its_queue_and_ends_waits_for_words) {
    run_failing({}, [](Rig& rig) {
        rig.world().kill_pe(1);
        CHECK(put_nbi(rig.state(0), rig.pe(0).at<uint8_t>(0), rig.pe(0).at<uint8_t>(64), 8, 1));
        // Nobody sets the word, and the deadline is far: the queue's error ends the wait.
        CHECK(!wait_until(rig.state(0), rig.pe(0).at<uint64_t>(128), Cmp::kNe, uint64_t{0}));
        const GpuQueueError* record = rig.pe(0).error();
        CHECK(record == &rig.pe(0).errors[0]);
        CHECK_EQ(static_cast<int>(record->status), static_cast<int>(CqeStatus::kUnrespRemote));
        CHECK_EQ(record->remote_addr, device::address(rig.pe(1).at<uint8_t>(0)));
        CHECK(!quiet(rig.state(0)));
        CHECK(!put_nbi(rig.state(0), rig.pe(0).at<uint8_t>(0), rig.pe(0).at<uint8_t>(64), 8, 1));
        CHECK(!put(rig.state(0), rig.pe(0).at<uint8_t>(0), rig.pe(0).at<uint8_t>(64), 8, 1));
    });
}

TEST(what_was_in_flight_at_an_arrival_is_complete_before_the_next_post) {
    for (const bool is_once : {false, true}) {
        Rig rig({.flags = kCountByImmediate | (is_once ? kWritesOnce : 0), .faults = {.reorder_ns = 20'000}});
        rig.poster(0, 0, [&rig, is_once](soft::Prng&) {
            Pe& self = rig.pe(0);
            CHECK(put_nbi(rig.state(0), self.at<uint8_t>(0), self.at<uint8_t>(64), 8, 1));
            CHECK(put_nbi(rig.state(0), self.at<uint8_t>(8), self.at<uint8_t>(64), 8, 1));
            CHECK_EQ(self.queue_states[0].completed, uint64_t{0});
            CHECK(test(rig.state(0), self.at<uint32_t>(128), Cmp::kEq, 0u));
            CHECK(put_nbi(rig.state(0), self.at<uint8_t>(16), self.at<uint8_t>(64), 8, 1));
            CHECK_EQ(self.queue_states[0].completed, uint64_t{is_once ? 0u : 2u});
            CHECK_EQ(self.shared[0].settled, self.shared[0].arrivals);
            CHECK(put_nbi(rig.state(0), self.at<uint8_t>(24), self.at<uint8_t>(64), 8, 1));
            CHECK_EQ(self.queue_states[0].completed, uint64_t{is_once ? 0u : 2u});  // once is enough
        });
        rig.run();
        rig.check_no_errors();
    }
}

TEST(a_fetched_value_counts_as_an_arrival) {
    Rig rig({});
    rig.poster(0, 0, [&rig](soft::Prng&) {
        Pe& self = rig.pe(0);
        uint64_t value = 0;
        CHECK(g(rig.state(0), &value, self.at<uint64_t>(0), 1));
        CHECK_EQ(self.shared[0].arrivals, uint64_t{1});
    });
    rig.run();
    rig.check_no_errors();
}

TEST(quiet_waits_for_signals_at_every_pe) {
    for (uint64_t seed = 1; seed <= 3; ++seed) {
        Rig rig({.n_pes = 4, .seed = seed, .use_timing = false, .faults = {}});
        rig.poster(1, 0, [&rig](soft::Prng& prng) {
            uint64_t* word = rig.pe(1).at<uint64_t>(256);
            for (uint64_t i = 1; i <= 12; ++i) {
                const int pe = static_cast<int>(prng.below(4)), last = static_cast<int>(prng.below(4));
                const uint64_t before = *rig.pe(pe).at<uint64_t>(256), last_before = *rig.pe(last).at<uint64_t>(256);
                CHECK(signal_op(rig.state(1), word, 1, SignalOp::kAdd, pe) && signal_op(rig.state(1), word, 1, SignalOp::kAdd, last));
                CHECK(quiet(rig.state(1)));
                CHECK_EQ(*rig.pe(pe).at<uint64_t>(256), before + (pe == last ? 2 : 1));
                CHECK_EQ(*rig.pe(last).at<uint64_t>(256), last_before + (pe == last ? 2 : 1));
            }
        });
        rig.run();
        rig.check_no_errors();
    }
}

TEST(a_replys_place_is_not_used_again_before_the_reply_was_read) {
    Rig rig({.window = 4, .faults = {}});
    bool is_first_out = false, is_first_read = false;
    rig.poster(0, 0, [&](soft::Prng&) {  // a fetch as fetch_word() does it, by a slow reader
        const DeviceState& s = rig.state(0);
        AgentRecord record;
        uint64_t ticket = ~uint64_t{0};
        const device::WordCall call = device::word_call(WordOp::kAdd, uint64_t{1});
        CHECK(device::make_record(s, device::address(rig.pe(0).at<uint64_t>(0)), call, 1, true, &record));
        CHECK(device::take_number(s, 1, &record.seq) && device::take_reply_place(s, 1, record.seq));
        CHECK(device::post(s, 0, device::record_wqe(s, record, 0, 1), 1));
        is_first_out = true;
        for (int i = 0; i < 3000; ++i) step();
        CHECK(device::wait_for_reply(s, 1, record.seq, &ticket));
        CHECK_EQ(ticket, uint64_t{0});
        is_first_read = true;
    });
    rig.poster(0, 1, [&](soft::Prng&) {
        while (!is_first_out) step();
        uint64_t ticket = 0;
        for (uint64_t i = 1; i <= 4; ++i) {  // the fourth has the place of the first
            CHECK(atomic_fetch_inc(rig.state(0), rig.pe(0).at<uint64_t>(0), 1, &ticket));
            CHECK_EQ(ticket, i);
            CHECK(i < 4 || is_first_read);
        }
    });
    rig.run();
    rig.check_no_errors();
}

TEST(neighbouring_posters_use_different_rails_and_queues) {
    Rig rig({.rails = 2, .queues = 2});
    std::set<uint32_t> used;
    for (uint32_t poster = 0; poster < 4; ++poster) used.insert(device::route_of(rig.state(0), poster).queue);
    CHECK_EQ(used.size(), size_t{4});
    CHECK(device::route_of(rig.state(0), 0).rail != device::route_of(rig.state(0), 1).rail);
    CHECK(device::route_of(rig.state(0), 0).rail != device::route_of(rig.state(0), 0, 1).rail);
}

TEST(a_state_of_another_version_or_size_does_not_fit) {
    CHECK(device_state_fits(kDeviceStateVersion, sizeof(DeviceState)));
    CHECK(!device_state_fits(kDeviceStateVersion + 1, sizeof(DeviceState)));
    CHECK(!device_state_fits(kDeviceStateVersion, sizeof(DeviceState) - 8));
}

TEST_MAIN()
