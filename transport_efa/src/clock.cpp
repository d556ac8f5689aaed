// SPDX-License-Identifier: Apache-2.0
#include "clock.h"

#include <sched.h>
#include <time.h>

namespace nvshmem_efa {
namespace {

constexpr uint32_t kSpinTurns = 256;    // about 10 us of pauses
constexpr uint32_t kYieldTurns = 4096;  // then give the core away, which matters where PEs outnumber cores
constexpr long kSleepNs = 20'000;       // then sleep: an idle process must not burn a core

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
        } else if (idle_turns < kYieldTurns) {
            sched_yield();
        } else {
            const timespec nap{0, kSleepNs};
            nanosleep(&nap, nullptr);
        }
    }
};

}  // namespace

Clock& real_clock() {
    static RealClock clock;
    return clock;
}

}  // namespace nvshmem_efa
