// SPDX-License-Identifier: Apache-2.0
// Kernels in the shape of DeepEP V1's between nodes, on the header that stands in for its way to the network: rings of
// chunks with tails and credits, with tiny queues, reordering and second copies. And each call by itself.
#include "ibgda_compat_rig.h"

using namespace compat_test;
using namespace deep_ep;

namespace {

// ---- chunks, tails and credits ----

// A channel has, for each PE: send ring, receive ring, meta words to send and received, head and tail.
struct Channels {
    static constexpr int kChannels = 2;
    static constexpr uint64_t kSlots = 8, kChunkMax = 3, kTokens = 20;  // of each channel and pair of PEs, a round
    static constexpr size_t kToken = 80, kMetaInts = 18, kMeta = kMetaInts * sizeof(int32_t);
    static constexpr size_t kPair = 2 * kSlots * kToken + 2 * kMeta + 2 * sizeof(uint64_t);
    static constexpr size_t kCounts = 1024;  // what a PE tells each other one before a round; sent from 64 bytes before

    int n_pes;
    // Some lie on the border of the two registered chunks, so that puts are cut.
    size_t pair(int channel, int pe) const { return kChunkBytes - 2 * kPair + static_cast<size_t>(channel * n_pes + pe) * kPair; }
    size_t send(int channel, int pe, uint64_t token) const { return pair(channel, pe) + (token % kSlots) * kToken; }
    size_t recv(int channel, int pe, uint64_t token) const { return send(channel, pe, token) + kSlots * kToken; }
    size_t meta_out(int channel, int pe) const { return pair(channel, pe) + 2 * kSlots * kToken; }
    size_t meta_in(int channel, int pe) const { return meta_out(channel, pe) + kMeta; }
    size_t head(int channel, int pe) const { return meta_in(channel, pe) + kMeta; }
    size_t tail(int channel, int pe) const { return head(channel, pe) + sizeof(uint64_t); }
    static uint64_t key(int round, int channel, int from, int to, uint64_t token) {
        return (((static_cast<uint64_t>(round) * 8 + static_cast<uint64_t>(channel)) * 8 + static_cast<uint64_t>(from)) * 8 +
                static_cast<uint64_t>(to)) *
                   1000 +
               token;
    }
    static int meta_value(int round, int channel, int from, int to, size_t i) {
        return static_cast<int>(mix64(key(round, channel, from, to, 900 + i)) % 1'000'000);
    }
};

class RingJob : public Machine {
   public:
    explicit RingJob(const Options& options, int rounds)
        : Machine(options),
          at_{options.n_pes},
          everybody_(options.n_pes * (1 + 2 * Channels::kChannels * options.n_pes)),
          starters_(options.n_pes) {
        for (int pe = 0; pe < n_pes(); ++pe) {
            warp(pe, [this, pe, rounds](soft::Prng& prng) {
                for (int round = 0; round < rounds; ++round) notify(pe, round, prng), everybody_.wait(), everybody_.wait();
                settle_all(pe);
                starters_.wait();
                check_words(pe, true);
            });
            for (int channel = 0; channel < Channels::kChannels; ++channel)
                for (int other = 0; other < n_pes(); ++other) {
                    warp(pe, [=, this](soft::Prng& prng) {
                        stream(rounds, [&](int round) { send(pe, channel, other, round, prng); });
                    });
                    warp(pe, [=, this](soft::Prng& prng) {
                        stream(rounds, [&](int round) { receive(pe, channel, other, round, prng); });
                    });
                }
        }
    }

   private:
    template <class Body>
    void stream(int rounds, Body body) {
        for (int round = 0; round < rounds; ++round) {
            everybody_.wait();  // as the kernel's start: all have cleaned
            body(round);
            everybody_.wait();
        }
    }

    void settle_all(int pe) {
        const auto state = ibgda_get_state();
        // As many as the channels use; the kernels go through all of them.
        const int qps = std::min(state->num_rc_per_pe * state->num_devices_initialized, 2 * Channels::kChannels);
        for (int i = 0; i < qps * (n_pes() - 1); ++i) nvshmemi_ibgda_quiet((i / qps + pe + 1) % n_pes(), i % qps);
    }

    // What was sent was taken, and answered, exactly once.
    void check_words(int pe, bool has_run) {
        for (int channel = 0; channel < Channels::kChannels; ++channel)
            for (int other = 0; other < n_pes(); ++other) {
                CHECK_EQ(*at<uint64_t>(pe, at_.head(channel, other)), has_run ? Channels::kTokens : 0);
                CHECK_EQ(*at<uint64_t>(pe, at_.tail(channel, other)), has_run ? Channels::kTokens : 0);
            }
    }

