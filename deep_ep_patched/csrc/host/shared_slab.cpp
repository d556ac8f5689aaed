// SPDX-License-Identifier: Apache-2.0
#include "shared_slab.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

namespace nvshmem_efa::ep {

namespace {

constexpr const char* kRoomHint = "enlarge /dev/shm (a container's --shm-size), or use smaller buffers";

Status draw_name(SlabName* name) {
    uint64_t random[2];
    if (getrandom(random, sizeof random, 0) != static_cast<ssize_t>(sizeof random))
        return Status::error(Code::kResource, nullptr, "cannot draw a name for shared memory: %s", strerror(errno));
    std::snprintf(name->text, sizeof name->text, "/nvshmem_efa_ep.%016llx%016llx",
                  static_cast<unsigned long long>(random[0]), static_cast<unsigned long long>(random[1]));
    return Status();
}

}  // namespace

SharedSlab::~SharedSlab() { release(); }

SharedSlab& SharedSlab::operator=(SharedSlab&& other) noexcept {
    if (this == &other) return *this;
    release();
    base_ = std::exchange(other.base_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
    committed_ = std::exchange(other.committed_, 0);
    fd_ = std::exchange(other.fd_, -1);
    has_name_ = std::exchange(other.has_name_, false);
    purpose_ = other.purpose_;
    name_ = other.name_;
    return *this;
}

void SharedSlab::release() {
    unlink();
    if (base_) munmap(base_, bytes_);
    if (fd_ >= 0) close(fd_);
    base_ = nullptr;
    fd_ = -1;
}

void SharedSlab::unlink() {
    if (has_name_) shm_unlink(name_.text);
    has_name_ = false;
}

Status SharedSlab::map(int fd, size_t bytes) {
    const int flags = fd >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (memory == MAP_FAILED)
        return Status::error(Code::kResource, "use smaller buffers", "cannot map %zu bytes of %s: %s", bytes, purpose_, strerror(errno));
    base_ = static_cast<uint8_t*>(memory);
    bytes_ = bytes;
    return Status();
}

Status SharedSlab::create(size_t bytes, const char* purpose, SharedSlab* slab) {
    SharedSlab made;
    made.purpose_ = purpose;
    EFA_TRY(draw_name(&made.name_));
    made.fd_ = shm_open(made.name_.text, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (made.fd_ < 0)
        return Status::error(Code::kResource, "is /dev/shm there, and may this user write to it?",
                             "cannot make shared memory for %s: %s", purpose, strerror(errno));
    made.has_name_ = true;
    if (ftruncate(made.fd_, static_cast<off_t>(bytes)) != 0)
        return Status::error(Code::kResource, kRoomHint, "cannot make %zu bytes of shared memory for %s: %s", bytes, purpose, strerror(errno));
    EFA_TRY(made.map(made.fd_, bytes));
    *slab = std::move(made);
    return Status();
}

Status SharedSlab::open(const SlabName& name, size_t bytes, const char* purpose, SharedSlab* slab) {
    SharedSlab made;
    made.purpose_ = purpose;
    SlabName ended = name;
    ended.text[sizeof ended.text - 1] = '\0';
    const int fd = shm_open(ended.text, O_RDWR, 0);
    if (fd < 0)
        return Status::error(Code::kPeer, "ranks of one NVLink domain run on one host, as one user, and see one /dev/shm",
                             "cannot open the shared memory of %s: %s", purpose, strerror(errno));
    struct stat facts = {};
    Status status;
    if (fstat(fd, &facts) != 0 || facts.st_uid != geteuid() || facts.st_size < 0 || static_cast<size_t>(facts.st_size) != bytes)
        status = Status::error(Code::kProtocol, "run one version of this library on all ranks",
                               "the shared memory of %s is not what was announced: %lld bytes of user %u, expected %zu of user %u", purpose,
                               static_cast<long long>(facts.st_size), facts.st_uid, bytes, geteuid());
    if (status.ok()) status = made.map(fd, bytes);
    close(fd);
    EFA_TRY(std::move(status));
    *slab = std::move(made);
    return Status();
}

Status SharedSlab::create_private(size_t bytes, const char* purpose, SharedSlab* slab) {
    SharedSlab made;
    made.purpose_ = purpose;
    EFA_TRY(made.map(-1, bytes));
    *slab = std::move(made);
    return Status();
}

Status SharedSlab::commit(size_t bytes) {
    if (bytes > bytes_) bytes = bytes_;
    if (bytes <= committed_ || fd_ < 0) return Status();
    const int error = posix_fallocate(fd_, static_cast<off_t>(committed_), static_cast<off_t>(bytes - committed_));
    if (error != 0)
        return Status::error(Code::kResource, kRoomHint, "no memory for %zu bytes of %s: %s", bytes, purpose_, strerror(error));
    committed_ = bytes;
    return Status();
}

}  // namespace nvshmem_efa::ep
