// SPDX-License-Identifier: Apache-2.0
// What every byte of the demo must be: pure functions of the seed. Every PE can work out what every other one sends.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

namespace nvshmem_efa::pe {

constexpr uint64_t mix(uint64_t x) {  // a bijection that scatters bits (the finalizer of splitmix64)
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

// A seeded sequence; also the demo's source of random choices.
class Sequence {
   public:
    constexpr explicit Sequence(uint64_t key) : state_(mix(key)) {}
    constexpr uint64_t next() { return mix(state_ += 0x632be59bd9b4e019u); }
    constexpr uint64_t below(uint64_t limit) { return next() % limit; }

   private:
    uint64_t state_;
};

struct TokenId {
    uint32_t pe = 0;  // the owner
    uint32_t token = 0;
    uint32_t slot = 0;
    uint32_t round = 0;

    constexpr uint64_t key(uint64_t seed) const {
        return mix(seed ^ mix((uint64_t{pe} << 32 | token) ^ mix(uint64_t{slot} << 32 | round)));
    }
};

inline void fill_bytes(uint64_t key, void* out, size_t bytes) {
    Sequence sequence(key);
    auto* at = static_cast<unsigned char*>(out);
    for (; bytes > 0;) {
        const uint64_t word = sequence.next();
        const size_t n = std::min<size_t>(bytes, sizeof word);
        std::memcpy(at, &word, n);
        at += n;
        bytes -= n;
    }
}

// The experts of a token: `topk` different ones.
inline std::vector<uint32_t> route_token(uint64_t seed, TokenId id, uint32_t topk, uint32_t experts) {
    std::vector<uint32_t> all(experts);
    std::iota(all.begin(), all.end(), 0u);
    id.slot = ~0u;
    Sequence sequence(id.key(seed));
    for (uint32_t k = 0; k < topk; ++k) std::swap(all[k], all[k + sequence.below(experts - k)]);
    all.resize(topk);
    return all;
}

// What an expert does to a token, in place: another function for each expert, and each byte depends on its position.
inline void expert_transform(uint32_t expert, void* token, size_t bytes) {
    auto* at = static_cast<unsigned char*>(token);
    uint64_t key = mix(expert + 1);
    for (; bytes > 0; key += 0x9e3779b97f4a7c15u) {
        uint64_t word = 0;
        const size_t n = std::min<size_t>(bytes, sizeof word);
        std::memcpy(&word, at, n);
        word = word * 5 + key;  // bytes of `word` beyond n do not reach lower ones
        std::memcpy(at, &word, n);
        at += n;
        bytes -= n;
    }
}

}  // namespace nvshmem_efa::pe
