// SPDX-License-Identifier: Apache-2.0
#include "fabric/dmabuf.h"

#include <dlfcn.h>
#include <unistd.h>

#include <utility>

#include "cuda_driver.h"

namespace nvshmem_efa::verbs {
namespace {

constexpr uint64_t kGranule = 2u << 20;  // of VMM allocations; a dma-buf of less than whole granules is refused
constexpr int kRangeDmabufFd = 1;
constexpr unsigned long long kRangeViaPcie = 1;  // on coherent platforms: map over PCIe, where the NIC is

using GetPciBusId = cuda::Result (*)(char* text, int text_bytes, cuda::Device device);

// Of the libcuda that this process has loaded already; these calls came later than the table of cuda_driver.h.
template <class Function>
Function find_cuda_call(const char* name) {
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    if (library == nullptr) return nullptr;
    void* symbol = dlsym(library, name);
    dlclose(library);  // the loader's own reference stays with whoever loaded it
    return reinterpret_cast<Function>(symbol);
}

struct Range {
    uint64_t base;
    uint64_t bytes;
};

Range round_out(uint64_t addr, size_t bytes, uint64_t unit) {
    const uint64_t base = addr / unit * unit;
    return {base, (addr + bytes - base + unit - 1) / unit * unit};
}

cuda::Result export_range(GetHandleForRange get_handle, Range range, int* fd) {
#if defined(__aarch64__)
    if (get_handle(fd, range.base, range.bytes, kRangeDmabufFd, kRangeViaPcie) == cuda::kSuccess) return cuda::kSuccess;
#else
    (void)kRangeViaPcie;
#endif
    return get_handle(fd, range.base, range.bytes, kRangeDmabufFd, 0);
}

}  // namespace

Dmabuf::~Dmabuf() {
    if (fd_ >= 0) close(fd_);
}

Dmabuf::Dmabuf(Dmabuf&& other) noexcept : fd_(std::exchange(other.fd_, -1)), offset_(other.offset_) {}

Dmabuf& Dmabuf::operator=(Dmabuf&& other) noexcept {
    std::swap(fd_, other.fd_);
    std::swap(offset_, other.offset_);
    return *this;
}

int export_granules(GetHandleForRange get_handle, const void* addr, size_t bytes, Dmabuf* dmabuf) {
    const auto start = reinterpret_cast<uint64_t>(addr);
    cuda::Result result = cuda::kSuccess;
    for (const uint64_t unit : {kGranule, static_cast<uint64_t>(sysconf(_SC_PAGESIZE))}) {
        const Range range = round_out(start, bytes, unit);
        int fd = -1;
        result = export_range(get_handle, range, &fd);
        if (result == cuda::kSuccess) {
            *dmabuf = Dmabuf(fd, start - range.base);
            break;
        }
    }
    return result;
}

Status export_cuda_dmabuf(const void* addr, size_t bytes, Dmabuf* dmabuf) {
    const cuda::Driver* driver = cuda::driver_if_loaded();
    const auto get_handle = find_cuda_call<GetHandleForRange>("cuMemGetHandleForAddressRange");
    if (driver == nullptr || get_handle == nullptr) {
        return Status::error(Code::kUnsupported, "CUDA 11.7 or newer exports GPU memory as dma-buf",
                             "this process has no libcuda.so.1 with cuMemGetHandleForAddressRange");
    }
    const cuda::Result result = export_granules(get_handle, addr, bytes, dmabuf);
    if (result == cuda::kSuccess) return Status();
    return cuda::driver_error(*driver, result, "cuMemGetHandleForAddressRange",
                              "the allocation must be made for GPUDirect RDMA, and the kernel be 5.12 or newer");
}

std::string current_gpu_pci_id() {
    const cuda::Driver* driver = cuda::driver_if_loaded();
    const auto get_pci_id = find_cuda_call<GetPciBusId>("cuDeviceGetPCIBusId");
    cuda::Device device = 0;
    char text[32] = {};
    if (driver == nullptr || get_pci_id == nullptr) return "";
    if (driver->ctx_get_device(&device) != cuda::kSuccess) return "";
    return get_pci_id(text, sizeof(text), device) == cuda::kSuccess ? text : "";
}

}  // namespace nvshmem_efa::verbs
