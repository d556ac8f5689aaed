// SPDX-License-Identifier: Apache-2.0
// The steps of `nvshmem-efa bench transport` on CPU threads: each by posters (the device API) and through the proxy, as
// NVSHMEM's GPU side would ask it. What is timed: transport_efa/kernels/bench_bodies.h.
#pragma once

#include <functional>
#include <string>
#include <vector>

// Posters spin, and there may be fewer cores than spinning threads: now and then they let others run.
namespace nvshmem_efa::perf {
void let_others_run();
}
#define NVSHMEM_EFA_STEP_HOOK ::nvshmem_efa::perf::let_others_run

#include "bench_bodies.h"
#include "pe_runtime/pe.h"

namespace nvshmem_efa::perf {

// python/nvshmem_efa/bench_plan.py says what the names mean. As text: call:bytes:in_flight:posters:rounds
struct Step {
    std::string call;
    uint64_t bytes = 8;
    uint32_t in_flight = 1;
    uint32_t posters = 1;
    uint32_t rounds = 1;
    uint32_t warm_up() const { return rounds / 10 + 1; }
};
Status parse_steps(const char* text, std::vector<Step>* steps);

struct Outcome {
    std::vector<double> samples_ns;  // of the PE that times; empty elsewhere
    uint64_t checked = 0;            // bytes and words of this PE
    std::string wrong;               // the first of them that is not as it must be
    std::string missing;             // why the step cannot be measured
};

// One PE's part in all steps. All PEs call the same in the same order.
class StepRunner {
   public:
    StepRunner(pe::Pe& pe, const DeviceState& state) : pe_(pe), state_(state) {}
    Status open(const std::vector<Step>& steps);
    Status run(const Step& step, bool is_posted, Outcome* outcome);

   private:
    struct Region {  // of `dest`, that a step must fill from the start of `owner`'s source
        size_t at, bytes;
        int owner;
    };
    size_t dest_bytes(const Step& step) const;
    std::vector<Region> regions(const Step& step) const;
    int peer() const { return pe_.n_pes() > 1 ? 1 - pe_.id() % 2 : 0; }
    bench::Args args_of(const Step& step, uint64_t* out) const;

    Status post(const Step& step, std::vector<double>* samples);
    Status post_rate(const Step& step, std::vector<double>* samples);
    Status post_quiet(const Step& step, std::vector<double>* samples);
    Status post_sides(const Step& step, std::vector<double>* samples);
    Status finish(const Step& step, const uint64_t* out, std::vector<double>* samples);

    Status ask_proxy(const Step& step, std::vector<double>* samples);
    Status ask_call(const Step& step, uint32_t i, uint64_t value);
    Status ask_rate(const Step& step, std::vector<double>* samples);
    Status ask_side(const Step& step, uint32_t side, std::vector<double>* samples);
    Status ask_all_to_all(const Step& step, std::vector<double>* samples);
    Status on_sides(const std::function<Status(uint32_t side)>& body);

    Status check(const Step& step, Outcome* outcome);

    pe::Pe& pe_;
    const DeviceState& state_;
    char* dest_ = nullptr;
    char* source_ = nullptr;
    uint64_t* words_ = nullptr;  // [n_pes + 2]
};

}  // namespace nvshmem_efa::perf
