// SPDX-License-Identifier: Apache-2.0
#include "bootstrap.h"

#include <errno.h>
#include <unistd.h>

#include <cstring>

#include "bootstrap_server.h"
#include "bootstrap_wire.h"

namespace nvshmem_efa::pe {
namespace {

constexpr uint64_t kMillisecondNs = 1'000'000;
// The server's own deadline passes first, and its message names the PE that is missing.
constexpr uint64_t kServerFirstNs = 500 * kMillisecondNs;
constexpr uint64_t kLeaveMs = 5000;

Status check_options(const BootstrapOptions& options) {
    constexpr const char* kAllowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
    if (options.job.size() < 8 || options.job.size() > 64 ||
        options.job.find_first_not_of(kAllowed) != std::string::npos)
        return Status::error(Code::kInvalidArgument,
                             "pass 8 to 64 random characters of [A-Za-z0-9_-], the same on all PEs",
                             "\"%.80s\" is no job name", options.job.c_str());
    if (options.n_pes < 1 || options.n_pes > kPesMax)
        return Status::error(Code::kInvalidArgument, "a host has at most 64 PEs", "%d PEs asked for", options.n_pes);
    if (options.pe < 0 || options.pe >= options.n_pes)
        return Status::error(Code::kInvalidArgument, "PEs are numbered from 0", "PE %d of %d does not exist",
                             options.pe, options.n_pes);
    return Status();
}

}  // namespace

BootstrapSocket::BootstrapSocket(const BootstrapOptions& options) : options_(options) {}

BootstrapSocket::~BootstrapSocket() {
    if (fd_ >= 0) close(fd_);
}

Status BootstrapSocket::join(const BootstrapOptions& options, std::unique_ptr<BootstrapSocket>* socket) {
    EFA_TRY(check_options(options));
    std::unique_ptr<BootstrapSocket> made(new BootstrapSocket(options));
    if (options.pe == 0) EFA_TRY(BootstrapServer::start(options, &made->server_));
    EFA_TRY(made->connect_server());
    const JoinPayload join{static_cast<uint32_t>(options.n_pes), options.abi};
    EFA_TRY(made->collective(kFrameJoin, &join, sizeof join, nullptr, 0)
                .with_context("joining job \"" + options.job + "\""));
    *socket = std::move(made);
    return Status();
}

Status BootstrapSocket::connect_server() {
    const uint64_t end_ns = monotonic_ns() + options_.timeout_ms * kMillisecondNs;
    sockaddr_un address;
    const socklen_t length = bootstrap_address(options_.job, &address);
    int error = 0;
    while (monotonic_ns() < end_ns) {
        fd_ = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd_ < 0)
            return Status::error(Code::kResource, "raise the limit of open files (ulimit -n)",
                                 "cannot make a socket: %s", strerror(errno));
        if (connect(fd_, reinterpret_cast<sockaddr*>(&address), length) == 0) return check_same_user(fd_, nullptr);
        error = errno;
        close(fd_);
        fd_ = -1;
        if (error != ECONNREFUSED && error != EAGAIN && error != EINTR) break;
        usleep(2000);  // PE 0 is not up yet
    }
    return Status::error(Code::kTimeout, "start PE 0 with the same --job; all PEs of a job run on one host",
                         "PE %d found no PE 0 of job \"%s\" within %llu ms: %s", options_.pe, options_.job.c_str(),
                         static_cast<unsigned long long>(options_.timeout_ms), strerror(error));
}

Status BootstrapSocket::allgather(const void* send, void* recv, size_t bytes_per_pe) {
    return collective(kFrameAllgather, send, bytes_per_pe, recv, bytes_per_pe * static_cast<size_t>(options_.n_pes));
}

Status BootstrapSocket::alltoall(const void* send, void* recv, size_t bytes_per_pe) {
    const size_t bytes = bytes_per_pe * static_cast<size_t>(options_.n_pes);
    return collective(kFrameAlltoall, send, bytes, recv, bytes);
}

Status BootstrapSocket::barrier() { return collective(kFrameBarrier, nullptr, 0, nullptr, 0); }

