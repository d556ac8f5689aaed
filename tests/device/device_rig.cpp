// SPDX-License-Identifier: Apache-2.0
#include "device_rig.h"

#include <fcntl.h>
#include <linux/udmabuf.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <map>

#include "clock.h"

namespace device {
namespace {

// By address, for the exporter: what stands where.
struct Exported {
    size_t bytes;
    int memfd;
};
std::map<const uint8_t*, Exported>& exported() {
    static std::map<const uint8_t*, Exported> all;
    return all;
}

Status failed(const char* call) {
    return Status::error(Code::kUnsupported, "load udmabuf", "%s: %s", call, std::strerror(errno));
}

Status export_udmabuf(const void* addr, size_t bytes, verbs::Dmabuf* dmabuf) {
    const auto* at = static_cast<const uint8_t*>(addr);
    auto found = exported().upper_bound(at);
    if (found == exported().begin()) return Status::error(Code::kInvalidArgument, nullptr, "%p is not shared", addr);
    --found;
    if (at + bytes > found->first + found->second.bytes)
        return Status::error(Code::kInvalidArgument, nullptr, "%p is not shared", addr);
    const int dev = open("/dev/udmabuf", O_RDWR | O_CLOEXEC);
    if (dev < 0) return failed("/dev/udmabuf");
    udmabuf_create create{};
    create.memfd = static_cast<uint32_t>(found->second.memfd);
    create.flags = UDMABUF_FLAGS_CLOEXEC;
    create.size = found->second.bytes;
    const int fd = ioctl(dev, UDMABUF_CREATE, &create);
    close(dev);
    if (fd < 0) return failed("UDMABUF_CREATE");
    *dmabuf = verbs::Dmabuf(fd, static_cast<uint64_t>(at - found->first));
    return Status();
}

}  // namespace

std::vector<std::unique_ptr<Nic>> open_devices() {
    verbs::Machine machine;
    machine.export_dmabuf = export_udmabuf;
    std::vector<std::unique_ptr<Nic>> nics;
    OpenOptions options;
    if (const char* names = std::getenv("EFA_TEST_DEVICES")) options.device_filter = names;
    Status status = verbs::open_nics(machine, options, &nics);
    if (status.code() == Code::kMissing) SKIP(status.message());
    CHECK_OK(std::move(status));
    return nics;
}

std::vector<std::unique_ptr<Nic>> open_devices(size_t at_least) {
    auto nics = open_devices();
    if (nics.size() < at_least) SKIP("needs " + std::to_string(at_least) + " EFA devices");
    return nics;
}

Status SharedPages::create(size_t bytes, bool is_contiguous, std::unique_ptr<SharedPages>* pages) {
    std::unique_ptr<SharedPages> made(new SharedPages);
    const unsigned huge = is_contiguous ? MFD_HUGETLB : 0;
    made->memfd_ = memfd_create("nvshmem-efa-test", MFD_CLOEXEC | MFD_ALLOW_SEALING | huge);
    if (made->memfd_ < 0) return failed("memfd_create");
    if (ftruncate(made->memfd_, static_cast<off_t>(bytes)) != 0 || fcntl(made->memfd_, F_ADD_SEALS, F_SEAL_SHRINK) != 0)
        return failed("memfd");
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, made->memfd_, 0);
    if (data == MAP_FAILED) return failed("mmap of the memfd (vm.nr_hugepages?)");
    made->data_ = static_cast<uint8_t*>(data);
    made->bytes_ = bytes;
    std::memset(data, 0, bytes);
    exported()[made->data_] = Exported{bytes, made->memfd_};
    *pages = std::move(made);
    return Status();
}

SharedPages::~SharedPages() {
    exported().erase(data_);
    if (data_) munmap(data_, bytes_);
    if (memfd_ >= 0) close(memfd_);
}

Endpoint::Endpoint(Nic& with, const EndpointOptions& chosen) : nic(with), options(chosen), memory(chosen.memory_bytes) {
    CHECK_OK(nic.register_memory({memory.data(), memory.size(), MemoryKind::kHost, kAllAccess}, &region));
    CqAttr cq{options.cq_depth};
    CHECK_OK(nic.create_cq(cq, &recv_cq));
    cq.memory = options.cq_memory;
    cq.memory_bytes = options.cq_memory_bytes;
    CHECK_OK(nic.create_cq(cq, &send_cq));
    QpAttr attr;
    attr.send_cq = send_cq.handle;
    attr.recv_cq = options.one_cq ? send_cq.handle : recv_cq.handle;
    attr.sq_depth = options.sq_depth;
    attr.rq_depth = options.rq_depth;
    attr.large_slots = options.large_slots;
    attr.unsolicited_recv = options.unsolicited;
    attr.req_id_64 = nic.info().caps.req_id_64;
    attr.qkey = kQkey;
    CHECK_OK(nic.create_qp(attr, &qp));
    CHECK(send_ring_init(send_ring, qp.sq_slots, qp.sq_doorbell, qp.sq_slot_bytes, qp.sq_depth, qp.sq_max_batch));
    CHECK(options.rq_depth == 0 || recv_ring_init(recv_ring, qp.rq_slots, qp.rq_doorbell, qp.rq_depth));
    CHECK(cq_ring_init(sent, send_cq.entries, send_cq.entry_bytes, send_cq.depth));
    CHECK(cq_ring_init(received, recv_cq.entries, recv_cq.entry_bytes, recv_cq.depth));
}

