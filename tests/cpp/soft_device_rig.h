// SPDX-License-Identifier: Apache-2.0
// Two (or more) software devices on one thread and a hand-turned clock. Descriptors are written byte by byte, from the
// field tables, not with the functions under test elsewhere.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "nvshmem_efa/ring.h"
#include "soft_efa/device.h"
#include "soft_efa/wire_inproc.h"

namespace rig {

using namespace nvshmem_efa;
using namespace nvshmem_efa::soft;

inline constexpr uint32_t kQkey = 0x11223344;
inline constexpr uint32_t kAllAccess = kAccessLocalWrite | kAccessRemoteWrite | kAccessRemoteRead;

// A descriptor as bytes; set() writes little-endian fields at offsets.
struct Bytes {
    uint8_t raw[128] = {};
    Bytes& set(size_t at, uint64_t value, size_t bytes) {
        std::memcpy(raw + at, &value, bytes);
        return *this;
    }
};

struct Completion {
    uint64_t req_id = 0;
    int status = -1;  // -1: none came
    uint8_t flags = 0;
    RxCqeEx entry{};
};

// One device with one queue pair and one region.
struct Side {
    std::unique_ptr<Device> device;
    Cq send_cq, recv_cq;
    CqRing sent, received;
    Qp qp;
    uint32_t posted = 0;       // slots written
    uint32_t recv_posted = 0;
    std::vector<uint8_t> memory;
    MemoryRegion region;
    AddressHandle peer;

    uint64_t addr(size_t at = 0) const { return reinterpret_cast<uint64_t>(memory.data()) + at; }
    void write_slot(const Bytes& wqe) {
        auto* slots = static_cast<uint8_t*>(qp.sq_slots);
        std::memcpy(slots + (posted & (qp.sq_depth - 1)) * qp.sq_slot_bytes, wqe.raw, qp.sq_slot_bytes);
        ++posted;
    }
    void ring(uint32_t value) { __atomic_store_n(qp.sq_doorbell, value, __ATOMIC_RELEASE); }
    void post(const Bytes& wqe) {
        write_slot(wqe);
        ring(posted);
    }
    void post_receive(uint64_t at, uint16_t length, uint32_t lkey, uint16_t id) {
        Bytes wqe;
        wqe.set(0, at, 8).set(8, id, 2).set(10, length, 2).set(12, (lkey & 0xffffff) | 1u << 30 | 1u << 31, 4);
        auto* slots = static_cast<uint8_t*>(qp.rq_slots);
        std::memcpy(slots + (recv_posted & (qp.rq_depth - 1)) * 16, wqe.raw, 16);
        __atomic_store_n(qp.rq_doorbell, ++recv_posted & 0xffff, __ATOMIC_RELEASE);
    }
    uint32_t phase() const { return posted / qp.sq_depth & 1; }
};

inline Completion next_of(CqRing& ring, bool id_is_64_bit) {
    Completion completion;
    const uint8_t* entry = cq_ring_peek(ring);
    if (!entry) return completion;
    TxCqe tx;
    std::memcpy(&tx, entry, sizeof tx);
    std::memcpy(&completion.entry, entry, ring.entry_bytes);
    completion.req_id = cqe_req_id(tx, id_is_64_bit);
    completion.status = tx.status;
    completion.flags = tx.flags;
    cq_ring_pop(ring);
    return completion;
}
inline Completion next_sent(Side& side) { return next_of(side.sent, side.qp.req_id_64); }
inline Completion next_received(Side& side) { return next_of(side.received, false); }

struct RigOptions {
    std::string profile = "efa3";
    Faults faults = {};  // none
    uint32_t sq_depth = 16;
    uint32_t rq_depth = 16;
    uint32_t cq_depth = 64;
    bool large_slots = false;
    bool unsolicited = false;
    bool req_id_64 = false;
    size_t memory_bytes = 1 << 20;
    uint32_t payload_max = 128u << 10;
    uint64_t unresponsive_ns = 1'000'000;
    uint64_t seed = 7;
    bool connect = true;  // address handles both ways
    bool check_batches = true;          // posters run on this thread
    uint32_t max_tx_batch_units = 16;   // of 64 bytes; the device's limit
    MemoryKind kind = MemoryKind::kHost;  // of the region
};

struct Rig {
    uint64_t now = 1000;
    RigOptions options;
    InprocWire wire{&now, 3};
    std::unique_ptr<MemoryPort> memory;
    Side a, b;

