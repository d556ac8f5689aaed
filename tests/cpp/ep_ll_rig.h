// SPDX-License-Identifier: Apache-2.0
// The low-latency mode against an oracle: what every rank sends is drawn from a seed that all know, so each rank can say
// by itself, row by row and bit by bit, what it must get.
#pragma once

#include <cmath>
#include <map>
#include <set>
#include <string>

#include "ep_fp8_oracle.h"
#include "ep_rig.h"
#include "soft_efa/prng.h"

namespace ll_rig {

using ep_rig::error_of;
using ep_rig::Ranks;

// Settings of the environment, for the time of a test.
class Settings {
 public:
    explicit Settings(std::map<std::string, std::string> values) : values_(std::move(values)) {
        for (const auto& [name, value] : values_) setenv(("NVSHMEM_EFA_" + name).c_str(), value.c_str(), 1);
    }
    ~Settings() {
        for (const auto& [name, value] : values_) unsetenv(("NVSHMEM_EFA_" + name).c_str());
    }

 private:
    const std::map<std::string, std::string> values_;
};
// A network at its worst: everything in another order, payloads placed twice, words one by one.
inline std::map<std::string, std::string> bad_network(const char* profile) {
#if defined(__SANITIZE_THREAD__)
    // A second copy may land while its receiver reads: the same bytes, so it does no harm, but it is a race by the book.
    const char* const duplicates = "0";
#else
    const char* const duplicates = "250000";
#endif
    return {{"MODE", "soft"}, {"SOFT_PROFILE", profile}, {"SOFT_RAILS", "2"}, {"SOFT_REORDER_NS", "30000"},
            {"SOFT_DUPLICATE_PPM", duplicates}, {"SOFT_DELAY_PPM", "2000"}, {"SOFT_SEED", "17"}, {"SOFT_RING_BYTES", "131072"}, {"LOG_LEVEL", "warn"}};
}

struct Shape {
    int ranks = 4, nvlink = 4, near = 1;  // near: nvlink_for_ll
    int arrivals = EP_ARRIVALS_AUTO;
    int M = 8, H = 512, E = 8, K = 3;
    int El() const { return E / ranks; }
    int rows() const { return ranks * M; }
};

inline std::function<void(ep_options&)> options_of(const Shape& s, int timeout_ms = 20000, int shrink = 0) {
    return [=](ep_options& options) {
        options.nvlink_ranks = s.nvlink;
        options.nvlink_for_ll = s.near;
        options.low_latency = 1;
        options.arrivals = s.arrivals;
        options.rdma_bytes = (ep_ll_bytes(s.M, s.H, s.ranks, s.E) + 4095) & ~4095ll;
        options.timeout_ms = timeout_ms;
        options.enable_shrink = shrink;
    };
}

enum class Routes { kRandom, kNone, kOneExpert, kSomeIdle, kFull };

inline uint16_t random_bf16(nvshmem_efa::soft::Prng& random) {
    const uint32_t exponent = 110 + static_cast<uint32_t>(random.below(24));
    return static_cast<uint16_t>(random.below(2) << 15 | exponent << 7 | random.below(128));
}
inline float float_of(uint16_t bf16) {
    const uint32_t bits = static_cast<uint32_t>(bf16) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// What all ranks send in one operation.
struct Round {
    struct Of {
        int T = 0;
        std::vector<uint16_t> x;
        std::vector<int64_t> topk;
        std::vector<float> weights;
    };
    Shape shape;
    uint64_t seed = 0;
    std::vector<Of> of;  // [rank]
    std::set<int> masked;

    Round(const Shape& s, uint64_t from, Routes routes = Routes::kRandom) : shape(s), seed(from), of(static_cast<size_t>(s.ranks)) {
        for (int rank = 0; rank < s.ranks; ++rank) draw(rank, routes);
    }
    // Row that the experts hand back for (source, token, choice): any bits do. In some places choice 1 is large and choice
    // 2 undoes it, so that a sum in another order is another sum.
    void fill_y(int source, int token, int choice, uint16_t* to) const {
        nvshmem_efa::soft::Prng random(seed * 1000003 + static_cast<uint64_t>((source * 4096 + token) * 16 + choice));
        for (int i = 0; i < shape.H; ++i) to[i] = random_bf16(random);
        for (int i = 0; i < shape.H && (choice == 1 || choice == 2); i += 16) to[i] = choice == 1 ? 0x4e80 : 0xce80;  // 2^30
    }

 private:
    void draw(int rank, Routes routes) {
        Of& mine = of[static_cast<size_t>(rank)];
        nvshmem_efa::soft::Prng random(seed * 131 + static_cast<uint64_t>(rank));
        const bool is_idle = routes == Routes::kSomeIdle && rank % 2 == 0;
        const int random_tokens = static_cast<int>(random.below(static_cast<uint64_t>(shape.M) + 1));
        mine.T = is_idle ? 0 : routes == Routes::kRandom ? random_tokens : shape.M;
        mine.x.resize(static_cast<size_t>(mine.T * shape.H));
        for (uint16_t& value : mine.x) value = random_bf16(random);
        for (int token = 0; token < mine.T; ++token) {
            // A token of zeroes meets the floor of the scale.
            if (token == 1) std::fill_n(mine.x.begin() + token * shape.H, 128, uint16_t{0});
            std::vector<int64_t> experts(static_cast<size_t>(shape.E));
            for (int e = 0; e < shape.E; ++e) experts[static_cast<size_t>(e)] = e;
            for (int k = 0; k < shape.K; ++k) {
                const size_t at = static_cast<size_t>(k);
                std::swap(experts[at], experts[at + random.below(static_cast<uint64_t>(shape.E - k))]);
                const bool is_none = routes == Routes::kNone || (routes == Routes::kOneExpert && k != 1) ||
                                     (routes == Routes::kRandom && random.below(5) == 0);
                mine.topk.push_back(is_none ? -1 : routes == Routes::kOneExpert ? shape.E - 1 : experts[static_cast<size_t>(k)]);
                const float weight = static_cast<float>(random.below(1000)) / 999.0f;
                mine.weights.push_back(k == 2 ? mine.weights.back() : weight);
            }
        }
    }
};

// One rank's tensors.
struct Side {
    std::vector<uint8_t> x;
    std::vector<uint32_t> scales;
    std::vector<int32_t> src_info, count, stats;
    std::vector<int64_t> range, waits;
    std::vector<uint16_t> combined;
    std::vector<uint16_t> y;

    explicit Side(const Shape& s)
        : x(static_cast<size_t>(s.El() * s.rows() * s.H * 2), 0xee),
          scales(static_cast<size_t>(s.El() * s.H / 128 * s.rows()), 0xeeeeeeee),
          src_info(static_cast<size_t>(2 * s.El() * s.rows()), -7),
          count(static_cast<size_t>(s.El()), -7),
          stats(static_cast<size_t>(s.El()), 1000),
          range(static_cast<size_t>(s.El() * s.ranks), -7),
          waits(static_cast<size_t>(s.ranks)),
          combined(static_cast<size_t>(s.M * s.H), 0xeeee),
          y(static_cast<size_t>(s.El() * s.rows() * s.H), 0xeeee) {}
};

inline ep_ll_dispatch_args dispatch_args(const Round& round, int rank, int format, int phases, Side& side) {
    const Round::Of& mine = round.of[static_cast<size_t>(rank)];
    ep_ll_dispatch_args args = {};
    args.bytes = sizeof args;
    args.phases = phases;
    args.format = format;
    args.n_tokens = mine.T;
    args.hidden = round.shape.H;
    args.n_topk = round.shape.K;
    args.max_tokens = round.shape.M;
    args.n_experts = round.shape.E;
    args.x = mine.x.data();
    args.topk_idx = mine.topk.data();
    args.recv_x = side.x.data();
    args.recv_scales = side.scales.data();
    args.recv_src_info = side.src_info.data();
    args.recv_layout_range = side.range.data();
    args.recv_count = side.count.data();
    args.cumulative_stats = side.stats.data();
    args.wait_stats = side.waits.data();
    return args;
}

inline ep_ll_combine_args combine_args(const Round& round, int rank, int phases, Side& side, bool zero_copy = false) {
    const Round::Of& mine = round.of[static_cast<size_t>(rank)];
    ep_ll_combine_args args = {};
    args.bytes = sizeof args;
    args.phases = phases;
    args.n_tokens = mine.T;
    args.hidden = round.shape.H;
    args.n_topk = round.shape.K;
    args.max_tokens = round.shape.M;
    args.n_experts = round.shape.E;
    args.zero_copy = zero_copy;
    args.x = zero_copy ? nullptr : side.y.data();
    args.topk_idx = mine.topk.data();
    args.topk_weights = mine.weights.data();
    args.recv_src_info = side.src_info.data();
    args.recv_layout_range = side.range.data();
    args.combined_x = side.combined.data();
    args.wait_stats = side.waits.data();
    return args;
}

// One row as it must be.
inline void check_row(const Round& round, int format, const uint16_t* x, const Side& side, size_t e, size_t row) {
    const size_t H = static_cast<size_t>(round.shape.H), rows = static_cast<size_t>(round.shape.rows()), blocks = H / 128;
    if (format == EP_LL_BF16) {
        CHECK(std::memcmp(side.x.data() + (e * rows + row) * H * 2, x, H * 2) == 0);
        return;
    }
    const uint8_t* q = side.x.data() + (e * rows + row) * H;
    for (size_t block = 0; block < blocks; ++block) {
        float values[128];
        for (size_t i = 0; i < 128; ++i) values[i] = float_of(x[block * 128 + i]);
        const float scale = ep_oracle::scale(values, format != EP_LL_FP8);
        if (format == EP_LL_FP8_UE8M0) {
            const uint32_t packed = side.scales[(e * (blocks / 4) + block / 4) * rows + row];
            CHECK_EQ(packed >> (8 * (block % 4)) & 0xffu, static_cast<uint32_t>(std::ilogb(scale) + 127));
        } else {
            float got;
            std::memcpy(&got, &side.scales[(e * blocks + block) * rows + row], sizeof got);
            CHECK_EQ(got, scale);
        }
        for (size_t i = 0; i < 128; ++i) CHECK_EQ(q[block * 128 + i], ep_oracle::e4m3(values[i] / scale));
    }
}

// All that a dispatch must have left: rows by source rank, then token, then choice.
inline void check_dispatch(const Round& round, int rank, int format, const Side& side, const Side& before) {
    const Shape& s = round.shape;
    const size_t rows = static_cast<size_t>(s.rows());
    for (int e = 0; e < s.El(); ++e) {
        const size_t at = static_cast<size_t>(e);
        size_t row = 0;
        for (int source = 0; source < s.ranks; ++source) {
            const Round::Of& theirs = round.of[static_cast<size_t>(source)];
            const size_t begin = row;
            for (int i = 0; i < theirs.T * s.K && !round.masked.count(source) && !round.masked.count(rank); ++i) {
                if (theirs.topk[static_cast<size_t>(i)] != rank * s.El() + e) continue;
                CHECK_EQ(side.src_info[at * rows + row], i / s.K);
                CHECK_EQ(side.src_info[(static_cast<size_t>(s.El()) + at) * rows + row], i % s.K);
                check_row(round, format, theirs.x.data() + i / s.K * s.H, side, at, row);
                ++row;
            }
            CHECK_EQ(side.range[at * static_cast<size_t>(s.ranks) + static_cast<size_t>(source)],
                     static_cast<int64_t>(begin << 32 | (row - begin)));
        }
        CHECK_EQ(side.count[at], static_cast<int32_t>(row));
        CHECK_EQ(side.stats[at], before.stats[at] + static_cast<int32_t>(row));
        for (size_t beyond = row; beyond < rows; ++beyond) CHECK_EQ(side.src_info[at * rows + beyond], before.src_info[at * rows + beyond]);
    }
}

// Each expert's answer to what it got, at [expert][row] of strides in values.
inline void answer(const Round& round, const Side& side, uint16_t* to, int64_t stride_expert, int64_t stride_row) {
    const Shape& s = round.shape;
    for (int e = 0; e < s.El(); ++e)
        for (int source = 0; source < s.ranks; ++source) {
            const uint64_t range = static_cast<uint64_t>(side.range[static_cast<size_t>(e * s.ranks + source)]);
            for (uint32_t row = static_cast<uint32_t>(range >> 32), n = static_cast<uint32_t>(range); n != 0; ++row, --n) {
                const size_t at = static_cast<size_t>(e * s.rows()) + row;
                const int choice = side.src_info[static_cast<size_t>(s.El() * s.rows()) + at];
                round.fill_y(source, side.src_info[at], choice, to + e * stride_expert + row * stride_row);
            }
        }
}
inline void answer(const Round& round, Side& side) {
    answer(round, side, side.y.data(), int64_t{round.shape.rows()} * round.shape.H, round.shape.H);
}

inline void check_combine(const Round& round, int rank, const Side& side) {
    const Shape& s = round.shape;
    const Round::Of& mine = round.of[static_cast<size_t>(rank)];
    std::vector<uint16_t> y(static_cast<size_t>(s.H));
    for (int token = 0; token < mine.T; ++token) {
        std::vector<float> sum(static_cast<size_t>(s.H), 0.0f);
        for (int k = 0; k < s.K; ++k) {
            const size_t at = static_cast<size_t>(token * s.K + k);
            if (mine.topk[at] < 0 || round.masked.count(static_cast<int>(mine.topk[at]) / s.El())) continue;
            round.fill_y(rank, token, k, y.data());
            for (size_t i = 0; i < sum.size(); ++i) {
                const float part = mine.weights[at] * float_of(y[i]);
                sum[i] = sum[i] + part;
            }
        }
        for (size_t i = 0; i < sum.size(); ++i) {
            uint32_t bits;
            std::memcpy(&bits, &sum[i], sizeof bits);
            const uint32_t low = bits & 0xffffu, high = bits >> 16;
            const uint32_t rounded = low > 0x8000u || (low == 0x8000u && (high & 1u)) ? high + 1 : high;
            CHECK_EQ(side.combined[static_cast<size_t>(token * s.H) + i], static_cast<uint16_t>(rounded));
        }
    }
    for (size_t i = static_cast<size_t>(mine.T * s.H); i < side.combined.size(); ++i) CHECK_EQ(side.combined[i], 0xeeee);
}

// A dispatch, a combine, and what they must leave. `zero_copy`: the answers are written where they are sent from.
inline void exchange(const Round& round, int rank, ep_group* group, int format, bool zero_copy = false) {
    const Shape& s = round.shape;
    Side side(s);
    const Side before = side;
    ep_ll_dispatch_args dispatch = dispatch_args(round, rank, format, EP_SEND | EP_RECV, side);
    CHECK_OK(error_of(ep_ll_dispatch(group, &dispatch)));
    check_dispatch(round, rank, format, side, before);
    if (zero_copy) {
        void* base = nullptr;
        int64_t stride_expert = 0, stride_row = 0;
        CHECK_OK(error_of(ep_ll_combine_buffer(group, s.M, s.H, s.E, &base, &stride_expert, &stride_row)));
        answer(round, side, static_cast<uint16_t*>(base), stride_expert, stride_row);
    } else {
        answer(round, side);
    }
    ep_ll_combine_args combine = combine_args(round, rank, EP_SEND | EP_RECV, side, zero_copy);
    CHECK_OK(error_of(ep_ll_combine(group, &combine)));
    check_combine(round, rank, side);
}

}  // namespace ll_rig
