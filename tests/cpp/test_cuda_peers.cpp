// SPDX-License-Identifier: Apache-2.0
// GPU memory of another process: exported there, mapped and copied here. Two processes, each with its own fake driver.
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <thread>

#include "check.h"
#include "fake_cuda/fake_cuda.h"
#include "soft_efa/memory_cuda.h"
#include "soft_efa/memory_cuda_share.h"

using namespace nvshmem_efa;
using namespace nvshmem_efa::soft;

namespace {

constexpr uint64_t kPiece = 2u << 20;
constexpr int kFds = 3;

// What the owner tells: two registrations in one cudaMalloc'ed block, one over three pieces of virtual memory.
struct Message {
    MemoryShare first, second, pieces;
};

uint8_t pattern(uint64_t index) { return static_cast<uint8_t>(index * 13 + index / 997); }

MemoryAttr attr_of(uint64_t addr, size_t bytes) {
    return {reinterpret_cast<void*>(addr), bytes, MemoryKind::kCuda, kAccessRemoteRead};
}

std::unique_ptr<MemoryPort> make(uint64_t process, int device, const char* sharing) {
    fake_cuda_reset(process);
    fake_cuda_use_device(device);
    CudaPortOptions options;
    options.sharing = sharing;
    std::unique_ptr<MemoryPort> port;
    CHECK_OK(make_cuda_memory_port(process, options, &port));
    return port;
}

void send_fds(int socket, const Message& message, const int* fds) {
    iovec part{const_cast<Message*>(&message), sizeof message};
    alignas(cmsghdr) char control[CMSG_SPACE(kFds * sizeof(int))] = {};
    msghdr header{};
    header.msg_iov = &part, header.msg_iovlen = 1, header.msg_control = control, header.msg_controllen = sizeof control;
    cmsghdr* rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET, rights->cmsg_type = SCM_RIGHTS, rights->cmsg_len = CMSG_LEN(kFds * sizeof(int));
    std::memcpy(CMSG_DATA(rights), fds, kFds * sizeof(int));
    CHECK_EQ(sendmsg(socket, &header, 0), static_cast<ssize_t>(sizeof message));
}

void receive_fds(int socket, Message* message, int* fds) {
    iovec part{message, sizeof *message};
    alignas(cmsghdr) char control[CMSG_SPACE(kFds * sizeof(int))] = {};
    msghdr header{};
    header.msg_iov = &part, header.msg_iovlen = 1, header.msg_control = control, header.msg_controllen = sizeof control;
    CHECK_EQ(recvmsg(socket, &header, MSG_CMSG_CLOEXEC), static_cast<ssize_t>(sizeof *message));
    std::memcpy(fds, CMSG_DATA(CMSG_FIRSTHDR(&header)), kFds * sizeof(int));
}

void own(int socket) {
    auto port = make(100, 0, "direct");
    const uint64_t block = fake_cuda_alloc(1 << 20);
    const uint64_t pieces = fake_cuda_alloc_vmm(kPiece, kFds, 1);
    auto* const cpu = static_cast<uint8_t*>(fake_cuda_cpu(block));
    for (uint64_t i = 0; i < (1 << 20); ++i) cpu[i] = pattern(i);
    for (uint64_t piece = 0; piece < kFds; ++piece) {  // each is somewhere else for the CPU
        auto* const at = static_cast<uint8_t*>(fake_cuda_cpu(pieces + piece * kPiece));
        for (uint64_t i = 0; i < kPiece; ++i) at[i] = pattern(piece * kPiece + i + 5);
    }
    Message message;
    CHECK_OK(port->add_local(attr_of(block, 4096), &message.first));
    CHECK_OK(port->add_local(attr_of(block + 65536, 4096), &message.second));
    CHECK_OK(port->add_local(attr_of(pieces + 512, kFds * kPiece - 512), &message.pieces));
    CudaShare share;
    std::memcpy(&share, message.pieces.bytes, sizeof share);
    int fds[kFds];
    for (uint32_t i = 0; i < kFds; ++i) fds[i] = port->export_fd(share.export_id, i);
    send_fds(socket, message, fds);
    char done = 0;
    CHECK_EQ(read(socket, &done, 1), ssize_t{1});
}

// Forks before either process touches the driver: a fork would not take the streams' threads along.
void with_owner(const std::function<void(int socket)>& use) {
    int sockets[2];
    CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets), 0);
    const pid_t owner = fork();
    if (owner == 0) {
        close(sockets[0]);
        alarm(60);
        int code = 0;
        try {
            own(sockets[1]);
        } catch (const check::Failed&) {
            code = 1;
        }
        _exit(code);
    }
    close(sockets[1]);
    bool is_good = true;
    try {
        use(sockets[0]);
    } catch (const check::Failed&) {
        is_good = false;
    }
    (void)!write(sockets[0], "x", 1);
    close(sockets[0]);
    int status = 0;
    waitpid(owner, &status, 0);
    CHECK(is_good);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

