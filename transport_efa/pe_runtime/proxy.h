// SPDX-License-Identifier: Apache-2.0
// NVSHMEM's proxy thread: takes the requests that a GPU would have written to its channel and hands them to the plugin.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "clock.h"
#include "lane_calls.h"
#include "status.h"

namespace nvshmem_efa::pe {

struct ProxyOptions {
    FetchSlot* slots = nullptr;  // in the symmetric heap
    size_t n_slots = 0;
    uint64_t timeout_ms = 30000;
    std::function<void(const Status&)> on_failure;  // called once, on the proxy thread
    std::function<Status()> check_job;              // a named error once this or another PE has failed
};

// The calls may come from several threads at once ("kernels"). Requests of one thread keep their order.
// None waits for completion but g, fetching amo, fence and quiet; those have a deadline.
class Proxy {
   public:
    Proxy(LaneCalls calls, PluginPort& port, ProxyOptions options);
    ~Proxy();  // stop()

    Status put_nbi(const Transfer& transfer);
    Status get_nbi(const Transfer& transfer);
    Status p(int pe, void* symmetric, uint64_t value, int bytes);
    Status g(int pe, const void* symmetric, int bytes, uint64_t* value);
    // `fetched` is needed for the fetching operations and ignored for the others.
    Status amo(int pe, void* symmetric, const Amo& amo, uint64_t* fetched = nullptr);
    Status put_signal(const Transfer& transfer, void* signal_word, const Amo& signal);
    Status fence();
    Status quiet();
    // Ends the thread after what is queued; idempotent.
    void stop();

   private:
    enum class Kind : uint8_t { kPut, kGet, kP, kG, kAmo, kPutSignal, kFence, kQuiet };
    struct Request {
        Kind kind = Kind::kPut;
        Transfer transfer;
        void* word = nullptr;
        Amo amo;
        FetchSlot* slot = nullptr;
        uint64_t tag = 0;
    };

    void run();
    Status handle(const Request& request);
    Status push(const Request& request, uint64_t* number = nullptr);
    Status wait_handled(uint64_t number, const char* what);
    Status fetch(Request& request, uint64_t* value, const char* what);
    Status take_slot(FetchSlot** slot);
    void return_slot(FetchSlot* slot);
    Status wait(const std::function<bool()>& is_done, const char* what);

    LaneCalls calls_;
    PluginPort& port_;
    ProxyOptions options_;
    std::mutex lock_;             // queue_, pushed_, free_slots_
    std::vector<Request> queue_;  // filled by callers, taken whole by the thread
    std::vector<FetchSlot*> free_slots_;
    uint64_t pushed_ = 0;
    // Requests handled so far; release by the thread, acquire by wait_handled().
    std::atomic<uint64_t> handled_{0};
    std::atomic<uint64_t> next_tag_{1};
    std::atomic<bool> stopping_{false};
    std::atomic<bool> failed_{false};
    std::thread thread_;
};

}  // namespace nvshmem_efa::pe
