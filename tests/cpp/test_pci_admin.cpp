// SPDX-License-Identifier: Apache-2.0
// The admin queue of an EFA function: entries, phases, wraps, checksums, interrupts; what the device says of itself.
#include "efa_function_rig.h"

using namespace pci_test;

namespace {

FeatureCommand feature(Feature id) {
    FeatureCommand command{};
    command.feature = static_cast<uint8_t>(id);
    return command;
}

bool is_fatal(Rig& rig) { return rig.reg_read(kRegDevSts) & kStsFatalError; }

}  // namespace

TEST(a_completion_is_these_bytes) {
    RigOptions options;
    options.profile = "efa2";
    Rig rig(options);
    // Two commands were completed before this third one.
    rig.write_command(AdminOpcode::kAllocPd, nullptr, 0);
    rig.ring_admin();
    const uint8_t* entry = rig.at(rig.completions_addr + 2 * 64);
    const uint8_t expected[] = {14, 0, 0, 1};  // command id, status, phase
    CHECK_EQ(std::memcmp(entry, expected, sizeof expected), 0);
    CHECK_EQ(entry[8], 1);  // the second protection domain
    CHECK_EQ(entry[4] | entry[5] << 8, rig.next_completion().checksum);
}

TEST(the_checksum_is_the_crc_of_the_kernel) {
    // Linux: crc16(0xffff, "123456789", 9) is 0x4b37; the device inverts it.
    CHECK_EQ(admin_checksum("123456789", 9), 0x4b37 ^ 0xffff);
    CHECK_EQ(admin_checksum("", 0), 0);
}

TEST(the_queue_wraps_many_times_on_every_protocol) {
    for (const char* profile : {"efa2", "efa3", "efa4"}) {
        RigOptions options;
        options.profile = profile;
        options.admin_depth = 4;
        Rig rig(options);
        for (int i = 0; i < 70'000 / 16; ++i) {
            const uint16_t id = rig.make_id(AdminOpcode::kAllocPd);
            CHECK_EQ(rig.submit(AdminOpcode::kDeallocPd, IdBody{id, 0}), AdminStatus::kSuccess);
        }
    }
}

TEST(the_doorbell_wraps_at_16_bits) {
    Rig rig;
    while (rig.submitted < 0x10010) (void)rig.submit(AdminOpcode::kAllocMr, uint32_t{0});
    CHECK_EQ(rig.make_id(AdminOpcode::kAllocPd), 1);
}

TEST(several_commands_of_one_doorbell_complete_in_order_with_one_interrupt) {
    Rig rig;
    rig.host.raised.clear();
    for (int i = 0; i < 32; ++i) rig.write_command(AdminOpcode::kAllocUar, nullptr, 0);
    rig.ring_admin();
    for (uint16_t i = 0; i < 32; ++i) {
        const AdminCompletion completion = rig.next_completion();
        CHECK_EQ(completion.status, 0);
        CHECK_EQ(completion.body[0], i + 1);
    }
    CHECK(!rig.has_completion());
    CHECK_EQ(rig.host.raised, std::vector<uint32_t>{0});
}

TEST(a_driver_that_polls_gets_no_interrupt) {
    Rig rig;
    rig.host.raised.clear();
    rig.reg_write(kRegIntrMask, kIntrMaskAdmin);
    rig.make_id(AdminOpcode::kAllocPd);
    CHECK(rig.host.raised.empty());
    rig.reg_write(kRegIntrMask, 0);
    rig.make_id(AdminOpcode::kAllocPd);
    CHECK_EQ(rig.host.times(0), size_t{1});
}

TEST(every_opcode_without_a_meaning_is_refused_by_its_status) {
    Rig rig;
    for (int opcode = 0; opcode < 256; ++opcode) {
        const bool is_known = (opcode >= 1 && opcode <= 19) || (opcode >= 25 && opcode <= 29);
        if (is_known) continue;
        const bool is_unsupported = opcode == 20 || opcode == 21;
        CHECK_EQ(rig.submit(static_cast<AdminOpcode>(opcode), uint32_t{0}),
                 is_unsupported ? AdminStatus::kUnsupportedOpcode : AdminStatus::kBadOpcode);
    }
}

TEST(a_command_of_the_wrong_lap_breaks_the_queue_until_a_reset) {
    Rig rig;
    rig.write_command(AdminOpcode::kAllocPd, nullptr, 0);
    *rig.at(rig.commands_addr + (rig.submitted - 1) * rig.entry_bytes + 3) ^= 1;
    rig.ring_admin();
    CHECK(!rig.has_completion());
    CHECK(is_fatal(rig));
    *rig.at(rig.commands_addr + (rig.submitted - 1) * rig.entry_bytes + 3) ^= 1;
    rig.ring_admin();
    CHECK(!rig.has_completion());
    rig.reset_handshake();
    CHECK(!is_fatal(rig));
    rig.start_admin();
    CHECK_EQ(rig.make_id(AdminOpcode::kAllocPd), 0);
}

