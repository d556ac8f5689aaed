// SPDX-License-Identifier: Apache-2.0
// Kernels in the shape of DeepEP V1's low-latency ones, on the header that stands in for their way to the network: tokens
// and a count for each (expert, source), results and a flag for each expert, two buffers that take turns; the queue pair
// is the local expert. With tiny queues, reordering and second copies.
#include "ibgda_compat_rig.h"

using namespace compat_test;
using namespace deep_ep;

namespace {

constexpr int kLocalExperts = 3, kTokens = 6, kTopk = 2, kWarps = 3;
constexpr size_t kHeader = 16, kToken = 64, kMessage = kHeader + kToken;  // header: the token's number at its source

// What the tokens of a call choose: the same on all PEs, so that each can tell what it must get.
struct Routing {
    uint64_t seed;
    int n_experts;
    // -1: none. The two choices differ.
    int expert(int call, int pe, int token, int k) const {
        const uint64_t draw = mix64(seed * 1'000'003 + static_cast<uint64_t>((call * 64 + pe) * 64 + token));
        if (draw % 8 == static_cast<uint64_t>(k)) return -1;
        const uint64_t first = (draw >> 8) % static_cast<uint64_t>(n_experts);
        const uint64_t step = 1 + (draw >> 32) % static_cast<uint64_t>(n_experts - 1);
        return static_cast<int>((first + static_cast<uint64_t>(k) * step) % static_cast<uint64_t>(n_experts));
    }
    bool has(int call, int pe, int token, int expert_number) const {
        return expert(call, pe, token, 0) == expert_number || expert(call, pe, token, 1) == expert_number;
    }
    int count(int call, int pe, int expert_number) const {
        int n = 0;
        for (int token = 0; token < kTokens; ++token) n += has(call, pe, token, expert_number);
        return n;
    }
};

uint64_t token_key(int call, int pe, int token) { return 1'000'000 + static_cast<uint64_t>((call * 64 + pe) * 64 + token); }
uint64_t result_key(int call, int expert, int pe, int token) {
    return 2'000'000'000 + static_cast<uint64_t>(((call * 64 + expert) * 64 + pe) * 64 + token);
}

class LowLatency : public Machine {
   public:
    LowLatency(const Options& options, int calls)
        : Machine(options),
          routing_{options.seed, options.n_pes * kLocalExperts},
          pes_(static_cast<size_t>(options.n_pes), PeMemory(routing_.n_experts)) {
        for (int pe = 0; pe < n_pes(); ++pe)
            for (int warp_number = 0; warp_number <= kWarps; ++warp_number)
                warp(pe, [this, pe, warp_number, calls](soft::Prng& prng) {
                    for (int call = 0; call < calls; ++call) {
                        send_tokens(pe, warp_number, call, prng);
                        pes_[static_cast<size_t>(pe)].grid.wait();
                        receive_tokens(pe, warp_number, call, prng);
                        pes_[static_cast<size_t>(pe)].grid.wait();
                        send_results(pe, warp_number, call, prng);
                        pes_[static_cast<size_t>(pe)].grid.wait();
                        receive_results(pe, warp_number, call, prng);
                        pes_[static_cast<size_t>(pe)].grid.wait();
                    }
                });
    }

   private:
    // What the warps of a PE share: memory of its own GPU.
    struct PeMemory {
        explicit PeMemory(int n_experts) : slots(static_cast<size_t>(n_experts)), issued(static_cast<size_t>(n_experts)) {}
        Barrier grid{kWarps + 1};
        std::vector<uint32_t> slots;   // of a destination expert, taken
        std::vector<uint32_t> issued;  // messages to it that are posted
        uint32_t cleaned = 0;          // calls whose words of the other parity are zero
    };
    PeMemory& mine(int pe) { return pes_[static_cast<size_t>(pe)]; }
    int n_experts() const { return routing_.n_experts; }

