// SPDX-License-Identifier: Apache-2.0
// An EFA function and a small driver of it: made-up RAM, admin queues, rings and doorbells as a guest's kernel and
// programs would use them.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "guest_ram.h"
#include "nvshmem_efa/ring.h"
#include "soft_efa/pci/efa_function.h"
#include "soft_efa/wire_inproc.h"

namespace pci_test {

using namespace nvshmem_efa;
using namespace nvshmem_efa::soft;
using namespace nvshmem_efa::soft::pci;

inline constexpr uint64_t kRamBase = 0x100000, kRamBytes = 32ull << 20;
inline constexpr uint32_t kQkey = 0x11223344;

struct Host final : FunctionHost {
    std::vector<uint32_t> raised;
    std::vector<Gid> strangers;  // peers that the fabric does not find
    int asked = 0;
    void raise(uint32_t vector) override { raised.push_back(vector); }
    Status find_peer(const Gid& gid) override {
        ++asked;
        for (const Gid& stranger : strangers) {
            if (stranger == gid) return Status::error(Code::kPeer, nullptr, "nobody has this GID");
        }
        return Status();
    }
    size_t times(uint32_t vector) const {
        return static_cast<size_t>(std::count(raised.begin(), raised.end(), vector));
    }
};

struct RigOptions {
    std::string profile = "efa3";
    uint16_t sub_cqs = 1;
    uint32_t admin_depth = 32;
    uint8_t admin_minor = 0;  // 0: the profile's
    bool start = true;        // reset, admin queues, one domain and UAR
    Faults faults = {};
};

inline uint32_t low(uint64_t value) { return static_cast<uint32_t>(value); }
inline uint32_t high(uint64_t value) { return static_cast<uint32_t>(value >> 32); }

struct CqView {
    uint16_t id = 0;
    uint32_t doorbell = 0;
    std::vector<CqRing> rings;
};

struct QpView {
    CreateQpReply reply{};
    uint32_t posted = 0, recv_posted = 0, depth = 0, rq_depth = 0, slot_bytes = 64;
    uint64_t rq_addr = 0;
};

struct MrView {
    uint32_t lkey = 0, rkey = 0;
    uint64_t addr = 0;
    uint8_t status = 0;
};

class Rig {
   public:
    explicit Rig(const RigOptions& with = {}) : options(with) {
        CHECK_OK(find_profile(options.profile.c_str(), &profile));
        profile.pci.sub_cqs_per_cq = options.sub_cqs;
        if (options.admin_minor) profile.pci.admin_minor = options.admin_minor;
        entry_bytes = profile.pci.admin_minor >= 3 ? kAdminLongEntryBytes : kAdminEntryBytes;
        CHECK_OK(memory.add_range(kRamBase, kRamBytes, dup(ram.get()), 0, true));
        DeviceOptions device_options;
        device_options.profile = EfaFunction::device_profile(profile);
        device_options.faults = options.faults;
        device_options.gid.raw[0] = 0xfe;
        device_options.gid.raw[15] = 7;
        device_options.memory = port.get();
        device_options.wire = &wire;
        device_options.unresponsive_ns = 1'000'000;
        device_options.name = "efa-test";
        device = std::make_unique<Device>(device_options);
        wire.add(device.get());
        CHECK_OK(EfaFunction::create(profile, device.get(), &memory, &host, &function));
        const Bar& bar = function->identity().bars[kSendQueueBar];
        send_queues = std::make_unique<GuestView>(bar.fd, bar.bytes);
        if (!options.start) return;
        reset_handshake();
        start_admin();
        pd = make_id(AdminOpcode::kAllocPd);
        uar = make_id(AdminOpcode::kAllocUar);
    }