uint64_t export_of(const MemoryShare& share) {
    CudaShare bytes;
    std::memcpy(&bytes, share.bytes, sizeof bytes);
    return bytes.export_id;
}

void check_bytes(MemoryPort& port, const PeerBytes& reference, size_t bytes, uint64_t first) {
    MemoryAddr mapped;
    CHECK(port.resolve(reference, bytes, &mapped));
    std::vector<uint8_t> got(bytes);
    const auto ticket =
        port.copy({MemoryKind::kHost, reinterpret_cast<uint64_t>(got.data())}, mapped, bytes);
    port.flush();
    for (int turn = 0; !port.done(ticket) && turn < 100000; ++turn)
        std::this_thread::sleep_for(std::chrono::microseconds(50));
    CHECK(port.done(ticket));
    for (size_t i = 0; i < bytes; ++i)
        if (got[i] != pattern(first + i)) check::fail(__FILE__, __LINE__, "byte " + std::to_string(i) + " differs");
}

void read_peer(int socket, int device) {
    Message message;
    int fds[kFds];
    receive_fds(socket, &message, fds);
    auto port = make(200, device, "direct");
    const int before = fake_cuda_open_mappings();
    auto fetch = [&](uint64_t export_id, uint32_t index) {
        CHECK_EQ(export_id, export_of(message.pieces));
        return dup(fds[index]);
    };
    for (int turn = 0; turn < 2; ++turn)  // two rails attach the same memory
        for (const MemoryShare* share : {&message.first, &message.second, &message.pieces})
            CHECK_OK(port->attach(*share, fetch));
    CHECK_EQ(fake_cuda_calls("cuIpcOpenMemHandle"), uint64_t{1});  // one block, one mapping
    fake_cuda_forbid_allocation(1);
    check_bytes(*port, {100, export_of(message.first), 0}, 4096, 0);
    check_bytes(*port, {100, export_of(message.second), 8}, 4088, 65536 + 8);
    check_bytes(*port, {100, export_of(message.pieces), 0}, 100, 512 + 5);
    check_bytes(*port, {100, export_of(message.pieces), kPiece * 2 - 512}, 1 << 20, 2 * kPiece + 5);
    MemoryAddr mapped;
    CHECK(!port->resolve({100, export_of(message.first), 0}, 4097, &mapped));
    fake_cuda_forbid_allocation(0);
    CHECK_EQ(fake_cuda_violations(), uint64_t{0});
    port.reset();
    CHECK_EQ(fake_cuda_open_mappings(), before);
    for (int fd : fds) close(fd);
}

void fall_back_to_bouncing(int socket) {
    Message message;
    int fds[kFds];
    receive_fds(socket, &message, fds);
    auto port = make(200, 0, "auto");
    fake_cuda_fail("cuIpcOpenMemHandle", 217, 0, 1);
    CHECK_OK(port->attach(message.first, [](uint64_t, uint32_t) { return -1; }));
    MemoryAddr mapped;
    CHECK(!port->resolve({100, export_of(message.first), 0}, 8, &mapped));
    auto strict = make(201, 0, "direct");
    fake_cuda_fail("cuIpcOpenMemHandle", 217, 0, 1);
    CHECK_FAILS(strict->attach(message.first, [](uint64_t, uint32_t) { return -1; }), Code::kUnsupported,
                "cuIpcOpenMemHandle");
    auto never = make(202, 0, "bounce");
    CHECK_OK(never->attach(message.first, [](uint64_t, uint32_t) { return -1; }));
    CHECK(!never->resolve({100, export_of(message.first), 0}, 8, &mapped));
    for (int fd : fds) close(fd);
}

}  // namespace

TEST(a_peers_memory_is_read_through_its_mappings_from_another_gpu) {
    with_owner([](int socket) { read_peer(socket, 1); });
}

TEST(a_peer_on_the_same_gpu_is_read_the_same_way) {
    with_owner([](int socket) { read_peer(socket, 0); });
}

TEST(a_peer_that_cannot_be_mapped_bounces_unless_the_knob_forbids_it) {
    with_owner([](int socket) { fall_back_to_bouncing(socket); });
}

TEST_MAIN()
