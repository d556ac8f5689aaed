// SPDX-License-Identifier: Apache-2.0
// Cases of the GPU test program. A case is collective: every PE runs it, and goes on after a difference, so that no PE
// is left waiting; what differed is kept and reported. A lost wait (a signal that never came) ends the process, because
// late traffic would spoil the next case; the launcher then restarts with the cases that are left.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "image.h"

namespace gpu_ops {

struct Skip {
    std::string why;
};

class DeviceTrouble;

// One run of one case on one PE.
class Run {
   public:
    Run(const Job& job, const char* name, uint64_t seed) : job(job), name(name), seed(seed) {}
    void fail(const char* format, ...) __attribute__((format(printf, 2, 3)));
    // Reads what kernels reported (synchronises the stream) and clears it. Ends the process when a wait timed out.
    void check(DeviceTrouble& trouble, const char* where);
    // Results that must be equal over every transport; the order of the calls counts.
    void add_digest(uint64_t value) { digest = mix2(digest, value); }
    void note(const char* format, ...) __attribute__((format(printf, 2, 3)));
    int peer(int shift) const { return (job.pe + shift + job.npes) % job.npes; }
    // `count` scaled by --scale, at least `least`.
    int scaled(double count, int least = 1) const {
        int n = static_cast<int>(count * job.scale);
        return n < least ? least : n;
    }

    // Prints the case's event; `status` is pass, fail or skip.
    void print(const char* status, const std::string& detail) const;

    const Job& job;
    const char* name;
    const uint64_t seed;
    uint64_t digest = 0;
    std::string differences;
    std::string notes;

   private:
    int failures_ = 0;
    const std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

class DeviceTrouble {
   public:
    DeviceTrouble() : memory_(1) {}
    Trouble* get() const { return memory_.get(); }
    Trouble take() {
        Trouble found = memory_.read()[0];
        CUDA_CHECK(cudaMemset(memory_.get(), 0, sizeof(Trouble)));
        CUDA_CHECK(cudaStreamSynchronize(nullptr));
        return found;
    }

   private:
    Device<Trouble> memory_;
};

struct CaseInfo {
    const char* name;
    const char* group;
    int rank;       // order of importance: lower runs first
    int timeout_s;  // for the watchdog
    void (*run)(Run&);
};
std::vector<CaseInfo>& all_cases();
struct RegisterCase {
    explicit RegisterCase(const CaseInfo& info) { all_cases().push_back(info); }
};

#define GPU_CASE(name, group, rank, timeout_s)                                                       \
    static void case_##name(Run& run);                                                               \
    static const RegisterCase register_##name({#name, group, rank, timeout_s, case_##name});         \
    static void case_##name(Run& run)

}  // namespace gpu_ops
