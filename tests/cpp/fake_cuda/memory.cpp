// SPDX-License-Identifier: Apache-2.0
// Memory of the fake driver: allocations, pinning, IPC, virtual memory.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "state.h"

using namespace fake;

#define ENTER_CONTEXT(name)                            \
    if (int refused = enter(name, false, true)) return refused
#define ENTER_ALLOCATES(name)                          \
    if (int refused = enter(name, true, true)) return refused

namespace {

size_t round_up(size_t bytes) { return (bytes + kBlock - 1) / kBlock * kBlock; }

uint8_t* map_fd(int fd, size_t bytes) {
    void* cpu = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return cpu == MAP_FAILED ? nullptr : static_cast<uint8_t*>(cpu);
}

uint64_t reserve(size_t bytes) {
    const size_t room = bytes + kBlock;
    const auto start = reinterpret_cast<uint64_t>(mmap(nullptr, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    return (start + kBlock - 1) / kBlock * kBlock;
}

struct Ipc {
    int pid, fd, device, reserved;
    uint64_t bytes;
    char pad[40];
};
static_assert(sizeof(Ipc) == 64);

void release(uint64_t handle) {  // with the lock held
    auto known = state().handles.find(handle);
    if (known == state().handles.end() || --known->second.uses != 0) return;
    close(known->second.fd);
    state().handles.erase(known);
}

}  // namespace

FAKE_EXPORT uint64_t fake_cuda_alloc(size_t bytes) {
    State& s = state();
    Block block;
    block.bytes = bytes;
    block.fd = make_memfd(round_up(bytes));
    block.cpu = map_fd(block.fd, round_up(bytes));
    block.device = s.device;
    const uint64_t addr = reserve(round_up(bytes));
    std::lock_guard<std::mutex> guard(s.lock);
    block.id = ++s.last_id;
    s.blocks[addr] = block;
    return addr;
}
FAKE_EXPORT void fake_cuda_free(uint64_t addr) {
    std::lock_guard<std::mutex> guard(state().lock);
    auto known = state().blocks.find(addr);
    munmap(known->second.cpu, round_up(known->second.bytes));
    close(known->second.fd);
    state().blocks.erase(known);
}
FAKE_EXPORT void fake_cuda_renew(uint64_t addr) {
    std::lock_guard<std::mutex> guard(state().lock);
    find_block(addr, 1)->id = ++state().last_id;
}
FAKE_EXPORT uint64_t fake_cuda_alloc_vmm(size_t piece_bytes, uint32_t pieces, int is_exportable) {
    State& s = state();
    const uint64_t addr = reserve(piece_bytes * pieces);
    std::lock_guard<std::mutex> guard(s.lock);
    for (uint32_t i = 0; i < pieces; ++i) {
        Handle handle{piece_bytes, make_memfd(piece_bytes), s.device, 1, is_exportable != 0};
        Block block;
        block.bytes = piece_bytes;
        block.cpu = map_fd(handle.fd, piece_bytes);
        block.device = handle.device;
        block.id = ++s.last_id;
        block.handle = ++s.last_id;
        s.handles[block.handle] = handle;
        s.blocks[addr + i * piece_bytes] = block;
    }
    return addr;
}

FAKE_EXPORT int cuMemAlloc_v2(uint64_t* addr, size_t bytes) {
    ENTER_ALLOCATES("cuMemAlloc");
    if (bytes == 0) return kInvalidValue;
    *addr = fake_cuda_alloc(bytes);
    std::memset(fake_cuda_cpu(*addr), 0xa5, bytes);  // as little zero as real memory
    return 0;
}
FAKE_EXPORT int cuMemFree_v2(uint64_t addr) {
    ENTER_CONTEXT("cuMemFree");
    {
        std::lock_guard<std::mutex> guard(state().lock);
        const auto known = state().blocks.find(addr);
        if (known == state().blocks.end() || known->second.is_host) return kInvalidValue;
    }
    fake_cuda_free(addr);
    return 0;
}

FAKE_EXPORT int cuPointerGetAttribute(void* data, int attribute, uint64_t addr) {
    if (int refused = enter("cuPointerGetAttribute", false, false)) return refused;
    State& s = state();
    std::lock_guard<std::mutex> guard(s.lock);
    Block* block = find_block(addr, 1);
    if (!block || (s.is_old && attribute >= 18)) return kInvalidValue;
    const uint64_t base = std::prev(s.blocks.upper_bound(addr))->first;
    const uint64_t wide = attribute == 18 ? block->bytes : attribute == 19 ? base : block->id;
    const int narrow = attribute == 2 ? (block->is_host ? 1 : 2) : block->device;
    if (attribute == 2 || attribute == 9) {
        std::memcpy(data, &narrow, sizeof narrow);
    } else if (attribute == 7 || attribute >= 18) {
        std::memcpy(data, &wide, sizeof wide);
    } else {
        return kInvalidValue;
    }
    return 0;
}
FAKE_EXPORT int cuMemGetAddressRange_v2(uint64_t* base, size_t* bytes, uint64_t addr) {
    ENTER_CONTEXT("cuMemGetAddressRange");
    std::lock_guard<std::mutex> guard(state().lock);
    Block* block = find_block(addr, 1);
    if (!block || block->is_host) return kInvalidValue;
    *base = std::prev(state().blocks.upper_bound(addr))->first;
    *bytes = block->bytes;
    return 0;
}

FAKE_EXPORT int cuMemHostAlloc(void** memory, size_t bytes, unsigned) {
    ENTER_ALLOCATES("cuMemHostAlloc");
    void* cpu = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (cpu == MAP_FAILED) return kOutOfMemory;
    std::memset(cpu, 0xa5, bytes);
    *memory = cpu;
    std::lock_guard<std::mutex> guard(state().lock);
    Block block;
    block.bytes = bytes;
    block.cpu = static_cast<uint8_t*>(cpu);
    block.is_host = true;
    state().blocks[reinterpret_cast<uint64_t>(cpu)] = block;
    return 0;
}
FAKE_EXPORT int cuMemFreeHost(void* memory) {
    ENTER_CONTEXT("cuMemFreeHost");
    std::lock_guard<std::mutex> guard(state().lock);
    auto known = state().blocks.find(reinterpret_cast<uint64_t>(memory));
    if (known == state().blocks.end()) return kInvalidValue;
    munmap(memory, known->second.bytes);
    state().blocks.erase(known);
    return 0;
}
FAKE_EXPORT int cuMemHostGetDevicePointer_v2(uint64_t* addr, void* memory, unsigned) {
    ENTER_CONTEXT("cuMemHostGetDevicePointer");
    std::lock_guard<std::mutex> guard(state().lock);
    Block* block = find_block(reinterpret_cast<uint64_t>(memory), 1);
    const bool is_registered = block && (block->flags & 2) != 0;  // with DEVICEMAP
    *addr = reinterpret_cast<uint64_t>(memory) + (is_registered ? state().mapped_at.load() : 0);
    return 0;
}
FAKE_EXPORT int fake_cuda_host_flags(const void* memory) {
    std::lock_guard<std::mutex> guard(state().lock);
    Block* block = find_block(reinterpret_cast<uint64_t>(memory), 1);
    return block && block->is_host ? static_cast<int>(block->flags) : -1;
}
FAKE_EXPORT int cuMemHostRegister_v2(void* memory, size_t bytes, unsigned flags) {
    ENTER_ALLOCATES("cuMemHostRegister");
    std::lock_guard<std::mutex> guard(state().lock);
    if (find_block(reinterpret_cast<uint64_t>(memory), 1)) return kAlreadyRegistered;
    Block block;
    block.bytes = bytes;
    block.cpu = static_cast<uint8_t*>(memory);
    block.is_host = true;
    block.flags = flags;
    state().blocks[reinterpret_cast<uint64_t>(memory)] = block;
    ++state().host_registrations;
    return 0;
}
FAKE_EXPORT int cuMemHostUnregister(void* memory) {
    ENTER_CONTEXT("cuMemHostUnregister");
    std::lock_guard<std::mutex> guard(state().lock);
    if (state().blocks.erase(reinterpret_cast<uint64_t>(memory)) == 0) return kInvalidValue;
    --state().host_registrations;
    return 0;
}

FAKE_EXPORT int cuIpcGetMemHandle(Ipc* handle, uint64_t addr) {
    ENTER_CONTEXT("cuIpcGetMemHandle");
    std::lock_guard<std::mutex> guard(state().lock);
    Block* block = find_block(addr, 1);
    if (!block || block->is_host || block->handle || block->is_ipc) return kInvalidValue;
    *handle = Ipc{static_cast<int>(getpid()), block->fd, block->device, 0, block->bytes, {}};
    return 0;
}
FAKE_EXPORT int cuIpcOpenMemHandle_v2(uint64_t* addr, Ipc handle, unsigned flags) {
    ENTER_ALLOCATES("cuIpcOpenMemHandle");
    if (handle.pid == static_cast<int>(getpid()) || flags != 1) return kInvalidContext;
    char path[64];
    std::snprintf(path, sizeof path, "/proc/%d/fd/%d", handle.pid, handle.fd);
    std::lock_guard<std::mutex> guard(state().lock);
    if (state().open_ipc[path]++ != 0) return kAlreadyMapped;
    const int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return kInvalidValue;
    Block block;
    block.bytes = handle.bytes;
    block.cpu = map_fd(fd, round_up(handle.bytes));
    block.fd = fd;
    block.device = handle.device;
    block.is_ipc = true;
    block.ipc_key = path;
    *addr = reserve(round_up(handle.bytes));
    state().blocks[*addr] = block;
    return 0;
}
FAKE_EXPORT int cuIpcCloseMemHandle(uint64_t addr) {
    ENTER_CONTEXT("cuIpcCloseMemHandle");
    std::lock_guard<std::mutex> guard(state().lock);
    auto known = state().blocks.find(addr);
    if (known == state().blocks.end() || !known->second.is_ipc) return kInvalidValue;
    munmap(known->second.cpu, round_up(known->second.bytes));
    close(known->second.fd);
    state().open_ipc.erase(known->second.ipc_key);
    state().blocks.erase(known);
    return 0;
}

FAKE_EXPORT int cuMemRetainAllocationHandle(uint64_t* handle, void* addr) {
    ENTER_CONTEXT("cuMemRetainAllocationHandle");
    std::lock_guard<std::mutex> guard(state().lock);
    Block* block = find_block(reinterpret_cast<uint64_t>(addr), 1);
    if (!block || block->handle == 0) return kInvalidValue;
    ++state().handles[block->handle].uses;
    *handle = block->handle;
    return 0;
}
FAKE_EXPORT int cuMemExportToShareableHandle(void* shareable, uint64_t handle, int type, unsigned long long) {
    ENTER_CONTEXT("cuMemExportToShareableHandle");
    std::lock_guard<std::mutex> guard(state().lock);
    Handle& known = state().handles[handle];
    if (type != 1 || !known.is_exportable) return kNotPermitted;
    const int fd = fcntl(known.fd, F_DUPFD_CLOEXEC, 0);
    std::memcpy(shareable, &fd, sizeof fd);
    return 0;
}
FAKE_EXPORT int cuMemImportFromShareableHandle(uint64_t* handle, void* shareable, int type) {
    ENTER_ALLOCATES("cuMemImportFromShareableHandle");
    const int fd = fcntl(static_cast<int>(reinterpret_cast<intptr_t>(shareable)), F_DUPFD_CLOEXEC, 0);
    struct stat info;
    if (type != 1 || fd < 0 || fstat(fd, &info) != 0) return kInvalidValue;
    std::lock_guard<std::mutex> guard(state().lock);
    *handle = ++state().last_id;
    state().handles[*handle] = Handle{static_cast<size_t>(info.st_size), fd, 1, 1, true};
    return 0;
}
FAKE_EXPORT int cuMemRelease(uint64_t handle) {
    ENTER_CONTEXT("cuMemRelease");
    std::lock_guard<std::mutex> guard(state().lock);
    release(handle);
    return 0;
}
FAKE_EXPORT int cuMemAddressReserve(uint64_t* addr, size_t bytes, size_t, uint64_t, unsigned long long) {
    ENTER_ALLOCATES("cuMemAddressReserve");
    if (bytes == 0 || bytes % kBlock != 0) return kInvalidValue;
    *addr = reserve(bytes);
    std::lock_guard<std::mutex> guard(state().lock);
    state().reservations[*addr] = bytes;
    return 0;
}
FAKE_EXPORT int cuMemAddressFree(uint64_t addr, size_t bytes) {
    ENTER_CONTEXT("cuMemAddressFree");
    std::lock_guard<std::mutex> guard(state().lock);
    auto known = state().reservations.find(addr);
    if (known == state().reservations.end() || known->second != bytes || find_block(addr, 1)) return kInvalidValue;
    state().reservations.erase(known);
    return 0;
}
FAKE_EXPORT int cuMemMap(uint64_t addr, size_t bytes, size_t offset, uint64_t handle, unsigned long long) {
    ENTER_ALLOCATES("cuMemMap");
    std::lock_guard<std::mutex> guard(state().lock);
    auto known = state().handles.find(handle);
    if (known == state().handles.end() || offset != 0 || bytes > known->second.bytes || find_block(addr, 1))
        return kInvalidValue;
    ++known->second.uses;
    Block block;
    block.bytes = bytes;
    block.cpu = map_fd(known->second.fd, bytes);
    block.device = known->second.device;
    block.id = ++state().last_id;
    block.handle = handle;
    block.has_access = false;
    state().blocks[addr] = block;
    return 0;
}
FAKE_EXPORT int cuMemUnmap(uint64_t addr, size_t bytes) {
    ENTER_CONTEXT("cuMemUnmap");
    std::lock_guard<std::mutex> guard(state().lock);
    auto known = state().blocks.find(addr);
    if (known == state().blocks.end() || known->second.bytes != bytes) return kInvalidValue;
    munmap(known->second.cpu, bytes);
    release(known->second.handle);
    state().blocks.erase(known);
    return 0;
}
FAKE_EXPORT int cuMemSetAccess(uint64_t addr, size_t bytes, const void*, size_t) {
    ENTER_ALLOCATES("cuMemSetAccess");
    std::lock_guard<std::mutex> guard(state().lock);
    for (uint64_t at = addr; at < addr + bytes;) {
        Block* block = find_block(at, 1);
        if (!block) return kInvalidValue;
        block->has_access = true;
        at += block->bytes;
    }
    return 0;
}
