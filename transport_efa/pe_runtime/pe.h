// SPDX-License-Identifier: Apache-2.0
// A processing element: NVSHMEM's host library, as far as a transport plugin can tell. Loads a plugin, drives it in the
// order and with the two threads of the real one, and keeps the symmetric heap in host memory.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "bootstrap.h"
#include "heap.h"
#include "lane_calls.h"
#include "plugin_port.h"
#include "proxy.h"
#include "status.h"

namespace nvshmem_efa::pe {

struct PeOptions {
    std::string job;
    int pe = 0;
    int n_pes = 1;
    int abi = 3;
    std::string plugin_path;
    size_t heap_bytes = size_t{64} << 20;
    HeapOptions heap;
    uint64_t timeout_ms = 30000;
};

enum class Compare : uint8_t { kEqual, kNotEqual, kAtLeast, kGreater };

// One thread, the application's, calls everything here; kernels call proxy(). check() and fail(): any thread.
// Blocking calls are complete when they return; *_nbi ones at quiet(). Any error is final for the whole job, as in
// NVSHMEM, which ends the process: all later calls here and on the other PEs return it.
class Pe {
   public:
    static Status create(const PeOptions& options, std::unique_ptr<Pe>* pe);  // collective
    ~Pe();              // without finalize(): tells the others that this PE gave up
    Status finalize();  // collective; the Pe is of no use afterwards

    int id() const { return options_.pe; }
    int n_pes() const { return options_.n_pes; }

    // Collective; blocks are at the same offset on all PEs, and zeroed the first time.
    Status malloc(size_t bytes, void** block);
    Status free(void* block);
    Status grow(size_t bytes);
    Status register_buffer(void* buffer, size_t bytes);
    Status unregister_buffer(void* buffer);

    // `symmetric`: our own address of the object; the object meant is the one on PE `pe`.
    Status put(int pe, void* symmetric, const void* source, size_t bytes);
    Status put_nbi(int pe, void* symmetric, const void* source, size_t bytes);
    Status get(int pe, const void* symmetric, void* target, size_t bytes);
    Status get_nbi(int pe, const void* symmetric, void* target, size_t bytes);
    Status p(int pe, void* symmetric, uint64_t value, int bytes);
    Status g(int pe, const void* symmetric, int bytes, uint64_t* value);
    // Elements of 2, 4 or 8 bytes, strides in elements.
    Status iput(int pe, void* symmetric, const void* source, int element_bytes, size_t n, ptrdiff_t remote_stride,
                ptrdiff_t local_stride);
    Status iget(int pe, const void* symmetric, void* target, int element_bytes, size_t n, ptrdiff_t remote_stride,
                ptrdiff_t local_stride);
    Status amo(int pe, void* symmetric, const Amo& amo, uint64_t* fetched = nullptr);
    Status put_signal(int pe, void* symmetric, const void* source, size_t bytes, void* signal_word, const Amo& signal);
    Status fence();
    Status quiet();
    Status barrier_all();  // collective: quiet of both lanes, then signals between the PEs
    // Waits for a word of our own that PE `from` changes. Any thread.
    Status wait_until(const uint64_t* word, Compare compare, uint64_t value, int from);

    Proxy& proxy() { return *proxy_; }
    BootstrapSocket& bootstrap() { return *bootstrap_; }
    SymmetricHeap& heap() { return *heap_; }
    PluginPort& port() { return *port_; }

    // OK until this or another PE has failed; then why. Cheap enough for a wait loop's every few turns.
    Status check();
    void fail(const Status& why);  // the first one counts, and is told to the other PEs
    std::string stats_json() const { return port_ ? port_->stats_json() : stats_at_end_; }

   private:
    explicit Pe(const PeOptions& options) : options_(options) {}
    Status start();
    Status start_plugin();
    Status start_proxy();
    Status first_failure();
    Status finish(Status status);  // remembers an error as fail() does
    bool is_failed() const { return failed_.load(std::memory_order_acquire); }
    Status barrier_rounds();

    static constexpr size_t kRoundsMax = 8;  // of the barrier; 2^8 PEs
    static constexpr size_t kProxySlots = 64;
    struct Internal {  // the runtime's own part of the symmetric heap
        uint64_t barrier[kRoundsMax];
        FetchSlot host_slot;
        FetchSlot proxy_slots[kProxySlots];
    };

    const PeOptions options_;
    std::unique_ptr<BootstrapSocket> bootstrap_;
    abi::BootstrapHandle boot_handle_{};
    std::vector<int> caps_;
    std::unique_ptr<SymmetricHeap> heap_;
    std::unique_ptr<PluginPort> port_;
    std::unique_ptr<LaneCalls> host_;
    std::unique_ptr<Proxy> proxy_;
    Internal* internal_ = nullptr;
    uint64_t barrier_epoch_ = 0;
    uint64_t host_tag_ = 0;
    bool is_finalized_ = false;
    std::string stats_at_end_ = "null";

    std::atomic<bool> failed_{false};
    std::mutex failure_lock_;
    Code failure_code_ = Code::kOk;
    std::string failure_;
};

}  // namespace nvshmem_efa::pe
