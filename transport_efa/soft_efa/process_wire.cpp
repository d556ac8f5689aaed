// SPDX-License-Identifier: Apache-2.0
#include "soft_efa/process_wire.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstring>

#include "knobs.h"
#include "log.h"
#include "soft_efa/process_wire_impl.h"

namespace nvshmem_efa::soft {
namespace {

constexpr size_t kLoopbackBytesMax = 16u << 20;
constexpr uint32_t kServiceEveryIdle = 4;  // polls between looks at the control sockets
constexpr uint32_t kServiceEveryBusy = 64;

std::string read_small_file(const char* path) {
    char text[128] = "";
    const Fd file(::open(path, O_RDONLY | O_CLOEXEC));
    const ssize_t got = file.is_open() ? read(file.get(), text, sizeof text - 1) : 0;
    return std::string(text, got > 0 ? static_cast<size_t>(got) : 0);
}

void identify_host(WireAddress* self) {
    char name[256] = "";
    gethostname(name, sizeof name - 1);
    const std::string identity = read_small_file("/proc/sys/kernel/random/boot_id") + name;
    const Digest digest = sha256(identity.data(), identity.size());
    std::memcpy(self->host, digest.data(), sizeof self->host);
    struct stat space {};
    if (stat("/proc/self/ns/net", &space) == 0) self->netns = space.st_ino;
}

WireMode mode_of(const std::string& knob) {
    if (knob == "shm") return WireMode::kShm;
    return knob == "tcp" ? WireMode::kTcp : WireMode::kAuto;
}

uint64_t process_of(const Gid& gid) {
    uint64_t id;
    std::memcpy(&id, gid.raw + 4, sizeof id);
    return id;
}

}  // namespace

std::string process_name(uint64_t process_id) {
    char name[32];
    std::snprintf(name, sizeof name, "process %016" PRIx64, process_id);
    return name;
}

ProcessWireImpl::ProcessWireImpl(const ProcessWireOptions& options)
    : options_(options),
      clock_(options.clock ? *options.clock : real_clock()),
      timeout_ms_(options.timeout_ms ? options.timeout_ms : static_cast<uint64_t>(knobs().timeout_ms)),
      ring_bytes_(static_cast<size_t>(knobs().soft_ring_bytes)) {}

ProcessWireImpl::~ProcessWireImpl() {
    for (const char* kind : {"shm", "tcp", "loopback"}) {
        const LinkStats sum = statistics(kind);
        EFA_LOG(kDebug, "wire",
                "%s: %" PRIu64 " packets and %" PRIu64 " bytes sent, %" PRIu64 " and %" PRIu64 " received, no room %" PRIu64
                " times",
                kind, sum.packets_sent, sum.bytes_sent, sum.packets_received, sum.bytes_received, sum.sends_refused);
    }
}

Status ProcessWireImpl::open() {
    if (options_.process_id == 0) return Status::error(Code::kInternal, nullptr, "a wire without a process id");
    self_.process_id = options_.process_id;
    self_.mode = mode_of(knobs().soft_wire);
    identify_host(&self_);
    epoll_ = Fd(epoll_create1(EPOLL_CLOEXEC));
    if (!epoll_.is_open()) {
        return Status::error(Code::kResource, "raise the limit of open files (ulimit -n)", "cannot watch sockets: %s",
                             std::strerror(errno));
    }
    if (self_.mode != WireMode::kTcp) EFA_TRY(control_listen(self_.process_id, &unix_listener_));
    if (self_.mode == WireMode::kShm) return Status();
    // In auto mode the port is only reserved: it listens from the first peer on another host on.
    Status bound = tcp_bind(knobs().soft_tcp_addr, &tcp_listener_, &self_.tcp);
    if (self_.mode == WireMode::kTcp) {
        EFA_TRY(std::move(bound));
        return tcp_listen(tcp_listener_.get());
    }
    if (!bound.ok()) tcp_problem_ = bound.message();
    return Status();
}

Status ProcessWireImpl::join_job(const JobSecret& secret) {
    secret_ = secret;
    if (has_joined_) return Status();
    has_joined_ = true;
    if (unix_listener_.is_open()) watch(unix_listener_.get(), EventKind::kUnixListener, EPOLLIN);
    return self_.mode == WireMode::kTcp ? start_listening_tcp() : Status();
}

void ProcessWireImpl::describe_self(PeerAddress* address) const {
    std::memset(address->extra, 0, sizeof address->extra);
    std::memcpy(address->extra, &self_, sizeof self_);
}

void ProcessWireImpl::watch(int fd, EventKind kind, uint32_t events) {
    epoll_event event{};
    event.events = events;
    event.data.u64 = static_cast<uint64_t>(kind) << 32 | static_cast<uint32_t>(fd);
    if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0 && errno == EEXIST) {
        epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event);
    }
}