TEST(a_doorbell_beyond_the_queue_breaks_it) {
    Rig rig;
    rig.reg_write(kRegAqDoorbell, rig.submitted + 33);
    CHECK(is_fatal(rig));
    CHECK(!rig.has_completion());
}

TEST(queues_outside_of_ram_or_of_odd_sizes_break_the_function_not_the_process) {
    struct Bad {
        uint32_t reg, value;
    };
    const Bad all[] = {{kRegAqBaseHi, 0x7fff}, {kRegAqBaseLo, 0},          {kRegAqCaps, 31 | 64u << 16},
                       {kRegAqCaps, 0},        {kRegAqCaps, 32 | 65u << 16}, {kRegAqCaps, 0x8000 | 64u << 16},
                       {kRegAcqBaseHi, 0x7fff}, {kRegAcqCaps, 32},          {kRegAcqCaps, 5 | 64u << 16}};
    for (const Bad& bad : all) {
        Rig rig;
        rig.reg_write(bad.reg, bad.value);
        rig.write_command(AdminOpcode::kAllocPd, nullptr, 0);
        rig.ring_admin();
        CHECK(is_fatal(rig));
    }
    // The ring's first half is RAM, its second is not.
    Rig rig;
    const uint64_t edge = kRamBase + kRamBytes - 5 * 64;
    rig.reg_write(kRegAcqBaseLo, low(edge));
    for (int i = 0; i < 6; ++i) rig.write_command(AdminOpcode::kAllocPd, nullptr, 0);
    rig.ring_admin();
    CHECK(is_fatal(rig));
}

TEST(long_commands_carry_a_checksum) {
    RigOptions options;
    options.profile = "efa4";
    Rig rig(options);
    CHECK_EQ(rig.entry_bytes, 128u);
    rig.write_command(AdminOpcode::kAllocPd, nullptr, 0);
    *rig.at(rig.commands_addr + (rig.submitted - 1) * 128 + 100) ^= 1;
    rig.ring_admin();
    CHECK_EQ(rig.next_completion().status, static_cast<uint8_t>(AdminStatus::kMalformedRequest));
    CHECK_EQ(rig.make_id(AdminOpcode::kAllocPd), 1);  // it was not executed, and the queue goes on
}

TEST(an_older_driver_uses_short_commands_on_any_device) {
    RigOptions options;
    options.profile = "efa4";
    options.start = false;
    Rig rig(options);
    rig.entry_bytes = 64;
    rig.reset_handshake();
    rig.start_admin();
    CHECK_EQ(rig.make_id(AdminOpcode::kAllocPd), 0);
}

TEST(the_attributes_are_those_of_the_profile) {
    Rig rig;
    CHECK_EQ(rig.submit(AdminOpcode::kGetFeature, feature(Feature::kDeviceAttr)), AdminStatus::kSuccess);
    const auto device = rig.body<DeviceAttr>();
    CHECK_EQ(device.features, uint64_t{1u << 1 | 1u << 2 | 1u << 3 | 1u << 4 | 1u << 5 | 1u << 6 | 1u << 7 | 1u << 9});
    CHECK_EQ(device.page_sizes & 0x201000, uint64_t{0x201000});  // 4 KiB and 2 MiB
    CHECK_EQ(device.page_sizes & 0xfff, uint64_t{0});
    CHECK(device.admin_version >= 1);
    CHECK_EQ(device.doorbell_bar, 4);
    CHECK_EQ(device.device_caps, 0x43bu);  // read, rnr, write, unsolicited, counters, 64-bit ids
    CHECK_EQ(device.max_rdma_bytes, 1u << 30);
    CHECK_EQ(device.link_gbps, 200);
    CHECK_EQ(rig.submit(AdminOpcode::kGetFeature, feature(Feature::kQueueAttr1)), AdminStatus::kSuccess);
    const auto queues = rig.body<QueueAttr1>();
    CHECK_EQ(queues.max_sq_depth, 4096u);
    CHECK_EQ(queues.max_sq_bytes, 256u << 10);
    CHECK_EQ(queues.inline_bytes, 32u);
    CHECK(queues.max_cq_depth <= 0xffff);  // the command has 16 bits for it
    CHECK_EQ(queues.sub_cqs_per_cq, 1);
    CHECK_EQ(queues.max_tx_batch, 16);
    CHECK_EQ(rig.submit(AdminOpcode::kGetFeature, feature(Feature::kQueueAttr2)), AdminStatus::kSuccess);
    const auto more = rig.body<QueueAttr2>();
    CHECK_EQ(more.inline_bytes, 80);
    CHECK_EQ(more.counter_events, 0x3ffu);
    CHECK_EQ(more.max_counters, 1024u);
    CHECK_EQ(more.counter_max, uint64_t{0x7fffffff});
    CHECK_EQ(rig.submit(AdminOpcode::kGetFeature, feature(Feature::kNetworkAttr)), AdminStatus::kSuccess);
    const auto network = rig.body<NetworkAttr>();
    CHECK_EQ(std::memcmp(network.addr, rig.device->gid().raw, 16), 0);
    CHECK_EQ(network.mtu, 8192u);
    CHECK_EQ(rig.submit(AdminOpcode::kGetFeature, feature(Feature::kEventQueueAttr)), AdminStatus::kSuccess);
    CHECK_EQ(rig.body<EventQueueAttr>().max_eqs + 1, uint32_t{rig.function->identity().msix_vectors});
    CHECK_EQ(rig.submit(AdminOpcode::kGetFeature, feature(Feature::kHwHints)), AdminStatus::kSuccess);
    CHECK_EQ(rig.body<HwHints>().admin_ms, 0);
}

