// SPDX-License-Identifier: Apache-2.0
// The memory of BAR 2: a file that the guest maps, so that its stores to send queues cause no exit. Each queue pair has
// a fixed part of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "status.h"

namespace nvshmem_efa::soft::pci {

class SendQueueBar {
   public:
    static Status create(uint32_t queues, uint32_t bytes_per_queue, std::unique_ptr<SendQueueBar>* bar);
    ~SendQueueBar();
    SendQueueBar(const SendQueueBar&) = delete;
    SendQueueBar& operator=(const SendQueueBar&) = delete;

    int fd() const { return fd_; }
    uint64_t bytes() const { return bytes_; }  // a power of two
    uint8_t* data() const { return data_; }
    uint32_t offset_of(uint32_t queue) const { return queue * bytes_per_queue_; }
    // No slot of it has the first lap's phase.
    void prepare(uint32_t queue, uint32_t ring_bytes);
    void release(uint32_t queue);  // gives the memory back to the system

   private:
    SendQueueBar() = default;
    int fd_ = -1;
    uint64_t bytes_ = 0;
    uint32_t bytes_per_queue_ = 0;
    uint8_t* data_ = nullptr;
};

}  // namespace nvshmem_efa::soft::pci
