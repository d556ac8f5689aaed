// SPDX-License-Identifier: Apache-2.0
// Normal mode against an oracle that knows all ranks' inputs: it walks tokens in the order that results must have.
#pragma once

#include <cstring>
#include <random>
#include <vector>

#include "ep_rig.h"

namespace ep_rig {

struct Shape {
    std::vector<int> tokens;  // of each rank
    int hidden = 64, topk = 4, experts_each = 2, channels = 3;
    int n_scales = 0;
    bool column_scales = false;  // token stride 1
    int spare_rows = -1;         // n_worst beyond n; -1: n_worst is 0
    int alignment = 1;
    uint64_t seed = 1;
    // What the choices are: random with holes, all one expert, none.
    enum class Choices { kRandom, kOneExpert, kNone } choices = Choices::kRandom;
    int ranks() const { return static_cast<int>(tokens.size()); }
    int experts() const { return experts_each * ranks(); }
};

// One rank's inputs; every rank can make those of all, from the seed.
struct Input {
    int n = 0;
    std::vector<uint16_t> x;
    std::vector<float> scales;  // [token][value]
    std::vector<int64_t> topk;
    std::vector<float> weights;
};

inline float as_float(uint16_t bf16) {
    const uint32_t bits = static_cast<uint32_t>(bf16) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
// Round to nearest even by trying both neighbours: slow, and nothing like the code under test.
inline uint16_t as_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint16_t down = static_cast<uint16_t>(bits >> 16), up = static_cast<uint16_t>(down + 1);
    const double below = std::abs(static_cast<double>(value) - as_float(down)), above = std::abs(static_cast<double>(as_float(up)) - value);
    if (below != above) return below < above ? down : up;
    return down % 2 == 0 ? down : up;
}

inline Input make_input(const Shape& shape, int rank) {
    std::mt19937_64 random(shape.seed * 1000 + static_cast<uint64_t>(rank));
    Input in;
    in.n = shape.tokens[static_cast<size_t>(rank)];
    for (int i = 0; i < in.n * shape.hidden; ++i)
        in.x.push_back(as_bf16(static_cast<float>(static_cast<int>(random() % 20001) - 10000) / 777.0f));
    for (int i = 0; i < in.n * shape.n_scales; ++i) in.scales.push_back(static_cast<float>(random() % 1000) / 31.0f);
    for (int t = 0; t < in.n; ++t)
        for (int k = 0; k < shape.topk; ++k) {
            int64_t expert = static_cast<int64_t>(random() % static_cast<uint64_t>(shape.experts()));
            if (random() % 5 == 0) expert = -1;
            if (shape.choices == Shape::Choices::kOneExpert) expert = k == 0 ? shape.experts() - 1 : -1;
            if (shape.choices == Shape::Choices::kNone) expert = -1;
            in.topk.push_back(expert);
            in.weights.push_back(static_cast<float>(random() % 4096) / 4096.0f);
        }
    return in;
}

inline bool goes_to(const Shape& shape, const Input& in, int token, int rank) {
    for (int k = 0; k < shape.topk; ++k) {
        const int64_t e = in.topk[static_cast<size_t>(token * shape.topk + k)];
        if (e >= static_cast<int64_t>(rank) * shape.experts_each && e < static_cast<int64_t>(rank + 1) * shape.experts_each) return true;
    }
    return false;
}

// A rank's own tensors through one exchange.
struct Exchange {
    const Shape shape;
    const int rank;
    ep_group* const group;
    std::vector<Input> all;
    std::vector<int32_t> per_rank, per_expert, matrix, channel_matrix, head, recv_per_expert;
    std::vector<uint8_t> is_in;
    std::vector<float> column_scales;
    ep_dispatch_args sent = {};
    int32_t n_recv = 0;

    Exchange(const Shape& of, int of_rank, ep_group* of_group) : shape(of), rank(of_rank), group(of_group) {
        for (int r = 0; r < shape.ranks(); ++r) all.push_back(make_input(shape, r));
    }
    ~Exchange() { ep_unplace(group, sent.recv_block); }
    Exchange(const Exchange&) = delete;
    Exchange& operator=(const Exchange&) = delete;

    const Input& own() const { return all[static_cast<size_t>(rank)]; }
    size_t R() const { return shape.tokens.size(); }

