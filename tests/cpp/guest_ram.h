// SPDX-License-Identifier: Apache-2.0
// Memory of a made-up guest: a sealed memfd, as QEMU's memory-backend-memfd makes it.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <filesystem>
#include <iterator>

#include "check.h"
#include "soft_efa/control_socket.h"

namespace pci_test {

inline constexpr uint64_t kPage = 4096;

inline nvshmem_efa::soft::Fd make_ram(uint64_t bytes, int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) {
    nvshmem_efa::soft::Fd fd(memfd_create("guest ram", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    CHECK(fd.is_open());
    CHECK_EQ(ftruncate(fd.get(), static_cast<off_t>(bytes)), 0);
    CHECK_EQ(fcntl(fd.get(), F_ADD_SEALS, seals), 0);
    return fd;
}

// The guest's own view of the file.
class GuestView {
   public:
    GuestView(int fd, uint64_t bytes) : bytes_(bytes) {
        void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        CHECK(mapped != MAP_FAILED);
        data_ = static_cast<uint8_t*>(mapped);
    }
    GuestView(const GuestView&) = delete;
    GuestView& operator=(const GuestView&) = delete;
    ~GuestView() { munmap(data_, bytes_); }
    uint8_t* at(uint64_t offset) const { return data_ + offset; }
    uint8_t& operator[](uint64_t offset) const { return data_[offset]; }

   private:
    uint64_t bytes_;
    uint8_t* data_;
};

inline size_t open_fds() {
    return static_cast<size_t>(std::distance(std::filesystem::directory_iterator("/proc/self/fd"), std::filesystem::directory_iterator()));
}

}  // namespace pci_test
