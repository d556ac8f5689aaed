// SPDX-License-Identifier: Apache-2.0
#include "clock.h"

#include <sched.h>
#include <time.h>

namespace nvshmem_efa {
namespace {

constexpr uint32_t kSpinTurns = 256;  // about 10 us of pauses
// Then give the core away. Threads that outnumber the cores must soon sleep, or they pass the cores round among
// themselves: the demo's 4 PEs on 2 cores took 12 to 19 s with 4096 turns, and 3.6 to 5.6 s with 320.
constexpr uint32_t kYieldTurnsManyCores = 4096;
constexpr uint32_t kYieldTurnsFewCores = 320;
constexpr int kManyCores = 8;
constexpr long kSleepNs = 20'000;  // then sleep: an idle process must not burn a core

uint32_t yield_turns() {
    cpu_set_t usable;
    CPU_ZERO(&usable);
    const bool is_known = sched_getaffinity(0, sizeof usable, &usable) == 0;
    return is_known && CPU_COUNT(&usable) < kManyCores ? kYieldTurnsFewCores : kYieldTurnsManyCores;
}

class RealClock final : public Clock {
   public:
    uint64_t now_ns() override {
        timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(now.tv_nsec);
    }
    void relax(uint32_t idle_turns) override {
        if (idle_turns < kSpinTurns) {
#if defined(__x86_64__)
            __builtin_ia32_pause();
#elif defined(__aarch64__)
            asm volatile("yield");
#endif
        } else if (idle_turns < yield_turns_) {
            sched_yield();
        } else {
            const timespec nap{0, kSleepNs};
            nanosleep(&nap, nullptr);
        }
    }

   private:
    const uint32_t yield_turns_ = yield_turns();
};

}  // namespace

Clock& real_clock() {
    static RealClock clock;
    return clock;
}

}  // namespace nvshmem_efa
