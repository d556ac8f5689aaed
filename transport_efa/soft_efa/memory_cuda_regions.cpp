// SPDX-License-Identifier: Apache-2.0
#include "memory_cuda_regions.h"

#include <unistd.h>

#include <cstring>

#include "log.h"

namespace nvshmem_efa::soft {

int CudaRegions::ask_device(uint64_t addr) const {
    int device = kDeviceUnknown;
    if (driver_.pointer_get_attribute(&device, cuda::kAttrDeviceOrdinal, addr) != cuda::kSuccess) return kDeviceUnknown;
    return device;
}

Status CudaRegions::add(const MemoryAttr& attr, MemoryShare* share) {
    std::lock_guard<std::mutex> changing(change_lock_);
    const Range range{reinterpret_cast<uint64_t>(attr.addr), attr.bytes};
    *share = MemoryShare{};
    {
        std::lock_guard<std::mutex> guard(lock_);
        if (auto known = locals_.find(range); known != locals_.end()) {
            ++known->second.uses;
            if (known->second.kind == MemoryKind::kCuda && sharing_ != "bounce")
                std::memcpy(share->bytes, &known->second.share, sizeof(CudaShare));
            return Status();
        }
    }
    Local local;
    local.kind = attr.kind;
    local.uses = 1;
    if (attr.kind == MemoryKind::kHost) {
        pin_local(attr, &local);
    } else {
        local.device = ask_device(range.first);
        if (sharing_ != "bounce") {
            EFA_TRY(share_local(attr, &local));
            std::memcpy(share->bytes, &local.share, sizeof(CudaShare));
        }
    }
    std::lock_guard<std::mutex> guard(lock_);
    locals_.emplace(range, std::move(local));
    return Status();
}

Status CudaRegions::share_local(const MemoryAttr& attr, Local* local) {
    CudaShare& share = local->share;
    share.magic = kShareMagic;
    share.version = 1;
    share.process = process_;
    share.export_id = ++last_export_;
    share.bytes = attr.bytes;
    Status why;
    share_export(driver_, reinterpret_cast<uint64_t>(attr.addr), attr.bytes, &share, &local->fds, &why);
    local->is_shared = share.kind != ShareKind::kRefused;
    if (local->is_shared) return Status();
    char where[96];
    snprintf(where, sizeof where, "exporting %zu bytes of GPU memory at %p", attr.bytes, attr.addr);
    return refuse(std::move(why).with_context(where));
}

// Pageable memory works too, but each copy from the GPU then holds up the engine until it has landed.
void CudaRegions::pin_local(const MemoryAttr& attr, Local* local) {
    unsigned type = 0;
    const uint64_t addr = reinterpret_cast<uint64_t>(attr.addr);
    if (driver_.pointer_get_attribute(&type, cuda::kAttrMemoryType, addr) == cuda::kSuccess) return;  // pinned already
    const cuda::Result result = driver_.mem_host_register(attr.addr, attr.bytes, cuda::kHostPortable | cuda::kHostDeviceMap);
    local->is_pinned_here = result == cuda::kSuccess;
    if (!local->is_pinned_here)
        EFA_LOG(kDebug, "soft", "%zu bytes of host memory at %p stay pageable (cuMemHostRegister gave %d)", attr.bytes,
                attr.addr, result);
}

Status CudaRegions::refuse(Status why) const {
    if (sharing_ == "direct")
        return Status::error(Code::kUnsupported, "set NVSHMEM_EFA_SOFT_CUDA=auto to go through host memory", "%s",
                             why.message());
    EFA_LOG(kDebug, "soft", "GPU memory goes through host memory: %s", why.message());
    return Status();
}

void CudaRegions::remove(const MemoryAttr& attr) {
    std::lock_guard<std::mutex> changing(change_lock_);
    Local gone;
    {
        std::lock_guard<std::mutex> guard(lock_);
        auto known = locals_.find({reinterpret_cast<uint64_t>(attr.addr), attr.bytes});
        if (known == locals_.end() || --known->second.uses != 0) return;
        gone = std::move(known->second);
        locals_.erase(known);
    }
    for (int fd : gone.fds) close(fd);
    if (gone.is_pinned_here) driver_.mem_host_unregister(attr.addr);
}

Status CudaRegions::attach(const MemoryShare& bytes, const MemoryPort::FetchFd& fetch_fd) {
    CudaShare share;
    std::memcpy(&share, bytes.bytes, sizeof share);
    if (share.magic == 0 || sharing_ == "bounce") return Status();
    EFA_TRY(share_check(share));
    if (share.process == process_) return Status();
    if (share.kind == ShareKind::kRefused)
        return refuse(Status::error(Code::kUnsupported, nullptr, "a peer's GPU memory cannot be exported"));
    std::lock_guard<std::mutex> changing(change_lock_);
    const ExportKey key{share.process, share.export_id};
    {
        std::lock_guard<std::mutex> guard(lock_);
        if (attached_.count(key)) return Status();
    }
    uint64_t base = 0;
    if (Status status = map_peer(share, fetch_fd, &base); !status.ok())
        return refuse(std::move(status).with_context("mapping a peer's GPU memory"));
    const Attached attached{base + share.base_offset, share.bytes, ask_device(base)};
    std::lock_guard<std::mutex> guard(lock_);
    attached_.emplace(key, attached);
    return Status();
}

// CUDA refuses to open one IPC handle twice: registrations inside one allocation share its mapping.
Status CudaRegions::map_peer(const CudaShare& share, const MemoryPort::FetchFd& fetch_fd, uint64_t* base) {
    CudaMapping mapping;
    if (share.kind != ShareKind::kIpc) {
        EFA_TRY(mapping_open(driver_, device_, share, fetch_fd, &mapping));
        *base = mapping.base;
        mappings_.push_back(std::move(mapping));
        return Status();
    }
    IpcKey key{share.process, {}};
    std::memcpy(key.second.data(), share.ipc.bytes, key.second.size());
    auto known = ipc_.find(key);
    if (known == ipc_.end()) {
        EFA_TRY(mapping_open(driver_, device_, share, fetch_fd, &mapping));
        known = ipc_.emplace(key, Ipc{0, std::move(mapping)}).first;
    }
    if (share.mapping_bytes > known->second.mapping.bytes)
        return Status::error(Code::kProtocol, nullptr, "one IPC handle came with two sizes");
    ++known->second.uses;
    *base = known->second.mapping.base;
    return Status();
}

void CudaRegions::close_all() {
    std::lock_guard<std::mutex> changing(change_lock_);
    std::map<Range, Local> locals;
    {
        std::lock_guard<std::mutex> guard(lock_);
        locals.swap(locals_);
        attached_.clear();
    }
    for (auto& [range, local] : locals) {
        for (int fd : local.fds) close(fd);
        if (local.is_pinned_here) driver_.mem_host_unregister(reinterpret_cast<void*>(range.first));
    }
    for (auto& [key, ipc] : ipc_) mapping_close(driver_, ipc.mapping);
    for (const CudaMapping& mapping : mappings_) mapping_close(driver_, mapping);
    ipc_.clear();
    mappings_.clear();
}

int CudaRegions::export_fd(uint64_t export_id, uint32_t index) const {
    std::lock_guard<std::mutex> guard(lock_);
    for (const auto& [range, local] : locals_)
        if (local.is_shared && local.share.export_id == export_id && index < local.fds.size()) return local.fds[index];
    return -1;
}

// Ranges may nest, so that the nearest start below is tried first and then those before it. With lock_ held.
const CudaRegions::Local* CudaRegions::find_local(uint64_t addr, size_t bytes, uint64_t* base) const {
    auto after = locals_.upper_bound({addr, UINT64_MAX});
    while (after != locals_.begin()) {
        --after;
        const auto& [start, length] = after->first;
        if (bytes <= length && addr - start <= length - bytes) {
            *base = start;
            return &after->second;
        }
    }
    return nullptr;
}

bool CudaRegions::reference_of(uint64_t addr, size_t bytes, PeerBytes* reference) const {
    std::lock_guard<std::mutex> guard(lock_);
    uint64_t base = 0;
    const Local* local = find_local(addr, bytes, &base);
    if (!local || !local->is_shared) return false;
    *reference = {process_, local->share.export_id, addr - base};
    return true;
}

bool CudaRegions::resolve(const PeerBytes& reference, size_t bytes, uint64_t* addr) const {
    std::lock_guard<std::mutex> guard(lock_);
    Attached found;
    if (reference.process == process_) {
        for (const auto& [range, local] : locals_)
            if (local.is_shared && local.share.export_id == reference.export_id) found = {range.first, range.second, 0};
    } else if (auto known = attached_.find({reference.process, reference.export_id}); known != attached_.end()) {
        found = known->second;
    }
    if (found.base == 0 || bytes > found.bytes || reference.offset > found.bytes - bytes) return false;
    *addr = found.base + reference.offset;
    return true;
}

int CudaRegions::device_of(uint64_t addr) const {
    std::lock_guard<std::mutex> guard(lock_);
    uint64_t base = 0;
    if (const Local* local = find_local(addr, 1, &base)) return local->device;
    for (const auto& [key, attached] : attached_)
        if (addr - attached.base < attached.bytes) return attached.device;
    return kDeviceUnknown;
}

}  // namespace nvshmem_efa::soft
