// SPDX-License-Identifier: Apache-2.0
#include "soft_efa/auth.h"

#include <sys/random.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace nvshmem_efa::soft {
namespace {

// First 32 bits of the fractional parts of the cube roots of the first 64 primes (FIPS 180-4, 4.2.2).
constexpr uint32_t kRound[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

uint32_t rotate_right(uint32_t value, int count) { return (value >> count) | (value << (32 - count)); }

uint32_t load_big_endian(const uint8_t* bytes) {
    return static_cast<uint32_t>(bytes[0]) << 24 | static_cast<uint32_t>(bytes[1]) << 16 |
           static_cast<uint32_t>(bytes[2]) << 8 | bytes[3];
}

}  // namespace

void Sha256::block(const uint8_t* bytes) {
    uint32_t w[64];
    for (int i = 0; i < 16; ++i) w[i] = load_big_endian(bytes + 4 * i);
    for (int i = 16; i < 64; ++i) {
        const uint32_t s0 = rotate_right(w[i - 15], 7) ^ rotate_right(w[i - 15], 18) ^ (w[i - 15] >> 3);
        const uint32_t s1 = rotate_right(w[i - 2], 17) ^ rotate_right(w[i - 2], 19) ^ (w[i - 2] >> 10);
        w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    auto [a, b, c, d, e, f, g, h] = state_;
    for (int i = 0; i < 64; ++i) {
        const uint32_t s1 = rotate_right(e, 6) ^ rotate_right(e, 11) ^ rotate_right(e, 25);
        const uint32_t t1 = h + s1 + ((e & f) ^ (~e & g)) + kRound[i] + w[i];
        const uint32_t s0 = rotate_right(a, 2) ^ rotate_right(a, 13) ^ rotate_right(a, 22);
        const uint32_t t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
        h = g;
        g = f;
        f = e;
        e = d + t1;
        d = c;
        c = b;
        b = a;
        a = t1 + t2;
    }
    const uint32_t added[8] = {a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; ++i) state_[i] += added[i];
}

void Sha256::update(const void* bytes, size_t count) {
    const auto* from = static_cast<const uint8_t*>(bytes);
    while (count > 0) {
        const size_t held = total_ % 64;
        const size_t taken = std::min(count, 64 - held);
        std::memcpy(partial_ + held, from, taken);
        total_ += taken;
        from += taken;
        count -= taken;
        if (total_ % 64 == 0) block(partial_);
    }
}

Digest Sha256::finish() {
    const uint64_t bits = total_ * 8;
    const uint8_t end = 0x80;
    const uint8_t zeros[64] = {};
    update(&end, 1);
    update(zeros, (120 - total_ % 64) % 64);
    uint8_t length[8];
    for (int i = 0; i < 8; ++i) length[i] = static_cast<uint8_t>(bits >> (56 - 8 * i));
    update(length, 8);
    Digest digest;
    for (int i = 0; i < 32; ++i) digest[i] = static_cast<uint8_t>(state_[i / 4] >> (24 - 8 * (i % 4)));
    return digest;
}

Digest sha256(const void* bytes, size_t count) {
    Sha256 hash;
    hash.update(bytes, count);
    return hash.finish();
}

HmacSha256::HmacSha256(const void* key, size_t key_bytes) {
    uint8_t padded[64] = {};
    if (key_bytes > sizeof padded) {
        const Digest short_key = sha256(key, key_bytes);
        std::memcpy(padded, short_key.data(), short_key.size());
    } else {
        std::memcpy(padded, key, key_bytes);
    }
    uint8_t inner_pad[64];
    for (int i = 0; i < 64; ++i) {
        inner_pad[i] = padded[i] ^ 0x36;
        outer_pad_[i] = padded[i] ^ 0x5c;
    }
    inner_.update(inner_pad, sizeof inner_pad);
}

Digest HmacSha256::finish() {
    const Digest inner = inner_.finish();
    Sha256 outer;
    outer.update(outer_pad_, sizeof outer_pad_);
    outer.update(inner.data(), inner.size());
    return outer.finish();
}

bool equal_constant_time(const void* left, const void* right, size_t count) {
    const auto* a = static_cast<const volatile uint8_t*>(left);
    const auto* b = static_cast<const volatile uint8_t*>(right);
    uint8_t difference = 0;
    for (size_t i = 0; i < count; ++i) difference = static_cast<uint8_t>(difference | (a[i] ^ b[i]));
    return difference == 0;
}

Status random_bytes(void* to, size_t count) {
    auto* at = static_cast<uint8_t*>(to);
    while (count > 0) {
        const ssize_t got = getrandom(at, count, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) {
            return Status::error(Code::kResource, "the kernel's random generator (getrandom) must be allowed to this process",
                                 "cannot draw random bytes: %s", std::strerror(errno));
        }
        at += got;
        count -= static_cast<size_t>(got);
    }
    return Status();
}

}  // namespace nvshmem_efa::soft
