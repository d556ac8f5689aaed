// SPDX-License-Identifier: Apache-2.0
// A vfio-user server over a made-up PCI function, and a client made of bytes: it sends what a test wants.
#pragma once

#include <linux/vfio.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "guest_ram.h"
#include "soft_efa/pci/vfio_user.h"
#include "soft_efa/pci/vfio_user_protocol.h"

namespace pci_test {

using namespace nvshmem_efa;
using namespace nvshmem_efa::soft;
using namespace nvshmem_efa::soft::pci;

inline constexpr uint64_t kBar2Bytes = 16 * kPage;
inline constexpr uint16_t kVectors = 17;
inline constexpr uint32_t kTable = 0x1000, kPba = 0x1800;

struct Access {
    int bar;
    uint64_t offset, value;
    uint32_t bytes;
    bool operator==(const Access&) const = default;
};

// Registers (BAR 0, with MSI-X behind them), memory that the guest maps (BAR 2), doorbells (BAR 4).
class FakeFunction : public PciFunction {
   public:
    FakeFunction() {
        shape.vendor = shape.subsystem_vendor = 0x1d0f;
        shape.device = 0xefa2;
        shape.subsystem = 0x1234;
        shape.revision = 7;
        shape.class_code = 0x020000;
        shape.bars[0] = {2 * kPage, false, false, -1};
        shape.bars[2] = {kBar2Bytes, true, true, bar2.get()};
        shape.bars[4] = {4 * kPage, true, false, -1};
        shape.msix_vectors = kVectors;
        shape.msix_table_offset = kTable;
        shape.msix_pba_offset = kPba;
    }
    const PciIdentity& identity() const override { return shape; }
    uint64_t bar_read(int bar, uint64_t offset, uint32_t bytes) override {
        reads.push_back({bar, offset, 0, bytes});
        return 0x8877665544332211 + offset;
    }
    void bar_write(int bar, uint64_t offset, uint64_t value, uint32_t bytes) override { writes.push_back({bar, offset, value, bytes}); }
    void reset() override { ++resets; }

    Fd bar2 = make_ram(kBar2Bytes);
    PciIdentity shape;
    std::vector<Access> reads, writes;
    int resets = 0;
};

struct Reply {
    VfioUserHeader header{};
    std::vector<uint8_t> body;
    Fd fd;
    bool is_error() const { return (header.flags & kVfioUserError) != 0; }
    template <class T>
    T as() const {
        T value{};
        CHECK(body.size() >= sizeof value);
        std::memcpy(&value, body.data(), sizeof value);
        return value;
    }
};

template <class T>
std::vector<uint8_t> bytes_of(const T& value) {
    const uint8_t* bytes = reinterpret_cast<const uint8_t*>(&value);
    return std::vector<uint8_t>(bytes, bytes + sizeof value);
}

inline std::vector<uint8_t> operator+(std::vector<uint8_t> left, const std::vector<uint8_t>& right) {
    left.insert(left.end(), right.begin(), right.end());
    return left;
}

class Client {
   public:
    explicit Client(const std::string& path) : socket_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        std::memcpy(address.sun_path, path.c_str(), path.size());
        CHECK_EQ(connect(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    }
    int fd() const { return socket_.get(); }
    void leave() { socket_.reset(); }

    // False: the socket is full, or the server has closed it.
    bool send_raw(const void* bytes, size_t count, const std::vector<int>& fds = {}) {
        alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * 32)] = {};
        iovec part{const_cast<void*>(bytes), count};
        msghdr message{};
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        if (!fds.empty()) {
            message.msg_control = control;
            message.msg_controllen = CMSG_SPACE(sizeof(int) * fds.size());
            cmsghdr* one = CMSG_FIRSTHDR(&message);
            one->cmsg_level = SOL_SOCKET;
            one->cmsg_type = SCM_RIGHTS;
            one->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
            std::memcpy(CMSG_DATA(one), fds.data(), sizeof(int) * fds.size());
        }
        return sendmsg(socket_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT) == static_cast<ssize_t>(count);
    }
    static std::vector<uint8_t> message(uint16_t command, const std::vector<uint8_t>& body, uint32_t flags = 0, uint16_t id = 1) {
        return bytes_of(VfioUserHeader{id, command, static_cast<uint32_t>(sizeof(VfioUserHeader) + body.size()), flags, 0}) + body;
    }
    void send(VfioUserCommand command, const std::vector<uint8_t>& body = {}, const std::vector<int>& fds = {}, uint32_t flags = 0) {
        const std::vector<uint8_t> bytes = message(static_cast<uint16_t>(command), body, flags, ++id_);
        CHECK(send_raw(bytes.data(), bytes.size(), fds));
    }
    bool has_reply(int timeout_ms = 0) const {
        pollfd wait{socket_.get(), POLLIN, 0};
        return poll(&wait, 1, timeout_ms) == 1;
    }
    Reply receive() {
        Reply reply;
        take(&reply.header, sizeof reply.header, &reply.fd);
        CHECK_EQ(reply.header.flags & kVfioUserTypeMask, kVfioUserReply);
        reply.body.resize(reply.header.bytes - sizeof reply.header);
        Fd none;
        take(reply.body.data(), reply.body.size(), &none);
        return reply;
    }
    void expect_closed() {
        CHECK(has_reply(5000));
        char byte;
        const ssize_t got = recv(socket_.get(), &byte, 1, MSG_DONTWAIT);
        CHECK(got == 0 || (got < 0 && errno == ECONNRESET));
    }
    uint16_t last_id() const { return id_; }

