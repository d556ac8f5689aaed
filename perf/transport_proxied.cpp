// SPDX-License-Identifier: Apache-2.0
// The same steps through the proxy: requests to its thread, which calls the plugin, as NVSHMEM's does for a GPU.
#include <algorithm>
#include <atomic>
#include <thread>

#include "transport_steps.h"

namespace nvshmem_efa::perf {

using pe::Compare;

Status StepRunner::ask_call(const Step& step, uint32_t i, uint64_t value) {
    const size_t at = i * step.bytes;
    pe::Proxy& proxy = pe_.proxy();
    if (step.call == "get") return proxy.get_nbi({peer(), source_ + at, dest_ + at, step.bytes});
    if (step.call == "p") return proxy.p(peer(), words_, value, 8);
    if (step.call == "amo_add") return proxy.amo(peer(), words_, {abi::kAmoInc});
    uint64_t old = 0;
    if (step.call == "amo_fetch") return proxy.amo(peer(), words_, {abi::kAmoFetchInc}, &old);
    return proxy.put_nbi({peer(), dest_ + at, source_ + at, step.bytes});
}

Status StepRunner::ask_proxy(const Step& step, std::vector<double>* samples) {
    if (step.call == "rate") return ask_rate(step, samples);
    if (step.call == "alltoall") return ask_all_to_all(step, samples);
    if (step.call == "put_signal") return on_sides([&](uint32_t side) { return ask_side(step, side, samples); });
    const bool is_quiet = step.call == "quiet", is_issue = step.call == "issue";
    for (uint32_t round = 0; round < step.warm_up() + step.rounds; ++round) {
        const uint64_t begin = bench::now_ns();
        for (uint32_t i = 0; i < step.in_flight; ++i) EFA_TRY(ask_call(step, i, round + 1));
        const uint64_t asked = bench::now_ns();
        EFA_TRY(pe_.proxy().quiet());
        const uint64_t end = is_issue ? asked : bench::now_ns();
        if (round >= step.warm_up()) samples->push_back(static_cast<double>(end - (is_quiet ? asked : begin)));
    }
    return Status();
}

Status StepRunner::ask_side(const Step& step, uint32_t side, std::vector<double>* samples) {
    for (uint32_t round = 0; round < step.warm_up() + step.rounds; ++round) {
        const uint64_t begin = bench::now_ns();
        for (uint32_t turn = 0; turn < 2; ++turn) {
            if (turn == side) {
                const pe::Amo set{abi::kAmoSignalSet, round + 1};
                EFA_TRY(pe_.proxy().put_signal({peer(), dest_ + turn * step.bytes, source_, step.bytes}, words_ + turn, set));
            } else {
                EFA_TRY(pe_.wait_until(words_ + turn, Compare::kAtLeast, round + 1, peer()));
            }
        }
        if (side == 0 && round >= step.warm_up()) samples->push_back(static_cast<double>(bench::now_ns() - begin));
    }
    return pe_.proxy().quiet();
}

Status StepRunner::ask_all_to_all(const Step& step, std::vector<double>* samples) {
    const int me = pe_.id(), n_pes = pe_.n_pes();
    for (uint32_t round = 0; round < step.warm_up() + step.rounds; ++round) {
        const uint64_t begin = bench::now_ns();
        const pe::Amo set{abi::kAmoSignalSet, round + 1};
        for (int hop = 1; hop < n_pes; ++hop) {
            const int to = (me + hop) % n_pes;
            EFA_TRY(pe_.proxy().put_signal({to, dest_ + static_cast<size_t>(me) * step.bytes, source_, step.bytes}, words_ + me, set));
        }
        for (int from = 0; from < n_pes; ++from)
            if (from != me) EFA_TRY(pe_.wait_until(words_ + from, Compare::kAtLeast, round + 1, from));
        if (round >= step.warm_up()) samples->push_back(static_cast<double>(bench::now_ns() - begin));
    }
    return pe_.proxy().quiet();
}

Status StepRunner::ask_rate(const Step& step, std::vector<double>* samples) {
    for (uint32_t round = 0; round < step.rounds + step.warm_up(); ++round) {
        struct Times {
            uint64_t begin = 0, end = 0;
            Status status;
        };
        std::vector<Times> times(step.posters);
        std::atomic<uint32_t> ready{0};
        const auto poster = [&](uint32_t number) {
            Times& mine = times[number];
            ++ready;
            while (ready.load() < step.posters) std::this_thread::yield();
            mine.begin = bench::now_ns();
            const size_t first = size_t{number} * step.in_flight;
            for (size_t i = first; i < first + step.in_flight && mine.status.ok(); ++i)
                mine.status = pe_.proxy().put_nbi({peer(), dest_ + i * 8, source_ + i * 8, 8});
            if (mine.status.ok()) mine.status = pe_.proxy().quiet();
            mine.end = bench::now_ns();
        };
        std::vector<std::thread> threads;
        for (uint32_t i = 0; i < step.posters; ++i) threads.emplace_back(poster, i);
        for (std::thread& thread : threads) thread.join();
        uint64_t begin = ~uint64_t{0}, end = 0;
        for (Times& each : times) {
            if (!each.status.ok()) return std::move(each.status);
            begin = std::min(begin, each.begin);
            end = std::max(end, each.end);
        }
        if (round >= step.warm_up()) samples->push_back(static_cast<double>(end - begin));
    }
    return Status();
}

}  // namespace nvshmem_efa::perf
