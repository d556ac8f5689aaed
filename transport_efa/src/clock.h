// SPDX-License-Identifier: Apache-2.0
// Time and waiting, behind one seam: real threads, or a simulation with virtual nanoseconds.
#pragma once

#include <cstdint>

namespace nvshmem_efa {

class Clock {
   public:
    virtual ~Clock() = default;
    virtual uint64_t now_ns() = 0;
    // Called once per turn of every wait loop. Real time: pause, then yield, then short sleeps as `idle_turns` grows.
    // Virtual time: runs the other PEs and the devices for a while.
    virtual void relax(uint32_t idle_turns) = 0;
};

Clock& real_clock();

// A wait's end. Used as: `Deadline deadline(clock, ms); while (!done()) { if (deadline.passed()) ...; deadline.relax(); }`
class Deadline {
   public:
    Deadline(Clock& clock, uint64_t timeout_ms) : clock_(clock), end_ns_(clock.now_ns() + timeout_ms * 1'000'000) {}
    bool passed() { return (++turns_ & 15u) == 0 && clock_.now_ns() > end_ns_; }  // reads the clock on every 16th turn
    void relax() { clock_.relax(idle_++); }
    void progressed() { idle_ = 0; }

   private:
    Clock& clock_;
    uint64_t end_ns_;
    uint32_t turns_ = 0;
    uint32_t idle_ = 0;
};

}  // namespace nvshmem_efa