    void make_layout() {
        per_rank.resize(R());
        per_expert.resize(static_cast<size_t>(shape.experts()));
        is_in.assign(static_cast<size_t>(own().n) * R(), 9);
        ep_layout_args args = {sizeof args, own().n, shape.topk, shape.experts(), shape.ranks(), own().topk.data(),
                               per_rank.data(), per_expert.data(), is_in.data()};
        CHECK_OK(error_of(ep_layout(&args)));
    }
    Error notify(int n_channels = 0) {
        const int channels = n_channels ? n_channels : shape.channels;
        matrix.resize(R() * R());
        channel_matrix.resize(R() * static_cast<size_t>(channels));
        head.resize(is_in.size());
        recv_per_expert.resize(static_cast<size_t>(shape.experts_each));
        ep_notify_args args = {sizeof args, own().n, shape.experts(), channels, shape.alignment, per_rank.data(), per_expert.data(), is_in.data(),
                               matrix.data(), channel_matrix.data(), head.data(), recv_per_expert.data(), -1};
        const Error error = error_of(ep_notify(group, &args));
        n_recv = args.n_recv;
        return error;
    }
    ep_dispatch_args dispatch_args(bool is_cached) {
        ep_dispatch_args args = {};
        args.bytes = sizeof args;
        args.n_tokens = own().n;
        args.n_recv = n_recv;
        args.row_bytes = shape.hidden * 2;
        args.n_scales = shape.n_scales;
        args.scale_bytes = 4;
        column_scales = own().scales;
        args.scale_stride_token = shape.n_scales;
        args.scale_stride_value = 1;
        if (shape.column_scales) {
            for (int t = 0; t < own().n; ++t)
                for (int s = 0; s < shape.n_scales; ++s)
                    column_scales[static_cast<size_t>(s * own().n + t)] = own().scales[static_cast<size_t>(t * shape.n_scales + s)];
            args.scale_stride_token = 1;
            args.scale_stride_value = own().n;
        }
        args.n_topk = is_cached ? 0 : shape.topk;
        args.n_experts = is_cached ? 0 : shape.experts();
        args.n_channels = shape.channels;
        args.n_worst = shape.spare_rows < 0 || is_cached ? 0 : n_recv + shape.spare_rows;
        args.x = own().x.data();
        args.scales = column_scales.data();
        args.topk_idx = own().topk.data();
        args.topk_weights = own().weights.data();
        args.is_token_in_rank = is_in.data();
        args.send_head = head.data();
        args.rank_prefix_matrix = matrix.data();
        args.channel_prefix_matrix = channel_matrix.data();
        args.n_ranks = static_cast<int32_t>(R());
        return args;
    }
    void place(ep_dispatch_args& args) const {
        const int64_t bytes = ep_dispatch_place(&args);
        CHECK(bytes >= 0);
        args.recv_block = ep_place(group, bytes);
        CHECK(args.recv_block != nullptr);
        std::memset(args.recv_block, 0xab, static_cast<size_t>(bytes));
        CHECK_EQ(ep_dispatch_place(&args), bytes);
    }
    void dispatch(bool is_cached = false) {
        if (sent.recv_block) ep_unplace(group, sent.recv_block);
        sent = dispatch_args(is_cached);
        place(sent);
        CHECK_OK(error_of(ep_dispatch(group, &sent)));
    }

