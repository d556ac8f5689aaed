// SPDX-License-Identifier: Apache-2.0
// The register block of an EFA function: versions, reads by DMA, the reset handshake.
#include "efa_function_rig.h"

using namespace pci_test;

namespace {

RigOptions unstarted(const char* profile = "efa3") {
    RigOptions options;
    options.profile = profile;
    options.start = false;
    return options;
}

}  // namespace

TEST(the_versions_are_those_that_drivers_take) {
    const char* profiles[] = {"efa2", "efa3", "efa4"};
    for (uint32_t i = 0; i < 3; ++i) {
        Rig rig(unstarted(profiles[i]));
        rig.set_answer_addr();
        CHECK_EQ(rig.reg_read(0x00), 1 + i);  // admin protocol 0.1, 0.2, 0.3
        CHECK((rig.reg_read(0x04) & 0x00ffffff) >= 1);
        CHECK_EQ(rig.function->identity().device, 0xefa2 + i);
    }
}

TEST(the_capabilities_allow_a_reset_and_64_bit_addresses) {
    Rig rig(unstarted());
    rig.set_answer_addr();
    const uint32_t caps = rig.reg_read(0x08);
    CHECK_EQ(caps & 1, 1u);
    CHECK((caps >> 1 & 0x1f) > 0);      // reset timeout
    CHECK_EQ(caps >> 8 & 0xff, 64u);    // address bits
    CHECK_EQ(caps >> 16 & 0xf, 0u);     // the driver's own admin timeout
}

TEST(reads_are_answered_by_dma_with_their_number_and_offset) {
    Rig rig(unstarted());
    rig.set_answer_addr();
    rig.reg_write(0x5c, 0x00580123);
    const uint8_t expected[8] = {0x23, 0x01, 0x58, 0x00, 0x01, 0, 0, 0};
    CHECK_EQ(std::memcmp(rig.at(rig.answer_addr), expected, sizeof expected), 0);
    rig.reg_write(0x5c, 0x00590124);  // no register there
    ReadAnswer answer;
    std::memcpy(&answer, rig.at(rig.answer_addr), sizeof answer);
    CHECK_EQ(answer.request, 0x124);
    CHECK_EQ(answer.offset, 0xffff);
}

TEST(an_answer_that_has_no_ram_goes_nowhere) {
    Rig rig(unstarted());
    for (uint64_t addr : {uint64_t{0}, kRamBase + kRamBytes - 4, uint64_t{0xffff'ffff'ffff'fffc}, kRamBase - 2}) {
        rig.reg_write(kRegReadAnswerLo, low(addr));
        rig.reg_write(kRegReadAnswerHi, high(addr));
        rig.reg_write(kRegReadRequest, 0x00580001);
    }
    const std::vector<uint8_t> zeros(kPage);
    CHECK_EQ(std::memcmp(rig.at(kRamBase), zeros.data(), kPage), 0);
}

TEST(registers_may_also_be_read_by_a_load) {
    Rig rig(unstarted());
    CHECK_EQ(rig.function->bar_read(kRegisterBar, kRegDevSts, 4), uint64_t{kStsReady});
    CHECK_EQ(rig.function->bar_read(kRegisterBar, kRegistersEnd, 4), uint64_t{0xffffffff});
    CHECK_EQ(rig.function->bar_read(kRegisterBar, kRegDevSts + 2, 2), uint64_t{0xffff});
    CHECK_EQ(rig.function->bar_read(kDoorbellBar, 0, 8), UINT64_MAX);
}

TEST(a_reset_is_in_progress_until_its_request_is_taken_back) {
    Rig rig(unstarted());
    rig.reset_handshake();
    CHECK(rig.reg_read(kRegDevSts) & kStsResetFinished);
    rig.reg_write(kRegDevCtl, kCtlReset | 3u << 28);
    rig.set_answer_addr();
    for (int i = 0; i < 3; ++i) CHECK(rig.reg_read(kRegDevSts) & kStsResetInProgress);
    rig.reg_write(kRegDevCtl, 0);
    CHECK_EQ(rig.reg_read(kRegDevSts), kStsReady | kStsResetFinished);
}

TEST(a_reset_forgets_where_answers_go) {
    Rig rig(unstarted());
    rig.set_answer_addr();
    rig.reg_write(kRegDevCtl, kCtlReset);
    std::memset(rig.at(rig.answer_addr), 0xaa, 8);
    rig.reg_write(kRegReadRequest, 0x00580001);
    CHECK_EQ(*rig.at(rig.answer_addr), 0xaa);
}

TEST(stores_of_other_widths_and_to_other_places_change_nothing) {
    Rig rig(unstarted());
    rig.set_answer_addr();
    rig.function->bar_write(kRegisterBar, kRegDevCtl, kCtlReset, 1);
    rig.function->bar_write(kRegisterBar, kRegDevCtl, kCtlReset, 8);
    rig.function->bar_write(kRegisterBar, kRegDevSts, 0, 4);
    rig.function->bar_write(kRegisterBar, 0x70, kCtlReset, 4);
    rig.function->bar_write(kRegisterBar, kRegDevCtl + 1, kCtlReset, 4);
    CHECK_EQ(rig.reg_read(kRegDevSts), kStsReady);
}

TEST(every_doorbell_of_a_fresh_function_is_harmless) {
    Rig rig(unstarted());
    const uint64_t bytes = rig.function->identity().bars[kDoorbellBar].bytes;
    for (uint64_t page = 0; page < bytes; page += kPage) {
        rig.function->bar_write(kDoorbellBar, page, UINT32_MAX, 4);
        rig.function->bar_write(kDoorbellBar, page + 0x800, UINT32_MAX, 4);
    }
    for (uint32_t eq = 0; eq < 40; ++eq) rig.reg_write(kRegEqDoorbell, eq | kEqDoorbellArm);
    rig.run(3);
    CHECK(rig.host.raised.empty());
}

TEST(the_send_queue_bar_is_memory_also_for_messages) {
    Rig rig(unstarted());
    const uint64_t end = rig.function->identity().bars[kSendQueueBar].bytes;
    rig.function->bar_write(kSendQueueBar, end - 8, 0x1122334455667788, 8);
    CHECK_EQ(rig.function->bar_read(kSendQueueBar, end - 8, 8), uint64_t{0x1122334455667788});
    CHECK_EQ(rig.function->bar_read(kSendQueueBar, end - 8, 2), uint64_t{0x7788});
    CHECK_EQ((*rig.send_queues)[end - 8], 0x88);
}

TEST_MAIN()
