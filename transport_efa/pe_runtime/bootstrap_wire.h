// SPDX-License-Identifier: Apache-2.0
// The frames of the bootstrap socket, and reading and writing them with a deadline.
#pragma once

#include <sys/socket.h>
#include <sys/un.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "status.h"

namespace nvshmem_efa::pe {

inline constexpr uint32_t kFrameMagic = 0x53425045;  // "EPBS"
inline constexpr size_t kErrorTextMax = 900;

enum FrameKind : uint16_t {
    kFrameJoin = 1,  // payload: JoinPayload; answered when all have joined
    kFrameAllgather = 2,
    kFrameAlltoall = 3,
    kFrameBarrier = 4,
    kFrameLeave = 5,
    kFrameAbort = 6,  // payload: text
    kFrameReply = 7,
    kFrameError = 8,  // payload: text; `sequence` holds the Code
};

struct FrameHeader {
    uint32_t magic = kFrameMagic;
    uint16_t kind = 0;
    uint16_t pe = 0;
    uint64_t sequence = 0;  // number of the collective call, to catch PEs that differ
    uint64_t bytes = 0;     // that follow
};
static_assert(sizeof(FrameHeader) == 24);

struct JoinPayload {
    uint32_t n_pes = 0;
    uint32_t abi = 0;
};

// Name of the job's socket, in the abstract namespace (leading zero byte).
socklen_t bootstrap_address(const std::string& job, sockaddr_un* address);
// kAuth unless the process at the other end has our user id. `pid` may be null.
Status check_same_user(int fd, int* pid);
uint64_t monotonic_ns();
// Waits until `fd` is readable (events POLLIN) or writable. False when the deadline passed.
bool wait_fd(int fd, short events, uint64_t end_ns);
// All bytes or an error; 0 = ok, EPIPE = closed by the other side, ETIMEDOUT, or another errno.
int read_all(int fd, void* data, size_t bytes, uint64_t end_ns);
int write_all(int fd, const void* data, size_t bytes, uint64_t end_ns);
int write_frame(int fd, const FrameHeader& header, const void* payload, uint64_t end_ns);

}  // namespace nvshmem_efa::pe
