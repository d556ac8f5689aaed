// SPDX-License-Identifier: Apache-2.0
#include "control_memory.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

namespace nvshmem_efa {

ControlMemory::~ControlMemory() {
    for (size_t rail = 0; rail < regions_.size(); ++rail) (void)nics_[rail]->deregister_memory(regions_[rail]);
    if (base_) munmap(base_, bytes_);
}

Status ControlMemory::allocate(size_t bytes, const std::vector<std::unique_ptr<Nic>>& nics) {
    constexpr size_t kPage = 65536;  // the largest base page of the machines we know
    bytes_ = (bytes + kPage - 1) / kPage * kPage;
    void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return Status::error(Code::kResource, "lower NVSHMEM_EFA_SQ_DEPTH or NVSHMEM_EFA_RQ_DEPTH, or free memory",
                             "cannot allocate %zu bytes of control memory: %s", bytes_, strerror(errno));
    }
    base_ = static_cast<uint8_t*>(memory);
    for (const auto& nic : nics) {
        MemoryAttr attr;
        attr.addr = base_;
        attr.bytes = bytes_;
        attr.access = kAccessLocalWrite | kAccessRemoteWrite;
        MemoryRegion region;
        EFA_TRY(nic->register_memory(attr, &region).with_context("control memory"));
        nics_.push_back(nic.get());
        regions_.push_back(region);
    }
    return Status();
}

void* ControlMemory::take(size_t bytes) {
    const size_t size = aligned(bytes);
    if (!base_ || size > bytes_ - used_) return nullptr;
    void* memory = base_ + used_;
    used_ += size;
    return memory;
}

}  // namespace nvshmem_efa
