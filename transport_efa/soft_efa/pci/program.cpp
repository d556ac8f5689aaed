// SPDX-License-Identifier: Apache-2.0
#include "program.h"

#include <poll.h>
#include <signal.h>
#include <sys/random.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "clock.h"
#include "knobs.h"
#include "log.h"
#include "soft_efa/fault_plan.h"

namespace nvshmem_efa::soft::pci {
namespace {

constexpr size_t kPollMax = 64;
constexpr uint64_t kConnectMs = 2000;       // QEMU gives a request up after 5 s, and connecting is part of one
constexpr uint64_t kNapNs = 100'000;        // while something happened lately; messages of the guest end a nap at once
constexpr uint64_t kLongNapNs = 1'000'000;  // nothing for kLongIdleNs: only packets of peers have to wait for it
constexpr uint64_t kLongIdleNs = 20'000'000;

uint64_t random_64() {
    uint64_t value = 0;
    while (getrandom(&value, sizeof value, 0) != sizeof value || value == 0) {
    }
    return value;
}

}  // namespace

Status Program::create(const ProgramOptions& options, std::unique_ptr<Program>* program) {
    std::unique_ptr<Program> made(new Program);
    EFA_TRY(made->start(options));
    *program = std::move(made);
    return Status();
}

Status Program::start(const ProgramOptions& options) {
    DeviceOptions device;
    Profile profile;
    EFA_TRY(find_profile(knobs().soft_profile.c_str(), &profile));
    EFA_TRY(remove_capabilities(options.without, &profile.caps));
    device.profile = EfaFunction::device_profile(profile);
    std::vector<PlannedFault> faults;
    EFA_TRY(parse_fault_plan(knobs().soft_fault, &faults));
    memory_port_ = make_host_memory_port();

    ProcessWireOptions wire;
    wire.process_id = random_64();
    wire.local_gids.emplace_back();
    Gid& gid = wire.local_gids.back();
    gid.raw[0] = 0xfe;  // link-local, as the hardware's are; bytes 4 to 11 are the process's, as the wire wants it
    gid.raw[1] = 0x80;
    std::memcpy(gid.raw + 4, &wire.process_id, sizeof wire.process_id);
    wire.memory = memory_port_.get();
    wire.engine_lock = &lock_;
    wire.timeout_ms = kConnectMs;
    EFA_TRY(make_process_wire(wire, &wire_));
    if (!options.fabric.empty()) {
        EFA_TRY(FabricDir::open(options.fabric, &fabric_));
        EFA_TRY(wire_->join_job(fabric_->secret()));
        PeerAddress self;
        self.gid = gid;
        wire_->describe_self(&self);
        EFA_TRY(fabric_->publish(self));
    }

    device.faults.reorder_ns = static_cast<uint64_t>(knobs().soft_reorder_ns);
    device.faults.duplicate_ppm = static_cast<uint32_t>(knobs().soft_duplicate_ppm);
    device.faults.delay_ppm = static_cast<uint32_t>(knobs().soft_delay_ppm);
    device.faults.rnr_ppm = static_cast<uint32_t>(knobs().soft_rnr_ppm);
    for (const PlannedFault& fault : faults) {
        if (fault.kind != PlannedFault::Kind::kDeadRail || fault.which != 0)
            return Status::error(Code::kConfig, "the one device of this process is dead_rail=0@packets",
                                 "a fault of another device is planned: %s", knobs().soft_fault.c_str());
        device.faults.dead_after_packets = fault.after_packets;
    }
    device.seed = static_cast<uint64_t>(knobs().soft_seed) ^ mix64(wire.process_id);
    device.gid = gid;
    device.memory = memory_port_.get();
    device.wire = wire_.get();
    const auto eighth = static_cast<uint32_t>(std::min<int64_t>(knobs().soft_ring_bytes / 8, 128 << 10));
    device.payload_max = std::max(eighth, device.profile.caps.mtu);
    device.unresponsive_ns = static_cast<uint64_t>(knobs().timeout_ms) * 1'000'000 / 2;
    device.name = "efa-" + options.socket.substr(options.socket.rfind('/') + 1);
    device_ = std::make_unique<Device>(device);
    deliver_ = [this](const PacketHeader& header, const void* payload) {
        if (header.dst_gid == device_->gid()) device_->receive(header, payload, now_ns_);
    };
    EFA_TRY(EfaFunction::create(profile, device_.get(), &guest_, this, &function_));
    return VfioUserServer::create(options.socket, function_.get(), &guest_, &server_);
}

// A destination that nobody plays (any more) is no error here, as it is none for hardware: what is sent there ends as
// unresponsive. Only a peer that runs and cannot be this one's, by its version or settings, is refused.
Status Program::find_peer(const Gid& gid) {
    if (gid == device_->gid()) return Status();
    PeerAddress address;
    Status status = fabric_ ? fabric_->find(gid, &address) : Status::error(Code::kPeer, nullptr, "no fabric");
    if (status.ok()) status = wire_->connect(address);
    if (status.code() != Code::kPeer && status.code() != Code::kTimeout) return status;
    EFA_LOG(kInfo, "pci", "no device answers at the destination's GID: %s", status.message());
    return Status();
}

bool Program::turn() {
    const std::lock_guard held(lock_);
    now_ns_ = real_clock().now_ns();
    const Status served = server_->service();
    if (served.code() == Code::kPeer) {
        EFA_LOG(kInfo, "pci", "the virtual machine has gone");
    } else if (!served.ok()) {
        EFA_LOG(kError, "pci", "the virtual machine is cut off: %s", served.message());
    }
    const size_t room = std::min<size_t>(kPollMax, device_->room());
    if (room != 0) (void)wire_->poll(deliver_, room);
    (void)device_->step(now_ns_);
    function_->poll();
    wire_->flush();
    const bool did_work = device_->work_done() != work_seen_;
    work_seen_ = device_->work_done();
    return did_work;
}

// One descriptor to wait for: all that the guest does, doorbells too, comes as messages. Peers' packets do not.
Status Program::run(const volatile int& stop) {
    sigset_t waiting;
    sigprocmask(SIG_SETMASK, nullptr, &waiting);
    sigdelset(&waiting, SIGTERM);  // blocked but here, so that none is lost between the look at `stop` and the nap
    sigdelset(&waiting, SIGINT);
    while (!stop) {
        if (turn()) idle_since_ns_ = now_ns_;
        const uint64_t longest_ns = now_ns_ - idle_since_ns_ > kLongIdleNs ? kLongNapNs : kNapNs;
        const uint64_t next_ns = device_->next_event_ns();
        const uint64_t nap_ns = next_ns <= now_ns_ ? 0 : std::min(longest_ns, next_ns - now_ns_);
        const timespec nap{0, static_cast<long>(nap_ns)};
        pollfd guest{server_->fd(), POLLIN, 0};
        if (ppoll(&guest, 1, &nap, &waiting) < 0 && errno != EINTR)
            return Status::error(Code::kInternal, nullptr, "cannot wait for the virtual machine: %s",
                                 std::strerror(errno));
    }
    return Status();
}

}  // namespace nvshmem_efa::soft::pci
