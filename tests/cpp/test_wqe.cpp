// SPDX-License-Identifier: Apache-2.0
// Every field of every descriptor against bytes written out by hand from the field tables in docs/efa-descriptors.md.
// The expected bytes are never made by the encoder under test.
#include "nvshmem_efa/wqe.h"

#include <string>
#include <vector>

#include "check.h"

using namespace nvshmem_efa;

namespace {

// "ef be 80 ..." to bytes; white space is free.
std::vector<uint8_t> hex(const char* text) {
    std::vector<uint8_t> bytes;
    for (const char* at = text; *at != 0;) {
        if (*at == ' ' || *at == '\n') {
            ++at;
            continue;
        }
        bytes.push_back(static_cast<uint8_t>(std::stoul(std::string(at, 2), nullptr, 16)));
        at += 2;
    }
    return bytes;
}

std::string dump(const uint8_t* bytes, size_t count) {
    std::string text;
    char row[8];
    for (size_t i = 0; i < count; ++i) {
        std::snprintf(row, sizeof row, i % 16 == 15 ? "%02x\n" : "%02x ", bytes[i]);
        text += row;
    }
    return text;
}

// The first expected.size() bytes of `object` are these, and the rest of it is zero.
template <class T>
void check_bytes(const T& object, const char* expected_text) {
    std::vector<uint8_t> expected = hex(expected_text);
    CHECK(expected.size() <= sizeof(T));
    expected.resize(sizeof(T), 0);
    uint8_t seen[sizeof(T)];
    std::memcpy(seen, &object, sizeof(T));
    if (std::memcmp(seen, expected.data(), sizeof(T)) != 0) {
        check::fail(__FILE__, __LINE__, "bytes differ; expected\n" + dump(expected.data(), sizeof(T)) + "seen\n" +
                                            dump(seen, sizeof(T)));
    }
}

// A descriptor whose memory held old bytes: what the encoder does not clear shows.
SendWqe dirty_wqe() {
    SendWqe wqe;
    std::memset(static_cast<void*>(&wqe), 0xa5, sizeof wqe);
    return wqe;
}

constexpr WqeTarget kTarget{.ah = 0x1234, .qp_num = 0x5678, .qkey = 0x9abcdef0};

std::vector<uint8_t> counting(size_t count, uint8_t first) {
    std::vector<uint8_t> bytes(count);
    for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<uint8_t>(first + i);
    return bytes;
}

}  // namespace

TEST(send_with_one_sge) {
    SendWqe wqe = dirty_wqe();
    wqe_begin(wqe, SendOpcode::kSend, kTarget, 0xbeef, false, 0);
    wqe_add_send_sge(wqe, 0x0123456789abcdef, 0x00c0ffee, 0x00112233);
    check_bytes(wqe,
                "ef be 80 1c 78 56 01 00 00 00 00 00 34 12 00 00"
                "f0 de bc 9a 00 00 00 00 00 00 00 00 00 00 00 00"
                "ee ff c0 00 33 22 11 00 ef cd ab 89 67 45 23 01");
}

TEST(send_with_two_sges_and_phase_one) {
    SendWqe wqe = dirty_wqe();
    wqe_begin(wqe, SendOpcode::kSend, kTarget, 0x0102, false, 1);
    wqe_add_send_sge(wqe, 0x1111222233334444, 0x10, 0x00aabbcc);
    wqe_add_send_sge(wqe, 0x5555666677778888, 0x20, 0x00ddeeff);
    check_bytes(wqe,
                "02 01 80 1d 78 56 02 00 00 00 00 00 34 12 00 00"
                "f0 de bc 9a 00 00 00 00 00 00 00 00 00 00 00 00"
                "10 00 00 00 cc bb aa 00 44 44 33 33 22 22 11 11"
                "20 00 00 00 ff ee dd 00 88 88 77 77 66 66 55 55");
}

TEST(send_with_immediate) {
    SendWqe wqe = dirty_wqe();
    wqe_begin(wqe, SendOpcode::kSend, kTarget, 1, false, 0);
    wqe_add_send_sge(wqe, 0x1000, 8, 7);
    wqe_set_immediate(wqe, 0xdeadbeef);
    check_bytes(wqe,
                "01 00 90 1c 78 56 01 00 ef be ad de 34 12 00 00"
                "f0 de bc 9a 00 00 00 00 00 00 00 00 00 00 00 00"
                "08 00 00 00 07 00 00 00 00 10 00 00 00 00 00 00");
}