Endpoint::~Endpoint() {
    forget_peer();
    (void)nic.destroy_qp(qp.handle);
    (void)nic.destroy_cq(send_cq.handle);
    (void)nic.destroy_cq(recv_cq.handle);
    (void)nic.deregister_memory(region);
}

void Endpoint::forget_peer() {
    if (peer.handle) (void)nic.destroy_address_handle(peer);
    peer.handle = 0;  // the number stays, to be used wrongly
}

void Endpoint::connect(Endpoint& a, Endpoint& b) {
    CHECK_OK(a.nic.create_address_handle(b.nic.address(), &a.peer));
    CHECK_OK(b.nic.create_address_handle(a.nic.address(), &b.peer));
}

SendWqe Endpoint::begin(SendOpcode opcode, const Endpoint& to, uint64_t req_id) {
    SendWqe wqe;
    wqe_begin(wqe, opcode, {peer.ahn, static_cast<uint16_t>(to.qp.qp_num), to.qp.qkey}, req_id, qp.req_id_64,
              send_ring_phase(send_ring, send_ring.posted));
    return wqe;
}

SendWqe Endpoint::write(const Endpoint& to, uint64_t req_id, size_t from_at, size_t to_at, uint32_t bytes) {
    SendWqe wqe = begin(SendOpcode::kRdmaWrite, to, req_id);
    wqe_set_remote(wqe, to.address(to_at), bytes, to.region.rkey);
    wqe_set_local(wqe, address(from_at), bytes, region.lkey);
    return wqe;
}

SendWqe Endpoint::read(const Endpoint& from, uint64_t req_id, size_t to_at, size_t from_at, uint32_t bytes) {
    SendWqe wqe = begin(SendOpcode::kRdmaRead, from, req_id);
    wqe_set_remote(wqe, from.address(from_at), bytes, from.region.rkey);
    wqe_set_local(wqe, address(to_at), bytes, region.lkey);
    return wqe;
}

SendWqe Endpoint::send(const Endpoint& to, uint64_t req_id, size_t at, uint32_t bytes) {
    SendWqe wqe = begin(SendOpcode::kSend, to, req_id);
    wqe_add_send_sge(wqe, address(at), bytes, region.lkey);
    return wqe;
}

void Endpoint::post(const SendWqe& wqe) {
    uint32_t slot;
    if (send_ring_batch_is_full(send_ring)) ring();
    CHECK(send_ring_reserve(send_ring, slot));
    send_ring_write(send_ring, slot, wqe);
}

void Endpoint::post_receive(uint16_t req_id, size_t at, uint16_t bytes) {
    uint32_t slot;
    CHECK(recv_ring_reserve(recv_ring, slot));
    recv_wqe_set(*recv_ring_slot(recv_ring, slot), address(at), bytes, region.lkey, req_id);
    recv_ring_ring(recv_ring);
}

Completion Endpoint::wait(CqRing& ring, uint64_t ms) {
    Deadline deadline(real_clock(), ms);
    Completion completion;
    while (!deadline.passed()) {
        const uint8_t* entry = cq_ring_peek(ring);
        if (!entry) {
            deadline.relax();
            continue;
        }
        TxCqe tx;
        std::memcpy(&tx, entry, sizeof tx);
        std::memcpy(static_cast<void*>(&completion.entry), entry, ring.entry_bytes);
        completion.came = true;
        completion.status = static_cast<CqeStatus>(tx.status);
        completion.flags = tx.flags;
        const bool is_send = cqe_queue(tx.flags) == CqeQueue::kSend;
        completion.req_id = cqe_req_id(tx, is_send && qp.req_id_64);
        cq_ring_pop(ring);
        if (is_send) {
            CHECK(send_ring_complete(send_ring, 1));
        } else if (!(tx.flags & kCqeUnsolicited)) {
            CHECK(recv_ring_complete(recv_ring, 1));
        }
        break;
    }
    return completion;
}

CqeStatus Endpoint::run(const SendWqe& wqe) {
    post(wqe);
    ring();
    const Completion done = wait_sent();
    CHECK(done.came);
    return done.status;
}

void Endpoint::fill(uint64_t seed) {
    uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
    for (size_t at = 0; at + 8 <= memory.size(); at += 8) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        const uint64_t word = state ^ (state >> 29);
        std::memcpy(&memory[at], &word, sizeof word);
    }
}

Pair::Pair(const EndpointOptions& options, size_t devices) : nics(open_devices(devices)) {
    a = std::make_unique<Endpoint>(*nics.front(), options);
    b = std::make_unique<Endpoint>(*nics[devices - 1], options);
    Endpoint::connect(*a, *b);
}

bool same(const Endpoint& a, size_t a_at, const Endpoint& b, size_t b_at, size_t bytes) {
    return std::memcmp(a.memory.data() + a_at, b.memory.data() + b_at, bytes) == 0;
}

}  // namespace device