    // Quiet, sync, clean, counts, quiet, sync: nothing of the round before may land on what was cleaned.
    void notify(int pe, int round, soft::Prng& prng) {
        settle_all(pe);
        starters_.wait();
        check_words(pe, round != 0);
        const size_t begin = at_.pair(0, 0), end = at_.pair(Channels::kChannels, 0);
        std::fill(at<uint8_t>(pe, begin), at<uint8_t>(pe, end), uint8_t{0});
        *at<int32_t>(pe, Channels::kCounts - 64) = round * 100 + pe;
        for (int other = 0; other < n_pes(); ++other) {
            if (other == pe) continue;
            nvshmemi_ibgda_put_nbi_warp<true>(address_of(at<int32_t>(pe, Channels::kCounts) + pe),
                                              address_of(at<int32_t>(pe, Channels::kCounts - 64)), 4, other, 0, 0, 0);
        }
        for (int other = 0; other < n_pes(); ++other)
            if (other != pe) nvshmemi_ibgda_quiet(other, 0);
        starters_.wait();
        for (int other = 0; other < n_pes(); ++other)
            if (other != pe) CHECK_EQ(at<int32_t>(pe, Channels::kCounts)[other], round * 100 + other);
        for (uint64_t i = prng.below(300); i > 0; --i) step();
        check_words(pe, false);
    }

    void put(int pe, size_t there, size_t here, size_t bytes, int to, int qp) {
        if (to == pe) {
            std::copy_n(at<uint8_t>(pe, here), bytes, at<uint8_t>(pe, there));
        } else {
            nvshmemi_ibgda_put_nbi_warp<true>(address_of(at<uint8_t>(pe, there)), address_of(at<uint8_t>(pe, here)), bytes, to,
                                              qp, 0, 0);
        }
    }

    void send(int pe, int channel, int to, int round, soft::Prng& prng) {
        int32_t* meta = at<int32_t>(pe, at_.meta_out(channel, to));
        for (size_t i = 0; i < Channels::kMetaInts; ++i) meta[i] = -Channels::meta_value(round, channel, pe, to, i) - 1;
        put(pe, at_.meta_in(channel, pe), at_.meta_out(channel, to), Channels::kMeta, to, channel);
        for (uint64_t sent = 0; sent < Channels::kTokens;) {
            uint64_t n = std::min(
                {1 + prng.below(Channels::kChunkMax), Channels::kTokens - sent, Channels::kSlots - sent % Channels::kSlots});
            poll(at<uint64_t>(pe, at_.head(channel, to)), [&](uint64_t head) { return Channels::kSlots - (sent - head) >= n; });
            for (uint64_t i = 0; i < n; ++i)
                fill(at<uint8_t>(pe, at_.send(channel, to, sent + i)), Channels::kToken,
                     Channels::key(round, channel, pe, to, sent + i));
            put(pe, at_.recv(channel, pe, sent), at_.send(channel, to, sent), n * Channels::kToken, to, channel);
            sent += n;
            nvshmemi_ibgda_amo_nonfetch_add(at<uint64_t>(pe, at_.tail(channel, pe)), static_cast<int>(n), to, channel, to == pe);
        }
    }

    // Takes tokens as the tail says, and gives credit for several at a time.
    void receive(int pe, int channel, int from, int round, soft::Prng& prng) {
        const int32_t* meta = at<int32_t>(pe, at_.meta_in(channel, from));
        for (size_t i = 0; i < Channels::kMetaInts; ++i) {
            const int32_t value = poll(meta + i, [](int32_t is) { return is < 0; });
            CHECK_EQ(-value - 1, Channels::meta_value(round, channel, from, pe, i));
        }
        uint64_t credited = 0;
        for (uint64_t taken = 0; taken < Channels::kTokens;) {
            const uint64_t tail = poll(at<uint64_t>(pe, at_.tail(channel, from)), [&](uint64_t is) { return is > taken; });
            for (; taken < tail; ++taken)
                check_bytes(*this, at<uint8_t>(pe, at_.recv(channel, from, taken)), Channels::kToken,
                            Channels::key(round, channel, from, pe, taken), prng, "a chunk");
            if (taken - credited < Channels::kChunkMax && taken < Channels::kTokens) continue;
            nvshmemi_ibgda_amo_nonfetch_add(at<uint64_t>(pe, at_.head(channel, pe)), static_cast<int>(taken - credited), from,
                                            channel + Channels::kChannels, from == pe);
            credited = taken;
        }
    }

