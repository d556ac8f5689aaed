// SPDX-License-Identifier: Apache-2.0
#include "transport_steps.h"

#include <algorithm>
#include <cstring>
#include <sstream>

namespace nvshmem_efa::perf {
namespace {

constexpr const char* kCalls[] = {"put", "get", "p", "amo_add", "amo_fetch", "issue", "put_signal", "alltoall", "quiet", "rate"};
constexpr uint64_t kBytesMax = uint64_t{1} << 30;

Status wrong_step(const std::string& text) {
    return Status::error(Code::kInvalidArgument, "a step is call:bytes:in_flight:posters:rounds", "--steps %s", text.c_str());
}

}  // namespace

Status parse_steps(const char* text, std::vector<Step>* steps) {
    std::stringstream all(text ? text : "");
    for (std::string one; std::getline(all, one, ',');) {
        std::stringstream fields(one);
        Step step;
        char colon[4] = {};
        if (!std::getline(fields, step.call, ':')) return wrong_step(one);
        fields >> step.bytes >> colon[0] >> step.in_flight >> colon[1] >> step.posters >> colon[2] >> step.rounds;
        const bool is_whole = !fields.fail() && fields.peek() == EOF && std::strcmp(colon, ":::") == 0;
        const bool is_known = std::find(std::begin(kCalls), std::end(kCalls), step.call) != std::end(kCalls);
        const bool is_sane = step.bytes >= 1 && step.bytes <= kBytesMax && step.in_flight <= 65536 && step.posters >= 1 &&
                             step.posters <= 64 && step.rounds >= 1 && step.rounds <= 1'000'000;
        if (!is_whole || !is_known || !is_sane) return wrong_step(one);
        steps->push_back(std::move(step));
    }
    return steps->empty() ? wrong_step("") : Status();
}

size_t StepRunner::dest_bytes(const Step& step) const {
    if (step.call == "put_signal") return 2 * step.bytes;
    if (step.call == "alltoall") return static_cast<size_t>(pe_.n_pes()) * step.bytes;
    if (step.call == "rate") return size_t{8} * step.posters * step.in_flight;
    return step.bytes * std::max(step.in_flight, 1u);
}

Status StepRunner::open(const std::vector<Step>& steps) {
    size_t bytes = 0;
    for (const Step& step : steps) bytes = std::max(bytes, dest_bytes(step));
    void *dest = nullptr, *source = nullptr, *words = nullptr;
    EFA_TRY(pe_.malloc(bytes, &dest));
    EFA_TRY(pe_.malloc(bytes, &source));
    EFA_TRY(pe_.malloc((static_cast<size_t>(pe_.n_pes()) + 2) * sizeof(uint64_t), &words));
    dest_ = static_cast<char*>(dest);
    source_ = static_cast<char*>(source);
    words_ = static_cast<uint64_t*>(words);
    return Status();
}

bench::Args StepRunner::args_of(const Step& step, uint64_t* out) const {
    using bench::Call;
    bench::Args args{};
    args.out = out;
    args.dest = dest_;
    args.source = source_;
    args.words = words_;
    args.bytes = step.bytes;
    args.peer = peer();
    const Call call = step.call == "get" ? Call::kGet : step.call == "p" ? Call::kP : step.call == "amo_add" ? Call::kAdd
                    : step.call == "amo_fetch" ? Call::kFetchAdd : Call::kPut;
    args.call = static_cast<uint32_t>(call);
    args.rounds = step.rounds;
    args.warm_up = step.warm_up();
    args.in_flight = step.in_flight;
    args.is_issue = step.call == "issue";
    args.n_slots = static_cast<uint32_t>(pe_.n_pes());
    return args;
}

Status StepRunner::run(const Step& step, bool is_posted, Outcome* outcome) {
    if (step.call == "alltoall" && pe_.n_pes() == 1) return outcome->missing = "needs another PE", Status();
    bench::Args all = args_of(step, nullptr);
    all.bytes = dest_bytes(step);
    bench::fill(all, static_cast<uint32_t>(pe_.id()), 0, 1);
    std::memset(words_, 0, (static_cast<size_t>(pe_.n_pes()) + 2) * sizeof(uint64_t));
    EFA_TRY(pe_.barrier_all());
    const bool is_for_all = step.call == "alltoall", is_for_two = step.call == "put_signal";
    if (is_for_all || pe_.id() == 0 || (is_for_two && pe_.id() == 1)) {
        std::vector<double> samples;
        EFA_TRY((is_posted ? post(step, &samples) : ask_proxy(step, &samples)).with_context(step.call.c_str()));
        if (pe_.id() == 0) outcome->samples_ns = std::move(samples);
    }
    EFA_TRY(pe_.barrier_all());
    EFA_TRY(check(step, outcome));
    return pe_.barrier_all();
}

// ---- what must be there afterwards ----

std::vector<StepRunner::Region> StepRunner::regions(const Step& step) const {
    const int me = pe_.id(), n_pes = pe_.n_pes();
    std::vector<Region> all;
    if (step.call == "alltoall") {
        for (int from = 0; from < n_pes; ++from)
            if (from != me) all.push_back({static_cast<size_t>(from) * step.bytes, step.bytes, from});
    } else if (step.call == "put_signal") {
        if (me == peer() || me == 1) all.push_back({0, step.bytes, 0});
        if (me == 0) all.push_back({step.bytes, step.bytes, peer()});
    } else if (step.call == "get") {
        if (me == 0) all.push_back({0, dest_bytes(step), peer()});
    } else if (step.call == "quiet") {
        if (me == (n_pes > 1 ? 1 : 0)) all.push_back({0, size_t{8} * step.in_flight, 0});
    } else if (step.call == "put" || step.call == "issue" || step.call == "rate") {
        if (me == (n_pes > 1 ? 1 : 0)) all.push_back({0, dest_bytes(step), 0});
    }
    return all;
}

Status StepRunner::check(const Step& step, Outcome* outcome) {
    for (const Region& region : regions(step)) {
        bench::Args args = args_of(step, nullptr);
        args.dest = dest_ + region.at;
        args.bytes = region.bytes;
        args.peer = region.owner;
        const uint64_t wrong = bench::wrong_bytes(args, 0, 0, 1);
        outcome->checked += region.bytes;
        if (wrong && outcome->wrong.empty())
            outcome->wrong = step.call + ": " + std::to_string(wrong) + " of " + std::to_string(region.bytes) + " bytes from PE " +
                             std::to_string(region.owner);
    }
    const uint64_t calls = step.rounds + step.warm_up();
    const bool is_sum = step.call == "amo_add" || step.call == "amo_fetch";
    if ((is_sum || step.call == "p") && pe_.id() == (pe_.n_pes() > 1 ? 1 : 0)) {
        const uint64_t wanted = is_sum ? calls * step.in_flight : calls;
        const uint64_t seen = __atomic_load_n(words_, __ATOMIC_ACQUIRE);  // pairs with the agent's store
        outcome->checked += sizeof seen;
        if (seen != wanted && outcome->wrong.empty())
            outcome->wrong = step.call + ": the word is " + std::to_string(seen) + ", not " + std::to_string(wanted);
    }
    return Status();
}

}  // namespace nvshmem_efa::perf
