// SPDX-License-Identifier: Apache-2.0
// Endpoints on this machine's EFA devices, through the verbs provider and the real rdma-core. For machines that have
// such devices: a virtual machine with the PCI front of the software device, or hardware.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "fabric/verbs.h"

namespace device {

using namespace nvshmem_efa;

inline constexpr uint32_t kQkey = 0x5eed;
inline constexpr uint64_t kWaitMs = 20'000;
inline constexpr uint32_t kAllAccess = kAccessLocalWrite | kAccessRemoteWrite | kAccessRemoteRead;

// All devices of this machine, or those that EFA_TEST_DEVICES names (comma-separated); skips the test where there are none. Memory of udmabuf stands for the GPU's.
std::vector<std::unique_ptr<Nic>> open_devices();
// Skips the test unless there are so many.
std::vector<std::unique_ptr<Nic>> open_devices(size_t at_least);

// Memory that can be exported as a dma-buf, as GPU memory can: a sealed memfd behind /dev/udmabuf, its pages not
// contiguous (4 KiB ones), or a huge page's.
class SharedPages {
   public:
    static Status create(size_t bytes, bool is_contiguous, std::unique_ptr<SharedPages>* pages);
    ~SharedPages();
    uint8_t* data() const { return data_; }
    size_t bytes() const { return bytes_; }

   private:
    SharedPages() = default;
    uint8_t* data_ = nullptr;
    size_t bytes_ = 0;
    int memfd_ = -1;
};

struct Completion {
    bool came = false;
    uint64_t req_id = 0;
    CqeStatus status = CqeStatus::kOk;
    uint8_t flags = 0;
    RxCqeEx entry{};
};

struct EndpointOptions {
    uint32_t sq_depth = 64;
    uint32_t rq_depth = 64;
    uint32_t cq_depth = 256;
    bool large_slots = false;
    bool unsolicited = false;
    bool one_cq = false;         // for sends and receives
    size_t memory_bytes = 16u << 20;
    uint8_t* cq_memory = nullptr;  // for the send CQ
    size_t cq_memory_bytes = 0;
};

// One queue pair with its memory on one device.
class Endpoint {
   public:
    explicit Endpoint(Nic& nic, const EndpointOptions& options = {});
    ~Endpoint();
    Endpoint(const Endpoint&) = delete;

    // Both directions, as the device demands.
    static void connect(Endpoint& a, Endpoint& b);
    void forget_peer();  // destroys the address handle

    SendWqe begin(SendOpcode opcode, const Endpoint& to, uint64_t req_id);  // for the next slot
    SendWqe write(const Endpoint& to, uint64_t req_id, size_t from_at, size_t to_at, uint32_t bytes);
    SendWqe read(const Endpoint& from, uint64_t req_id, size_t to_at, size_t from_at, uint32_t bytes);
    SendWqe send(const Endpoint& to, uint64_t req_id, size_t at, uint32_t bytes);
    void post(const SendWqe& wqe);  // waits for a credit never: the caller keeps count
    void ring() { send_ring_ring(send_ring); }
    void post_receive(uint16_t req_id, size_t at, uint16_t bytes);
    Completion wait(CqRing& ring, uint64_t ms = kWaitMs);  // came == false after ms
    Completion wait_sent(uint64_t ms = kWaitMs) { return wait(sent, ms); }
    Completion wait_received(uint64_t ms = kWaitMs) { return wait(options.one_cq ? sent : received, ms); }
    // Posts, rings and waits.
    CqeStatus run(const SendWqe& wqe);
    uint64_t address(size_t at) const { return reinterpret_cast<uint64_t>(memory.data() + at); }
    void fill(uint64_t seed);

    Nic& nic;
    EndpointOptions options;
    std::vector<uint8_t> memory;
    MemoryRegion region;
    Cq send_cq, recv_cq;
    Qp qp;
    SendRing send_ring;
    RecvRing recv_ring;
    CqRing sent, received;
    AddressHandle peer;
};

// Two endpoints, connected, on devices a and b (which may be one).
struct Pair {
    std::vector<std::unique_ptr<Nic>> nics;
    std::unique_ptr<Endpoint> a, b;
    explicit Pair(const EndpointOptions& options = {}, size_t devices = 1);
};

bool same(const Endpoint& a, size_t a_at, const Endpoint& b, size_t b_at, size_t bytes);

}  // namespace device
