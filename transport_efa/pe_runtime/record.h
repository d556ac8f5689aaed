// SPDX-License-Identifier: Apache-2.0
// What a run counted, timed and checked, and its JSON. Format: docs/pe-runtime.md.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "status.h"

namespace nvshmem_efa::pe {

enum class Op : uint8_t {
    kPut,
    kPutNbi,
    kGet,
    kGetNbi,
    kP,
    kG,
    kAmo,
    kAmoFetch,
    kSignal,
    kPutSignal,
    kFence,
    kQuiet,
    kBarrier
};
inline constexpr size_t kOps = 13;
const char* op_name(Op op);

// Log-linear: 16 buckets an octave.
class Histogram {
   public:
    void add(uint64_t ns);
    uint64_t count() const { return count_; }
    uint64_t percentile(double p) const;  // lower edge of the bucket that holds it
    std::string json() const;             // [[lower_ns, count], ...]

   private:
    static constexpr size_t kBuckets = 64 * 16;
    static size_t bucket_of(uint64_t ns);
    static uint64_t lower_edge(size_t bucket);
    std::vector<uint32_t> buckets_ = std::vector<uint32_t>(kBuckets, 0);
    uint64_t count_ = 0;
};

// Of one lane; one thread at a time.
class Meter {
   public:
    explicit Meter(const char* lane) : lane_(lane) {}
    void count(Op op, uint64_t bytes) { ++at(op).count, at(op).bytes += bytes; }
    void time(Op op, uint64_t ns) { at(op).times.add(ns); }
    std::string json() const;  // entries with commas between, or ""

   private:
    struct Entry {
        uint64_t count = 0;
        uint64_t bytes = 0;
        Histogram times;
    };
    Entry& at(Op op) { return entries_[static_cast<size_t>(op)]; }
    const char* lane_;
    std::array<Entry, kOps> entries_;
};

// Compares and counts; any thread.
class Checker {
   public:
    // Each returns whether it was right; the first mismatch is kept in words.
    bool bytes(const char* what, const void* seen, const void* expected, size_t n);
    bool word(const char* what, uint64_t seen, uint64_t expected);
    bool holds(const char* what, bool condition);
    void token() { tokens_.fetch_add(1, std::memory_order_relaxed); }
    uint64_t mismatches() const { return mismatches_.load(); }
    std::string json() const;

   private:
    void mismatch(const std::string& text);
    std::atomic<uint64_t> bytes_{0}, tokens_{0}, words_{0}, mismatches_{0};
    mutable std::mutex lock_;
    std::string first_;
};

std::string json_text(const std::string& text);  // quoted and escaped

}  // namespace nvshmem_efa::pe