    // Each half has tokens or results to send, those received, and the words. One half begins in each registered chunk,
    // and the first goes over the border.
    static constexpr size_t kHalf = 16'000;
    size_t half(int parity) const { return 24'000 + static_cast<size_t>(parity) * kHalf; }
    size_t out(int parity, int place) const { return half(parity) + static_cast<size_t>(place) * kMessage; }
    size_t in(int parity, int place) const { return half(parity) + 5'000 + static_cast<size_t>(place) * kMessage; }
    size_t word(int parity, int place) const { return half(parity) + kHalf - 512 + static_cast<size_t>(place) * sizeof(int32_t); }
    // A token at its expert, by source and slot; a result at its source, by expert and token.
    int token_place(int local_expert, int from, int slot) const { return (local_expert * n_pes() + from) * kTokens + slot; }
    int result_place(int expert, int token) const { return expert * kTokens + token; }

    void put(int pe, size_t there, size_t here, size_t bytes, int to, int qp, int ordinal) {
        const uint64_t near = nvshmemi_get_p2p_ptr(address_of(at<uint8_t>(pe, there)), pe, to);
        if (near != 0) {
            std::copy_n(at<uint8_t>(pe, here), bytes, reinterpret_cast<uint8_t*>(near));
        } else {
            nvshmemi_ibgda_put_nbi_warp(address_of(at<uint8_t>(pe, there)), address_of(at<uint8_t>(pe, here)), bytes, to, qp, 0,
                                        ordinal);
        }
    }
    void add_flag(int pe, size_t word_at, int value, int to, int qp) {
        const uint64_t near = nvshmemi_get_p2p_ptr(address_of(at<int32_t>(pe, word_at)), pe, to);
        if (near != 0) {
            order::store_release_sys(reinterpret_cast<uint32_t*>(near), static_cast<uint32_t>(value));
        } else {
            nvshmemi_ibgda_amo_nonfetch_add(at<int32_t>(pe, word_at), value, to, qp);
        }
    }
    // The words that the next call of the other kind uses. Flags go out only when that is done.
    void clean(int pe, int parity, uint32_t calls_before) {
        std::fill_n(at<int32_t>(pe, word(1 - parity, 0)), n_experts(), 0);
        order::store_release_gpu(&mine(pe).cleaned, calls_before + 1);
    }
    void wait_for_clean(int pe, uint32_t calls_before) {
        poll(&mine(pe).cleaned, [calls_before](uint32_t is) { return is > calls_before; });
    }

    // Tokens use parity 0 and results parity 1, as every call of either kind flips it.
    void send_tokens(int pe, int warp_number, int call, soft::Prng& prng) {
        if (warp_number == kWarps) return send_counts(pe, call);
        for (int token = warp_number; token < kTokens; token += kWarps) {
            uint8_t* message = at<uint8_t>(pe, out(0, token));
            memset(message, 0, kHeader);
            memcpy(message, &token, sizeof token);
            fill(message + kHeader, kToken, token_key(call, pe, token));
            for (int k = 0; k < kTopk; ++k) {
                const int expert = routing_.expert(call, pe, token, k);
                if (expert < 0) continue;
                const auto slot = order::fetch_add_relaxed_gpu(&mine(pe).slots[static_cast<size_t>(expert)], 1);
                put(pe, in(0, token_place(expert % kLocalExperts, pe, static_cast<int>(slot))), out(0, token), kMessage,
                    expert / kLocalExperts, expert % kLocalExperts, static_cast<int>(slot));
                __atomic_fetch_add(&mine(pe).issued[static_cast<size_t>(expert)], 1, __ATOMIC_RELEASE);
                for (uint64_t i = prng.below(50); i > 0; --i) step();
            }
        }
    }
    void send_counts(int pe, int call) {
        clean(pe, 0, static_cast<uint32_t>(2 * call));
        for (int expert = 0; expert < n_experts(); ++expert) {
            const int n = routing_.count(call, pe, expert);
            poll(&mine(pe).issued[static_cast<size_t>(expert)], [n](uint32_t is) { return is == static_cast<uint32_t>(n); });
            mine(pe).issued[static_cast<size_t>(expert)] = 0;
            mine(pe).slots[static_cast<size_t>(expert)] = 0;
            add_flag(pe, word(0, expert % kLocalExperts * n_pes() + pe), -n - 1, expert / kLocalExperts, expert % kLocalExperts);
        }
    }

    void receive_tokens(int pe, int warp_number, int call, soft::Prng& prng) {
        for (int group = warp_number; group < kLocalExperts * n_pes(); group += kWarps + 1) {
            const int local_expert = group / n_pes(), from = group % n_pes(), expert = pe * kLocalExperts + local_expert;
            const int n = -poll(at<int32_t>(pe, word(0, group)), [](int32_t is) { return is != 0; }) - 1;
            CHECK_EQ(n, routing_.count(call, from, expert));
            int last = 0;
            std::vector<bool> seen(kTokens);
            for (int slot = 0; slot < n; ++slot) {
                const uint8_t* message = at<uint8_t>(pe, in(0, token_place(local_expert, from, slot)));
                memcpy(&last, message, sizeof last);
                CHECK(last >= 0 && last < kTokens && !seen[static_cast<size_t>(last)] && routing_.has(call, from, last, expert));
                seen[static_cast<size_t>(last)] = true;
                check_bytes(*this, message + kHeader, kToken, token_key(call, from, last), prng, "a token");
            }
        }
    }

    // One warp a (destination, local expert): its results, then its flag, also when there are none.
    void send_results(int pe, int warp_number, int call, soft::Prng& prng) {
        if (warp_number == kWarps) return clean(pe, 1, static_cast<uint32_t>(2 * call + 1));
        for (int group = warp_number; group < kLocalExperts * n_pes(); group += kWarps) {
            const int local_expert = group / n_pes(), to = group % n_pes(), expert = pe * kLocalExperts + local_expert;
            int n = 0;
            for (int token = 0; token < kTokens; ++token) {
                if (!routing_.has(call, to, token, expert)) continue;
                const size_t source = out(1, token_place(local_expert, to, n));
                fill(at<uint8_t>(pe, source), kToken, result_key(call, expert, to, token));
                put(pe, in(1, result_place(expert, token)), source, kToken, to, local_expert, n++);
                for (uint64_t i = prng.below(50); i > 0; --i) step();
            }
            wait_for_clean(pe, static_cast<uint32_t>(2 * call + 1));
            add_flag(pe, word(1, expert), 1, to, local_expert);
        }
    }

    void receive_results(int pe, int warp_number, int call, soft::Prng& prng) {
        for (int expert = 0; expert < n_experts(); ++expert)
            CHECK_EQ(poll(at<int32_t>(pe, word(1, expert)), [](int32_t is) { return is != 0; }), 1);
        for (int token = warp_number; token < kTokens; token += kWarps + 1)
            for (int k = 0; k < kTopk; ++k) {
                const int expert = routing_.expert(call, pe, token, k);
                if (expert < 0) continue;
                check_bytes(*this, at<uint8_t>(pe, in(1, result_place(expert, token))), kToken,
                            result_key(call, expert, pe, token), prng, "a result");
            }
    }

    Routing routing_;
    std::vector<PeMemory> pes_;
};

}  // namespace

TEST(tokens_are_there_when_they_are_counted_and_results_when_they_are_flagged) {
    for (uint64_t seed = 1; seed <= 4; ++seed)
        LowLatency({.n_pes = 2, .queues = 1 + static_cast<uint32_t>(seed % 2), .seed = seed, .faults = kRough}, 25).run();
    LowLatency({.n_pes = 3, .rails = 2, .queues = 2, .seed = 5, .faults = kRough}, 25).run();
}

TEST(the_same_with_the_smallest_batches_windows_and_without_counters) {
    LowLatency({.n_pes = 2, .max_batch = 1, .window = 2, .seed = 11, .faults = kRough}, 12).run();
    LowLatency({.n_pes = 3, .queues = 3, .max_batch = 4, .segment_bytes = 50, .seed = 12, .is_counting = false, .faults = kRough},
               12)
        .run();
}

TEST(the_same_where_one_pe_is_near) {
    LowLatency machine({.n_pes = 3, .seed = 21, .faults = kRough}, 12);
    machine.near_pe = 0;
    machine.run();
}

TEST_MAIN()
