// SPDX-License-Identifier: Apache-2.0
#include "record.h"

#include <bit>
#include <cstdio>
#include <cstring>

namespace nvshmem_efa::pe {

const char* op_name(Op op) {
    static constexpr const char* kNames[kOps] = {"put",   "put_nbi", "get",       "get_nbi", "p",
                                                 "g",     "amo",     "amo_fetch", "signal",  "put_signal",
                                                 "fence", "quiet",   "barrier"};
    return kNames[static_cast<size_t>(op)];
}

size_t Histogram::bucket_of(uint64_t ns) {
    if (ns < 16) return ns;
    const int shift = std::bit_width(ns) - 5;  // leaves 16..31
    return static_cast<size_t>(shift + 1) * 16 + ((ns >> shift) & 15u);
}

uint64_t Histogram::lower_edge(size_t bucket) {
    if (bucket < 16) return bucket;
    const size_t shift = bucket / 16 - 1;
    return (16 + bucket % 16) << shift;
}

void Histogram::add(uint64_t ns) {
    ++buckets_[bucket_of(ns)];
    ++count_;
}

uint64_t Histogram::percentile(double p) const {
    uint64_t seen = 0;
    for (size_t i = 0; i < buckets_.size(); ++i) {
        seen += buckets_[i];
        if (seen > 0 && static_cast<double>(seen) >= p * static_cast<double>(count_)) return lower_edge(i);
    }
    return 0;
}

std::string Histogram::json() const {
    std::string text = "[";
    for (size_t i = 0; i < buckets_.size(); ++i) {
        if (!buckets_[i]) continue;
        if (text.size() > 1) text += ", ";
        text += "[" + std::to_string(lower_edge(i)) + ", " + std::to_string(buckets_[i]) + "]";
    }
    return text + "]";
}

std::string Meter::json() const {
    std::string text;
    for (size_t i = 0; i < kOps; ++i) {
        const Entry& entry = entries_[i];
        if (!entry.count) continue;
        if (!text.empty()) text += ", ";
        const auto edge = [&](double p) {
            return entry.times.count() ? std::to_string(entry.times.percentile(p)) : std::string("null");
        };
        text += std::string("{\"op\": \"") + op_name(static_cast<Op>(i)) + "\", \"lane\": \"" + lane_ +
                "\", \"count\": " + std::to_string(entry.count) + ", \"bytes\": " + std::to_string(entry.bytes) +
                ", \"p50_ns\": " + edge(0.5) + ", \"p99_ns\": " + edge(0.99) +
                ", \"histogram\": " + entry.times.json() + "}";
    }
    return text;
}

bool Checker::bytes(const char* what, const void* seen, const void* expected, size_t n) {
    bytes_.fetch_add(n, std::memory_order_relaxed);
    if (std::memcmp(seen, expected, n) == 0) return true;
    const auto* a = static_cast<const unsigned char*>(seen);
    const auto* b = static_cast<const unsigned char*>(expected);
    size_t at = 0;
    while (a[at] == b[at]) ++at;
    char text[160];
    std::snprintf(text, sizeof text, "%s: byte %zu of %zu is 0x%02x, expected 0x%02x", what, at, n, a[at], b[at]);
    mismatch(text);
    return false;
}

bool Checker::word(const char* what, uint64_t seen, uint64_t expected) {
    words_.fetch_add(1, std::memory_order_relaxed);
    if (seen == expected) return true;
    char text[160];
    std::snprintf(text, sizeof text, "%s: the word is 0x%llx, expected 0x%llx", what,
                  static_cast<unsigned long long>(seen), static_cast<unsigned long long>(expected));
    mismatch(text);
    return false;
}

bool Checker::holds(const char* what, bool condition) {
    words_.fetch_add(1, std::memory_order_relaxed);
    if (!condition) mismatch(what);
    return condition;
}

void Checker::mismatch(const std::string& text) {
    mismatches_.fetch_add(1, std::memory_order_relaxed);
    std::lock_guard guard(lock_);
    if (first_.empty()) first_ = text;
}

std::string Checker::json() const {
    std::lock_guard guard(lock_);
    return "{\"bytes\": " + std::to_string(bytes_.load()) + ", \"tokens\": " + std::to_string(tokens_.load()) +
           ", \"words\": " + std::to_string(words_.load()) + ", \"mismatches\": " + std::to_string(mismatches_.load()) +
           ", \"first_mismatch\": " + (first_.empty() ? "null" : json_text(first_)) + "}";
}

std::string json_text(const std::string& text) {
    std::string quoted = "\"";
    for (const char c : text) {
        const auto byte = static_cast<unsigned char>(c);
        if (c == '"' || c == '\\') {
            quoted += '\\';
            quoted += c;
        } else if (byte < 0x20 || byte >= 0x7f) {
            char escaped[8];
            std::snprintf(escaped, sizeof escaped, "\\u%04x", byte);
            quoted += escaped;
        } else {
            quoted += c;
        }
    }
    return quoted + "\"";
}

}  // namespace nvshmem_efa::pe