    void check_layout() const;
    void check_notify() const;
    void check_received() const;
    void combine_and_check(int n_biases) const;
    void run() {
        make_layout();
        check_layout();
        CHECK_OK(notify());
        check_notify();
        dispatch();
        check_received();
    }
};

inline void Exchange::check_layout() const {
    for (int r = 0; r < shape.ranks(); ++r) {
        int32_t n = 0;
        for (int t = 0; t < own().n; ++t) {
            const bool goes = goes_to(shape, own(), t, r);
            n += goes;
            CHECK_EQ(is_in[static_cast<size_t>(t) * R() + static_cast<size_t>(r)], goes ? 1 : 0);
        }
        CHECK_EQ(per_rank[static_cast<size_t>(r)], n);
    }
    std::vector<int32_t> counted(per_expert.size());
    for (const int64_t e : own().topk)
        if (e >= 0) ++counted[static_cast<size_t>(e)];
    CHECK(counted == per_expert);
}

inline void Exchange::check_notify() const {
    for (size_t to = 0; to < R(); ++to) {
        int32_t n = 0;
        for (size_t from = 0; from < R(); ++from) {
            for (int t = 0; t < all[from].n; ++t) n += goes_to(shape, all[from], t, static_cast<int>(to));
            CHECK_EQ(matrix[from * R() + to], n);
        }
        if (static_cast<int>(to) == rank) CHECK_EQ(n_recv, n);
        int32_t ordinal = 0;
        const int per_channel = (own().n + shape.channels - 1) / shape.channels;
        for (int c = 0; c < shape.channels; ++c) {
            for (int t = c * per_channel; t < std::min(own().n, (c + 1) * per_channel); ++t)
                CHECK_EQ(head[static_cast<size_t>(t) * R() + to], goes_to(shape, own(), t, static_cast<int>(to)) ? ordinal++ : -1);
            CHECK_EQ(channel_matrix[to * static_cast<size_t>(shape.channels) + static_cast<size_t>(c)], ordinal);
        }
    }
    for (int e = 0; e < shape.experts_each; ++e) {
        int32_t n = 0;
        for (const Input& in : all)
            for (const int64_t chosen : in.topk) n += chosen == static_cast<int64_t>(rank) * shape.experts_each + e;
        while (n % shape.alignment != 0) ++n;
        CHECK_EQ(recv_per_expert[static_cast<size_t>(e)], n);
    }
}

inline void Exchange::check_received() const {
    const size_t H = static_cast<size_t>(shape.hidden), S = static_cast<size_t>(shape.n_scales), K = static_cast<size_t>(shape.topk);
    size_t row = 0;
    for (size_t from = 0; from < R(); ++from) {
        const Input& in = all[from];
        const int per_channel = (in.n + shape.channels - 1) / shape.channels;
        int32_t in_block = 0;
        for (int t = 0; t < in.n; ++t) {
            const size_t token = static_cast<size_t>(t);
            const size_t channel = from * static_cast<size_t>(shape.channels) + static_cast<size_t>(t / per_channel);
            if (t % per_channel == 0) CHECK_EQ(sent.recv_channel_prefix_matrix[channel], in_block);
            if (!goes_to(shape, in, t, rank)) continue;
            CHECK(std::memcmp(static_cast<const uint16_t*>(sent.recv_x) + row * H, &in.x[token * H], H * 2) == 0);
            if (S) CHECK(std::memcmp(static_cast<const float*>(sent.recv_scales) + row * S, &in.scales[token * S], S * 4) == 0);
            CHECK_EQ(sent.recv_src_idx[row], t);
            for (size_t k = 0; k < K && sent.n_topk; ++k) {
                const int64_t local = in.topk[token * K + k] - static_cast<int64_t>(rank) * shape.experts_each;
                const bool is_here = local >= 0 && local < shape.experts_each;
                CHECK_EQ(sent.recv_topk_idx[row * K + k], is_here ? local : -1);
                CHECK_EQ(sent.recv_topk_weights[row * K + k], is_here ? in.weights[token * K + k] : 0.0f);
            }
            ++in_block;
            ++row;
        }
    }
    CHECK_EQ(row, static_cast<size_t>(n_recv));
    for (int i = n_recv; i < sent.n_worst; ++i) {
        for (size_t k = 0; k < K; ++k) CHECK_EQ(sent.recv_topk_idx[static_cast<size_t>(i) * K + k], int64_t{-1});
        CHECK_EQ(static_cast<const uint16_t*>(sent.recv_x)[static_cast<size_t>(i) * H], 0xabab);  // left as it was
    }
}

// Each rank hands back the rows that it got, changed in a way that the oracle can follow: large values that cancel, so
// that sums in another order come out different.
inline uint16_t answered(uint16_t value, int by_rank) {
    constexpr float kFactors[] = {67108864.0f, 1.0f, -67108864.0f, 0.37f};
    return as_bf16(as_float(value) * kFactors[by_rank % 4]);
}

inline void Exchange::combine_and_check(int n_biases) const {
    const size_t H = static_cast<size_t>(shape.hidden), K = static_cast<size_t>(shape.topk), T = static_cast<size_t>(own().n);
    std::vector<uint16_t> answer(static_cast<size_t>(n_recv) * H), bias[2], combined(T * H);
    for (size_t i = 0; i < answer.size(); ++i) answer[i] = answered(static_cast<const uint16_t*>(sent.recv_x)[i], rank);
    for (int b = 0; b < n_biases; ++b)
        for (size_t i = 0; i < T * H; ++i) bias[b].push_back(as_bf16(static_cast<float>(i % 301) * 0.013f - static_cast<float>(b)));
    std::vector<float> weights(T * K);
    ep_combine_args args = {sizeof args, own().n, n_recv, shape.hidden, shape.topk, 0, answer.data(), sent.recv_topk_weights,
                            n_biases > 0 ? bias[0].data() : nullptr, n_biases > 1 ? bias[1].data() : nullptr, is_in.data(), head.data(),
                            matrix.data(), combined.data(), weights.data()};
    CHECK_OK(error_of(ep_combine(group, &args)));
    for (size_t t = 0; t < T; ++t) {
        for (size_t h = 0; h < H; ++h) {
            float sum = 0;
            for (int r = 0; r < shape.ranks(); ++r)
                if (goes_to(shape, own(), static_cast<int>(t), r)) sum += as_float(answered(own().x[t * H + h], r));
            for (int b = 0; b < n_biases; ++b) sum += as_float(bias[b][t * H + h]);
            CHECK_EQ(combined[t * H + h], as_bf16(sum));
        }
        for (size_t k = 0; k < K; ++k)  // one rank at most has a given choice's expert
            CHECK_EQ(weights[t * K + k], own().topk[t * K + k] < 0 ? 0.0f : own().weights[t * K + k]);
    }
}

}  // namespace ep_rig
