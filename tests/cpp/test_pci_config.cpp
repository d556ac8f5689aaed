// SPDX-License-Identifier: Apache-2.0
// The configuration space as a BIOS and a kernel look at it.
#include "soft_efa/pci/pci_config.h"

#include <linux/pci_regs.h>

#include "vfio_user_rig.h"

using namespace pci_test;

namespace {

struct Space {
    FakeFunction function;
    PciConfig config{function.identity()};

    uint32_t read(uint32_t offset, uint32_t bytes = 4) const {
        uint32_t value = 0;
        CHECK(config.read(offset, &value, bytes));
        return value;
    }
    bool write(uint32_t offset, uint32_t value, uint32_t bytes = 4) {
        bool wants_reset = false;
        CHECK(config.write(offset, &value, bytes, &wants_reset));
        return wants_reset;
    }
    uint32_t capability(uint8_t id) const {
        uint32_t at = read(PCI_CAPABILITY_LIST, 1);
        for (int i = 0; at && i < 48; ++i, at = read(at + 1, 1)) {
            if (read(at, 1) == id) return at;
        }
        return 0;
    }
};

}  // namespace

TEST(the_header_says_what_the_function_is) {
    Space space;
    CHECK_EQ(space.read(PCI_VENDOR_ID), 0xefa21d0fu);
    CHECK_EQ(space.read(PCI_CLASS_REVISION), 0x02000007u);
    CHECK_EQ(space.read(PCI_SUBSYSTEM_VENDOR_ID), 0x12341d0fu);
    CHECK_EQ(space.read(PCI_HEADER_TYPE, 1), 0u);
    CHECK_EQ(space.read(PCI_STATUS, 2), static_cast<uint32_t>(PCI_STATUS_CAP_LIST));
    CHECK_EQ(space.read(PCI_INTERRUPT_PIN, 1), 0u);
    CHECK_EQ(space.read(PCI_ROM_ADDRESS), 0u);
    CHECK_EQ(space.read(0x100), 0u);  // no extended capabilities
}

TEST(bars_tell_their_sizes_and_keep_their_addresses) {
    Space space;
    const uint32_t types[6] = {0x0, 0x0, 0xc, 0x0, 0x4, 0x0};
    const uint32_t sizes[6] = {0xffffe000, 0, 0xffff0000, 0xffffffff, 0xffffc000, 0xffffffff};
    for (uint32_t i = 0; i < 6; ++i) CHECK_EQ(space.read(PCI_BASE_ADDRESS_0 + 4 * i), types[i]);
    for (uint32_t i = 0; i < 6; ++i) {
        space.write(PCI_BASE_ADDRESS_0 + 4 * i, 0xffffffff);
        CHECK_EQ(space.read(PCI_BASE_ADDRESS_0 + 4 * i), sizes[i] | types[i]);
    }
    space.write(PCI_BASE_ADDRESS_0, 0xfebd1234);
    CHECK_EQ(space.read(PCI_BASE_ADDRESS_0), 0xfebd0000u);
    space.write(PCI_BASE_ADDRESS_2 + 1, 0xab, 1);
    CHECK_EQ(space.read(PCI_BASE_ADDRESS_2), 0xffff000cu);
}

TEST(the_capabilities_are_in_the_list) {
    Space space;
    const uint32_t power = space.capability(PCI_CAP_ID_PM), msix = space.capability(PCI_CAP_ID_MSIX), express = space.capability(PCI_CAP_ID_EXP);
    CHECK(power != 0 && msix != 0 && express != 0);
    CHECK_EQ(space.read(msix + PCI_MSIX_FLAGS, 2), kVectors - 1u);
    CHECK_EQ(space.read(msix + PCI_MSIX_TABLE), kTable);
    CHECK_EQ(space.read(msix + PCI_MSIX_PBA), kPba);
    CHECK_EQ(space.read(express + PCI_EXP_FLAGS, 2), 2u);  // version 2, endpoint
    CHECK(space.read(express + PCI_EXP_DEVCAP) & PCI_EXP_DEVCAP_FLR);
    FakeFunction silent;
    silent.shape.msix_vectors = 0;
    const PciConfig without(silent.identity());
    uint8_t next = 0;
    CHECK(without.read(power + 1, &next, 1));
    CHECK_EQ(next, express);
    CHECK(!without.msix_enabled());
}

TEST(only_what_a_device_lets_be_written_is_written) {
    Space space;
    std::vector<uint8_t> before(kConfigBytes), after(kConfigBytes), ones(kConfigBytes, 0xff);
    const uint32_t flr = space.capability(PCI_CAP_ID_EXP) + PCI_EXP_DEVCTL;
    ones[flr + 1] = 0x7f;
    CHECK(space.config.read(0, before.data(), kConfigBytes));
    bool wants_reset = true;
    CHECK(space.config.write(0, ones.data(), kConfigBytes, &wants_reset));
    CHECK(!wants_reset);
    CHECK(space.config.read(0, after.data(), kConfigBytes));
    for (uint32_t same : {0x0u, 0x1u, 0x2u, 0x3u, 0x6u, 0x7u, 0x8u, 0xbu, 0xeu, 0x2cu, 0x2fu, 0x30u, 0x34u, 0x3du, 0x40u, 0x41u, 0x100u, 0xfffu}) {
        CHECK_EQ(after[same], before[same]);
    }
    CHECK_EQ(space.read(PCI_COMMAND, 2), 0x546u);  // memory, master, parity, SERR, INTx off; no I/O space
    CHECK(space.config.msix_enabled());
    space.config.reset();
    CHECK(space.config.read(0, after.data(), kConfigBytes));
    CHECK(before == after);
}

