// SPDX-License-Identifier: Apache-2.0
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "soft_efa/pci/vfio_user_commands.h"

namespace nvshmem_efa::soft::pci {
namespace {

// What QEMU 11.1 does (its vfio_user traces, q35 with 1 GiB of memory-backend-memfd):
//   Version; DMA_MAP of RAM (with its file) and of the BIOS (without); device info; region info of 0 to 5 and 7, with
//   which it gets BAR 2's file; the configuration space in one read, then parts of it; irq info of MSI-X and of the
//   error interrupt (refused: it does without); a device reset.
//   While the BIOS runs, pieces below 1 MiB change between RAM and ROM: whole ranges are unmapped and mapped again,
//   several requests at once. BAR 2 where the BIOS put it comes as a range without a file, and goes when BARs are sized
//   or memory space is switched off.
//   It answers BAR sizing and MSI-X itself and passes the writes on. Because one BAR can be mapped it waits for the
//   reply to every write; a request without a reply for 5 s fails. At the guest's end it leaves without a word.
constexpr int kMessagesPerService = 64;  // then the caller's turn: the device runs between messages

Status socket_error(Code code, const char* hint, const std::string& path, const char* what) {
    const int error = errno;
    return Status::error(code, hint, "vfio-user socket %s: %s: %s", path.c_str(), what, std::strerror(error));
}

Status address_of(const std::string& path, sockaddr_un* address) {
    *address = sockaddr_un{};
    address->sun_family = AF_UNIX;
    if (path.empty() || path.size() >= sizeof address->sun_path) {
        return Status::error(Code::kConfig, "choose a shorter folder", "vfio-user socket %s: a path has 1 to %zu bytes", path.c_str(),
                             sizeof address->sun_path - 1);
    }
    std::memcpy(address->sun_path, path.c_str(), path.size());
    return Status();
}

// What an earlier process left behind is removed; what somebody uses, and what is no socket, is not.
Status remove_stale(const std::string& path, const sockaddr_un& address) {
    struct stat found {};
    if (lstat(path.c_str(), &found) != 0) {
        if (errno == ENOENT) return Status();
        return socket_error(Code::kConfig, "choose a folder that this user may write", path, "cannot be looked at");
    }
    if (!S_ISSOCK(found.st_mode)) {
        return Status::error(Code::kConfig, "choose another path, or remove it yourself",
                             "vfio-user socket %s: something else is there", path.c_str());
    }
    const Fd probe(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    const int result = connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
    if (result == 0 || errno != ECONNREFUSED) {
        return Status::error(Code::kConfig, "choose another path, or end the process that listens there",
                             "vfio-user socket %s: another process listens", path.c_str());
    }
    if (unlink(path.c_str()) != 0)
        return socket_error(Code::kConfig, "remove it yourself", path, "nobody listens, but it cannot be removed");
    return Status();
}

class Server final : public VfioUserServer {
   public:
    Server(std::string path, Fd listener, const struct stat& file, PciFunction* function, GuestMemory* memory)
        : path_(std::move(path)), listener_(std::move(listener)), device_(file.st_dev), inode_(file.st_ino), commands_(function, memory) {}

    ~Server() override {
        if (client_) end_client();
        struct stat found {};
        const bool is_ours = lstat(path_.c_str(), &found) == 0 && found.st_dev == device_ && found.st_ino == inode_;
        if (is_ours) unlink(path_.c_str());
    }

    int fd() const override { return client_ ? client_->fd() : listener_.get(); }
    bool has_client() const override { return client_ != nullptr; }
    void raise(uint32_t vector) override { commands_.raise(vector); }

    Status service() override {
        if (!client_) {
            Fd socket;
            EFA_TRY(accept_next(listener_.get(), &socket));
            if (!socket.is_open()) return Status();
            client_ = std::make_unique<VfioUserChannel>(std::move(socket));
        }
        Status status = serve_client();
        if (!status.ok()) end_client();
        return status;
    }

   private:
    Status serve_client() {
        for (int i = 0; i < kMessagesPerService; ++i) {
            VfioUserChannel::Result result = VfioUserChannel::Result::kNothing;
            VfioUserMessage message;
            EFA_TRY(client_->receive(&result, &message));
            if (result == VfioUserChannel::Result::kNothing) return Status();
            if (result == VfioUserChannel::Result::kEnd) {
                return Status::error(Code::kPeer, nullptr, "the vfio-user client left%s",
                                     client_->is_mid_message() ? " in the middle of a message" : "");
            }
            EFA_TRY(commands_.handle(&message, client_.get()));
        }
        return Status();
    }

    void end_client() {
        client_.reset();
        commands_.end_client();
    }

    std::string path_;
    Fd listener_;
    dev_t device_;
    ino_t inode_;
    VfioUserCommands commands_;
    std::unique_ptr<VfioUserChannel> client_;
};

}  // namespace

Status VfioUserServer::create(const std::string& socket_path, PciFunction* function, GuestMemory* memory,
                              std::unique_ptr<VfioUserServer>* server) {
    EFA_TRY(check_identity(function->identity()));
    sockaddr_un address;
    EFA_TRY(address_of(socket_path, &address));
    EFA_TRY(remove_stale(socket_path, address));
    Fd listener(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    // Linux gives the file the mode that the socket has when it is bound: nobody else can connect, at no moment.
    if (!listener.is_open() || fchmod(listener.get(), 0600) != 0) {
        return socket_error(Code::kResource, "raise the limit of open files (ulimit -n)", socket_path, "cannot make it");
    }
    if (bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
        return socket_error(Code::kConfig, "choose a folder that is there and that this user may write", socket_path, "cannot bind it");
    }
    struct stat file {};
    if (lstat(socket_path.c_str(), &file) != 0 || listen(listener.get(), 1) != 0) {
        Status status = socket_error(Code::kResource, nullptr, socket_path, "cannot listen");
        unlink(socket_path.c_str());
        return status;
    }
    *server = std::make_unique<Server>(socket_path, std::move(listener), file, function, memory);
    return Status();
}

}  // namespace nvshmem_efa::soft::pci