   private:
    void take(void* to, size_t bytes, Fd* fd) {
        for (size_t done = 0; done < bytes;) {
            CHECK(has_reply(5000));
            alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
            iovec part{static_cast<uint8_t*>(to) + done, bytes - done};
            msghdr message{};
            message.msg_iov = &part;
            message.msg_iovlen = 1;
            message.msg_control = control;
            message.msg_controllen = sizeof control;
            const ssize_t got = recvmsg(socket_.get(), &message, MSG_CMSG_CLOEXEC);
            CHECK(got > 0);
            if (const cmsghdr* one = CMSG_FIRSTHDR(&message)) {
                int received;
                std::memcpy(&received, CMSG_DATA(one), sizeof received);
                *fd = Fd(received);
            }
            done += static_cast<size_t>(got);
        }
    }
    Fd socket_;
    uint16_t id_ = 0;
};

struct Folder {
    Folder() {
        path = std::filesystem::temp_directory_path() / "nvshmem-efa-pci-XXXXXX";
        CHECK(mkdtemp(path.data()) != nullptr);
    }
    ~Folder() { std::filesystem::remove_all(path); }
    std::string path;
};

struct Rig {
    Rig() { CHECK_OK(VfioUserServer::create(path, &function, &memory, &server)); }

    Folder folder;
    std::string path = folder.path + "/efa.sock";
    FakeFunction function;
    GuestMemory memory;
    std::unique_ptr<VfioUserServer> server;

    Reply ask(Client& client, VfioUserCommand command, const std::vector<uint8_t>& body = {}, const std::vector<int>& fds = {}) {
        client.send(command, body, fds);
        CHECK_OK(server->service());
        Reply reply = client.receive();
        CHECK_EQ(reply.header.id, client.last_id());
        CHECK_EQ(reply.header.command, static_cast<uint16_t>(command));
        if (reply.is_error()) CHECK(reply.body.empty() && reply.header.error != 0);
        return reply;
    }
    void handshake(Client& client) {
        const std::string text = R"({"capabilities":{"max_msg_fds":16,"write_multiple":true,"migration":{"pgsize":4096}}})";
        std::vector<uint8_t> body = bytes_of(VfioUserVersion{0, 0}) + std::vector<uint8_t>(text.c_str(), text.c_str() + text.size() + 1);
        CHECK(!ask(client, VfioUserCommand::kVersion, body).is_error());
    }
    uint32_t error_of(Client& client, VfioUserCommand command, const std::vector<uint8_t>& body = {}, const std::vector<int>& fds = {}) {
        const Reply reply = ask(client, command, body, fds);
        return reply.is_error() ? reply.header.error : 0;
    }
    // It still answers, and nothing reached the function.
    void expect_alive(Client& client) {
        CHECK_EQ(error_of(client, VfioUserCommand::kDeviceGetInfo, bytes_of(VfioUserDeviceInfo{16, 0, 0, 0})), 0u);
    }
    uint32_t map(Client& client, uint64_t address, uint64_t size, const std::vector<int>& fds, uint64_t offset = 0, uint32_t flags = 3) {
        return error_of(client, VfioUserCommand::kDmaMap, bytes_of(VfioUserDmaMap{32, flags, offset, address, size}), fds);
    }
    uint32_t unmap(Client& client, uint64_t address, uint64_t size, uint32_t flags = 0) {
        return error_of(client, VfioUserCommand::kDmaUnmap, bytes_of(VfioUserDmaUnmap{24, flags, address, size}));
    }
    uint32_t set_irqs(Client& client, VfioUserIrqSet set, const std::vector<int>& fds = {}, const std::vector<uint8_t>& data = {}) {
        return error_of(client, VfioUserCommand::kDeviceSetIrqs, bytes_of(set) + data, fds);
    }
    uint32_t write(Client& client, uint32_t region, uint64_t offset, uint64_t value, uint32_t count) {
        const std::vector<uint8_t> data = bytes_of(value);
        return error_of(client, VfioUserCommand::kRegionWrite,
                        bytes_of(VfioUserRegionAccess{offset, region, count}) + std::vector<uint8_t>(data.begin(), data.begin() + count));
    }
    uint64_t read(Client& client, uint32_t region, uint64_t offset, uint32_t count) {
        const Reply reply = ask(client, VfioUserCommand::kRegionRead, bytes_of(VfioUserRegionAccess{offset, region, count}));
        CHECK(!reply.is_error());
        CHECK_EQ(reply.body.size(), sizeof(VfioUserRegionAccess) + count);
        uint64_t value = 0;
        std::memcpy(&value, reply.body.data() + sizeof(VfioUserRegionAccess), count);
        return value;
    }
};

}  // namespace pci_test
