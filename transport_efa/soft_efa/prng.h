// SPDX-License-Identifier: Apache-2.0
// The seeded generator behind every choice of the software device (splitmix64: one add and three mixes a draw).
#pragma once

#include <cstdint>

namespace nvshmem_efa::soft {

inline uint64_t mix64(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

class Prng {
   public:
    explicit Prng(uint64_t seed) : state_(mix64(seed + 0x9e3779b97f4a7c15u)) {}
    uint64_t next() { return mix64(state_ += 0x9e3779b97f4a7c15u); }
    // Uniform in [0, bound); 0 when bound is 0. The bias of the multiply is below 2^-32 for the bounds used here.
    uint64_t below(uint64_t bound) {
        return static_cast<uint64_t>((static_cast<unsigned __int128>(next()) * bound) >> 64);
    }
    bool one_in_million(uint32_t ppm) { return ppm != 0 && below(1'000'000) < ppm; }

   private:
    uint64_t state_;
};

}  // namespace nvshmem_efa::soft
