// SPDX-License-Identifier: Apache-2.0
// GPU memory of another process on the same GPU: an IPC handle and three file descriptors, mapped and read here.
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "agent_words_gpu.h"
#include "soft_efa/memory_cuda.h"
#include "soft_efa/memory_cuda_share.h"

extern char** environ;

namespace nvshmem_efa::agent_words {
namespace {

constexpr uint32_t kPieces = 3;

struct Message {
    MemoryShare block, pieces;
    uint64_t piece_bytes;
};

uint8_t pattern(uint64_t index) { return static_cast<uint8_t>(index * 13 + index / 997); }

std::vector<uint8_t> patterned(size_t bytes) {
    std::vector<uint8_t> out(bytes);
    for (size_t i = 0; i < bytes; ++i) out[i] = pattern(i);
    return out;
}

msghdr header_of(iovec* part, char* control, size_t control_bytes) {
    msghdr header{};
    header.msg_iov = part, header.msg_iovlen = 1, header.msg_control = control, header.msg_controllen = control_bytes;
    return header;
}

uint64_t export_of(const MemoryShare& bytes) {
    soft::CudaShare share;
    std::memcpy(&share, bytes.bytes, sizeof share);
    return share.export_id;
}

std::unique_ptr<soft::MemoryPort> make(uint64_t process) {
    soft::CudaPortOptions options;
    options.sharing = "direct";
    std::unique_ptr<soft::MemoryPort> port;
    must(soft::make_cuda_memory_port(process, options, &port), "the memory port");
    return port;
}

bool read_peer(soft::MemoryPort& port, const soft::PeerBytes& reference, size_t bytes, uint64_t first) {
    soft::MemoryAddr mapped;
    if (!port.resolve(reference, bytes, &mapped)) return false;
    std::vector<uint8_t> got(bytes);
    const auto ticket = port.copy({MemoryKind::kHost, reinterpret_cast<uint64_t>(got.data())}, mapped, bytes);
    port.flush();
    if (!poll(5000, [&] { return port.done(ticket); }) || !port.error().ok()) return false;
    for (size_t i = 0; i < bytes; ++i)
        if (got[i] != pattern(first + i)) return false;
    return true;
}

}  // namespace

int own_for_peer(int socket, int ordinal) {
    Gpu gpu(ordinal);
    const size_t piece = gpu.granularity();
    const uint64_t block = gpu.alloc(1 << 20), pieces = gpu.alloc_vmm(piece, kPieces);
    gpu.write(block, patterned(1 << 20).data(), 1 << 20);
    gpu.write(pieces, patterned(piece * kPieces).data(), piece * kPieces);
    auto port = make(100);
    Message message{{}, {}, piece};
    must(port->add_local({reinterpret_cast<void*>(block + 4096), 65536, MemoryKind::kCuda, 0}, &message.block), "add_local");
    must(port->add_local({reinterpret_cast<void*>(pieces), piece * kPieces, MemoryKind::kCuda, 0}, &message.pieces),
         "add_local");
    iovec part{&message, sizeof message};
    alignas(cmsghdr) char control[CMSG_SPACE(kPieces * sizeof(int))] = {};
    msghdr header = header_of(&part, control, sizeof control);
    cmsghdr* rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET, rights->cmsg_type = SCM_RIGHTS, rights->cmsg_len = CMSG_LEN(kPieces * sizeof(int));
    int fds[kPieces];
    for (uint32_t i = 0; i < kPieces; ++i) fds[i] = port->export_fd(export_of(message.pieces), i);
    std::memcpy(CMSG_DATA(rights), fds, sizeof fds);
    if (sendmsg(socket, &header, 0) < 0) give_up("the owner cannot send");
    char done = 0;
    return read(socket, &done, 1) >= 0 ? 0 : 1;
}

void check_peers(Report& report) {
    int sockets[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sockets) != 0) give_up("no socket pair");
    const timeval patience{60, 0};
    setsockopt(sockets[0], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(sockets[1], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    char mode[] = "--own", program[] = "agent_words", ordinal[] = "0";
    std::string socket_text = std::to_string(sockets[1]);
    char* arguments[] = {program, mode, socket_text.data(), ordinal, nullptr};
    pid_t owner = 0;
    if (posix_spawn(&owner, "/proc/self/exe", nullptr, nullptr, arguments, environ) != 0) give_up("cannot start a child");
    close(sockets[1]);
    Message message;
    iovec part{&message, sizeof message};
    alignas(cmsghdr) char control[CMSG_SPACE(kPieces * sizeof(int))] = {};
    msghdr header = header_of(&part, control, sizeof control);
    if (recvmsg(sockets[0], &header, MSG_CMSG_CLOEXEC) != static_cast<ssize_t>(sizeof message) || !CMSG_FIRSTHDR(&header)) {
        report.check("port, another process's memory", false, "the owner sent nothing");
    } else {
        int fds[kPieces];
        std::memcpy(fds, CMSG_DATA(CMSG_FIRSTHDR(&header)), sizeof fds);
        auto port = make(200);
        Status block = port->attach(message.block, nullptr);
        report.check("port, another process's cudaMalloc memory is read by IPC",
                     block.ok() && read_peer(*port, {100, export_of(message.block), 8}, 65528, 4104), block.message());
        Status pieces = port->attach(message.pieces, [&](uint64_t, uint32_t index) { return fds[index]; });
        report.check("port, another process's VMM memory is read by its fds",
                     pieces.ok() && read_peer(*port, {100, export_of(message.pieces), message.piece_bytes - 4096},
                                              message.piece_bytes + 8192, message.piece_bytes - 4096),
                     pieces.message());
    }
    (void)!write(sockets[0], "x", 1);
    close(sockets[0]);
    int status = 0;
    waitpid(owner, &status, 0);
    report.check("port, the owner ended well", WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

}  // namespace nvshmem_efa::agent_words
