// SPDX-License-Identifier: Apache-2.0
#include "memory_cuda_share.h"

#include <unistd.h>

namespace nvshmem_efa::soft {
namespace {

constexpr uint64_t kBytesMax = uint64_t{1} << 46;  // no GPU has more; keeps every sum below from wrapping

// The driver's mapping that holds `addr`: one cuMemMap, or one cudaMalloc.
cuda::Result mapping_around(const cuda::Driver& driver, uint64_t addr, uint64_t* base, uint64_t* bytes) {
    if (driver.pointer_get_attribute(base, cuda::kAttrMappingBase, addr) == cuda::kSuccess &&
        driver.pointer_get_attribute(bytes, cuda::kAttrMappingBytes, addr) == cuda::kSuccess)
        return cuda::kSuccess;
    size_t range = 0;
    const cuda::Result result = driver.mem_get_address_range(base, &range, addr);
    *bytes = range;
    return result;
}

void close_all(std::vector<int>* fds) {
    for (int fd : *fds) close(fd);
    fds->clear();
}

Status export_ipc(const cuda::Driver& driver, uint64_t addr, uint64_t bytes, CudaShare* share) {
    cuda::DevicePtr base = 0;
    size_t range = 0;
    if (cuda::Result result = driver.mem_get_address_range(&base, &range, addr))
        return cuda::driver_error(driver, result, "cuMemGetAddressRange");
    if (addr - base + bytes > range)
        return Status::error(Code::kUnsupported, "register each allocation by itself",
                             "the memory spans several CUDA allocations");
    if (cuda::Result result = driver.ipc_get_mem_handle(&share->ipc, base))
        return cuda::driver_error(driver, result, "cuIpcGetMemHandle");
    share->kind = ShareKind::kIpc;
    share->base_offset = addr - base;
    share->mapping_bytes = range;
    return Status();
}

Status export_piece(const cuda::Driver& driver, uint64_t addr, cuda::AllocationHandle handle, uint64_t* base,
                    uint64_t* bytes, int* fd) {
    if (cuda::Result result = mapping_around(driver, addr, base, bytes))
        return cuda::driver_error(driver, result, "finding the mapping of GPU memory");
    if (*base > addr || addr - *base >= *bytes)
        return Status::error(Code::kInternal, nullptr, "CUDA reports a mapping which does not hold its address");
    if (cuda::Result result = driver.mem_export_to_shareable_handle(fd, handle, cuda::kHandlePosixFd, 0))
        return cuda::driver_error(driver, result, "cuMemExportToShareableHandle");
    return Status();
}

Status record_piece(CudaShare* share, uint64_t bytes) {
    const uint32_t index = share->n_pieces++;
    if (index < kSharePiecesListed) {
        share->piece_bytes[index] = bytes;
        return Status();
    }
    const Status uneven = Status::error(Code::kUnsupported, nullptr, "the memory lies in more than %u allocations of %s",
                                        kSharePiecesListed, "different sizes");
    if (index == kSharePiecesListed) {
        for (uint32_t i = 1; i < kSharePiecesListed; ++i)
            if (share->piece_bytes[i] != share->piece_bytes[0])
                return Status::error(uneven.code(), nullptr, "%s", uneven.message());
    } else if (share->piece_bytes[1] != share->piece_bytes[0]) {
        return Status::error(uneven.code(), nullptr, "%s", uneven.message());
    }
    share->piece_bytes[1] = bytes;  // the last piece, so far
    return Status();
}

// Walks the allocations behind the range, in order. `first` is retained already.
Status export_fds(const cuda::Driver& driver, uint64_t addr, uint64_t bytes, cuda::AllocationHandle first,
                  CudaShare* share, std::vector<int>* fds) {
    share->kind = ShareKind::kFds;
    cuda::AllocationHandle handle = first;
    for (uint64_t at = addr; at < addr + bytes;) {
        cuda::Result retained = cuda::kSuccess;
        if (at != addr) retained = driver.mem_retain_allocation_handle(&handle, reinterpret_cast<void*>(at));
        if (retained != cuda::kSuccess) return cuda::driver_error(driver, retained, "cuMemRetainAllocationHandle");
        uint64_t base = 0, piece = 0;
        int fd = -1;
        Status status = export_piece(driver, at, handle, &base, &piece, &fd);
        driver.mem_release(handle);  // the file descriptor keeps the memory
        EFA_TRY(std::move(status));
        fds->push_back(fd);
        if (share->n_pieces == kSharePiecesMax)
            return Status::error(Code::kUnsupported, "raise NVSHMEM_CUMEM_GRANULARITY",
                                 "the memory lies in more than %u allocations", kSharePiecesMax);
        if (at == addr) share->base_offset = addr - base;
        EFA_TRY(record_piece(share, piece));
        share->mapping_bytes += piece;
        at = base + piece;
    }
    return Status();
}

Status open_fds(const cuda::Driver& driver, cuda::Device device, const CudaShare& share,
                const MemoryPort::FetchFd& fetch_fd, CudaMapping* mapping) {
    if (cuda::Result result = driver.mem_address_reserve(&mapping->base, share.mapping_bytes, 0, 0, 0)) {
        mapping->base = 0;
        return cuda::driver_error(driver, result, "cuMemAddressReserve");
    }
    uint64_t offset = 0;
    for (uint32_t i = 0; i < share.n_pieces; ++i) {
        const int fd = fetch_fd ? fetch_fd(share.export_id, i) : -1;
        if (fd < 0) return Status::error(Code::kPeer, nullptr, "the owner gave no file descriptor for piece %u", i);
        cuda::AllocationHandle handle = 0;
        const cuda::Result imported = driver.mem_import_from_shareable_handle(
            &handle, reinterpret_cast<void*>(static_cast<intptr_t>(fd)), cuda::kHandlePosixFd);
        close(fd);
        if (imported != cuda::kSuccess) return cuda::driver_error(driver, imported, "cuMemImportFromShareableHandle");
        const uint64_t bytes = share_piece_bytes(share, i);
        const cuda::Result mapped = driver.mem_map(mapping->base + offset, bytes, 0, handle, 0);
        driver.mem_release(handle);  // the mapping keeps the memory
        if (mapped != cuda::kSuccess) return cuda::driver_error(driver, mapped, "cuMemMap");
        mapping->pieces.push_back(bytes);
        offset += bytes;
    }
    cuda::AccessDesc access;
    access.location_id = device;
    if (cuda::Result result = driver.mem_set_access(mapping->base, share.mapping_bytes, &access, 1))
        return cuda::driver_error(driver, result, "cuMemSetAccess", "the two GPUs may have no peer access");
    return Status();
}

}  // namespace

uint64_t share_piece_bytes(const CudaShare& share, uint32_t index) {
    if (share.n_pieces <= kSharePiecesListed) return share.piece_bytes[index];
    return share.piece_bytes[index + 1 == share.n_pieces ? 1 : 0];
}

Status share_check(const CudaShare& share) {
    bool is_good = share.magic == kShareMagic && share.version == 1 && share.mapping_bytes <= kBytesMax &&
                   share.bytes <= share.mapping_bytes && share.base_offset <= share.mapping_bytes - share.bytes;
    if (is_good && share.kind == ShareKind::kFds) {
        is_good = share.n_pieces >= 1 && share.n_pieces <= kSharePiecesMax;
        uint64_t sum = 0;
        for (uint32_t i = 0; is_good && i < share.n_pieces; ++i) {
            const uint64_t bytes = share_piece_bytes(share, i);
            is_good = bytes != 0 && bytes <= share.mapping_bytes;
            sum += bytes;
        }
        is_good = is_good && sum == share.mapping_bytes;
    } else if (is_good && share.kind != ShareKind::kIpc) {
        is_good = share.kind == ShareKind::kRefused;
    }
    if (is_good) return Status();
    return Status::error(Code::kProtocol, "all PEs must run the same version of nvshmem-efa",
                         "a peer's description of its GPU memory is not valid");
}

void share_export(const cuda::Driver& driver, uint64_t addr, uint64_t bytes, CudaShare* share, std::vector<int>* fds,
                  Status* why) {
    cuda::AllocationHandle handle = 0;
    const bool is_vmm = driver.mem_retain_allocation_handle(&handle, reinterpret_cast<void*>(addr)) == cuda::kSuccess;
    Status status = is_vmm ? export_fds(driver, addr, bytes, handle, share, fds)
                           : export_ipc(driver, addr, bytes, share);
    if (status.ok()) return;
    close_all(fds);
    share->kind = ShareKind::kRefused;
    share->n_pieces = 0;
    share->base_offset = 0;
    share->mapping_bytes = bytes;
    share->ipc = {};
    *why = std::move(status);
}

Status mapping_open(const cuda::Driver& driver, cuda::Device device, const CudaShare& share,
                    const MemoryPort::FetchFd& fetch_fd, CudaMapping* mapping) {
    mapping->kind = share.kind;
    mapping->bytes = share.mapping_bytes;
    if (share.kind == ShareKind::kIpc) {
        cuda::Result result = driver.ipc_open_mem_handle(&mapping->base, share.ipc, cuda::kIpcLazyPeerAccess);
        if (result == cuda::kSuccess) return Status();
        return cuda::driver_error(driver, result, "cuIpcOpenMemHandle", "the two GPUs may have no peer access");
    }
    Status status = open_fds(driver, device, share, fetch_fd, mapping);
    if (!status.ok()) {
        mapping_close(driver, *mapping);
        *mapping = CudaMapping{};
    }
    return status;
}

void mapping_close(const cuda::Driver& driver, const CudaMapping& mapping) {
    if (mapping.base == 0) return;
    if (mapping.kind == ShareKind::kIpc) {
        driver.ipc_close_mem_handle(mapping.base);
        return;
    }
    uint64_t offset = 0;
    for (uint64_t bytes : mapping.pieces) {
        driver.mem_unmap(mapping.base + offset, bytes);
        offset += bytes;
    }
    driver.mem_address_free(mapping.base, mapping.bytes);
}

}  // namespace nvshmem_efa::soft