TEST(send_inline_fills_a_64_byte_slot_exactly) {
    SendWqe wqe = dirty_wqe();
    wqe_begin(wqe, SendOpcode::kSend, kTarget, 0xffff, false, 0);
    wqe_set_send_inline(wqe, counting(32, 0x40).data(), kInlineSendSmallMax);
    check_bytes(wqe,
                "ff ff a0 1c 78 56 20 00 00 00 00 00 34 12 00 00"
                "f0 de bc 9a 00 00 00 00 00 00 00 00 00 00 00 00"
                "40 41 42 43 44 45 46 47 48 49 4a 4b 4c 4d 4e 4f"
                "50 51 52 53 54 55 56 57 58 59 5a 5b 5c 5d 5e 5f");
}

TEST(send_inline_of_80_bytes_in_a_128_byte_slot) {
    SendWqe wqe = dirty_wqe();
    wqe_begin(wqe, SendOpcode::kSend, kTarget, 0xffff, false, 1);
    wqe_set_send_inline(wqe, counting(80, 0x01).data(), kInlineLargeMax);
    check_bytes(wqe,
                "ff ff a0 1d 78 56 50 00 00 00 00 00 34 12 00 00"
                "f0 de bc 9a 00 00 00 00 00 00 00 00 00 00 00 00"
                "01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f 10"
                "11 12 13 14 15 16 17 18 19 1a 1b 1c 1d 1e 1f 20"
                "21 22 23 24 25 26 27 28 29 2a 2b 2c 2d 2e 2f 30"
                "31 32 33 34 35 36 37 38 39 3a 3b 3c 3d 3e 3f 40"
                "41 42 43 44 45 46 47 48 49 4a 4b 4c 4d 4e 4f 50");
}

TEST(send_inline_with_immediate_of_an_odd_length) {
    SendWqe wqe = dirty_wqe();
    wqe_begin(wqe, SendOpcode::kSend, kTarget, 3, false, 0);
    wqe_set_send_inline(wqe, "\x0a\x0b\x0c", 3);
    wqe_set_immediate(wqe, 0x01020304);
    check_bytes(wqe,
                "03 00 b0 1c 78 56 03 00 04 03 02 01 34 12 00 00"
                "f0 de bc 9a 00 00 00 00 00 00 00 00 00 00 00 00"
                "0a 0b 0c");
}

TEST(rdma_write_has_the_remote_address_before_the_local_sge) {
    SendWqe wqe = dirty_wqe();
    wqe_begin(wqe, SendOpcode::kRdmaWrite, kTarget, 0x0a0b, false, 0);
    wqe_set_remote(wqe, 0xfedcba9876543210, 0x40000000, 0xcafef00d);
    wqe_set_local(wqe, 0x0000700000001000, 0x40000000, 0x00ffffff);
    check_bytes(wqe,
                "0b 0a 82 1c 78 56 01 00 00 00 00 00 34 12 00 00"
                "f0 de bc 9a 00 00 00 00 00 00 00 00 00 00 00 00"
                "00 00 00 40 0d f0 fe ca 10 32 54 76 98 ba dc fe"
                "00 00 00 40 ff ff ff 00 00 10 00 00 00 70 00 00");
}

TEST(rdma_write_with_immediate) {
    SendWqe wqe = dirty_wqe();
    wqe_begin(wqe, SendOpcode::kRdmaWrite, kTarget, 0x0a0b, false, 1);
    wqe_set_remote(wqe, 0x2000, 0x123, 0x80000001);
    wqe_set_local(wqe, 0x3000, 0x123, 0x5);
    wqe_set_immediate(wqe, 0x80000000);
    check_bytes(wqe,
                "0b 0a 92 1d 78 56 01 00 00 00 00 80 34 12 00 00"
                "f0 de bc 9a 00 00 00 00 00 00 00 00 00 00 00 00"
                "23 01 00 00 01 00 00 80 00 20 00 00 00 00 00 00"
                "23 01 00 00 05 00 00 00 00 30 00 00 00 00 00 00");
}

TEST(rdma_write_inline_puts_its_bytes_behind_the_remote_address) {
    SendWqe wqe = dirty_wqe();
    wqe_begin(wqe, SendOpcode::kRdmaWrite, kTarget, 0x0c0d, false, 0);
    wqe_set_remote(wqe, 0x4000, 80, 0x11223344);
    wqe_set_write_inline(wqe, counting(80, 0x90).data(), kInlineLargeMax);
    wqe_set_immediate(wqe, 0x55667788);
    check_bytes(wqe,
                "0d 0c b2 1c 78 56 50 00 88 77 66 55 34 12 00 00"
                "f0 de bc 9a 00 00 00 00 00 00 00 00 00 00 00 00"
                "50 00 00 00 44 33 22 11 00 40 00 00 00 00 00 00"
                "90 91 92 93 94 95 96 97 98 99 9a 9b 9c 9d 9e 9f"
                "a0 a1 a2 a3 a4 a5 a6 a7 a8 a9 aa ab ac ad ae af"
                "b0 b1 b2 b3 b4 b5 b6 b7 b8 b9 ba bb bc bd be bf"
                "c0 c1 c2 c3 c4 c5 c6 c7 c8 c9 ca cb cc cd ce cf"
                "d0 d1 d2 d3 d4 d5 d6 d7 d8 d9 da db dc dd de df");
}

