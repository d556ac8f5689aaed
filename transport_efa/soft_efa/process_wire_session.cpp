// SPDX-License-Identifier: Apache-2.0
// Connections of a ProcessWire, message by message: from the first bytes to a link, and the control messages after that.
#include <sys/epoll.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "log.h"
#include "soft_efa/process_wire_impl.h"

namespace nvshmem_efa::soft {

bool ProcessWireImpl::fail_dial(Session& session, const Status& problem) {
    if (!session.is_dialler) {
        EFA_LOG(kError, "wire", "connection from %s refused: %s",
                session.handshake.peer() ? process_name(session.handshake.peer()).c_str() : "an unknown process",
                problem.message());
        return false;
    }
    Peer& peer = peer_of(session.handshake.peer());
    peer.failure = problem.code();
    peer.failure_text = problem.message();
    return false;
}

bool ProcessWireImpl::retry_dial(Session& session, const char* why) {
    if (!session.is_dialler) return false;
    Peer& peer = peer_of(session.handshake.peer());
    peer.redial_ns = clock_.now_ns() + kWireRedialNs;
    peer.failure_text = why;
    return false;
}

bool ProcessWireImpl::finish_connecting(Session& session) {
    const int error = tcp_dial_result(session.fd.get());
    if (error == EINPROGRESS) return true;
    if (error != 0) return retry_dial(session, std::strerror(error));  // it may not listen yet
    session.is_connecting = false;
    tcp_set_options(session.fd.get(), timeout_ms_);
    watch(session.fd.get(), EventKind::kSession, EPOLLIN);
    ControlMessage hello;
    if (Status begun = session.handshake.begin(&hello); !begun.ok()) return fail_dial(session, begun);
    if (Status sent = control_send(session.fd.get(), hello); !sent.ok()) return retry_dial(session, sent.message());
    return true;
}

bool ProcessWireImpl::step_session(Session& session) {
    if (session.is_connecting) return finish_connecting(session);
    while (true) {
        ControlReader::Result result;
        ControlMessage message;
        Fd fd;
        Status status = session.reader.read(session.fd.get(), session.is_tcp, &result, &message, &fd);
        if (!status.ok()) return on_bad_bytes(session, status);
        if (result == ControlReader::Result::kNothing) return true;
        if (result == ControlReader::Result::kEnd) return retry_dial(session, "it closed the connection during the handshake");
        if (!on_session_message(session, message, std::move(fd))) return false;
        if (!session.fd.is_open()) return false;  // it became a link
    }
}

bool ProcessWireImpl::on_bad_bytes(Session& session, const Status& problem) {
    if (!session.is_dialler && problem.code() == Code::kMismatch) {
        (void)control_send(session.fd.get(), session.handshake.refuse(RefuseReason::kVersion));
    }
    return fail_dial(session, problem);
}

bool ProcessWireImpl::on_session_message(Session& session, const ControlMessage& message, Fd fd) {
    if (session.waits_for_ring) return on_peer_ring(session, message, std::move(fd));
    if (session.is_dialler && message.type == ControlType::kRefuse && message.reason == RefuseReason::kDuplicate) {
        return retry_dial(session, "it is connecting to this process itself");
    }
    ControlMessage reply;
    bool has_reply = false;
    Status status = session.handshake.on_message(message, &reply, &has_reply);
    if (has_reply) {
        Status sent = control_send(session.fd.get(), reply);
        if (status.ok() && !sent.ok()) return retry_dial(session, sent.message());
    }
    if (!status.ok()) return fail_dial(session, status);
    if (!session.handshake.proven()) return true;
    return session.is_dialler ? on_proven_acceptor(session, std::move(fd)) : on_proven_dialler(session);
}

// A proven dial is refused when there is a connection already, or when our own dial has precedence.
bool ProcessWireImpl::must_refuse(const Session& session) const {
    const uint64_t peer_id = session.handshake.peer();
    const auto found = peers_.find(peer_id);
    if (found != peers_.end() && found->second->link) return true;
    return std::any_of(sessions_.begin(), sessions_.end(), [&](const std::unique_ptr<Session>& other) {
        if (other.get() == &session || other->is_over || other->handshake.peer() != peer_id) return false;
        if (other->waits_for_ring) return true;
        return other->is_dialler && !other->is_connecting && self_.process_id < peer_id;
    });
}

bool ProcessWireImpl::on_proven_dialler(Session& session) {
    const auto known = peers_.find(session.handshake.peer());
    if (known != peers_.end() && known->second->is_gone) {
        (void)control_send(session.fd.get(), session.handshake.refuse(RefuseReason::kCutOff));
        return false;
    }
    if (must_refuse(session)) {
        (void)control_send(session.fd.get(), session.handshake.refuse(RefuseReason::kDuplicate));
        return false;
    }
    if (!session.is_tcp) {
        if (Status made = ShmRing::create(ring_bytes_, &session.inbound); !made.ok()) {
            (void)control_send(session.fd.get(), session.handshake.refuse(RefuseReason::kNoMemory));
            return fail_dial(session, made);
        }
    }
    if (!control_send(session.fd.get(), session.handshake.accept(), session.inbound.fd()).ok()) return false;
    drop_dials(session.handshake.peer());
    if (session.is_tcp) {
        tcp_set_options(session.fd.get(), timeout_ms_);
        finish(session, ShmRing());
    } else {
        session.waits_for_ring = true;
    }
    return true;
}

bool ProcessWireImpl::on_proven_acceptor(Session& session, Fd ring_fd) {
    if (session.is_tcp) {
        finish(session, ShmRing());
        return true;
    }
    ShmRing outbound;
    Status status = ShmRing::attach(ring_fd.release(), &outbound);
    if (status.ok()) status = ShmRing::create(ring_bytes_, &session.inbound);
    if (!status.ok()) {
        if (status.code() == Code::kResource) {
            (void)control_send(session.fd.get(), session.handshake.refuse(RefuseReason::kNoMemory));
        }
        return fail_dial(session, status);
    }
    ControlMessage message;
    message.type = ControlType::kRing;
    message.from_process = self_.process_id;
    message.to_process = session.handshake.peer();
    if (Status sent = control_send(session.fd.get(), message, session.inbound.fd()); !sent.ok()) {
        return retry_dial(session, sent.message());
    }
    finish(session, std::move(outbound));
    return true;
}

bool ProcessWireImpl::on_peer_ring(Session& session, const ControlMessage& message, Fd ring_fd) {
    ShmRing outbound;
    Status status;
    if (message.type == ControlType::kRefuse) {
        status = refusal_error(message);
    } else if (message.type != ControlType::kRing || !ring_fd.is_open()) {
        status = Status::error(Code::kProtocol, "the peer may be broken; look at its log", "it sent no ring");
    } else {
        status = ShmRing::attach(ring_fd.release(), &outbound);
    }
    if (!status.ok()) return fail_dial(session, status);
    finish(session, std::move(outbound));
    return true;
}

void ProcessWireImpl::finish(Session& session, ShmRing outbound) {
    Peer& peer = peer_of(session.handshake.peer());
    const int fd = session.fd.get();
    unwatch(fd);
    if (session.is_tcp) {
        auto link = std::make_unique<TcpLink>(std::move(session.fd));
        link->set_readable();
        peer.link = std::move(link);
        ++tcp_links_;
    } else {
        session.inbound.close_fd();
        auto link = std::make_unique<ShmLink>(std::move(session.fd), session.pid, std::move(session.inbound),
                                              std::move(outbound));
        peer.shm = link.get();
        if (link->pid_fd() >= 0) {
            peer_of_fd_[link->pid_fd()] = &peer;
            watch(link->pid_fd(), EventKind::kPid, EPOLLIN);
        }
        peer.link = std::move(link);
    }
    peer.kind = peer.link->kind();
    peer_of_fd_[fd] = &peer;
    watch(fd, EventKind::kLink, EPOLLIN);
    linked_.push_back(&peer);
    EFA_LOG(kDebug, "wire", "%s: connected by %s", peer.name.c_str(), peer.kind);
}

void ProcessWireImpl::on_link_readable(int fd) {
    const auto found = peer_of_fd_.find(fd);
    if (found == peer_of_fd_.end()) return;
    Peer& peer = *found->second;
    if (!peer.shm) {
        static_cast<TcpLink*>(peer.link.get())->set_readable();
        return;
    }
    while (true) {
        ControlReader::Result result;
        ControlMessage message;
        Fd received;
        Status status = peer.shm->read_control(&result, &message, &received);
        if (!status.ok()) {
            drop_link(peer, status);
            std::erase(linked_, &peer);
            return;
        }
        if (result == ControlReader::Result::kNothing) return;
        if (result == ControlReader::Result::kEnd) {
            peer.shm->set_ended();
            unwatch(fd);
            return;
        }
        on_control_message(peer, message, std::move(received));
    }
}

void ProcessWireImpl::on_control_message(Peer& peer, const ControlMessage& message, Fd fd) {
    if (message.type == ControlType::kFdReply) {
        const auto wait = fd_waits_.find(message.sequence);
        if (wait == fd_waits_.end() || wait->second.owner != peer.process_id) return;
        wait->second.is_done = true;
        wait->second.fd = std::move(fd);
        return;
    }
    if (message.type != ControlType::kFdRequest) return;
    ControlMessage reply;
    reply.type = ControlType::kFdReply;
    reply.from_process = self_.process_id;
    reply.to_process = peer.process_id;
    reply.sequence = message.sequence;
    const int exported = options_.memory ? options_.memory->export_fd(message.export_id, message.index) : -1;
    if (exported < 0) reply.reason = RefuseReason::kFd;
    if (Status sent = control_send(peer.shm->control_fd(), reply, exported); !sent.ok()) {
        EFA_LOG(kWarn, "wire", "%s: %s", peer.name.c_str(), sent.message());
    }
}

}  // namespace nvshmem_efa::soft