    Channels at_;
    Barrier everybody_;
    Barrier starters_;
};

}  // namespace

TEST(tokens_are_there_when_their_tail_is_and_slots_are_used_again_only_with_credit) {
    for (uint64_t seed = 1; seed <= 4; ++seed)
        RingJob({.n_pes = 2, .queues = 1 + static_cast<uint32_t>(seed % 2), .seed = seed, .faults = kRough}, 4).run();
    RingJob({.n_pes = 3, .rails = 2, .queues = 2, .seed = 4, .faults = kRough}, 2).run();
}

TEST(the_same_with_the_smallest_batches_windows_and_without_counters) {
    RingJob({.n_pes = 2, .max_batch = 1, .window = 2, .seed = 11, .faults = kRough}, 2).run();
    RingJob({.n_pes = 2, .queues = 2, .max_batch = 4, .segment_bytes = 100, .seed = 12, .is_counting = false, .faults = kRough},
            2)
        .run();
}

namespace {

// ---- each call by itself ----

constexpr size_t kWord = 1024, kSource = 4096, kDest = 8192;

// One warp of PE 0; the rest of the world stands by.
void run_alone(const Options& options, const std::function<void(Machine&)>& body) {
    Machine machine(options);
    machine.warp(0, [&](soft::Prng&) { body(machine); });
    machine.run();
}

}  // namespace

TEST(warps_that_share_a_queue_pair_each_see_their_own_data_before_their_own_flag) {
    constexpr int kRounds = 1500;
    // A put that is counted between a drain's last look and its note of it is rare: seed 7 has one, as the code is now.
    for (uint64_t seed = 6; seed <= 8; ++seed) {
        Machine machine({.n_pes = 2, .depth = 16, .seed = seed, .faults = kRough});
        for (size_t i = 0; i < 3; ++i) {
            const auto key = [i](int k) { return i * 100 + static_cast<uint64_t>(k); };
            uint8_t* source = machine.at<uint8_t>(0, kSource + i * 256);
            const uint8_t* dest = machine.at<uint8_t>(1, kDest + i * 256);
            machine.warp(0, [&machine, source, i, key](soft::Prng& prng) {
                for (int k = 1; k <= kRounds; ++k) {
                    fill(source, 200, key(k));
                    nvshmemi_ibgda_put_nbi_warp(address_of(machine.at<uint8_t>(0, kDest + i * 256)), address_of(source), 200, 1,
                                                5, 0, k);
                    // Sometimes so late that the put is complete, and others find the queue idle.
                    for (uint64_t n = prng.below(4) ? 0 : prng.below(300); n > 0; --n) step();
                    nvshmemi_ibgda_amo_nonfetch_add(machine.at<int>(0, kWord + i * 8), 1, 1, 5);
                    // Not only seen in order: the flag was not sent before.
                    CHECK(std::equal(source, source + 200, machine.at<uint8_t>(1, kDest + i * 256)));
                    poll(machine.at<int>(0, kWord + i * 8 + 4), [k](int is) { return is == k; });
                }
            });
            machine.warp(1, [&machine, dest, i, key](soft::Prng& prng) {
                for (int k = 1; k <= kRounds; ++k) {
                    poll(machine.at<int>(1, kWord + i * 8), [k](int is) { return is == k; });
                    check_bytes(machine, dest, 200, key(k), prng, "a put");
                    nvshmemi_ibgda_rma_p(machine.at<int>(1, kWord + i * 8 + 4), k, 0, 7);
                }
            });
        }
        machine.run();
    }
}

TEST(a_flag_waits_for_the_data_of_its_queue_pair_and_for_no_other) {
    run_alone({.faults = {}}, [](Machine& machine) {
        const auto put = [&machine](int qp) {
            nvshmemi_ibgda_put_nbi_warp(address_of(machine.at<uint8_t>(0, kDest)), address_of(machine.at<uint8_t>(0, kSource)),
                                        64, 1, qp, 0, 0);
        };
        const GpuQueueState& queue = machine.rig.pe(0).queue_states[0];
        put(3);
        nvshmemi_ibgda_amo_nonfetch_add(machine.at<int>(0, kWord), 1, 1, 4);
        CHECK_EQ(queue.head, 2u);
        CHECK_EQ(queue.completed, uint64_t{0});
        nvshmemi_ibgda_amo_nonfetch_add(machine.at<int>(0, kWord), 1, 1, 3);
        CHECK(queue.completed >= 2);
        nvshmemi_ibgda_quiet(1, 3);
        CHECK_EQ(*machine.at<int>(1, kWord), 2);
    });
}