Status BootstrapSocket::collective(uint16_t kind, const void* send, size_t send_bytes, void* recv, size_t recv_bytes) {
    if (send_bytes > kCollectiveBytesMax)
        return Status::error(Code::kInvalidArgument, "exchange it in pieces",
                             "a bootstrap collective of %zu bytes per PE (at most %zu)", send_bytes,
                             kCollectiveBytesMax);
    std::lock_guard guard(lock_);
    EFA_TRY(look_for_failure());
    const uint64_t end_ns = monotonic_ns() + options_.timeout_ms * kMillisecondNs + kServerFirstNs;
    FrameHeader header;
    header.kind = kind;
    header.pe = static_cast<uint16_t>(options_.pe);
    header.sequence = sequence_++;
    header.bytes = send_bytes;
    {
        std::lock_guard send_guard(send_lock_);
        // A closed socket still holds the server's reason, which is read below.
        if (const int error = write_frame(fd_, header, send, end_ns); error != 0 && error != EPIPE)
            return fail(Status::error(Code::kPeer, nullptr, "PE %d cannot write to the bootstrap: %s", options_.pe,
                                      strerror(error)));
    }
    return read_frame(kFrameReply, recv, recv_bytes, end_ns);
}

Status BootstrapSocket::read_frame(uint16_t expected_kind, void* payload, size_t bytes, uint64_t end_ns) {
    FrameHeader header;
    int error = read_all(fd_, &header, sizeof header, end_ns);
    if (error == 0 &&
        (header.magic != kFrameMagic || header.bytes > (header.kind == kFrameError ? kErrorTextMax : bytes)))
        error = EPROTO;
    if (error == 0 && header.kind == kFrameError) {
        char text[kErrorTextMax + 1] = {};
        error = read_all(fd_, text, header.bytes, end_ns);
        if (error == 0) return fail(Status::error(static_cast<Code>(header.sequence), nullptr, "%s", text));
    } else if (error == 0 && (header.kind != expected_kind || header.bytes != bytes)) {
        error = EPROTO;
    } else if (error == 0) {
        error = read_all(fd_, payload, bytes, end_ns);
    }
    if (error == 0) return Status();
    if (error == EPIPE)
        return fail(Status::error(Code::kPeer, "see PE 0's own output",
                                  "PE 0, which serves the bootstrap, ended without a goodbye"));
    if (error == ETIMEDOUT)
        return fail(Status::error(Code::kTimeout, nullptr,
                                  "PE 0, which serves the bootstrap, did not answer within %llu ms",
                                  static_cast<unsigned long long>(options_.timeout_ms)));
    return fail(Status::error(Code::kProtocol, nullptr, "the bootstrap's answer makes no sense: %s", strerror(error)));
}

Status BootstrapSocket::fail(Status status) {
    if (failure_.empty()) {
        failure_code_ = status.code();
        failure_ = status.message();
    }
    return status;
}

Status BootstrapSocket::check_peers() {
    std::unique_lock guard(lock_, std::try_to_lock);
    return guard.owns_lock() ? look_for_failure() : Status();  // held: a collective is reading, and will see it
}

Status BootstrapSocket::look_for_failure() {
    if (!failure_.empty()) return Status::error(failure_code_, nullptr, "%s", failure_.c_str());
    char byte;
    const ssize_t got = recv(fd_, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return Status();
    // Between collectives nothing but an error or the end of the socket can be there.
    return read_frame(kFrameError, nullptr, 0, monotonic_ns() + 1000 * kMillisecondNs);
}

void BootstrapSocket::abort(const Status& why) {
    std::lock_guard guard(send_lock_);
    if (fd_ < 0 || has_left_) return;
    FrameHeader header;
    header.kind = kFrameAbort;
    header.pe = static_cast<uint16_t>(options_.pe);
    header.bytes = std::min(std::strlen(why.message()), kErrorTextMax);
    has_left_ = true;
    // Best effort: if it cannot be sent, the closed socket tells the others that we ended.
    (void)write_frame(fd_, header, why.message(), monotonic_ns() + 100 * kMillisecondNs);
}

void BootstrapSocket::leave() {
    {
        std::lock_guard guard(send_lock_);
        if (fd_ < 0 || has_left_) return;
        FrameHeader header;
        header.kind = kFrameLeave;
        header.pe = static_cast<uint16_t>(options_.pe);
        has_left_ = true;
        (void)write_frame(fd_, header, nullptr, monotonic_ns() + 100 * kMillisecondNs);
    }
    if (server_) server_->wait_all_left(kLeaveMs);
}

}  // namespace nvshmem_efa::pe
