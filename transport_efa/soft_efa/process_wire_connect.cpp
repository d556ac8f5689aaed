// SPDX-License-Identifier: Apache-2.0
// Connections of a ProcessWire. Any process may dial; if two dial each other, the dial of the lower process id wins:
// the lower one refuses the other's proven dial while its own is under way, and the higher one gives its own up when
// the lower one's is proven. Nothing here waits but connect(), which does so without the engine's lock.
#include <sys/epoll.h>
#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstring>

#include "log.h"
#include "soft_efa/process_wire_impl.h"

namespace nvshmem_efa::soft {
namespace {

constexpr uint64_t kHandshakeMs = 5000;  // for those that connect to us; less if the knob is less
constexpr size_t kSessionsMax = 1024;  // connections that did not prove anything yet

}  // namespace

Status ProcessWireImpl::check_address(const PeerAddress& peer, WireAddress* address, bool* use_tcp) const {
    std::memcpy(static_cast<void*>(address), peer.extra, sizeof *address);
    uint64_t gid_process;
    std::memcpy(&gid_process, peer.gid.raw + 4, sizeof gid_process);
    if (address->magic != kControlMagic) {
        return Status::error(Code::kMismatch, "set the same NVSHMEM_EFA_MODE on every PE",
                             "the peer's address is not that of a software device");
    }
    if (address->version != kWireVersion) {
        return Status::error(Code::kMismatch, "install the same nvshmem-efa version on every PE",
                             "the peer speaks wire version %u, this process %u", address->version, kWireVersion);
    }
    if (address->process_id != gid_process || gid_process == 0) {
        return Status::error(Code::kInvalidArgument, "pass the address that the peer's device gave",
                             "a peer address that does not fit its gid");
    }
    const bool is_same_host = self_.netns != 0 && address->netns == self_.netns &&
                              std::memcmp(address->host, self_.host, sizeof self_.host) == 0;
    const bool any_tcp = self_.mode == WireMode::kTcp || address->mode == WireMode::kTcp;
    const bool any_shm = self_.mode == WireMode::kShm || address->mode == WireMode::kShm;
    if (any_tcp && any_shm) {
        return Status::error(Code::kMismatch, "set the same NVSHMEM_EFA_SOFT_WIRE on every PE",
                             "one of this process and the peer is set to shared memory only, the other to TCP only");
    }
    if (any_shm && !is_same_host) {
        return Status::error(Code::kUnsupported, "set NVSHMEM_EFA_SOFT_WIRE=auto on every PE",
                             "the peer is on another host or in another network namespace, and NVSHMEM_EFA_SOFT_WIRE=shm");
    }
    *use_tcp = any_tcp || !is_same_host;
    if (*use_tcp && (!tcp_listener_.is_open() || (address->tcp.family != 4 && address->tcp.family != 6))) {
        return Status::error(Code::kConfig, "set NVSHMEM_EFA_SOFT_TCP_ADDR to an address of the host that the others can reach",
                             "the peer must be reached by TCP, and %s has no TCP address%s%s",
                             tcp_listener_.is_open() ? "the peer" : "this process", tcp_problem_.empty() ? "" : ": ",
                             tcp_problem_.c_str());
    }
    return Status();
}

Status ProcessWireImpl::start_listening_tcp() {
    if (is_listening_tcp_) return Status();
    EFA_TRY(tcp_listen(tcp_listener_.get()));
    watch(tcp_listener_.get(), EventKind::kTcpListener, EPOLLIN);
    is_listening_tcp_ = true;
    return Status();
}

Status ProcessWireImpl::connect(const PeerAddress& where) {
    WireAddress address;
    bool use_tcp = false;
    uint64_t claimed;
    std::memcpy(&claimed, where.gid.raw + 4, sizeof claimed);
    const std::string name = process_name(claimed);
    EFA_TRY(check_address(where, &address, &use_tcp).with_context(name));
    if (address.process_id == self_.process_id) return Status();
    if (!has_joined_) return Status::error(Code::kInvalidArgument, "call join_job() first", "no job secret yet");
    Peer& peer = peer_of(address.process_id);
    peer.name = name + (use_tcp ? " at " + tcp_address_text(address.tcp) : " on this host");
    if (peer.is_gone) {
        return Status::error(Code::kPeer, "look at the peer's log and exit code", "%s has ended or was cut off",
                             peer.name.c_str());
    }
    if (use_tcp) EFA_TRY(start_listening_tcp());
    peer.failure = Code::kOk;
    peer.failure_text.clear();
    Deadline deadline(clock_, timeout_ms_);
    while (true) {
        service();
        if (peer.link) return Status();
        if (peer.failure != Code::kOk) {
            return Status::error(peer.failure, nullptr, "cannot connect to %s: %s", peer.name.c_str(), peer.failure_text.c_str());
        }
        if (peer.is_gone) {
            return Status::error(Code::kPeer, "look at the peer's log and exit code", "%s ended while connecting",
                                 peer.name.c_str());
        }
        if (Status dialled = dial(peer, address, use_tcp); !dialled.ok()) {
            return std::move(dialled).with_context("cannot connect to " + peer.name);
        }
        if (deadline.passed()) {
            drop_dials(peer.process_id);
            sweep_sessions();
            const char* hint = use_tcp && tcp_is_loopback(address.tcp)
                                   ? "the peer gave out a loopback address; on another host set NVSHMEM_EFA_SOFT_TCP_ADDR there"
                                   : "is the peer stopped, blocked by a firewall, or not connecting to this process?";
            return Status::error(Code::kTimeout, hint,
                                 "%s: no connection within %" PRIu64 " ms%s%s", peer.name.c_str(), timeout_ms_,
                                 peer.failure_text.empty() ? "" : "; last: ", peer.failure_text.c_str());
        }
        wait_unlocked(deadline);
    }
}

// Starts a connection unless one is under way either way, or it is too early to try again.
Status ProcessWireImpl::dial(Peer& peer, const WireAddress& address, bool use_tcp) {
    const auto concerns_peer = [&](const std::unique_ptr<Session>& session) {
        return session->handshake.peer() == peer.process_id && (session->is_dialler || session->waits_for_ring);
    };
    if (std::any_of(sessions_.begin(), sessions_.end(), concerns_peer)) return Status();
    const uint64_t now_ns = clock_.now_ns();
    if (now_ns < peer.redial_ns) return Status();
    auto session = std::make_unique<Session>(true, use_tcp, secret_, self_.process_id, peer.process_id);
    session->deadline_ns = now_ns + timeout_ms_ * 1'000'000;
    if (use_tcp) {
        EFA_TRY(tcp_dial(address.tcp, &session->fd));
        session->is_connecting = true;
    } else {
        bool would_block = false;
        EFA_TRY(control_dial(peer.process_id, &session->fd, &would_block));
        if (would_block) {
            peer.redial_ns = now_ns + kWireRedialNs;
            return Status();
        }
        EFA_TRY(control_check_user(session->fd.get(), &session->pid));
        ControlMessage hello;
        EFA_TRY(session->handshake.begin(&hello));
        if (Status sent = control_send(session->fd.get(), hello); !sent.ok()) {
            peer.failure_text = sent.message();  // it ended just now; the next dial says so
            return Status();
        }
    }
    watch(session->fd.get(), EventKind::kSession, use_tcp ? EPOLLOUT : EPOLLIN);
    sessions_.push_back(std::move(session));
    return Status();
}

void ProcessWireImpl::service() {
    epoll_event events[64];
    const int count = epoll_wait(epoll_.get(), events, 64, 0);
    for (int i = 0; i < count; ++i) {
        const auto kind = static_cast<EventKind>(events[i].data.u64 >> 32);
        const int fd = static_cast<int>(events[i].data.u64 & 0xffffffffu);
        switch (kind) {
            case EventKind::kUnixListener: accept_sessions(false); break;
            case EventKind::kTcpListener: accept_sessions(true); break;
            case EventKind::kSession: {
                const auto found = std::find_if(sessions_.begin(), sessions_.end(), [fd](const auto& session) {
                    return session->fd.get() == fd && !session->is_over;
                });
                if (found != sessions_.end()) (*found)->is_over = !step_session(**found);
                break;
            }
            case EventKind::kLink: on_link_readable(fd); break;
            case EventKind::kPid: {
                pollfd ended{fd, POLLIN, 0};
                const auto found = peer_of_fd_.find(fd);
                if (found != peer_of_fd_.end() && ::poll(&ended, 1, 0) == 1) {
                    found->second->shm->set_ended();
                    unwatch(fd);
                }
                break;
            }
        }
    }
    if (!sessions_.empty()) sweep_sessions();
}

void ProcessWireImpl::accept_sessions(bool is_tcp) {
    const int listener = is_tcp ? tcp_listener_.get() : unix_listener_.get();
    while (sessions_.size() < kSessionsMax) {
        auto session = std::make_unique<Session>(false, is_tcp, secret_, self_.process_id, 0);
        Status status = accept_next(listener, &session->fd);
        if (!status.ok() && !said_no_descriptors_) EFA_LOG(kError, "wire", "%s", status.message());
        said_no_descriptors_ = !status.ok();
        if (!session->fd.is_open()) return;
        if (!is_tcp) status = control_check_user(session->fd.get(), &session->pid);
        if (!status.ok()) {
            EFA_LOG(kError, "wire", "connection refused: %s", status.message());
            continue;
        }
        session->deadline_ns = clock_.now_ns() + std::min(timeout_ms_, kHandshakeMs) * 1'000'000;
        watch(session->fd.get(), EventKind::kSession, EPOLLIN);
        sessions_.push_back(std::move(session));
    }
}

// Marks only: a caller may be going through the sessions.
void ProcessWireImpl::drop_dials(uint64_t process_id) {
    for (const std::unique_ptr<Session>& session : sessions_) {
        if (session->is_dialler && session->handshake.peer() == process_id) session->is_over = true;
    }
}

void ProcessWireImpl::sweep_sessions() {
    const uint64_t now_ns = clock_.now_ns();
    std::erase_if(sessions_, [&](const std::unique_ptr<Session>& session) {
        if (!session->is_over && now_ns < session->deadline_ns) return false;
        if (!session->is_over) retry_dial(*session, "no answer during the handshake");
        if (session->fd.is_open()) unwatch(session->fd.get());
        return true;
    });
}

}  // namespace nvshmem_efa::soft