// Explicit, because a descriptor that a forked child still holds would stay watched after our close().
void ProcessWireImpl::unwatch(int fd) { epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr); }

ProcessWireImpl::Peer& ProcessWireImpl::peer_of(uint64_t process_id) {
    std::unique_ptr<Peer>& peer = peers_[process_id];
    if (!peer) {
        peer = std::make_unique<Peer>();
        peer->process_id = process_id;
        peer->name = process_name(process_id);
    }
    return *peer;
}

ProcessWireImpl::Peer* ProcessWireImpl::find_peer(const Gid& gid) const {
    const auto found = peers_.find(process_of(gid));
    return found == peers_.end() ? nullptr : found->second.get();
}

bool ProcessWireImpl::is_gone(const Gid& gid) const {
    const Peer* peer = find_peer(gid);
    return peer && peer->is_gone;
}

const char* ProcessWireImpl::kind_of(const Gid& gid) const {
    if (process_of(gid) == self_.process_id) return "loopback";
    const Peer* peer = find_peer(gid);
    return peer ? peer->kind : "";
}

LinkStats ProcessWireImpl::statistics(const char* kind) const {
    if (std::strcmp(kind, "loopback") == 0) return loopback_stats_;
    LinkStats sum = std::strcmp(kind, "shm") == 0 ? ended_shm_stats_ : ended_tcp_stats_;
    for (const Peer* peer : linked_) {
        if (std::strcmp(peer->kind, kind) == 0) sum.add(peer->link->stats);
    }
    return sum;
}

bool ProcessWireImpl::send(const PacketHeader& header, const void* payload) {
    const uint64_t process_id = process_of(header.dst_gid);
    if (process_id == self_.process_id) {
        if (loop_in_.size() > kLoopbackBytesMax) {
            ++loopback_stats_.sends_refused;
            return false;
        }
        const auto* head = reinterpret_cast<const uint8_t*>(&header);
        const auto* body = static_cast<const uint8_t*>(payload);
        loop_in_.insert(loop_in_.end(), head, head + sizeof header);
        if (header.payload_bytes > 0) loop_in_.insert(loop_in_.end(), body, body + header.payload_bytes);
        ++loopback_stats_.packets_sent;
        loopback_stats_.bytes_sent += header.payload_bytes;
        return true;
    }
    const auto found = peers_.find(process_id);
    if (found == peers_.end() || !found->second->link) return true;  // swallowed: nobody is there
    return found->second->link->send(header, payload);
}

void ProcessWireImpl::flush() {
    for (Peer* peer : linked_) peer->link->flush();
}

size_t ProcessWireImpl::drain_loopback(const Deliver& deliver, size_t packets_max) {
    size_t delivered = 0;
    if (loop_out_begin_ == loop_out_.size()) {
        loop_out_.clear();
        loop_out_begin_ = 0;
        loop_out_.swap(loop_in_);  // what deliver() sends to ourselves goes to the other buffer
    }
    while (delivered < packets_max && loop_out_begin_ < loop_out_.size()) {
        PacketHeader header;
        std::memcpy(static_cast<void*>(&header), loop_out_.data() + loop_out_begin_, sizeof header);
        const uint8_t* payload = loop_out_.data() + loop_out_begin_ + sizeof header;
        loop_out_begin_ += sizeof header + header.payload_bytes;
        ++loopback_stats_.packets_received;
        loopback_stats_.bytes_received += header.payload_bytes;
        deliver(header, payload);
        ++delivered;
    }
    return delivered;
}

