// SPDX-License-Identifier: Apache-2.0
#include "soft_efa/pci/send_queue_bar.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>

#include "log.h"

namespace nvshmem_efa::soft::pci {

Status SendQueueBar::create(uint32_t queues, uint32_t bytes_per_queue, std::unique_ptr<SendQueueBar>* out) {
    std::unique_ptr<SendQueueBar> bar(new SendQueueBar);
    bar->bytes_ = std::bit_ceil(static_cast<uint64_t>(queues) * bytes_per_queue);
    bar->bytes_per_queue_ = bytes_per_queue;
    bar->fd_ = memfd_create("efa-send-queues", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    const bool is_made = bar->fd_ >= 0 && ftruncate(bar->fd_, static_cast<off_t>(bar->bytes_)) == 0 &&
                         fcntl(bar->fd_, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0;
    void* data = is_made ? mmap(nullptr, bar->bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, bar->fd_, 0)
                         : MAP_FAILED;
    if (data == MAP_FAILED)
        return Status::error(Code::kResource, "free memory or address space", "no %llu MiB for send queues: %s",
                             static_cast<unsigned long long>(bar->bytes_ >> 20), std::strerror(errno));
    bar->data_ = static_cast<uint8_t*>(data);
    *out = std::move(bar);
    return Status();
}

SendQueueBar::~SendQueueBar() {
    if (data_) munmap(data_, bytes_);
    if (fd_ >= 0) close(fd_);
}

void SendQueueBar::prepare(uint32_t queue, uint32_t ring_bytes) {
    constexpr int kNeverWritten = 0xff;
    std::memset(data_ + offset_of(queue), kNeverWritten, ring_bytes);
}

void SendQueueBar::release(uint32_t queue) {
    if (fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset_of(queue), bytes_per_queue_) != 0)
        EFA_LOG(kWarn, "pci", "memory of send queue %u stays allocated: %s", queue, std::strerror(errno));
}

}  // namespace nvshmem_efa::soft::pci