TEST(a_put_counts_for_others_only_when_it_is_in_the_queue) {
    Machine machine({.n_pes = 2, .queues = 2, .faults = {}});
    constexpr int kQp = 1, kOtherQueue = 2;
    bool has_begun = false;
    machine.warp(0, [&](soft::Prng&) {
        const auto put = [&machine](int qp) {
            nvshmemi_ibgda_put_nbi_warp(address_of(machine.at<uint8_t>(0, kDest)), address_of(machine.at<uint8_t>(0, kSource)),
                                        64, 1, qp, 0, 0);
        };
        put(kOtherQueue);
        CHECK_EQ(machine.rig.pe(0).queue_states[1].head, 1u);
        machine.rig.pe(0).shared[0].arrivals = 1;  // as after a wait_until(): the next post waits for all queues
        has_begun = true;
        put(kQp);  // meanwhile the other warp settles this queue pair
        nvshmemi_ibgda_amo_nonfetch_add(machine.at<int>(0, kWord), 1, 1, kQp);
        CHECK(machine.rig.pe(0).queue_states[0].completed >= 2);  // its flag and our data
    });
    machine.warp(0, [&](soft::Prng&) {
        while (!has_begun) step();
        CHECK_EQ(machine.rig.pe(0).queue_states[0].head, 0u);
        nvshmemi_ibgda_amo_nonfetch_add(machine.at<int>(0, kWord), 1, 1, kQp);
    });
    machine.run();
}

TEST(quiet_waits_until_words_are_changed_and_not_only_until_requests_are_complete) {
    Machine machine({.faults = {}});
    machine.warp(0, [&](soft::Prng&) {
        // Number 0 is taken and its record comes late, so that the agent keeps the next one waiting.
        uint32_t seq = 0;
        CHECK(device::take_number(machine.rig.state(0), 1, &seq));
        machine.warp(0, [&machine, seq](soft::Prng&) {
            for (int i = 0; i < 3000; ++i) step();
            const DeviceState& state = machine.rig.state(0);
            AgentRecord record;
            CHECK(device::make_record(state, address_of(machine.at<int>(0, kWord + 8)),
                                      {WordOp::kSet, WordType::kInteger, 4, 7, 0}, 1, false, &record));
            record.seq = seq;
            CHECK(device::post(state, 0, device::record_wqe(state, record, 0, 1), 1));
        });
        nvshmemi_ibgda_amo_nonfetch_add(machine.at<int>(0, kWord), 9, 1, 0);
        nvshmemi_ibgda_quiet(1, 0);
        CHECK_EQ(*machine.at<int>(1, kWord), 9);
        CHECK_EQ(*machine.at<int>(1, kWord + 8), 7);
    });
    machine.run();
}