    explicit Rig(const RigOptions& with = {}, std::unique_ptr<MemoryPort> port = make_host_memory_port())
        : options(with), memory(std::move(port)) {
        open(a, 1);
        open(b, 2);
        if (!options.connect) return;
        CHECK_OK(a.device->create_address_handle(b.device->gid(), &a.peer));
        CHECK_OK(b.device->create_address_handle(a.device->gid(), &b.peer));
    }
    void open(Side& side, uint8_t number) {
        DeviceOptions device;
        CHECK_OK(find_profile(options.profile.c_str(), &device.profile));
        device.faults = options.faults;
        device.profile.caps.max_tx_batch_units = options.max_tx_batch_units;
        device.check_batches = options.check_batches;
        device.seed = options.seed * 16 + number;
        device.gid.raw[0] = 0xfd;
        device.gid.raw[15] = number;
        device.memory = memory.get();
        device.wire = &wire;
        device.payload_max = options.payload_max;
        device.unresponsive_ns = options.unresponsive_ns;
        device.name = std::string("soft-") + static_cast<char>('a' + number - 1);
        side.device = std::make_unique<Device>(device);
        wire.add(side.device.get());
        CHECK_OK(side.device->create_cq({options.cq_depth}, &side.send_cq));
        CHECK_OK(side.device->create_cq({options.cq_depth}, &side.recv_cq));
        CHECK(cq_ring_init(side.sent, side.send_cq.entries, side.send_cq.entry_bytes, side.send_cq.depth));
        CHECK(cq_ring_init(side.received, side.recv_cq.entries, side.recv_cq.entry_bytes, side.recv_cq.depth));
        CHECK_OK(side.device->create_qp(qp_attr(side), &side.qp));
        side.memory.assign(options.memory_bytes, number);
        CHECK_OK(side.device->register_memory(
            {side.memory.data(), side.memory.size(), options.kind, kAllAccess}, &side.region));
    }
    QpAttr qp_attr(const Side& side) const {
        QpAttr attr;
        attr.send_cq = side.send_cq.handle;
        attr.recv_cq = side.recv_cq.handle;
        attr.sq_depth = options.sq_depth;
        attr.rq_depth = options.rq_depth;
        attr.large_slots = options.large_slots;
        attr.unsolicited_recv = options.unsolicited;
        attr.req_id_64 = options.req_id_64;
        attr.qkey = kQkey;
        return attr;
    }
    // Steps both devices until `ns` have passed, from event to event.
    void run(uint64_t ns) {
        const uint64_t end = now + ns;
        while (true) {
            for (Side* side : {&a, &b}) side->device->step(now);
            if (now >= end) return;
            now = std::min(end, std::max(now + 1, std::min(a.device->next_event_ns(), b.device->next_event_ns())));
        }
    }
    Completion run_until_sent(Side& side, uint64_t limit_ns = 10'000'000) {
        for (const uint64_t end = now + limit_ns; now < end;) {
            run(100);
            if (Completion completion = next_sent(side); completion.status >= 0) return completion;
        }
        return {};
    }

    // ---- descriptors by hand: offsets and bits of the field table ----
    static Bytes meta(const Side& from, uint8_t opcode, uint16_t req_id, uint32_t dest_qpn) {
        Bytes wqe;
        return wqe.set(0x00, req_id, 2)
            .set(0x02, opcode | 0x80, 1)
            .set(0x03, 0x1c | from.phase(), 1)
            .set(0x04, dest_qpn, 2)
            .set(0x0c, from.peer.ahn, 2)
            .set(0x10, kQkey, 4);
    }
    Bytes write(const Side& from, const Side& to, uint16_t req_id, size_t at, uint32_t bytes) const {
        return meta(from, 2, req_id, to.qp.qp_num)
            .set(0x06, 1, 2)
            .set(0x20, bytes, 4).set(0x24, to.region.rkey, 4).set(0x28, to.addr(at), 8)
            .set(0x30, bytes, 4).set(0x34, from.region.lkey, 4).set(0x38, from.addr(at), 8);
    }
    Bytes read(const Side& from, const Side& to, uint16_t req_id, size_t at, uint32_t bytes) const {
        return write(from, to, req_id, at, bytes).set(0x02, 0x81, 1);
    }
    Bytes send(const Side& from, const Side& to, uint16_t req_id, size_t at, uint32_t bytes) const {
        return meta(from, 0, req_id, to.qp.qp_num)
            .set(0x06, 1, 2)
            .set(0x20, bytes, 4).set(0x24, from.region.lkey, 4).set(0x28, from.addr(at), 8);
    }
    // The status with which `wqe`, posted by a, completes.
    int status_of(const Bytes& wqe) {
        a.post(wqe);
        return run_until_sent(a).status;
    }
};

// A pattern that no shifted copy of itself equals.
inline void fill(Side& side) {
    for (size_t i = 0; i < side.memory.size(); ++i) side.memory[i] = static_cast<uint8_t>(mix64(i) >> 8);
}

}  // namespace rig