    // ---- registers ----
    void reg_write(uint32_t offset, uint32_t value) { function->bar_write(kRegisterBar, offset, value, 4); }
    uint32_t reg_read(uint32_t offset) {  // as the driver does: by DMA
        ++read_number;
        reg_write(kRegReadRequest, read_number | offset << 16);
        ReadAnswer answer;
        std::memcpy(&answer, at(answer_addr), sizeof answer);
        CHECK_EQ(answer.request, read_number);
        return answer.offset == offset ? answer.value : UINT32_MAX;
    }
    void set_answer_addr() {
        reg_write(kRegReadAnswerHi, high(answer_addr));
        reg_write(kRegReadAnswerLo, low(answer_addr));
    }
    void reset_handshake() {
        set_answer_addr();
        CHECK(reg_read(kRegDevSts) & kStsReady);
        reg_write(kRegDevCtl, kCtlReset);
        set_answer_addr();
        CHECK(reg_read(kRegDevSts) & kStsResetInProgress);
        reg_write(kRegDevCtl, 0);
        CHECK_EQ(reg_read(kRegDevSts) & (kStsResetInProgress | kStsReady), kStsReady);
    }
    void start_admin() {
        commands_addr = alloc(options.admin_depth * entry_bytes);
        completions_addr = alloc(options.admin_depth * kAdminEntryBytes);
        submitted = seen = 0;
        reg_write(kRegIntrMask, 0);
        reg_write(kRegAqBaseLo, low(commands_addr));
        reg_write(kRegAqBaseHi, high(commands_addr));
        reg_write(kRegAqCaps, options.admin_depth | entry_bytes << 16);
        reg_write(kRegAcqBaseLo, low(completions_addr));
        reg_write(kRegAcqBaseHi, high(completions_addr));
        reg_write(kRegAcqCaps, options.admin_depth | kAdminEntryBytes << 16);
    }

    // ---- memory ----
    uint8_t* at(uint64_t guest_addr) const { return view.at(guest_addr - kRamBase); }
    uint64_t alloc(uint64_t bytes) {  // whole pages, zeroed
        const uint64_t addr = next_page;
        next_page += (bytes + kPage - 1) / kPage * kPage;
        CHECK(next_page <= kRamBase + kRamBytes);
        std::memset(at(addr), 0, next_page - addr);
        return addr;
    }

    // ---- admin ----
    void write_command(AdminOpcode opcode, const void* payload, size_t bytes, uint8_t flags = 0) {
        uint8_t entry[kAdminLongEntryBytes] = {};
        AdminHeader header;
        header.command_id = static_cast<uint16_t>(submitted * 7 & kAdminCommandIdMask);
        header.opcode = static_cast<uint8_t>(opcode);
        header.flags = static_cast<uint8_t>(flags | ((submitted / options.admin_depth & 1) ^ 1));
        std::memcpy(entry, &header, sizeof header);
        if (bytes) std::memcpy(entry + (entry_bytes == 128 ? 12 : 4), payload, bytes);
        if (entry_bytes == 128) {
            const uint16_t checksum = admin_checksum(entry, entry_bytes);
            std::memcpy(entry + 4, &checksum, sizeof checksum);
        }
        std::memcpy(at(commands_addr + submitted % options.admin_depth * entry_bytes), entry, entry_bytes);
        ++submitted;
    }
    void ring_admin() { reg_write(kRegAqDoorbell, submitted & 0xffff); }
    bool has_completion() const {
        const uint8_t flags = *at(completions_addr + seen % options.admin_depth * 64 + 3);
        return (flags & 1) == ((seen / options.admin_depth & 1) ^ 1);
    }
    AdminCompletion next_completion() {
        CHECK(has_completion());
        AdminCompletion completion;
        std::memcpy(&completion, at(completions_addr + seen % options.admin_depth * 64), sizeof completion);
        CHECK_EQ(completion.command_id, seen * 7 & kAdminCommandIdMask);
        AdminCompletion unsigned_entry = completion;
        unsigned_entry.checksum = 0;
        CHECK_EQ(admin_checksum(&unsigned_entry, sizeof unsigned_entry), completion.checksum);
        ++seen;
        return completion;
    }
    template <class Payload>
    AdminStatus submit(AdminOpcode opcode, const Payload& payload, uint8_t flags = 0) {
        write_command(opcode, &payload, sizeof payload, flags);
        ring_admin();
        last = next_completion();
        return static_cast<AdminStatus>(last.status);
    }
    template <class Body>
    Body body() const {
        Body fields;
        std::memcpy(&fields, last.body, sizeof fields);
        return fields;
    }
    uint16_t make_id(AdminOpcode opcode) {
        CHECK_EQ(submit(opcode, uint32_t{0}), AdminStatus::kSuccess);
        return body<IdBody>().id;
    }