TEST(rdma_read) {
    SendWqe wqe = dirty_wqe();
    wqe_begin(wqe, SendOpcode::kRdmaRead, kTarget, 0xabcd, false, 1);
    wqe_set_remote(wqe, 0xffffffffffffffff, 1, 0xffffffff);
    wqe_set_local(wqe, 0x8000000000000001, 1, 1);
    check_bytes(wqe,
                "cd ab 81 1d 78 56 01 00 00 00 00 00 34 12 00 00"
                "f0 de bc 9a 00 00 00 00 00 00 00 00 00 00 00 00"
                "01 00 00 00 ff ff ff ff ff ff ff ff ff ff ff ff"
                "01 00 00 00 01 00 00 00 01 00 00 00 00 00 00 80");
}

TEST(processing_hint_keeps_two_bits) {
    SendWqe wqe = dirty_wqe();
    wqe_begin(wqe, SendOpcode::kRdmaWrite, kTarget, 0, false, 0);
    wqe_set_hint(wqe, kCtrl3HintBurstPps);
    check_bytes(wqe,
                "00 00 82 1c 78 56 00 00 00 00 00 00 34 12 01 00"
                "f0 de bc 9a");
    wqe_set_hint(wqe, 0xff);
    check_bytes(wqe,
                "00 00 82 1c 78 56 00 00 00 00 00 00 34 12 03 00"
                "f0 de bc 9a");
}

TEST(request_ids_of_64_bits_are_spread_over_two_places) {
    SendWqe wqe = dirty_wqe();
    wqe_begin(wqe, SendOpcode::kSend, kTarget, 0x1122334455667788, true, 0);
    check_bytes(wqe,
                "88 77 80 1c 78 56 00 00 00 00 00 00 34 12 00 00"
                "f0 de bc 9a 00 00 00 00 00 00 66 55 44 33 22 11");
}

TEST(request_ids_of_16_bits_leave_the_extension_zero) {
    SendWqe wqe = dirty_wqe();
    wqe_begin(wqe, SendOpcode::kSend, kTarget, 0x1122334455667788, false, 0);
    check_bytes(wqe,
                "88 77 80 1c 78 56 00 00 00 00 00 00 34 12 00 00"
                "f0 de bc 9a");
}

TEST(only_the_lowest_bit_of_a_phase_is_used) {
    SendWqe wqe = dirty_wqe();
    wqe_begin(wqe, SendOpcode::kSend, WqeTarget{}, 0, false, 0xfe);
    check_bytes(wqe, "00 00 80 1c");
    wqe_begin(wqe, SendOpcode::kSend, WqeTarget{}, 0, false, 0xff);
    check_bytes(wqe, "00 00 80 1d");
}

TEST(an_lkey_never_reaches_the_bits_that_must_be_zero) {
    SendWqe wqe = dirty_wqe();
    wqe_begin(wqe, SendOpcode::kSend, WqeTarget{}, 0, false, 0);
    wqe_add_send_sge(wqe, 0, 0, 0xff123456);
    check_bytes(wqe,
                "00 00 80 1c 00 00 01 00 00 00 00 00 00 00 00 00"
                "00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00"
                "00 00 00 00 56 34 12 00");
}

TEST(receive_descriptor) {
    RecvWqe wqe;
    std::memset(&wqe, 0xa5, sizeof wqe);
    recv_wqe_set(wqe, 0x0123456789abcdef, 0x2000, 0x00112233, 0xbeef);
    check_bytes(wqe, "ef cd ab 89 67 45 23 01 ef be 00 20 33 22 11 c0");
    recv_wqe_set(wqe, 0x1000, 0xffff, 0xffffffff, 0);
    check_bytes(wqe, "00 10 00 00 00 00 00 00 00 00 ff ff ff ff ff c0");
}

namespace {

template <class T>
T decode(const char* text) {
    const std::vector<uint8_t> bytes = hex(text);
    CHECK_EQ(bytes.size(), sizeof(T));
    T object;
    std::memcpy(static_cast<void*>(&object), bytes.data(), sizeof(T));
    return object;
}

}  // namespace

