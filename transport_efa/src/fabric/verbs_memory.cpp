// SPDX-License-Identifier: Apache-2.0
#include <cerrno>
#include <cstdio>
#include <utility>

#include "fabric/verbs_errno.h"
#include "fabric/verbs_nic.h"
#include "log.h"

namespace nvshmem_efa::verbs {
namespace {

int library_access(uint32_t access, const NicCaps& caps) {
    int bits = 0;
    // efa.ko refuses a right that its device cannot grant, even if nobody will use it.
    if (!caps.rdma_read) access &= ~kAccessRemoteRead;
    // The kernel refuses remote write without local write.
    if (access & (kAccessLocalWrite | kAccessRemoteWrite)) bits |= kAccessLocalWriteBit;
    if (access & kAccessRemoteWrite) bits |= kAccessRemoteWriteBit;
    if (access & kAccessRemoteRead) bits |= kAccessRemoteReadBit;
    return bits;  // never relaxed ordering: signals in GPU memory rely on the order of posted writes
}

std::string describe(const MemoryAttr& attr) {
    char text[96];
    std::snprintf(text, sizeof(text), "%zu bytes of %s memory at %p", attr.bytes,
                  attr.kind == MemoryKind::kCuda ? "GPU" : "host", attr.addr);
    return text;
}

}  // namespace

// dma-buf first, the peer memory module of the kernel second; an error names what became of both.
Status VerbsNic::register_cuda(const MemoryAttr& attr, int access, IbvMr** mr) {
    Status first;
    if (api().reg_dmabuf_mr == nullptr) {
        first = Status::error(Code::kUnsupported, nullptr, "rdma-core has no ibv_reg_dmabuf_mr (v34)");
    } else {
        Dmabuf dmabuf;
        first = export_dmabuf_(attr.addr, attr.bytes, &dmabuf);
        if (first.ok()) {
            errno = 0;
            *mr = api().reg_dmabuf_mr(device_->pd(), dmabuf.offset(), attr.bytes, reinterpret_cast<uint64_t>(attr.addr),
                                      dmabuf.fd(), access);
            if (*mr != nullptr) return Status();
            first = call_failed(name(), "ibv_reg_dmabuf_mr", describe(attr), errno);
        }
    }
    EFA_LOG(kDebug, "verbs", "%s: no registration by dma-buf (%s); trying the peer memory module", name().c_str(),
            first.message());
    errno = 0;
    *mr = api().reg_mr(device_->pd(), attr.addr, attr.bytes, access);
    if (*mr != nullptr) return Status();
    const int error = errno ? errno : EIO;
    const bool is_full = first.code() == Code::kResource || code_of_errno(error) == Code::kResource;
    return Status::error(is_full ? Code::kResource : Code::kUnsupported,
                         "GPU memory needs kernel 5.12 with dma-buf support of the NVIDIA open driver, or the module "
                         "nvidia_peermem or efa_nv_peermem",
                         "%s cannot register %s: by dma-buf: %s; by peer memory: ibv_reg_mr: %s", name().c_str(),
                         describe(attr).c_str(), first.message(), errno_text(error).c_str());
}

Status VerbsNic::register_memory(const MemoryAttr& attr, MemoryRegion* region) {
    if (attr.addr == nullptr || attr.bytes == 0) {
        return Status::error(Code::kInvalidArgument, "register memory that is there", "%s cannot register %s",
                             name().c_str(), describe(attr).c_str());
    }
    const int access = library_access(attr.access, device_->caps());
    IbvMr* mr = nullptr;
    // Outside the lock: pinning a large region takes long, and only the record of it is shared.
    if (attr.kind == MemoryKind::kCuda) {
        EFA_TRY(register_cuda(attr, access, &mr));
    } else {
        errno = 0;
        mr = api().reg_mr(device_->pd(), attr.addr, attr.bytes, access);
        if (mr == nullptr) return call_failed(name(), "ibv_reg_mr", describe(attr), errno);
    }
    const std::lock_guard lock(mutex_);
    const uint64_t handle = next_handle_++;
    regions_[handle] = mr;
    *region = MemoryRegion();
    region->lkey = mr->lkey;
    region->rkey = mr->rkey;
    region->handle = handle;
    return Status();
}

Status VerbsNic::deregister_memory(const MemoryRegion& region) {
    const std::lock_guard lock(mutex_);
    IbvMr** mr = nullptr;
    EFA_TRY(find(regions_, region.handle, "memory region", &mr));
    const int error = api().dereg_mr(*mr);
    if (error != 0) return call_failed(name(), "ibv_dereg_mr", "", error);
    regions_.erase(region.handle);
    return Status();
}

}  // namespace nvshmem_efa::verbs
