// SPDX-License-Identifier: Apache-2.0
// SHA-256 and HMAC (FIPS 180-4, RFC 2104), and what a handshake needs beside them. Our own, because the transport lives
// in other people's processes and links nothing but libc.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "status.h"

namespace nvshmem_efa::soft {

using Digest = std::array<uint8_t, 32>;

class Sha256 {
   public:
    void update(const void* bytes, size_t count);
    Digest finish();  // once; the object is used up

   private:
    void block(const uint8_t* bytes);
    std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    uint64_t total_ = 0;
    uint8_t partial_[64] = {};
};

Digest sha256(const void* bytes, size_t count);

class HmacSha256 {
   public:
    HmacSha256(const void* key, size_t key_bytes);
    void update(const void* bytes, size_t count) { inner_.update(bytes, count); }
    Digest finish();

   private:
    Sha256 inner_;
    uint8_t outer_pad_[64];
};

// Takes the same time wherever the difference is.
bool equal_constant_time(const void* left, const void* right, size_t count);

// From the kernel's generator; waits only while the machine's pool is not yet seeded.
Status random_bytes(void* to, size_t count);

}  // namespace nvshmem_efa::soft
