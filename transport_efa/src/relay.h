// SPDX-License-Identifier: Apache-2.0
// The relay: send rings in host memory, which posters (the GPU) write as if they were a device's, and one thread of this
// process that forwards their slots to queues of a device and counts the completions. docs/gpu-modes.md.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "gpu_ring.h"

namespace nvshmem_efa {

// One ring and the device queue behind it. Both have the same depth, so that a slot's bytes (phase bit, request id) are
// good in either. serve() belongs to one thread; failure() to any.
class RelayQueue {
   public:
    static Status open(Nic& nic, const GpuRingAttr& attr, std::unique_ptr<RelayQueue>* queue);
    ~RelayQueue();  // pre: nobody serves it any more
    RelayQueue(const RelayQueue&) = delete;
    RelayQueue& operator=(const RelayQueue&) = delete;

    // Counts what completed, forwards what a doorbell announced. Never waits. True: there was something to do.
    bool serve();
    Status failure() const;
    // Ends the ring: posters get an error completion, the host `what` from failure(). The first reason stands.
    void stop(const std::string& what);

    const GpuRingView& view() const { return view_; }  // posters on the host; `..._at_gpu` are the same
    void* memory() const { return memory_; }           // all that posters touch, whole pages
    size_t memory_bytes() const { return memory_bytes_; }
    Nic& nic() const { return nic_; }
    bool has_work_in_flight() const { return send_ring_in_flight(ring_) != 0; }
    uint64_t doorbells() const { return doorbells_; }  // of the device; read it where serve() runs
    // Sets where slot numbers and completion counts begin. Pre: nothing was posted or served yet.
    void start_at_for_test(uint32_t slot, uint32_t completions);

   private:
    explicit RelayQueue(Nic& nic) : nic_(nic) {}
    Status open_device_queue(const GpuRingAttr& attr);
    Status make_memory();
    bool count_completions();
    bool forward();
    void ring_device();
    void mirror_error(TxCqe entry);
    void publish(uint32_t good, uint32_t bad);

    Nic& nic_;
    Cq cq_;
    Qp qp_;
    SendRing ring_;  // the device's
    CqRing completions_;
    GpuRingView view_;
    uint8_t* memory_ = nullptr;
    size_t memory_bytes_ = 0;
    uint64_t* words_ = nullptr;       // completions, errors
    uint8_t* error_entries_ = nullptr;  // at the places of their completions; the others stay zero, which is no error
    uint32_t n_good_ = 0, n_bad_ = 0;
    uint64_t doorbells_ = 0;
    bool is_stopped_ = false;
    mutable std::mutex failure_lock_;
    std::string failure_;
};

// Serves all relay queues of this process; starts with the first and ends with the last.
class RelayThread {
   public:
    static Status of_process(std::shared_ptr<RelayThread>* thread);
    ~RelayThread();
    RelayThread(const RelayThread&) = delete;
    RelayThread& operator=(const RelayThread&) = delete;

    void add(RelayQueue& queue);
    void remove(RelayQueue& queue);  // on return, the thread does not touch it any more

   private:
    RelayThread() = default;
    std::unique_lock<std::mutex> take_lock();
    void run();
    bool turn();  // lock held; true: something was done

    std::mutex lock_;
    std::atomic<int> waiting_{0};  // for the lock, which the thread would otherwise take again and again
    std::vector<RelayQueue*> queues_;
    size_t next_lent_ = 0;
    std::atomic<bool> is_stopping_{false};
    std::thread thread_;
};

}  // namespace nvshmem_efa
