// SPDX-License-Identifier: Apache-2.0
#include "soft_efa/wire_shm.h"

#include <sys/syscall.h>
#include <unistd.h>

namespace nvshmem_efa::soft {
namespace {

int open_pid(int pid) {
#ifdef SYS_pidfd_open
    if (pid > 0) return static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
#else
    (void)pid;
#endif
    return -1;
}

}  // namespace

ShmLink::ShmLink(Fd control, int pid, ShmRing inbound, ShmRing outbound)
    : control_(std::move(control)),
      pid_fd_(open_pid(pid)),
      receiver_(std::move(inbound)),
      sender_(std::move(outbound)) {}

bool ShmLink::send(const PacketHeader& header, const void* payload) {
    if (ended_) return true;
    if (!sender_.push(header, payload)) {
        ++stats.sends_refused;
        return sender_.is_broken();  // poll() reports it; meanwhile packets are swallowed
    }
    ++stats.packets_sent;
    stats.bytes_sent += header.payload_bytes;
    return true;
}

void ShmLink::flush() {
    if (!ended_) sender_.flush();
}

Status ShmLink::poll(const Wire::Deliver& deliver, size_t packets_max, size_t* delivered) {
    if (!ended_ && sender_.has_pending()) sender_.flush();
    if (sender_.is_broken()) {
        return Status::error(Code::kProtocol, "the peer's memory is corrupt; it is cut off, others live on",
                             "corrupt shared-memory ring: the consumer's index is out of range");
    }
    const size_t before = *delivered;
    Status status = receiver_.poll(deliver, packets_max, delivered);
    stats.packets_received += *delivered - before;
    stats.bytes_received = receiver_.payload_bytes();
    EFA_TRY(std::move(status));
    if (ended_ && *delivered == before) {
        return Status::error(Code::kPeer, "look at the peer's log and exit code", "its process has ended");
    }
    return Status();
}

Status ShmLink::read_control(ControlReader::Result* result, ControlMessage* message, Fd* fd) {
    return reader_.read(control_.get(), false, result, message, fd);
}

}  // namespace nvshmem_efa::soft