    // ---- objects ----
    CreateCqCommand cq_command(uint16_t depth = 64, uint8_t entry_words = 8) {
        CreateCqCommand command{};
        command.caps2 = entry_words;
        command.sub_cq_depth = depth;
        const uint64_t addr = alloc(static_cast<uint64_t>(depth) * entry_words * 4 * options.sub_cqs);
        command.addr_lo = low(addr);
        command.addr_hi = high(addr);
        command.n_sub_cqs = options.sub_cqs;
        command.uar = uar;
        return command;
    }
    CqView make_cq(const CreateCqCommand& command) {
        CHECK_EQ(submit(AdminOpcode::kCreateCq, command), AdminStatus::kSuccess);
        const auto reply = body<CreateCqReply>();
        CqView cq;
        cq.id = reply.cq;
        cq.doorbell = reply.doorbell;
        const uint32_t entry = (command.caps2 & kCqEntryWordsMask) * 4;
        for (uint32_t i = 0; i < command.n_sub_cqs; ++i) {
            cq.rings.emplace_back();
            CHECK(cq_ring_init(cq.rings.back(), at(command.addr()) + i * entry * command.sub_cq_depth, entry,
                               command.sub_cq_depth));
        }
        return cq;
    }
    CqView make_cq(uint16_t depth = 64) { return make_cq(cq_command(depth)); }
    CreateQpCommand qp_command(const CqView& send, const CqView& recv, uint32_t depth = 16, uint32_t slot_bytes = 64) {
        CreateQpCommand command{};
        command.pd = pd;
        command.type = kQpTypeSrd;
        command.rq_addr = alloc(kPage);
        command.send_cq = send.id;
        command.recv_cq = recv.id;
        command.sq_depth = depth;
        command.sq_bytes = depth * slot_bytes;
        command.rq_depth = 16;
        command.rq_bytes = 16 * 16;
        command.uar = uar;
        return command;
    }
    QpView make_qp(const CreateQpCommand& command) {
        CHECK_EQ(submit(AdminOpcode::kCreateQp, command), AdminStatus::kSuccess);
        QpView qp;
        qp.reply = body<CreateQpReply>();
        qp.depth = command.sq_depth;
        qp.slot_bytes = command.sq_bytes / command.sq_depth;
        qp.rq_depth = command.rq_depth;
        qp.rq_addr = command.rq_addr;
        return qp;
    }
    AdminStatus modify(const QpView& qp, AdminQpState from, AdminQpState to, uint32_t more_mask, uint8_t retries = 0) {
        ModifyQpCommand command{};
        command.mask = kModifyState | kModifyCurrentState | more_mask;
        command.handle = qp.reply.handle;
        command.current_state = static_cast<uint32_t>(from);
        command.state = static_cast<uint32_t>(to);
        command.qkey = kQkey;
        command.rnr_retry = retries;
        return submit(AdminOpcode::kModifyQp, command);
    }
    void make_ready(const QpView& qp) {
        using S = AdminQpState;
        CHECK_EQ(modify(qp, S::kReset, S::kInit, kModifyQkey), AdminStatus::kSuccess);
        CHECK_EQ(modify(qp, S::kInit, S::kRtr, 0), AdminStatus::kSuccess);
        CHECK_EQ(modify(qp, S::kRtr, S::kRts, kModifySqPsn), AdminStatus::kSuccess);
    }
    AdminQpState state_of(const QpView& qp) {
        CHECK_EQ(submit(AdminOpcode::kQueryQp, QpHandleCommand{qp.reply.handle}), AdminStatus::kSuccess);
        return static_cast<AdminQpState>(body<QueryQpReply>().state);
    }
    CreateAhCommand ah_command(const Gid& gid) const {
        CreateAhCommand command{};
        std::memcpy(command.gid, gid.raw, sizeof command.gid);
        command.pd = pd;
        return command;
    }
    uint16_t make_ah() {
        CHECK_EQ(submit(AdminOpcode::kCreateAh, ah_command(device->gid())), AdminStatus::kSuccess);
        return body<IdBody>().id;
    }
    // One page (or up to four in a row) with its addresses inside the command.
    RegMrCommand mr_command(uint64_t guest_addr, uint64_t bytes, uint64_t addr) const {
        RegMrCommand command{};
        command.pd = pd;
        for (uint64_t i = 0; i < kMrInlinePages; ++i) command.inline_pages[i] = guest_addr + i * kPage;
        command.bytes = bytes;
        command.flags = 12;
        command.permissions = kMrLocalWrite | kMrRemoteWrite | kMrRemoteRead;
        command.addr = addr;
        return command;
    }
    MrView make_mr(const RegMrCommand& command, uint8_t flags = 0) {
        MrView mr;
        mr.addr = command.addr;
        mr.status = static_cast<uint8_t>(submit(AdminOpcode::kRegMr, command, flags));
        mr.lkey = body<RegMrReply>().lkey;
        mr.rkey = body<RegMrReply>().rkey;
        return mr;
    }

