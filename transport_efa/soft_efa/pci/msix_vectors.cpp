// SPDX-License-Identifier: Apache-2.0
#include "soft_efa/pci/msix_vectors.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

namespace nvshmem_efa::soft::pci {
namespace {

// Only an eventfd is written to: a pipe or a file of the client's could block us, or be somebody else's data.
bool is_eventfd(int fd) {
    const std::string link = "/proc/self/fd/" + std::to_string(fd);
    char target[64];
    const ssize_t length = readlink(link.c_str(), target, sizeof target);
    constexpr char kName[] = "anon_inode:[eventfd]";
    return length == sizeof kName - 1 && std::memcmp(target, kName, sizeof kName - 1) == 0;
}

bool never_blocks(int fd) {
    const int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0;
}

}  // namespace

int MsixVectors::set_eventfds(uint32_t start, uint32_t vectors, std::vector<Fd>* fds) {
    if (start > count() || vectors > count() - start) return EINVAL;
    if (!fds->empty() && fds->size() != vectors) return EINVAL;
    for (const Fd& fd : *fds) {
        if (!is_eventfd(fd.get()) || !never_blocks(fd.get())) return EINVAL;
    }
    for (uint32_t i = 0; i < vectors; ++i) {
        Vector& vector = vectors_[start + i];
        vector.eventfd = fds->empty() ? Fd() : std::move((*fds)[i]);
    }
    return 0;
}

void MsixVectors::set_masked(uint32_t vector, bool is_masked) {
    if (vector >= count()) return;
    vectors_[vector].is_masked = is_masked;
    if (!is_masked && std::exchange(vectors_[vector].is_pending, false)) raise(vector);
}

void MsixVectors::raise(uint32_t vector) {
    if (vector >= count()) return;
    Vector& to = vectors_[vector];
    if (to.is_masked) {
        to.is_pending = true;
        return;
    }
    if (!to.eventfd.is_open()) return;
    // Asked first, in case the client took O_NONBLOCK away: a counter that is full needs no further event.
    pollfd room{to.eventfd.get(), POLLOUT, 0};
    const uint64_t one = 1;
    if (poll(&room, 1, 0) != 1 || (room.revents & POLLOUT) == 0) return;
    // Fails only when it has become full meanwhile.
    [[maybe_unused]] const ssize_t written = write(to.eventfd.get(), &one, sizeof one);
}

void MsixVectors::clear() {
    for (Vector& vector : vectors_) vector = Vector();
}

uint64_t MsixVectors::pending(uint32_t word) const {
    uint64_t bits = 0;
    for (uint32_t i = 0; i < 64 && word * 64 + i < count(); ++i) {
        if (vectors_[word * 64 + i].is_pending) bits |= uint64_t{1} << i;
    }
    return bits;
}

}  // namespace nvshmem_efa::soft::pci
