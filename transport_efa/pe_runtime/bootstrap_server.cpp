// SPDX-License-Identifier: Apache-2.0
#include "bootstrap_server.h"

#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "log.h"

namespace nvshmem_efa::pe {
namespace {

constexpr uint64_t kSilentConnectionNs = 2'000'000'000;  // to say who it is
constexpr uint64_t kReplyNs = 5'000'000'000;             // a client that waits for a reply reads it at once
constexpr size_t kConnectionsMax = 4 * kPesMax;

const char* kind_name(uint16_t kind) {
    switch (kind) {
        case kFrameJoin: return "join";
        case kFrameAllgather: return "allgather";
        case kFrameAlltoall: return "alltoall";
        case kFrameBarrier: return "barrier";
        default: return "unknown";
    }
}

}  // namespace

Status BootstrapServer::start(const BootstrapOptions& options, std::unique_ptr<BootstrapServer>* server) {
    std::unique_ptr<BootstrapServer> made(new BootstrapServer(options));
    made->listen_fd_ = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    made->stop_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    made->left_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (made->listen_fd_ < 0 || made->stop_fd_ < 0 || made->left_fd_ < 0)
        return Status::error(Code::kResource, "raise the limit of open files (ulimit -n)",
                             "cannot make the bootstrap socket: %s", strerror(errno));
    sockaddr_un address;
    const socklen_t length = bootstrap_address(options.job, &address);
    if (bind(made->listen_fd_, reinterpret_cast<sockaddr*>(&address), length) != 0)
        return Status::error(Code::kResource, "give every job its own random --job name",
                             "PE 0 cannot serve job \"%s\": %s", options.job.c_str(), strerror(errno));
    if (listen(made->listen_fd_, 2 * kPesMax) != 0)
        return Status::error(Code::kResource, nullptr, "PE 0 cannot listen for job \"%s\": %s", options.job.c_str(),
                             strerror(errno));
    made->is_collecting_ = true;  // the join; PE 0 itself is about to
    made->collect_end_ns_ = monotonic_ns() + options.timeout_ms * 1'000'000;
    made->collective_.kind = kFrameJoin;
    made->thread_ = std::thread([raw = made.get()] { raw->run(); });
    *server = std::move(made);
    return Status();
}

BootstrapServer::~BootstrapServer() {
    if (thread_.joinable()) {
        eventfd_write(stop_fd_, 1);
        thread_.join();
    }
    for (Client& client : clients_)
        if (client.fd >= 0) close(client.fd);
    for (int fd : {listen_fd_, stop_fd_, left_fd_})
        if (fd >= 0) close(fd);
}

void BootstrapServer::wait_all_left(uint64_t timeout_ms) {
    wait_fd(left_fd_, POLLIN, monotonic_ns() + timeout_ms * 1'000'000);
}

void BootstrapServer::run() {
    std::vector<pollfd> entries;
    while (!is_finished()) {
        entries.assign(1, pollfd{stop_fd_, POLLIN, 0});
        entries.push_back(pollfd{listen_fd_, POLLIN, 0});  // -1 once all have joined: poll skips it
        const size_t n_clients = clients_.size();
        for (const Client& client : clients_) entries.push_back(pollfd{client.fd, POLLIN, 0});
        const int ready = poll(entries.data(), entries.size(), 50);
        if (ready < 0 && errno != EINTR) break;
        const bool is_last = entries[0].revents;  // what PE 0 said last is read, and told to the others, before we go
        for (size_t i = 0; i < n_clients; ++i)
            if (clients_[i].fd >= 0 && (is_last || entries[i + 2].revents)) read_client(clients_[i]);
        if (is_last) return;
        if (entries[1].revents) accept_client();
        check_deadlines();
        std::erase_if(clients_, [](const Client& client) { return client.fd < 0 && client.pe < 0; });
    }
    eventfd_write(left_fd_, 1);
}

bool BootstrapServer::is_finished() const {
    const auto gone = [](const Client& client) { return client.pe >= 0 && (client.has_left || client.fd < 0); };
    return n_joined_ == options_.n_pes && std::count_if(clients_.begin(), clients_.end(), gone) == options_.n_pes;
}

void BootstrapServer::accept_client() {
    const int fd = accept4(listen_fd_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) return;
    Client client;
    const Status same_user = check_same_user(fd, &client.pid);
    if (!same_user.ok() || clients_.size() >= kConnectionsMax) {
        EFA_LOG(kWarn, "bootstrap", "connection refused: %s",
                same_user.ok() ? "too many connections" : same_user.message());
        close(fd);
        return;
    }
    client.fd = fd;
    client.joined_by_ns = monotonic_ns() + kSilentConnectionNs;
    clients_.push_back(std::move(client));
}

void BootstrapServer::read_client(Client& client) {
    while (client.fd >= 0 && take_bytes(client)) {
        client.received = 0;
        handle_frame(client);
        if (client.is_waiting) break;  // only an abort may still come before the answer
    }
}

bool BootstrapServer::take_bytes(Client& client) {
    for (;;) {
        const bool in_header = client.received < sizeof client.header;
        if (!in_header && client.received == sizeof client.header + client.header.bytes) return true;
        char* at = in_header ? reinterpret_cast<char*>(&client.header) + client.received
                             : client.payload.data() + (client.received - sizeof client.header);
        const size_t wanted = (in_header ? 0 : client.header.bytes) + sizeof client.header - client.received;
        const ssize_t got = recv(client.fd, at, wanted, MSG_DONTWAIT);
        if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return false;
        if (got <= 0) {
            lost(client, "ended without a goodbye");
            return false;
        }
        client.received += static_cast<size_t>(got);
        if (client.received != sizeof client.header) continue;
        // Sizes come from another process: bound them before they become an allocation.
        const size_t limit = client.pe < 0 ? sizeof(JoinPayload) : kCollectiveBytesMax;
        if (client.header.magic != kFrameMagic || client.header.bytes > limit) {
            lost(client, "sent bytes that are not a bootstrap frame");
            return false;
        }
        client.payload.resize(client.header.bytes);
    }
}

void BootstrapServer::handle_frame(Client& client) {
    const FrameHeader& header = client.header;
    if (client.pe < 0) return handle_join(client);
    if (header.kind == kFrameLeave) {
        client.has_left = true;
        if (is_collecting_)
            broadcast_error(Code::kPeer,
                            "PE " + std::to_string(client.pe) + " left while others were in a collective call");
        return;
    }
    if (header.kind == kFrameAbort) {
        const size_t length = std::min(client.payload.size(), kErrorTextMax - 64);
        client.has_left = true;  // whatever happens to its socket now is no news
        broadcast_error(Code::kPeer,
                        "PE " + std::to_string(client.pe) + " gave up: " + std::string(client.payload.data(), length));
        return;
    }
    if (is_failed_) return;  // it has been told, or is about to read it
    for (const Client& other : clients_)
        if (other.has_left)
            return broadcast_error(Code::kPeer, "PE " + std::to_string(other.pe) + " has left the job, PE " +
                                                    std::to_string(client.pe) + " called " + kind_name(header.kind));
    if (!is_collecting_) {
        is_collecting_ = true;
        collective_ = header;
        collect_end_ns_ = monotonic_ns() + options_.timeout_ms * 1'000'000;
    } else if (header.kind != collective_.kind || header.sequence != collective_.sequence ||
               header.bytes != collective_.bytes) {
        return broadcast_error(
            Code::kMismatch, std::string("PEs call different collectives: PE ") + std::to_string(client.pe) +
                                 " is in " + kind_name(header.kind) + " of " + std::to_string(header.bytes) +
                                 " bytes, PE " + std::to_string(collective_.pe) + " in " + kind_name(collective_.kind) +
                                 " of " + std::to_string(collective_.bytes));
    }
    client.is_waiting = true;
    client.collected.swap(client.payload);
    finish_collective();
}

void BootstrapServer::handle_join(Client& client) {
    JoinPayload join;
    const FrameHeader& header = client.header;
    if (header.kind != kFrameJoin || header.bytes != sizeof join || header.pe >= options_.n_pes) {
        EFA_LOG(kWarn, "bootstrap", "process %d is no PE of job \"%s\"; connection closed", client.pid,
                options_.job.c_str());
        return close_client(client);
    }
    std::memcpy(&join, client.payload.data(), sizeof join);
    const std::string who = "PE " + std::to_string(header.pe);
    for (const Client& other : clients_)
        if (other.pe == header.pe) {
            const std::string text = who + " is there already (process " + std::to_string(other.pid) + ")";
            const FrameHeader refusal{kFrameMagic, kFrameError, 0, static_cast<uint64_t>(Code::kInvalidArgument),
                                      text.size()};
            if (write_frame(client.fd, refusal, text.data(), monotonic_ns() + kReplyNs) != 0)
                EFA_LOG(kWarn, "bootstrap", "%s", text.c_str());
            return close_client(client);
        }
    client.pe = header.pe;
    client.is_waiting = true;
    if (++n_joined_ == options_.n_pes) {
        close(listen_fd_);  // the job is complete: from here on nobody can come in
        listen_fd_ = -1;
    }
    if (is_failed_) return reply_failure(client);
    if (join.n_pes != static_cast<uint32_t>(options_.n_pes) || join.abi != options_.abi)
        return broadcast_error(Code::kMismatch, "PEs differ: " + who + " has " + std::to_string(join.n_pes) +
                                                    " PEs and plugin ABI " + std::to_string(join.abi) + ", PE 0 has " +
                                                    std::to_string(options_.n_pes) + " and ABI " +
                                                    std::to_string(options_.abi));
    finish_collective();
}

void BootstrapServer::finish_collective() {
    std::vector<Client*> by_pe(static_cast<size_t>(options_.n_pes), nullptr);
    for (Client& client : clients_)
        if (client.pe >= 0 && client.is_waiting) by_pe[static_cast<size_t>(client.pe)] = &client;
    if (std::count(by_pe.begin(), by_pe.end(), nullptr) > 0) return;
    is_collecting_ = false;
    std::vector<char> all;
    const size_t piece = collective_.kind == kFrameAlltoall ? collective_.bytes / by_pe.size() : collective_.bytes;
    if (collective_.kind == kFrameAllgather)
        for (const Client* client : by_pe) all.insert(all.end(), client->collected.begin(), client->collected.end());
    for (size_t pe = 0; pe < by_pe.size(); ++pe) {
        if (collective_.kind == kFrameAlltoall) {
            all.clear();
            for (const Client* client : by_pe)
                all.insert(all.end(), client->collected.data() + pe * piece,
                           client->collected.data() + (pe + 1) * piece);
        }
        by_pe[pe]->is_waiting = false;
        reply(*by_pe[pe], all.data(), all.size());
    }
}

void BootstrapServer::reply(Client& client, const void* payload, size_t bytes) {
    if (client.fd < 0) return;
    const FrameHeader header{kFrameMagic, kFrameReply, static_cast<uint16_t>(client.pe), collective_.sequence, bytes};
    const int error = write_frame(client.fd, header, payload, monotonic_ns() + kReplyNs);
    if (error) lost(client, error == EPIPE ? "ended without a goodbye" : "does not read the bootstrap socket");
}

void BootstrapServer::reply_failure(Client& client) {
    const FrameHeader header{kFrameMagic, kFrameError, static_cast<uint16_t>(client.pe),
                             static_cast<uint64_t>(failure_code_), failure_.size()};
    // A PE that cannot be told has a deadline of its own.
    if (client.fd >= 0 && write_frame(client.fd, header, failure_.data(), monotonic_ns() + kReplyNs) != 0)
        close_client(client);
}

void BootstrapServer::lost(Client& client, const char* how) {
    const bool is_news = client.pe >= 0 && !client.has_left;
    const std::string text = "PE " + std::to_string(client.pe) + " (process " + std::to_string(client.pid) + ") " + how;
    close_client(client);
    if (is_news) broadcast_error(Code::kPeer, text);
}

void BootstrapServer::broadcast_error(Code code, const std::string& text) {
    if (is_failed_) return;  // the first failure is the cause; what follows from it would only hide it
    is_failed_ = true;
    is_collecting_ = false;
    failure_code_ = code;
    failure_ = text.substr(0, kErrorTextMax);
    for (Client& client : clients_)
        if (client.pe >= 0) reply_failure(client);
}

void BootstrapServer::check_deadlines() {
    const uint64_t now = monotonic_ns();
    for (Client& client : clients_)
        if (client.pe < 0 && client.fd >= 0 && now > client.joined_by_ns) close_client(client);
    if (!is_collecting_ || now <= collect_end_ns_) return;
    broadcast_error(Code::kTimeout, "PE " + missing_pes() + " did not come to " + kind_name(collective_.kind) +
                                        " within " + std::to_string(options_.timeout_ms) + " ms");
}

std::string BootstrapServer::missing_pes() const {
    std::string list;
    for (int pe = 0; pe < options_.n_pes; ++pe) {
        const auto is_here = [pe](const Client& client) { return client.pe == pe && client.is_waiting; };
        if (std::none_of(clients_.begin(), clients_.end(), is_here))
            list += (list.empty() ? "" : ", ") + std::to_string(pe);
    }
    return list;
}

void BootstrapServer::close_client(Client& client) {
    if (client.fd >= 0) close(client.fd);
    client.fd = -1;
}

}  // namespace nvshmem_efa::pe
