// SPDX-License-Identifier: Apache-2.0
// deep_ep_patched/compat/ibgda_device.cuh on the CPU: the PEs of device_api_rig.h, a fiber for each warp of a kernel, and
// what kernels have beside the network: barriers, atomics, polling.
#pragma once

#include "device_api_rig.h"

#include <algorithm>
#include <vector>

// NVSHMEM's, which the header expects to be declared.
inline void* nvshmem_ptr(const void* ptr, int pe);
inline void nvshmemx_barrier_all_block();

#include "../../deep_ep_patched/compat/ibgda_device.cuh"

namespace compat_test {

// What comes late comes after much else: a flag that does not wait is ahead of its data often enough to be seen.
inline constexpr nvshmem_efa::soft::Faults kRough{.reorder_ns = 5000, .duplicate_ppm = 300'000, .delay_ppm = 150'000, .far_delay_ns = 40'000};

using namespace device_api_test;

// All members wait for the last one. Its waits give way to other fibers.
class Barrier {
   public:
    explicit Barrier(int members) : members_(members) {}
    void wait() {
        const uint32_t round = round_;
        if (++here_ == members_) {
            here_ = 0;
            order::store_release_gpu(&round_, round + 1);
            return;
        }
        while (order::load_acquire_sys(&round_) == round) order::pause();
    }

   private:
    int members_;
    int here_ = 0;
    uint32_t round_ = 0;
};

// A rig, and the table of lines of each PE.
struct Machine {
    explicit Machine(const Options& options) : rig(options), lines(static_cast<size_t>(options.n_pes)), all_pes(options.n_pes) {
        for (auto& each : lines) each.resize(deep_ep::efa::kLines);
    }

    Rig rig;
    std::vector<std::vector<deep_ep::efa::Line>> lines;
    Barrier all_pes;  // of nvshmemx_barrier_all_block()
    bool has_state = true;
    int near_pe = -1;  // one whose memory nvshmem_ptr() reaches

    int n_pes() const { return rig.options.n_pes; }
    template <class T>
    T* at(int pe, size_t offset) { return rig.pe(pe).at<T>(offset); }

    // A warp of that PE.
    template <class Body>
    void warp(int pe, Body body) {
        rig.poster(pe, next_number_++, [this, pe, body](soft::Prng& prng) {
            callers().push_back({Fiber::current(), this, pe});
            body(prng);
            std::erase_if(callers(), [](const Caller& each) { return each.fiber == Fiber::current(); });
        });
    }
    void run() {
        CHECK_OK(run_failing());
        rig.check_no_errors();
    }
    // The same where error records are expected.
    Status run_failing() {
        callers().clear();
        return rig.world().run();
    }

    struct Caller {
        Fiber* fiber;
        Machine* machine;
        int pe;
    };
    static std::vector<Caller>& callers() {
        static std::vector<Caller> all;
        return all;
    }
    static const Caller& caller() {
        for (const Caller& each : callers())
            if (each.fiber == Fiber::current()) return each;
        std::abort();  // not in a warp
    }

   private:
    uint32_t next_number_ = 0;
};

// ---- what kernels do beside the network ----

// Polls as those kernels do, with loads of their own and not with wait_until(); until `is_there(value)`.
template <class T, class Test>
T poll(const T* word, Test is_there) {
    for (;;) {
        const T value = device::load_word(word);
        if (is_there(value)) return value;
        order::pause();
    }
}
inline uint64_t address_of(const void* at) { return reinterpret_cast<uint64_t>(at); }
inline uint8_t pattern(uint64_t key, size_t at) { return static_cast<uint8_t>(mix64(key * 1'000'003 + at) >> 16); }
inline void fill(uint8_t* at, size_t bytes, uint64_t key) {
    for (size_t i = 0; i < bytes; ++i) at[i] = pattern(key, i);
}
// Looks twice: nothing older may appear later either.
inline void check_bytes(Machine& machine, const uint8_t* at, size_t bytes, uint64_t key, soft::Prng& prng, const char* what) {
    for (int look = 0; look < 2; ++look) {
        for (size_t i = 0; i < bytes; ++i)
            if (at[i] != pattern(key, i))
                check::fail(__FILE__, __LINE__, std::string(what) + ": byte " + std::to_string(i) + " is wrong, look " + std::to_string(look) +
                                                    ", seed " + std::to_string(machine.rig.options.seed));
        for (uint64_t i = prng.below(60); i > 0; --i) step();
    }
}

}  // namespace compat_test

inline deep_ep::efa::Line* deep_ep::efa::lines() {
    const auto& caller = compat_test::Machine::caller();
    return caller.machine->lines[static_cast<size_t>(caller.pe)].data();
}
inline const nvshmem_efa::DeviceState* deep_ep::efa::device_state() {
    const auto& caller = compat_test::Machine::caller();
    return caller.machine->has_state ? &caller.machine->rig.state(caller.pe) : nullptr;
}
inline void* nvshmem_ptr(const void* ptr, int pe) {
    const auto& caller = compat_test::Machine::caller();
    if (pe != caller.machine->near_pe) return nullptr;
    return caller.machine->rig.pe(pe).heap() + (static_cast<const uint8_t*>(ptr) - caller.machine->rig.pe(caller.pe).heap());
}
inline void nvshmemx_barrier_all_block() { compat_test::Machine::caller().machine->all_pes.wait(); }