TEST(an_add_changes_four_bytes_and_a_local_one_eight) {
    run_alone({}, [](Machine& machine) {
        *machine.at<uint64_t>(1, kWord) = 0xaaaaaaaa'00000002;
        nvshmemi_ibgda_amo_nonfetch_add(machine.at<uint64_t>(0, kWord), -5, 1, 0);
        nvshmemi_ibgda_quiet(1, 0);
        CHECK_EQ(*machine.at<uint64_t>(1, kWord), uint64_t{0xaaaaaaaa'fffffffd});
        *machine.at<uint64_t>(0, kWord) = 0x1'00000002;
        nvshmemi_ibgda_amo_nonfetch_add(machine.at<uint64_t>(0, kWord), -5, 0, 0, true);
        CHECK_EQ(*machine.at<uint64_t>(0, kWord), uint64_t{0xfffffffd});
    });
}

TEST(a_barrier_also_waits_for_what_kernels_have_posted) {
    Machine machine({.n_pes = 2, .queues = 2, .faults = kRough});
    for (int pe = 0; pe < 2; ++pe)
        machine.warp(pe, [&machine, pe](soft::Prng&) {
            const int other = 1 - pe;
            for (int k = 1; k <= 20; ++k) {
                fill(machine.at<uint8_t>(pe, kSource), 200, static_cast<uint64_t>(k));
                nvshmemi_ibgda_put_nbi_warp(address_of(machine.at<uint8_t>(pe, kDest)),
                                            address_of(machine.at<uint8_t>(pe, kSource)), 200, other, k, 0, 0);
                nvshmemi_ibgda_amo_nonfetch_add(machine.at<int>(pe, kWord), 1, other, k + 1);
                deep_ep::nvshmemx_barrier_all_block();
                CHECK_EQ(*machine.at<int>(pe, kWord), k);
                for (size_t i = 0; i < 200; ++i)
                    CHECK_EQ(machine.at<uint8_t>(pe, kDest)[i], pattern(static_cast<uint64_t>(k), i));
                ::nvshmemx_barrier_all_block();
            }
        });
    machine.run();
}

TEST(pointers_to_near_memory_are_those_of_nvshmem) {
    run_alone({.n_pes = 3}, [](Machine& machine) {
        const uint64_t mine = address_of(machine.at<int>(0, kWord));
        CHECK_EQ(nvshmemi_get_p2p_ptr(mine, 0, 0), mine);
        CHECK_EQ(nvshmemi_get_p2p_ptr(mine, 0, 1), uint64_t{0});
        machine.near_pe = 2;
        CHECK_EQ(nvshmemi_get_p2p_ptr(mine, 0, 2), address_of(machine.at<int>(2, kWord)));
    });
}

TEST(kernels_are_told_when_there_are_no_queues_and_nothing_is_posted) {
    run_alone({}, [](Machine& machine) {
        CHECK(ibgda_get_state()->num_rc_per_pe >= 132);
        CHECK_EQ(ibgda_get_state()->num_devices_initialized, 1);
        machine.has_state = false;
        CHECK_EQ(ibgda_get_state()->num_rc_per_pe, 0);
        nvshmemi_ibgda_put_nbi_warp(address_of(machine.at<uint8_t>(0, kDest)), address_of(machine.at<uint8_t>(0, kSource)), 64, 1,
                                    0, 0, 0);
        nvshmemi_ibgda_amo_nonfetch_add(machine.at<int>(0, kWord), 1, 1, 0);
        nvshmemi_ibgda_quiet(1, 0);
        CHECK_EQ(machine.rig.pe(0).queue_states[0].head, 0u);
        machine.has_state = true;
        machine.rig.pe(0).state.queues_per_rail = 0;
        CHECK_EQ(ibgda_get_state()->num_rc_per_pe, 0);
        machine.rig.pe(0).state.queues_per_rail = 1;
    });
}

TEST(no_flag_follows_data_that_could_not_be_posted) {
    Machine machine({});
    int outside[16] = {};
    machine.warp(0, [&](soft::Prng&) {
        nvshmemi_ibgda_put_nbi_warp(address_of(machine.at<uint8_t>(0, kDest)), address_of(outside), 64, 1, 0, 0, 0);
        nvshmemi_ibgda_amo_nonfetch_add(machine.at<int>(0, kWord), 1, 1, 0);
        nvshmemi_ibgda_quiet(1, 0);
        // A PE that is not there, and an odd address: an error record, and nothing else.
        nvshmemi_ibgda_put_nbi_warp(address_of(machine.at<uint8_t>(0, kDest)), address_of(machine.at<uint8_t>(0, kSource)), 64, 9,
                                    0, 0, 0);
        nvshmemi_ibgda_amo_nonfetch_add(machine.at<int>(0, kWord), 1, -1, 0);
        nvshmemi_ibgda_quiet(9, 0);
    });
    CHECK_OK(machine.run_failing());
    CHECK_EQ(*machine.at<int>(1, kWord), 0);
    const GpuQueueError* error = machine.rig.pe(0).error();
    CHECK(error != nullptr);
    CHECK_EQ(static_cast<int>(error->waited), static_cast<int>(DeviceWait::kUnregistered));
    CHECK_EQ(error->remote_addr, address_of(outside));
}

TEST(no_flag_follows_data_that_completed_with_an_error) {
    for (const bool is_counting : {true, false}) {
        Machine machine({.is_counting = is_counting, .faults = {}});
        machine.rig.pe(0).rkeys[1] ^= 0x100;  // of PE 1's first chunk
        machine.warp(0, [&](soft::Prng&) {
            nvshmemi_ibgda_put_nbi_warp(address_of(machine.at<uint8_t>(0, kDest)), address_of(machine.at<uint8_t>(0, kSource)),
                                        64, 1, 0, 0, 0);
            nvshmemi_ibgda_amo_nonfetch_add(machine.at<int>(0, kWord), 1, 1, 0);
        });
        CHECK_OK(machine.run_failing());
        CHECK_EQ(*machine.at<int>(1, kWord), 0);
        CHECK(machine.rig.pe(0).error() != nullptr);
    }
}

TEST_MAIN()
