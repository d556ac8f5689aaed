// SPDX-License-Identifier: Apache-2.0
// A guest that means harm: commands, doorbells and stores of its own, drawn from a seed. What must hold is that the
// process lives (run this with the sanitizers), that nothing but the guest's RAM changes, and that a reset heals all.
#include "efa_function_rig.h"
#include "soft_efa/prng.h"

using namespace pci_test;

namespace {

constexpr uint64_t kAddr = 0x7f0000001000;

// A page of other memory on each side of what the guest was given.
struct Fence {
    Fd file = make_ram(3 * kPage);
    GuestView view{file.get(), 3 * kPage};
    Fence() { std::memset(view.at(0), 0x5a, 3 * kPage); }
    void check() const {
        for (uint64_t i = 0; i < kPage; ++i) CHECK(view[i] == 0x5a && view[2 * kPage + i] == 0x5a);
    }
};

struct Hostile {
    Rig rig;
    Prng prng;
    CreateCqCommand cq;
    CreateQpCommand qp;
    CreateEqCommand eq{};
    RegMrCommand mr;
    uint32_t last_qp = 0, last_counter = 0;
    int taken[32] = {};  // commands that succeeded, by opcode

    Hostile(const RigOptions& options, uint64_t seed) : rig(options), prng(seed) {
        cq = rig.cq_command(16);
        const CqView none{};
        qp = rig.qp_command(none, none);
        const uint64_t ring = rig.alloc(kPage);
        eq = {16, 1, 4, low(ring), high(ring), 1, 0};
        mr = rig.mr_command(rig.alloc(4 * kPage), 4 * kPage, kAddr);
    }
    uint32_t below(uint32_t bound) { return static_cast<uint32_t>(prng.below(bound)); }

    // A good command with some bytes changed, or nothing but noise with small numbers in it.
    void command() {
        uint8_t payload[60];
        for (uint8_t& byte : payload) byte = static_cast<uint8_t>(below(4) ? below(3) : prng.next());
        auto opcode = static_cast<AdminOpcode>(1 + below(30));
        const auto take = [&payload, &opcode](AdminOpcode of, const auto& good) {
            opcode = of;
            std::memcpy(payload, &good, sizeof good);
        };
        switch (below(17)) {
            case 10: take(AdminOpcode::kDestroyCq, DestroyCqCommand{static_cast<uint16_t>(below(4)), 0}); break;
            case 11: take(AdminOpcode::kDestroyQp, QpHandleCommand{last_qp}); break;
            case 12: {
                const AttachEventCounterCommand attach{last_counter, 0, {}, last_qp, 1u << below(10)};
                take(below(2) ? AdminOpcode::kAttachEventCounter : AdminOpcode::kDetachEventCounter, attach);
                break;
            }
            case 8: opcode = AdminOpcode::kAllocPd; break;
            case 9: opcode = AdminOpcode::kAllocUar; break;
            case 0: take(AdminOpcode::kCreateCq, cq); break;
            case 1: take(AdminOpcode::kCreateQp, qp); break;
            case 2: take(AdminOpcode::kCreateEq, eq); break;
            case 3:
            case 4: take(AdminOpcode::kRegMr, mr); break;
            case 5: take(AdminOpcode::kCreateEventCounter, CreateEventCounterCommand{rig.uar, 0, kRamBase + 64}); break;
            case 6: take(AdminOpcode::kCreateAh, rig.ah_command(rig.device->gid())); break;
            case 7: {
                ModifyQpCommand modify{};
                modify.mask = kModifyState | kModifyQkey | kModifySqPsn;
                modify.handle = last_qp;
                modify.state = below(8);
                take(AdminOpcode::kModifyQp, modify);
                break;
            }
            default: break;
        }
        for (uint32_t flips = below(2) * below(3); flips > 0; --flips)
            payload[below(60)] ^= static_cast<uint8_t>(prng.next());
        rig.write_command(opcode, payload, sizeof payload, static_cast<uint8_t>(below(4) * 2));
        rig.ring_admin();
        const AdminCompletion completion = rig.next_completion();
        if (completion.status != 0) return;
        ++taken[static_cast<size_t>(opcode)];
        if (opcode == AdminOpcode::kCreateEventCounter) std::memcpy(&last_counter, completion.body, 4);
        if (opcode == AdminOpcode::kCreateQp) std::memcpy(&last_qp, completion.body, 4);
    }
    void stores() {
        const PciIdentity& identity = rig.function->identity();
        for (int i = 0; i < 4; ++i) {
            const uint64_t page = below(8) ? below(4) : below(1024) + (below(2) ? 1024 : 0);
            rig.function->bar_write(kDoorbellBar, page * kPage + below(2) * 0x800,
                                    below(2) ? below(20) : static_cast<uint32_t>(prng.next()), 4);
            rig.function->bar_write(kSendQueueBar, prng.below(identity.bars[2].bytes / 8) * 8, prng.next(), 8);
            rig.send_queues->at(below(4) * (256u << 10))[below(2048)] = static_cast<uint8_t>(prng.next());
        }
        rig.reg_write(kRegEqDoorbell, below(20) | (below(2) ? kEqDoorbellArm : 0));
        // Anything at all into memory that holds rings and lists.
        rig.at(kRamBase + kPage)[below(64 * kPage)] ^= static_cast<uint8_t>(below(8) ? 0 : prng.next());
    }
};

}  // namespace

TEST(no_guest_can_break_the_process) {
    for (uint64_t seed = 1; seed <= 12; ++seed) {
        const char* profiles[] = {"efa2", "efa3", "efa4"};
        RigOptions options;
        options.profile = profiles[seed % 3];
        options.sub_cqs = static_cast<uint16_t>(1 + seed % 2);
        options.faults = Faults{.reorder_ns = 50'000, .duplicate_ppm = 300'000};
        Hostile hostile(options, seed);
        Fence fence;
        CHECK_OK(hostile.rig.memory.add_range(kRamBase + kRamBytes, kPage, dup(fence.file.get()), kPage, true));
        for (int turn = 0; turn < 3000; ++turn) {
            // The admin rings are the one thing that this guest leaves alone, so that its commands arrive.
            std::vector<uint8_t> admin(hostile.rig.at(kRamBase + kPage), hostile.rig.at(kRamBase + 4 * kPage));
            hostile.stores();
            std::copy(admin.begin(), admin.end(), hostile.rig.at(kRamBase + kPage));
            hostile.rig.run(2);
            hostile.command();
        }
        fence.check();
        for (AdminOpcode opcode : {AdminOpcode::kCreateQp, AdminOpcode::kModifyQp, AdminOpcode::kRegMr,
                                   AdminOpcode::kCreateCq, AdminOpcode::kCreateEq, AdminOpcode::kDestroyCq})
            if (hostile.taken[static_cast<size_t>(opcode)] == 0)
                check::fail(__FILE__, __LINE__, "no command with opcode " + check::show(opcode) + " was ever good");
        hostile.rig.run(50);
        hostile.rig.reset_handshake();
        hostile.rig.next_page = kRamBase + kPage;
        hostile.rig.start_admin();
        CHECK_EQ(hostile.rig.make_id(AdminOpcode::kAllocPd), 0);
        CHECK_EQ(hostile.rig.make_id(AdminOpcode::kAllocUar), 0);
        CHECK_EQ(hostile.rig.make_cq().id, 0);
    }
}

TEST_MAIN()
