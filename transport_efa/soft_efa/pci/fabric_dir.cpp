// SPDX-License-Identifier: Apache-2.0
#include "fabric_dir.h"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "soft_efa/control_socket.h"  // Fd

namespace nvshmem_efa::soft::pci {
namespace {

constexpr const char* kSecretFile = "secret";
constexpr const char* kPrivateHint = "give a folder of your own, mode 0700, or one that does not exist yet";

std::string file_of(const Gid& gid) {
    std::string name = "gid-";
    char digits[3];
    for (uint8_t byte : gid.raw) {
        std::snprintf(digits, sizeof digits, "%02x", byte);
        name += digits;
    }
    return name;
}

}  // namespace

Status FabricDir::open(const std::string& path, std::unique_ptr<FabricDir>* fabric) {
    if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST)
        return Status::error(Code::kConfig, kPrivateHint, "cannot make the fabric folder %s: %s", path.c_str(),
                             std::strerror(errno));
    const int dir = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (dir < 0)
        return Status::error(Code::kConfig, kPrivateHint, "cannot open the fabric folder %s: %s", path.c_str(),
                             std::strerror(errno));
    std::unique_ptr<FabricDir> made(new FabricDir(path, dir));
    struct stat about {};
    if (fstat(dir, &about) != 0 || about.st_uid != geteuid() || (about.st_mode & 077) != 0)
        return Status::error(Code::kAuth, kPrivateHint, "the fabric folder %s is not private to this user", path.c_str());
    EFA_TRY(made->load_secret());
    *fabric = std::move(made);
    return Status();
}

FabricDir::~FabricDir() {
    if (!own_file_.empty()) unlinkat(dir_fd_, own_file_.c_str(), 0);
    ::close(dir_fd_);
}

// Whoever comes first draws it. link() decides between two at once: one of them finds the other's.
Status FabricDir::load_secret() {
    if (read_file(kSecretFile, secret_.bytes, sizeof secret_.bytes).ok()) return Status();
    JobSecret drawn;
    if (getrandom(drawn.bytes, sizeof drawn.bytes, 0) != sizeof drawn.bytes)
        return Status::error(Code::kResource, nullptr, "no random numbers: %s", std::strerror(errno));
    (void)write_file(kSecretFile, drawn.bytes, sizeof drawn.bytes);
    return read_file(kSecretFile, secret_.bytes, sizeof secret_.bytes);
}

Status FabricDir::publish(const PeerAddress& self) {
    const std::string name = file_of(self.gid);
    EFA_TRY(write_file(name, &self, sizeof self));
    own_file_ = name;
    return Status();
}

Status FabricDir::find(const Gid& gid, PeerAddress* address) const {
    const Status status = read_file(file_of(gid).c_str(), address, sizeof *address);
    if (!status.ok()) return Status::error(Code::kPeer, "start the other device first", "%s", status.message());
    if (address->gid == gid) return Status();
    return Status::error(Code::kProtocol, "remove the file", "%s/%s holds the address of another device", path_.c_str(),
                         file_of(gid).c_str());
}

Status FabricDir::read_file(const char* name, void* bytes, size_t count) const {
    const Fd file(openat(dir_fd_, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
    if (!file.is_open())
        return Status::error(Code::kMissing, nullptr, "%s/%s: %s", path_.c_str(), name, std::strerror(errno));
    struct stat about {};
    const bool is_ours = fstat(file.get(), &about) == 0 && S_ISREG(about.st_mode) && about.st_uid == geteuid() &&
                         (about.st_mode & 077) == 0;
    if (!is_ours || about.st_size != static_cast<off_t>(count) ||
        read(file.get(), bytes, count) != static_cast<ssize_t>(count))
        return Status::error(Code::kAuth, "remove it", "%s/%s is not a private file of %zu bytes", path_.c_str(), name,
                             count);
    return Status();
}

Status FabricDir::write_file(const std::string& name, const void* bytes, size_t count) const {
    const std::string draft = "." + name + "-" + std::to_string(getpid());
    const Fd file(openat(dir_fd_, draft.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    const bool is_written = file.is_open() && write(file.get(), bytes, count) == static_cast<ssize_t>(count);
    const bool is_there = is_written && linkat(dir_fd_, draft.c_str(), dir_fd_, name.c_str(), 0) == 0;
    const int problem = errno;
    if (file.is_open()) unlinkat(dir_fd_, draft.c_str(), 0);
    if (is_there) return Status();
    return Status::error(Code::kResource, "is the folder full, or left over from another run?", "cannot write %s/%s: %s",
                         path_.c_str(), name.c_str(), std::strerror(problem));
}

}  // namespace nvshmem_efa::soft::pci