TEST(send_completion_is_decoded) {
    // flags 0xa3 = unsolicited | op 2 | queue 1 | phase 1
    const TxCqe cqe = decode<TxCqe>("88 77 07 a3 34 12 66 55 44 33 22 11 00 00 00 00");
    CHECK_EQ(static_cast<int>(cqe.status), static_cast<int>(CqeStatus::kRemoteBadAddress));
    CHECK_EQ(cqe.flags & kCqePhase, 1);
    CHECK(cqe_queue(cqe.flags) == CqeQueue::kSend);
    CHECK_EQ(cqe.flags & kCqeHasImm, 0);
    CHECK_EQ(cqe_opcode(cqe.flags), 2);
    CHECK((cqe.flags & kCqeUnsolicited) != 0);
    CHECK_EQ(cqe.qp_num, 0x1234);
    CHECK_EQ(cqe_req_id(cqe, true), 0x1122334455667788u);
    CHECK_EQ(cqe_req_id(cqe, false), 0x7788u);
}

TEST(receive_completion_of_16_bytes_is_decoded) {
    // flags 0x0c = op 0 | has_imm | queue 2 | phase 0
    const RxCqe cqe = decode<RxCqe>("ef be 00 0c 78 56 ff ff 01 02 03 04 ef be ad de");
    CHECK_EQ(cqe.req_id, 0xbeef);
    CHECK_EQ(static_cast<int>(cqe.status), 0);
    CHECK_EQ(cqe.flags & kCqePhase, 0);
    CHECK(cqe_queue(cqe.flags) == CqeQueue::kRecv);
    CHECK((cqe.flags & kCqeHasImm) != 0);
    CHECK_EQ(cqe_opcode(cqe.flags), 0);
    CHECK_EQ(cqe.flags & kCqeUnsolicited, 0);
    CHECK_EQ(cqe.qp_num, 0x5678);
    CHECK_EQ(cqe.length, 0xffff);
    CHECK_EQ(cqe.ah, 0x0201);
    CHECK_EQ(cqe.src_qp_num, 0x0403);
    CHECK_EQ(cqe.immediate, 0xdeadbeefu);
}

TEST(extended_receive_completion_carries_the_high_length_of_a_write) {
    // flags 0xad = unsolicited | op 2 | has_imm | queue 2 | phase 1
    const RxCqeEx cqe = decode<RxCqeEx>(
        "00 00 00 ad 78 56 34 12 05 00 06 00 01 00 00 00"
        "00 40 00 00 00 00 00 00 00 00 00 00 00 00 00 00");
    CHECK_EQ(cqe.length_hi, 0x4000);
    CHECK_EQ(cqe_recv_length(cqe, true), 0x40001234u);
    CHECK_EQ(cqe_recv_length(cqe, false), 0x1234u);  // a 16-byte entry has no such field
    CHECK((cqe.base.flags & kCqeUnsolicited) != 0);
    CHECK(cqe_queue(cqe.base.flags) == CqeQueue::kRecv);
    CHECK_EQ(cqe_opcode(cqe.base.flags), 2);
}

TEST(extended_receive_completion_of_a_send_carries_the_source_gid) {
    // flags 0x05 = op 0 | queue 2 | phase 1; ah unknown
    const RxCqeEx cqe = decode<RxCqeEx>(
        "07 00 00 05 78 56 40 00 ff ff 09 00 00 00 00 00"
        "fe 80 00 00 00 00 00 00 01 02 03 04 05 06 07 08");
    CHECK_EQ(cqe.base.ah, kAhUnknown);
    CHECK_EQ(cqe.base.flags & kCqeHasImm, 0);
    const std::vector<uint8_t> gid = hex("fe 80 00 00 00 00 00 00 01 02 03 04 05 06 07 08");
    CHECK_EQ(std::memcmp(cqe.src_gid, gid.data(), 16), 0);
    CHECK_EQ(cqe_recv_length(cqe, true), 0x40u);  // the GID's bytes are not taken for a length
}

TEST(every_status_has_its_number_and_a_text) {
    const struct {
        int number;
        const char* name;
    } statuses[] = {{0, "OK"},           {1, "FLUSHED"},       {2, "QP_INTERNAL"},        {3, "UNSUPPORTED_OP"},
                    {4, "INVALID_AH"},   {5, "INVALID_LKEY"},  {6, "BAD_LENGTH"},         {7, "REMOTE_BAD_ADDRESS"},
                    {8, "REMOTE_ABORT"}, {9, "BAD_DEST_QPN"},  {10, "RNR"},               {11, "REMOTE_BAD_LENGTH"},
                    {12, "BAD_STATUS"},  {13, "UNRESP_REMOTE"}, {14, "UNKNOWN_PEER"},     {15, "UNREACH_REMOTE"},
                    {18, "FEATURE_MISMATCH"}};
    for (const auto& status : statuses) {
        const char* text = cqe_status_text(static_cast<CqeStatus>(status.number));
        CHECK_EQ(std::string(text).substr(0, std::strlen(status.name)), std::string(status.name));
    }
    CHECK_EQ(std::string(cqe_status_text(static_cast<CqeStatus>(16))), std::string("unknown status"));
}

TEST_MAIN()
