// SPDX-License-Identifier: Apache-2.0
// Steps by posters: CPU threads that call the device API.
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "transport_steps.h"

namespace nvshmem_efa::perf {

// Called before each access to shared memory, of which a call makes a few dozen. A yield is for the threads of this
// process; a nap, seldom enough to be lost in the figures, for other processes, which a spinning one can starve.
void let_others_run() {
    constexpr uint32_t kAccesses = 256;
    constexpr uint64_t kNapEveryNs = 2'000'000;
    thread_local uint32_t made = 0;
    thread_local uint64_t napped_ns = bench::now_ns();
    if (++made % kAccesses != 0) return;
    if (bench::now_ns() - napped_ns < kNapEveryNs) {
        sched_yield();
        return;
    }
    const timespec nap{0, 50'000};
    nanosleep(&nap, nullptr);
    napped_ns = bench::now_ns();
}

// The error that the host finds behind a call that returned false.
Status StepRunner::finish(const Step& step, const uint64_t* out, std::vector<double>* samples) {
    if (const uint64_t failed = out[bench::kFailedRound]) {
        EFA_TRY(pe_.quiet());
        return Status::error(Code::kInternal, "report this", "a call in round %llu failed, and no error record says why",
                             static_cast<unsigned long long>(failed - 1));
    }
    const auto ticks = static_cast<double>(out[bench::kEndTicks] - out[bench::kBeginTicks]);
    const double ns_per_tick = ticks > 0 ? static_cast<double>(out[bench::kEndNs] - out[bench::kBeginNs]) / ticks : 0;
    for (uint32_t i = 0; i < step.rounds; ++i) samples->push_back(static_cast<double>(out[bench::kRecordWords + i]) * ns_per_tick);
    return Status();
}

Status StepRunner::post(const Step& step, std::vector<double>* samples) {
    if (step.call == "rate") return post_rate(step, samples);
    if (step.call == "quiet") return post_quiet(step, samples);
    if (step.call == "put_signal") return post_sides(step, samples);
    std::vector<uint64_t> out(bench::kRecordWords + step.rounds);
    device::cpu_poster = 0;
    if (step.call == "alltoall") bench::all_to_all(state_, args_of(step, out.data()));
    else bench::time_calls(state_, args_of(step, out.data()));
    return finish(step, out.data(), samples);
}

// One PE plays both sides by two threads, two PEs one each.
Status StepRunner::on_sides(const std::function<Status(uint32_t side)>& body) {
    if (pe_.n_pes() > 1) return body(static_cast<uint32_t>(pe_.id()));
    Status answer;
    std::thread other([&] { answer = body(1); });
    Status status = body(0);
    other.join();
    return status.ok() ? std::move(answer) : std::move(status);
}

Status StepRunner::post_sides(const Step& step, std::vector<double>* samples) {
    return on_sides([&](uint32_t side) {
        std::vector<uint64_t> out(bench::kRecordWords + step.rounds);
        std::vector<double> unused;
        device::cpu_poster = side;
        bench::Args args = args_of(step, out.data());
        args.side = side;
        bench::ping_pong(state_, args);
        return finish(step, out.data(), side == 0 ? samples : &unused);
    });
}

// This thread posts as so many posters, whose queues are different ones while there are as many.
Status StepRunner::post_quiet(const Step& step, std::vector<double>* samples) {
    std::vector<uint64_t> out(bench::kRecordWords + step.rounds);
    const bench::Args args = args_of(step, out.data());
    bench::Record record{args.out, args.warm_up, 0};
    for (uint32_t round = 0; round < args.warm_up + args.rounds; ++round) {
        bool is_good = true;
        for (uint32_t i = 0; i < args.in_flight; ++i) {
            device::cpu_poster = i;
            is_good = put_nbi(state_, args.dest + i * 8, args.source + i * 8, 8, args.peer) && is_good;
        }
        record.begin(round);
        is_good = quiet(state_) && is_good;
        record.end(round);
        if (!is_good) {
            record.fail(round);
            break;
        }
    }
    record.finish();
    return finish(step, out.data(), samples);
}

Status StepRunner::post_rate(const Step& step, std::vector<double>* samples) {
    const bench::Args args = args_of(step, nullptr);
    for (uint32_t round = 0; round < step.rounds + step.warm_up(); ++round) {
        struct Times {
            uint64_t begin = 0, end = 0;
            bool is_good = false;
        };
        std::vector<Times> times(step.posters);
        std::atomic<uint32_t> ready{0};
        std::vector<std::thread> threads;
        for (uint32_t poster = 0; poster < step.posters; ++poster)
            threads.emplace_back([&, poster] {
                device::cpu_poster = poster;
                ++ready;
                while (ready.load() < step.posters) std::this_thread::yield();
                times[poster].begin = bench::now_ns();
                times[poster].is_good = bench::strew(state_, args, poster) && quiet(state_);
                times[poster].end = bench::now_ns();
            });
        for (std::thread& thread : threads) thread.join();
        uint64_t failed[bench::kRecordWords] = {}, begin = ~uint64_t{0}, end = 0;
        for (const Times& each : times) {
            if (!each.is_good) failed[bench::kFailedRound] = round + 1;
            begin = std::min(begin, each.begin);
            end = std::max(end, each.end);
        }
        if (failed[bench::kFailedRound]) return finish(step, failed, samples);
        if (round >= step.warm_up()) samples->push_back(static_cast<double>(end - begin));
    }
    return Status();
}

}  // namespace nvshmem_efa::perf
