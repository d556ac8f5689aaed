// SPDX-License-Identifier: Apache-2.0
// How the PEs of a job on one host meet: an abstract unix socket served by PE 0, so that no file is left behind.
// Only processes of the same user are let in. Every call has a deadline; a PE that ends without saying so makes the
// calls of all others fail with its name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "status.h"

namespace nvshmem_efa::pe {

inline constexpr int kPesMax = 64;
inline constexpr size_t kCollectiveBytesMax = size_t{16} << 20;  // per PE; sizes from the socket are checked against it

struct BootstrapOptions {
    std::string job;  // 8 to 64 of [A-Za-z0-9_-], random for each job
    int pe = 0;
    int n_pes = 1;
    uint32_t abi = 3;  // must be the same on all PEs
    uint64_t timeout_ms = 30000;
};

class BootstrapServer;

// Collective calls: one thread, same order on every PE. check_peers() and abort(): any thread.
class BootstrapSocket {
   public:
    static Status join(const BootstrapOptions& options, std::unique_ptr<BootstrapSocket>* socket);
    ~BootstrapSocket();  // without leave(): the others learn that this PE ended

    Status allgather(const void* send, void* recv, size_t bytes_per_pe);
    Status alltoall(const void* send, void* recv, size_t bytes_per_pe);
    Status barrier();
    // A named error once some PE died or gave up. Cheap; never blocks. For loops that wait for a peer.
    Status check_peers();
    // Tells the others why this PE gives up; their calls fail with this text.
    void abort(const Status& why);
    // Says goodbye; on PE 0 also waits until all have. Not an error if they do not in time.
    void leave();

    int pe() const { return options_.pe; }
    int n_pes() const { return options_.n_pes; }

   private:
    explicit BootstrapSocket(const BootstrapOptions& options);
    Status connect_server();
    Status collective(uint16_t kind, const void* send, size_t send_bytes, void* recv, size_t recv_bytes);
    // These three with lock_ held.
    Status read_frame(uint16_t expected_kind, void* payload, size_t bytes, uint64_t end_ns);
    Status look_for_failure();
    Status fail(Status status);  // remembers the first failure; the socket is of no use afterwards

    BootstrapOptions options_;
    int fd_ = -1;
    bool has_left_ = false;
    uint64_t sequence_ = 0;
    std::mutex lock_;       // held for a whole collective: nobody else may read its answer; also failure_*
    std::mutex send_lock_;  // one frame at a time
    Code failure_code_ = Code::kOk;
    std::string failure_;
    std::unique_ptr<BootstrapServer> server_;  // PE 0
};

}  // namespace nvshmem_efa::pe
