// SPDX-License-Identifier: Apache-2.0
// What software devices counted, for the demo's table, tests and the doctor.
#pragma once

#include <cstdint>

namespace nvshmem_efa::soft {

inline constexpr int kStatusCodes = 19;  // CqeStatus 0..18

struct SoftStats {
    uint64_t work_requests = 0;
    uint64_t doorbells = 0;  // changes of a doorbell that the device saw
    uint64_t packets_sent = 0;
    uint64_t packets_received = 0;
    uint64_t packets_refused = 0;  // not valid: dropped
    uint64_t out_of_order = 0;     // packets handled after one that left the same peer later
    uint64_t duplicates = 0;       // segments placed twice
    uint64_t delays = 0;           // packets held far beyond the window
    uint64_t torn = 0;             // small payloads placed in two parts
    uint64_t rnr = 0;              // messages refused as receiver-not-ready
    uint64_t payload_requests = 0;  // references that the receiver could not resolve
    uint64_t bytes_sent = 0;
    uint64_t bytes_placed = 0;
    uint64_t completions = 0;
    uint64_t cq_overruns = 0;
    uint64_t by_status[kStatusCodes] = {};  // send completions
    // By kind of work request, as the hardware's port counters: well-formed requests taken and their bytes, those that
    // failed, and what came in.
    uint64_t sends = 0, send_bytes = 0;
    uint64_t recvs = 0, recv_bytes = 0;
    uint64_t reads = 0, read_bytes = 0, read_errors = 0, read_response_bytes = 0;
    uint64_t writes = 0, write_bytes = 0, write_errors = 0, write_recv_bytes = 0;

    void add(const SoftStats& other) {
        const auto* from = reinterpret_cast<const uint64_t*>(&other);
        auto* to = reinterpret_cast<uint64_t*>(this);
        for (unsigned i = 0; i < sizeof(SoftStats) / sizeof(uint64_t); ++i) to[i] += from[i];
    }
};

// Sum over all devices of this process's engine; zeros when there is none.
SoftStats soft_stats();

}  // namespace nvshmem_efa::soft