TEST(an_old_device_has_no_second_page_of_queue_attributes) {
    RigOptions options;
    options.profile = "efa2";
    Rig rig(options);
    CHECK_EQ(rig.submit(AdminOpcode::kGetFeature, feature(Feature::kDeviceAttr)), AdminStatus::kSuccess);
    CHECK_EQ(rig.body<DeviceAttr>().features & 1u << 9, uint64_t{0});
    CHECK_EQ(rig.body<DeviceAttr>().device_caps, 0x9u);
    CHECK_EQ(rig.submit(AdminOpcode::kGetFeature, feature(Feature::kQueueAttr2)), AdminStatus::kUnsupportedOpcode);
}

TEST(features_that_do_not_exist_or_go_one_way_only_are_refused) {
    Rig rig;
    for (uint8_t id : {0, 8, 10, 63, 64, 255}) {
        const FeatureCommand command = feature(static_cast<Feature>(id));
        CHECK_EQ(rig.submit(AdminOpcode::kGetFeature, command), AdminStatus::kUnsupportedOpcode);
        CHECK_EQ(rig.submit(AdminOpcode::kSetFeature, command), AdminStatus::kUnsupportedOpcode);
    }
    CHECK_EQ(rig.submit(AdminOpcode::kGetFeature, feature(Feature::kHostInfo)), AdminStatus::kIllegalParameter);
    CHECK_EQ(rig.submit(AdminOpcode::kSetFeature, feature(Feature::kDeviceAttr)), AdminStatus::kIllegalParameter);
    FeatureCommand command = feature(Feature::kDeviceAttr);
    command.reserved0 = 1;
    CHECK_EQ(rig.submit(AdminOpcode::kGetFeature, command), AdminStatus::kMalformedRequest);
}

TEST(event_groups_can_be_set_and_read_back) {
    Rig rig;
    FeatureCommand command = feature(Feature::kAenqConfig);
    command.data[1] = 1u << 1 | 1u << 4;
    CHECK_EQ(rig.submit(AdminOpcode::kSetFeature, command), AdminStatus::kSuccess);
    CHECK_EQ(rig.submit(AdminOpcode::kGetFeature, feature(Feature::kAenqConfig)), AdminStatus::kSuccess);
    CHECK_EQ(rig.body<AenqConfig>().supported, 0x1eu);
    CHECK_EQ(rig.body<AenqConfig>().enabled, 0x12u);
    command.data[1] = 1u << 5;
    CHECK_EQ(rig.submit(AdminOpcode::kSetFeature, command), AdminStatus::kIllegalParameter);
}

TEST(host_information_comes_from_a_control_buffer) {
    Rig rig;
    FeatureCommand command = feature(Feature::kHostInfo);
    const uint64_t buffer = rig.alloc(kPage);
    command.control = {180, low(buffer), high(buffer)};
    CHECK_EQ(rig.submit(AdminOpcode::kSetFeature, command, kAdminHasControlData), AdminStatus::kSuccess);
    CHECK_EQ(rig.submit(AdminOpcode::kSetFeature, command), AdminStatus::kMalformedRequest);
    command.control.bytes = 179;
    CHECK_EQ(rig.submit(AdminOpcode::kSetFeature, command, kAdminHasControlData), AdminStatus::kMalformedRequest);
    command.control = {180, 0, 0x7fff};
    CHECK_EQ(rig.submit(AdminOpcode::kSetFeature, command, kAdminHasControlData), AdminStatus::kMalformedRequest);
}

TEST(statistics_have_five_types_and_one_scope) {
    Rig rig;
    for (uint8_t type = 0; type < 8; ++type) {
        StatsCommand command{};
        command.type = type;
        CHECK_EQ(rig.submit(AdminOpcode::kGetStats, command),
                 type < 5 ? AdminStatus::kSuccess : AdminStatus::kIllegalParameter);
        command.scope = kStatsOfQueue;
        CHECK_EQ(rig.submit(AdminOpcode::kGetStats, command), AdminStatus::kIllegalParameter);
    }
}

TEST_MAIN()
