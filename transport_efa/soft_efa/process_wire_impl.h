// SPDX-License-Identifier: Apache-2.0
// The wire between processes, inside. process_wire.cpp has the data path, process_wire_connect.cpp who dials whom and how
// two that dial at once end with one connection, process_wire_session.cpp the messages on a new connection.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include "soft_efa/control_socket.h"
#include "soft_efa/process_wire.h"
#include "soft_efa/wire_shm.h"
#include "soft_efa/wire_tcp.h"

namespace nvshmem_efa::soft {

enum class WireMode : uint16_t { kAuto = 0, kShm = 1, kTcp = 2 };

// What stands in PeerAddress::extra.
struct WireAddress {
    uint32_t magic = kControlMagic;
    uint16_t version = kWireVersion;
    WireMode mode = WireMode::kAuto;
    uint64_t process_id = 0;
    uint8_t host[16] = {};  // hash of boot id and host name: equal means one running kernel
    uint64_t netns = 0;     // network namespace; 0: unknown. Abstract sockets reach no further.
    TcpAddress tcp;
    uint32_t reserved = 0;
};
static_assert(sizeof(WireAddress) == 64 && sizeof(WireAddress) <= sizeof(PeerAddress::extra));

inline constexpr uint64_t kWireRedialNs = 20'000'000;  // before another dial to a peer that was not ready

std::string process_name(uint64_t process_id);  // for messages

class ProcessWireImpl final : public ProcessWire {
   public:
    explicit ProcessWireImpl(const ProcessWireOptions& options);
    ~ProcessWireImpl() override;
    Status open();

    Status connect(const PeerAddress& peer) override;
    bool send(const PacketHeader& header, const void* payload) override;
    void flush() override;
    size_t poll(const Deliver& deliver, size_t packets_max) override;
    bool is_gone(const Gid& peer) const override;
    Status join_job(const JobSecret& secret) override;
    void describe_self(PeerAddress* address) const override;
    int fetch_fd(const PeerAddress& owner, uint64_t export_id, uint32_t index) override;
    const char* kind_of(const Gid& peer) const override;
    LinkStats statistics(const char* kind) const override;

   private:
    struct Peer {
        uint64_t process_id = 0;
        std::string name;            // for messages
        std::unique_ptr<Link> link;  // while connected
        ShmLink* shm = nullptr;      // the same, if it is one
        const char* kind = "";       // survives the link
        bool is_gone = false;        // ended, or cut off
        Code failure = Code::kOk;    // of the last dial
        std::string failure_text;
        uint64_t redial_ns = 0;
    };
    // A connection that is not a link yet.
    struct Session {
        Session(bool dialler, bool tcp, const JobSecret& secret, uint64_t self, uint64_t peer)
            : is_dialler(dialler), is_tcp(tcp), handshake(dialler, secret, self, peer) {}
        bool is_dialler;
        bool is_tcp;
        Handshake handshake;
        Fd fd;
        int pid = 0;
        bool is_connecting = false;  // TCP: not there yet
        bool waits_for_ring = false;  // acceptor: accepted, the dialler's ring is to come
        bool is_over = false;  // to be swept
        uint64_t deadline_ns = 0;
        ControlReader reader;
        ShmRing inbound;
    };
    struct FdWait {
        uint64_t owner = 0;
        bool is_done = false;
        Fd fd;
    };
    enum class EventKind : uint32_t { kUnixListener, kTcpListener, kSession, kLink, kPid };

    // process_wire_connect.cpp
    Status check_address(const PeerAddress& peer, WireAddress* address, bool* use_tcp) const;
    Status start_listening_tcp();
    void service();  // looks at every socket once; never waits
    void accept_sessions(bool is_tcp);
    Status dial(Peer& peer, const WireAddress& address, bool use_tcp);
    void drop_dials(uint64_t process_id);
    void sweep_sessions();

    // process_wire_session.cpp
    bool step_session(Session& session);  // false: it is over
    bool finish_connecting(Session& session);
    bool on_bad_bytes(Session& session, const Status& problem);
    bool on_session_message(Session& session, const ControlMessage& message, Fd fd);
    bool on_proven_dialler(Session& session);
    bool on_proven_acceptor(Session& session, Fd ring_fd);
    bool on_peer_ring(Session& session, const ControlMessage& message, Fd ring_fd);
    void finish(Session& session, ShmRing outbound);
    bool fail_dial(Session& session, const Status& problem);  // always false
    bool retry_dial(Session& session, const char* why);       // always false
    bool must_refuse(const Session& session) const;
    void on_link_readable(int fd);
    void on_control_message(Peer& peer, const ControlMessage& message, Fd fd);

    // process_wire.cpp
    Peer& peer_of(uint64_t process_id);
    Peer* find_peer(const Gid& gid) const;
    void drop_link(Peer& peer, const Status& why);
    void watch(int fd, EventKind kind, uint32_t events);
    void unwatch(int fd);
    size_t drain_loopback(const Deliver& deliver, size_t packets_max);
    void wait_unlocked(Deadline& deadline);

    ProcessWireOptions options_;
    Clock& clock_;
    WireAddress self_;
    uint64_t timeout_ms_;
    size_t ring_bytes_;
    JobSecret secret_;
    bool has_joined_ = false;
    bool is_listening_tcp_ = false;
    bool said_no_descriptors_ = false;
    std::string tcp_problem_;  // why there is no TCP, in auto mode
    Fd epoll_;
    Fd unix_listener_;
    Fd tcp_listener_;
    std::unordered_map<uint64_t, std::unique_ptr<Peer>> peers_;
    std::vector<Peer*> linked_;
    size_t next_linked_ = 0;
    size_t tcp_links_ = 0;
    std::unordered_map<int, Peer*> peer_of_fd_;
    std::vector<std::unique_ptr<Session>> sessions_;
    std::unordered_map<uint64_t, FdWait> fd_waits_;
    uint64_t fd_sequence_ = 0;
    uint32_t polls_ = 0;
    bool was_idle_ = true;
    std::vector<uint8_t> loop_in_;   // packets to ourselves, as header and payload
    std::vector<uint8_t> loop_out_;  // those being delivered
    size_t loop_out_begin_ = 0;
    LinkStats loopback_stats_;
    LinkStats ended_shm_stats_;
    LinkStats ended_tcp_stats_;
};

}  // namespace nvshmem_efa::soft