    // ---- traffic ----
    SendWqe wqe(const QpView& qp, SendOpcode opcode, const QpView& to, uint16_t ah, uint64_t id) const {
        SendWqe wqe{};
        wqe_begin(wqe, opcode, {ah, to.reply.qp_num, kQkey}, id, false, qp.posted / qp.depth & 1);
        return wqe;
    }
    void post(QpView& qp, const SendWqe& wqe) {
        uint8_t* slot = send_queues->at(qp.reply.sq_offset + qp.posted % qp.depth * qp.slot_bytes);
        std::memcpy(slot, &wqe, qp.slot_bytes);
        ++qp.posted;
        function->bar_write(kDoorbellBar, qp.reply.sq_doorbell, qp.posted & 0xffff, 4);
    }
    void post_receive(QpView& qp, uint64_t addr, uint16_t bytes, uint32_t lkey, uint16_t id) {
        RecvWqe wqe;
        recv_wqe_set(wqe, addr, bytes, lkey, id);
        std::memcpy(at(qp.rq_addr) + qp.recv_posted % qp.rq_depth * sizeof wqe, &wqe, sizeof wqe);
        ++qp.recv_posted;
        function->bar_write(kDoorbellBar, qp.reply.rq_doorbell, qp.recv_posted & 0xffff, 4);
    }
    void run(int steps = 200) {
        for (int i = 0; i < steps; ++i) {
            device->step(now);
            function->poll();
            now += 10'000;
        }
    }
    // The status of the next completion, or -1.
    static int next_status(CqRing& ring, RxCqeEx* entry = nullptr) {
        const uint8_t* bytes = cq_ring_peek(ring);
        if (!bytes) return -1;
        RxCqeEx copy{};
        std::memcpy(&copy, bytes, ring.entry_bytes);
        if (entry) *entry = copy;
        cq_ring_pop(ring);
        return copy.base.status;
    }

    RigOptions options;
    Profile profile;
    uint32_t entry_bytes = 64;
    Fd ram = make_ram(kRamBytes);
    GuestView view{ram.get(), kRamBytes};
    GuestMemory memory;
    uint64_t now = 1000;
    InprocWire wire{&now, 3};
    std::unique_ptr<MemoryPort> port = make_host_memory_port();
    Host host;
    std::unique_ptr<Device> device;
    std::unique_ptr<EfaFunction> function;
    std::unique_ptr<GuestView> send_queues;
    uint64_t next_page = kRamBase + kPage;
    uint64_t answer_addr = kRamBase;
    uint64_t commands_addr = 0, completions_addr = 0;
    uint32_t submitted = 0, seen = 0;
    uint16_t read_number = 0;
    uint16_t pd = 0, uar = 0;
    AdminCompletion last{};
};

}  // namespace pci_test