size_t ProcessWireImpl::poll(const Deliver& deliver, size_t packets_max) {
    if (packets_max == 0) return 0;
    if (++polls_ % (was_idle_ ? kServiceEveryIdle : kServiceEveryBusy) == 0 || tcp_links_ > 0) service();
    size_t delivered = drain_loopback(deliver, packets_max);
    const size_t links = linked_.size();
    bool lost_one = false;
    for (size_t i = 0; i < links && delivered < packets_max; ++i) {
        if (next_linked_ >= links) next_linked_ = 0;
        Peer& peer = *linked_[next_linked_++];
        Status status = peer.link->poll(deliver, packets_max, &delivered);
        if (!status.ok()) {
            drop_link(peer, status);
            lost_one = true;
        }
    }
    if (lost_one) std::erase_if(linked_, [](const Peer* peer) { return !peer->link; });
    was_idle_ = delivered == 0;
    return delivered;
}

// The caller takes the peer out of linked_.
void ProcessWireImpl::drop_link(Peer& peer, const Status& why) {
    if (why.code() == Code::kPeer) {
        EFA_LOG(kDebug, "wire", "%s: %s", peer.name.c_str(), why.message());
    } else {
        EFA_LOG(kError, "wire", "%s is cut off: %s", peer.name.c_str(), why.message());
    }
    unwatch(peer.link->control_fd());
    peer_of_fd_.erase(peer.link->control_fd());
    if (peer.shm && peer.shm->pid_fd() >= 0) {
        unwatch(peer.shm->pid_fd());
        peer_of_fd_.erase(peer.shm->pid_fd());
    }
    if (!peer.shm) --tcp_links_;
    (peer.shm ? ended_shm_stats_ : ended_tcp_stats_).add(peer.link->stats);
    peer.shm = nullptr;
    peer.link.reset();
    peer.is_gone = true;
}

void ProcessWireImpl::wait_unlocked(Deadline& deadline) {
    if (options_.engine_lock) options_.engine_lock->unlock();
    deadline.relax();
    if (options_.engine_lock) options_.engine_lock->lock();
}

int ProcessWireImpl::fetch_fd(const PeerAddress& owner, uint64_t export_id, uint32_t index) {
    std::unique_lock<std::mutex> lock;
    if (options_.engine_lock) lock = std::unique_lock(*options_.engine_lock);
    if (process_of(owner.gid) == self_.process_id) {
        const int own = options_.memory ? options_.memory->export_fd(export_id, index) : -1;
        return own < 0 ? -1 : fcntl(own, F_DUPFD_CLOEXEC, 0);
    }
    const Peer* peer = find_peer(owner.gid);
    if (!peer || !peer->shm) return -1;
    ControlMessage request;
    request.type = ControlType::kFdRequest;
    request.from_process = self_.process_id;
    request.to_process = peer->process_id;
    request.sequence = ++fd_sequence_;
    request.export_id = export_id;
    request.index = index;
    if (!control_send(peer->shm->control_fd(), request).ok()) return -1;
    fd_waits_[request.sequence].owner = peer->process_id;
    Deadline deadline(clock_, timeout_ms_);
    while (true) {
        service();
        FdWait& wait = fd_waits_[request.sequence];
        const bool late = deadline.passed();
        if (late && !wait.is_done) {
            EFA_LOG(kWarn, "wire", "%s did not answer for a descriptor within %" PRIu64 " ms", peer->name.c_str(), timeout_ms_);
        }
        if (wait.is_done || late || !peer->link) {
            const int fd = wait.fd.release();
            fd_waits_.erase(request.sequence);
            return fd;
        }
        wait_unlocked(deadline);
    }
}

Status make_process_wire(const ProcessWireOptions& options, std::unique_ptr<ProcessWire>* wire) {
    auto made = std::make_unique<ProcessWireImpl>(options);
    EFA_TRY(made->open());
    *wire = std::move(made);
    return Status();
}

}  // namespace nvshmem_efa::soft