TEST(msix_is_enabled_by_its_bit) {
    Space space;
    const uint32_t flags = space.capability(PCI_CAP_ID_MSIX) + PCI_MSIX_FLAGS;
    CHECK(!space.config.msix_enabled());
    space.write(flags, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL, 2);
    CHECK(space.config.msix_enabled());
    CHECK_EQ(space.read(flags, 2), 0xc000u | (kVectors - 1));
    space.write(flags, 0, 2);
    CHECK(!space.config.msix_enabled());
}

TEST(power_states_are_on_and_off) {
    Space space;
    const uint32_t control = space.capability(PCI_CAP_ID_PM) + PCI_PM_CTRL;
    for (const auto& [written, read] : {std::pair{3u, 3u}, {1u, 3u}, {2u, 3u}, {0u, 0u}, {2u, 0u}}) {
        space.write(control, written, 2);
        CHECK_EQ(space.read(control, 2), read | PCI_PM_CTRL_NO_SOFT_RESET);
    }
}

TEST(a_function_level_reset_is_asked_for_by_one_bit) {
    Space space;
    const uint32_t control = space.capability(PCI_CAP_ID_EXP) + PCI_EXP_DEVCTL;
    space.write(PCI_COMMAND, PCI_COMMAND_MASTER, 2);
    CHECK(!space.write(control, 0x2810, 2));
    CHECK_EQ(space.read(PCI_COMMAND, 2), static_cast<uint32_t>(PCI_COMMAND_MASTER));
    CHECK(space.write(control, 0x2810 | PCI_EXP_DEVCTL_BCR_FLR, 2));
    CHECK_EQ(space.read(PCI_COMMAND, 2), 0u);
    CHECK_EQ(space.read(control, 2), 0x2810u);
}

TEST(accesses_outside_are_refused) {
    Space space;
    uint8_t bytes[8] = {};
    bool wants_reset;
    CHECK(space.config.read(kConfigBytes - 8, bytes, 8));
    for (uint64_t offset : {uint64_t{kConfigBytes} - 7, uint64_t{kConfigBytes}, UINT64_MAX, UINT64_MAX - 7}) {
        CHECK(!space.config.read(offset, bytes, 8));
        CHECK(!space.config.write(offset, bytes, 8, &wants_reset));
    }
    CHECK(!space.config.read(8, bytes, UINT64_MAX));
}

TEST(functions_that_cannot_be_are_named) {
    const auto fails = [](const char* part, auto change) {
        FakeFunction function;
        change(function.shape);
        CHECK_FAILS(check_identity(function.shape), Code::kInvalidArgument, part);
    };
    FakeFunction good;
    CHECK_OK(check_identity(good.shape));
    fails("BAR 0 has", [](PciIdentity& shape) { shape.bars[0].bytes = 0x3000; });
    fails("BAR 0 has", [](PciIdentity& shape) { shape.bars[0].bytes = 2048; });
    fails("BAR 1 has", [](PciIdentity& shape) { shape.bars[1].bytes = uint64_t{1} << 32; });
    fails("no room", [](PciIdentity& shape) { shape.bars[3].bytes = kPage; });
    fails("no room", [](PciIdentity& shape) { shape.bars[5] = {kPage, true, false, -1}; });
    fails("too small", [](PciIdentity& shape) { shape.bars[2].bytes *= 2; });
    const Fd unsealed = make_ram(kBar2Bytes, 0);
    fails("could be shrunk", [&](PciIdentity& shape) { shape.bars[2].fd = unsealed.get(); });
    fails("which the guest maps", [](PciIdentity& shape) { shape.msix_bar = 2; });
    fails("MSI-X table at", [](PciIdentity& shape) { shape.msix_table_offset = 0x1ff8; });
    fails("MSI-X table at", [](PciIdentity& shape) { shape.msix_table_offset = 0x1004; });
    fails("MSI-X table at", [](PciIdentity& shape) { shape.msix_pba_offset = 0x1100; });
    fails("MSI-X table at", [](PciIdentity& shape) { shape.msix_pba_offset = 0x2000; });
    fails("MSI-X table at", [](PciIdentity& shape) { shape.msix_bar = 1; });
    fails("2049 MSI-X vectors", [](PciIdentity& shape) { shape.msix_vectors = 2049; });
    fails("in BAR 6", [](PciIdentity& shape) { shape.msix_bar = 6; });
    fails("in BAR -1", [](PciIdentity& shape) { shape.msix_bar = -1; });
}

TEST_MAIN()
