// SPDX-License-Identifier: Apache-2.0
// The software device's rules: every status code and every protocol violation, provoked by ring bytes.
#include "soft_device_rig.h"

using namespace rig;

TEST(a_write_puts_its_bytes_at_the_target_and_completes_with_its_id) {
    Rig rig;
    for (int i = 0; i < 100; ++i) rig.a.memory[static_cast<size_t>(i) + 50] = static_cast<uint8_t>(i);
    rig.a.post(rig.write(rig.a, rig.b, 0xbeef, 50, 100));
    const Completion done = rig.run_until_sent(rig.a);
    CHECK_EQ(done.status, 0);
    CHECK_EQ(done.req_id, 0xbeefu);
    CHECK_EQ(done.flags, 0x01 | 1 << 1 | 2 << 4);  // first lap's phase, send queue, RDMA write
    CHECK_EQ(done.entry.base.qp_num, rig.a.qp.qp_num);
    CHECK(std::memcmp(&rig.a.memory[50], &rig.b.memory[50], 100) == 0);
    CHECK_EQ(rig.b.memory[49], 2);
    CHECK_EQ(rig.b.memory[150], 2);
}

TEST(a_read_fetches_the_targets_bytes) {
    Rig rig;
    rig.a.post(rig.read(rig.a, rig.b, 3, 4096, 300'000));
    const Completion done = rig.run_until_sent(rig.a);
    CHECK_EQ(done.status, 0);
    CHECK_EQ(done.flags >> 4 & 7, 1);
    CHECK_EQ(rig.a.memory[4095], 1);
    CHECK_EQ(rig.a.memory[4096], 2);
    CHECK_EQ(rig.a.memory[4096 + 299'999], 2);
    CHECK_EQ(rig.a.memory[4096 + 300'000], 1);
}

TEST(a_send_of_two_pieces_arrives_in_one_buffer_with_a_full_receive_completion) {
    Rig rig;
    rig.a.memory[0] = 7;
    rig.a.memory[900] = 9;
    rig.b.post_receive(rig.b.addr(64), 512, rig.b.region.lkey, 77);
    Bytes wqe = rig.send(rig.a, rig.b, 5, 0, 3);
    wqe.set(0x06, 2, 2).set(0x30, 5, 4).set(0x34, rig.a.region.lkey, 4).set(0x38, rig.a.addr(900), 8);
    wqe.set(0x02, 0x90, 1).set(0x08, 0xcafe, 4);
    CHECK_EQ(rig.status_of(wqe), 0);
    const Completion received = next_received(rig.b);
    CHECK_EQ(received.status, 0);
    CHECK_EQ(received.entry.base.req_id, 77);
    CHECK_EQ(received.flags, 0x01 | 2 << 1 | 1 << 3);  // phase, receive queue, immediate, SEND
    CHECK_EQ(received.entry.base.length, 8);
    CHECK_EQ(received.entry.base.ah, rig.b.peer.ahn);
    CHECK_EQ(received.entry.base.src_qp_num, rig.a.qp.qp_num);
    CHECK_EQ(received.entry.base.immediate, 0xcafeu);
    CHECK_EQ(rig.b.memory[64], 7);
    CHECK_EQ(rig.b.memory[67], 9);
    CHECK_EQ(rig.b.memory[72], 2);
}

TEST(inline_bytes_are_taken_from_the_slot) {
    Rig small;
    small.b.post_receive(small.b.addr(), 64, small.b.region.lkey, 1);
    Bytes wqe = Rig::meta(small.a, 0, 1, small.b.qp.qp_num).set(0x02, 0xa0, 1).set(0x06, 32, 2);
    for (size_t i = 0; i < 32; ++i) wqe.set(0x20 + i, 100 + i, 1);
    CHECK_EQ(small.status_of(wqe), 0);
    CHECK_EQ(small.b.memory[31], 131);
    Rig large({.large_slots = true});
    wqe = Rig::meta(large.a, 2, 1, large.b.qp.qp_num).set(0x02, 0xa2, 1).set(0x06, 80, 2);
    wqe.set(0x20, 80, 4).set(0x24, large.b.region.rkey, 4).set(0x28, large.b.addr(160), 8);
    for (size_t i = 0; i < 80; ++i) wqe.set(0x30 + i, i, 1);
    CHECK_EQ(large.status_of(wqe), 0);
    CHECK_EQ(large.b.memory[160 + 79], 79);
}

TEST(request_ids_of_64_bits_come_back_whole) {
    Rig rig({.profile = "efa4", .req_id_64 = true});
    Bytes wqe = rig.write(rig.a, rig.b, 0x1111, 0, 8).set(0x1a, 0x2222, 2).set(0x1c, 0x3333, 2).set(0x1e, 0x4444, 2);
    rig.a.post(wqe);
    CHECK_EQ(rig.run_until_sent(rig.a).req_id, 0x4444333322221111u);
}

TEST(local_mistakes_complete_with_the_devices_local_statuses) {
    Rig rig;
    const auto good = [&] { return rig.write(rig.a, rig.b, 1, 0, 8); };
    CHECK_EQ(rig.status_of(good()), 0);
    CHECK_EQ(rig.status_of(good().set(0x02, 0x83, 1)), 3);                        // opcode 3
    CHECK_EQ(rig.status_of(good().set(0x0c, rig.a.peer.ahn + 1, 2)), 4);          // address handle
    CHECK_EQ(rig.status_of(good().set(0x34, rig.a.region.lkey + 1, 4)), 5);       // lkey
    CHECK_EQ(rig.status_of(good().set(0x38, rig.a.addr() - 1, 8)), 5);            // before the region
    CHECK_EQ(rig.status_of(good().set(0x38, rig.a.addr((1 << 20) - 7), 8)), 5);   // beyond it
    CHECK_EQ(rig.status_of(good().set(0x30, 9, 4)), 6);                           // local and remote lengths differ
    CHECK_EQ(rig.status_of(good().set(0x06, 2, 2)), 6);                           // two SGEs of an RDMA write
    CHECK_EQ(rig.status_of(good().set(0x06, 0, 2)), 6);
    CHECK_EQ(rig.status_of(good()), 0);  // none of these stops the queue pair
    CHECK(rig.a.device->diagnosis(rig.a.qp.handle).empty());
}

TEST(lengths_beyond_the_limits_are_refused) {
    Rig rig;
    const uint32_t too_long = (1u << 30) + 1;
    CHECK_EQ(rig.status_of(rig.write(rig.a, rig.b, 1, 0, too_long)), 6);
    CHECK_EQ(rig.status_of(rig.send(rig.a, rig.b, 1, 0, 8193)), 6);
    rig.b.post_receive(rig.b.addr(), 8192, rig.b.region.lkey, 1);
    CHECK_EQ(rig.status_of(rig.send(rig.a, rig.b, 1, 0, 8192)), 0);
    CHECK_EQ(rig.status_of(rig.send(rig.a, rig.b, 1, 0, 8).set(0x06, 3, 2)), 6);  // three SGEs
    Bytes inline_33 = Rig::meta(rig.a, 0, 1, rig.b.qp.qp_num).set(0x02, 0xa0, 1).set(0x06, 33, 2);
    CHECK_EQ(rig.status_of(inline_33), 6);
    Rig large({.large_slots = true});
    Bytes inline_81 = Rig::meta(large.a, 0, 1, large.b.qp.qp_num).set(0x02, 0xa0, 1).set(0x06, 81, 2);
    CHECK_EQ(large.status_of(inline_81), 6);
}

TEST(operations_the_generation_lacks_are_unsupported) {
    Rig rig;  // 64-byte slots
    Bytes inline_write = Rig::meta(rig.a, 2, 1, rig.b.qp.qp_num).set(0x02, 0xa2, 1).set(0x06, 8, 2).set(0x20, 8, 4);
    CHECK_EQ(rig.status_of(inline_write), 3);
    CHECK_EQ(rig.status_of(rig.read(rig.a, rig.b, 1, 0, 8).set(0x02, 0x91, 1)), 3);  // read with immediate
    Rig old({.profile = "efa2"});
    QpAttr attr = old.qp_attr(old.a);
    attr.large_slots = true;
    Qp qp;
    CHECK_FAILS(old.a.device->create_qp(attr, &qp), Code::kUnsupported, "efa2");
    attr.large_slots = false;
    attr.unsolicited_recv = true;
    CHECK_FAILS(old.a.device->create_qp(attr, &qp), Code::kUnsupported, "efa2");
    attr.unsolicited_recv = false;
    attr.req_id_64 = true;
    CHECK_FAILS(old.a.device->create_qp(attr, &qp), Code::kUnsupported, "efa2");
    uint64_t word, counter;
    CHECK_FAILS(old.a.device->create_counter({&word, nullptr, MemoryKind::kHost}, &counter), Code::kUnsupported, "counters");
}

TEST(remote_mistakes_complete_with_the_devices_remote_statuses) {
    Rig rig;
    const auto good = [&] { return rig.write(rig.a, rig.b, 1, 0, 8); };
    CHECK_EQ(rig.status_of(good().set(0x24, rig.b.region.rkey ^ 0x01000000, 4)), 7);  // rkey
    CHECK_EQ(rig.status_of(good().set(0x28, rig.b.addr() - 8, 8)), 7);                // before the region
    CHECK_EQ(rig.status_of(good().set(0x28, rig.b.addr((1 << 20) - 7), 8)), 7);       // beyond it
    CHECK_EQ(rig.status_of(good().set(0x28, ~0ull - 3, 8)), 7);                       // wraps
    CHECK_EQ(rig.status_of(good().set(0x04, rig.b.qp.qp_num + 1, 2)), 9);             // queue pair
    CHECK_EQ(rig.status_of(good().set(0x10, kQkey + 1, 4)), 9);                       // qkey
    CHECK_EQ(rig.status_of(rig.read(rig.a, rig.b, 1, 0, 8).set(0x24, 5, 4)), 7);
    CHECK_EQ(rig.b.memory[0], 2);  // nothing of all this was placed
}

TEST(access_rights_are_checked_on_both_sides) {
    Rig rig;
    MemoryRegion read_only;
    CHECK_OK(rig.b.device->register_memory({rig.b.memory.data(), 4096, MemoryKind::kHost, kAccessRemoteRead}, &read_only));
    CHECK_EQ(rig.status_of(rig.write(rig.a, rig.b, 1, 0, 8).set(0x24, read_only.rkey, 4)), 7);
    CHECK_EQ(rig.status_of(rig.read(rig.a, rig.b, 1, 0, 8).set(0x24, read_only.rkey, 4)), 0);
    MemoryRegion write_only;
    CHECK_OK(rig.b.device->register_memory({rig.b.memory.data(), 4096, MemoryKind::kHost, kAccessRemoteWrite}, &write_only));
    CHECK_EQ(rig.status_of(rig.read(rig.a, rig.b, 1, 0, 8).set(0x24, write_only.rkey, 4)), 7);
    MemoryRegion source;  // no local write: good for a write's source, not for a read's target
    CHECK_OK(rig.a.device->register_memory({rig.a.memory.data(), 4096, MemoryKind::kHost, 0}, &source));
    CHECK_EQ(rig.status_of(rig.write(rig.a, rig.b, 1, 0, 8).set(0x34, source.lkey, 4)), 0);
    CHECK_EQ(rig.status_of(rig.read(rig.a, rig.b, 1, 0, 8).set(0x34, source.lkey, 4)), 5);
}

TEST(a_key_is_dead_after_deregistration_even_when_its_number_is_used_again) {
    Rig rig;
    const Bytes old_write = rig.write(rig.a, rig.b, 1, 0, 8);
    CHECK_OK(rig.b.device->deregister_memory(rig.b.region.lkey));
    CHECK_EQ(rig.status_of(old_write), 7);
    MemoryRegion again;
    CHECK_OK(rig.b.device->register_memory({rig.b.memory.data(), 4096, MemoryKind::kHost, kAllAccess}, &again));
    CHECK_EQ(again.lkey & 0xffff, rig.b.region.lkey & 0xffff);
    CHECK_EQ(rig.status_of(old_write), 7);
    CHECK_FAILS(rig.b.device->deregister_memory(rig.b.region.lkey), Code::kInvalidArgument, "lkey");
}

TEST(the_target_needs_an_address_handle_for_the_initiator_of_rdma) {
    Rig rig({.connect = false});
    CHECK_OK(rig.a.device->create_address_handle(rig.b.device->gid(), &rig.a.peer));
    CHECK_EQ(rig.status_of(rig.write(rig.a, rig.b, 1, 0, 8)), 14);
    CHECK_EQ(rig.status_of(rig.read(rig.a, rig.b, 1, 0, 8)), 14);
    // A SEND arrives all the same; its completion says who sent it, as the device knows no handle.
    rig.b.post_receive(rig.b.addr(), 64, rig.b.region.lkey, 1);
    CHECK_EQ(rig.status_of(rig.send(rig.a, rig.b, 1, 0, 8)), 0);
    const Completion received = next_received(rig.b);
    CHECK_EQ(received.entry.base.ah, 0xffff);
    CHECK(std::memcmp(received.entry.src_gid, rig.a.device->gid().raw, 16) == 0);
    AddressHandle ah;
    CHECK_OK(rig.b.device->create_address_handle(rig.a.device->gid(), &ah));
    CHECK_EQ(rig.status_of(rig.write(rig.a, rig.b, 1, 0, 8)), 0);
    CHECK_OK(rig.b.device->destroy_address_handle(ah));
    CHECK_EQ(rig.status_of(rig.write(rig.a, rig.b, 1, 0, 8)), 14);
}

TEST(one_address_handle_number_serves_one_destination) {
    Rig rig;
    AddressHandle again;
    CHECK_OK(rig.a.device->create_address_handle(rig.b.device->gid(), &again));
    CHECK_EQ(again.ahn, rig.a.peer.ahn);
    CHECK_OK(rig.a.device->destroy_address_handle(again));
    CHECK_EQ(rig.status_of(rig.write(rig.a, rig.b, 1, 0, 8)), 0);
    CHECK_OK(rig.a.device->destroy_address_handle(again));
    CHECK_EQ(rig.status_of(rig.write(rig.a, rig.b, 1, 0, 8)), 4);
}

TEST(a_message_longer_than_the_receive_buffer_is_refused_and_the_buffer_stays) {
    Rig rig;
    rig.b.post_receive(rig.b.addr(), 16, rig.b.region.lkey, 9);
    CHECK_EQ(rig.status_of(rig.send(rig.a, rig.b, 1, 0, 17)), 11);
    CHECK_EQ(next_received(rig.b).status, -1);
    CHECK_EQ(rig.status_of(rig.send(rig.a, rig.b, 2, 0, 16)), 0);
    CHECK_EQ(next_received(rig.b).entry.base.req_id, 9);
}

TEST(a_bad_receive_descriptor_fails_on_both_sides) {
    Rig rig;
    rig.b.post_receive(rig.b.addr(), 64, rig.b.region.lkey + 1, 4);
    CHECK_EQ(rig.status_of(rig.send(rig.a, rig.b, 1, 0, 8)), 8);
    const Completion received = next_received(rig.b);
    CHECK_EQ(received.status, 5);
    CHECK_EQ(received.entry.base.req_id, 4);
}

TEST(without_rnr_retry_a_missing_receive_buffer_is_status_10) {
    Rig rig({.profile = "efa2"});
    CHECK_EQ(rig.a.send_cq.entry_bytes, 16u);
    CHECK_EQ(rig.status_of(rig.send(rig.a, rig.b, 1, 0, 8)), 10);
    rig.b.post_receive(rig.b.addr(), 64, rig.b.region.lkey, 1);
    CHECK_EQ(rig.status_of(rig.send(rig.a, rig.b, 2, 0, 8)), 0);
}

TEST(with_rnr_retry_the_device_waits_for_a_receive_buffer_up_to_a_limit) {
    Rig rig;
    rig.a.post(rig.send(rig.a, rig.b, 1, 0, 8));
    rig.run(200'000);
    CHECK_EQ(next_sent(rig.a).status, -1);
    CHECK(rig.b.device->stats().rnr >= 3);
    rig.b.post_receive(rig.b.addr(), 64, rig.b.region.lkey, 1);
    CHECK_EQ(rig.run_until_sent(rig.a).status, 0);
    CHECK_EQ(rig.status_of(rig.send(rig.a, rig.b, 2, 0, 8)), 10);  // nobody ever posts
}

TEST(a_write_with_immediate_takes_a_receive_descriptor_unless_unsolicited) {
    Rig rig;
    const auto with_imm = [](Bytes wqe) { return wqe.set(0x02, 0x92, 1).set(0x08, 42, 4); };
    rig.b.post_receive(0, 0, 0, 31);
    CHECK_EQ(rig.status_of(with_imm(rig.write(rig.a, rig.b, 1, 0, 200'000))), 0);
    Completion received = next_received(rig.b);
    CHECK_EQ(received.entry.base.req_id, 31);
    CHECK_EQ(received.entry.base.immediate, 42u);
    CHECK_EQ(received.flags, 0x01 | 2 << 1 | 1 << 3 | 2 << 4);
    CHECK_EQ(cqe_recv_length(received.entry, true), 200'000u);
    CHECK_EQ(rig.status_of(with_imm(rig.write(rig.a, rig.b, 2, 0, 8))), 10);
    Rig free({.unsolicited = true});
    CHECK_EQ(free.status_of(with_imm(free.write(free.a, free.b, 1, 0, 8))), 0);
    received = next_received(free.b);
    CHECK_EQ(received.flags, 0x01 | 2 << 1 | 1 << 3 | 2 << 4 | 0x80);
    CHECK_EQ(received.entry.base.immediate, 42u);
    CHECK_EQ(next_received(free.b).status, -1);
}

TEST(queue_pairs_that_differ_in_unsolicited_receive_are_a_feature_mismatch) {
    Rig rig({.unsolicited = true});
    QpAttr attr = rig.qp_attr(rig.b);
    attr.unsolicited_recv = false;
    Qp plain;
    CHECK_OK(rig.b.device->create_qp(attr, &plain));
    Bytes wqe = rig.write(rig.a, rig.b, 1, 0, 8).set(0x04, plain.qp_num, 2);
    CHECK_EQ(rig.status_of(wqe), 0);  // no immediate, no matter
    CHECK_EQ(rig.status_of(wqe.set(0x02, 0x92, 1)), 18);
}

// ---- the ring's protocol: the queue pair stops, and says why ----

namespace {
void check_stops(const char* why, const std::function<Bytes(Bytes)>& spoil) {
    Rig rig;
    rig.a.post(rig.write(rig.a, rig.b, 1, 0, 8));
    rig.a.write_slot(spoil(rig.write(rig.a, rig.b, 2, 0, 8)));
    rig.a.write_slot(rig.write(rig.a, rig.b, 3, 0, 8));
    rig.a.ring(3);
    CHECK_EQ(rig.run_until_sent(rig.a).status, 2);
    int flushed = 0;
    for (Completion done = next_sent(rig.a); done.status >= 0; done = next_sent(rig.a)) flushed += done.status == 1;
    CHECK_EQ(flushed, 2);  // the one before was outstanding, the one after never started
    CHECK(rig.a.device->qp_state(rig.a.qp.handle) == QpState::kError);
    const std::string diagnosis = rig.a.device->diagnosis(rig.a.qp.handle);
    if (diagnosis.find(why) == std::string::npos) check::fail(__FILE__, __LINE__, "diagnosis: " + diagnosis);
    CHECK_EQ(rig.status_of(rig.write(rig.a, rig.b, 4, 0, 8)), 1);
}
}  // namespace

TEST(a_wrong_phase_bit_stops_the_queue_pair) {
    check_stops("phase", [](Bytes wqe) { return wqe.set(0x03, 0x1d, 1); });
}
TEST(reserved_bits_of_the_descriptor_stop_the_queue_pair) {
    check_stops("meta_desc", [](Bytes wqe) { return wqe.set(0x02, 0x02, 1); });
    check_stops("meta_ext", [](Bytes wqe) { return wqe.set(0x02, 0xc2, 1); });
    check_stops("ctrl2", [](Bytes wqe) { return wqe.set(0x03, 0x1e, 1); });
    check_stops("ctrl2", [](Bytes wqe) { return wqe.set(0x03, 0x3c, 1); });
    check_stops("first and last", [](Bytes wqe) { return wqe.set(0x03, 0x18, 1); });
    check_stops("first and last", [](Bytes wqe) { return wqe.set(0x03, 0x14, 1); });
    check_stops("comp_req", [](Bytes wqe) { return wqe.set(0x03, 0x0c, 1); });
    check_stops("address handle", [](Bytes wqe) { return wqe.set(0x0e, 4, 1); });
    check_stops("address handle", [](Bytes wqe) { return wqe.set(0x0f, 1, 1); });
    check_stops("qkey", [](Bytes wqe) { return wqe.set(0x14, 1, 1); });
    check_stops("qkey", [](Bytes wqe) { return wqe.set(0x19, 1, 1); });
    check_stops("16-bit ids", [](Bytes wqe) { return wqe.set(0x1a, 1, 2); });
    check_stops("lkey", [](Bytes wqe) { return wqe.set(0x37, 1, 1); });
}

TEST(a_doorbell_beyond_the_depth_stops_the_queue_pair) {
    Rig rig;
    for (uint16_t i = 0; i < 16; ++i) rig.a.write_slot(rig.write(rig.a, rig.b, i, 0, 8));
    rig.a.ring(17);
    CHECK_EQ(rig.run_until_sent(rig.a).status, 2);
    CHECK(rig.a.device->diagnosis(rig.a.qp.handle).find("only 16 slots were free") != std::string::npos);
}

TEST(a_ring_that_is_written_before_completions_came_is_told) {
    Rig rig;
    rig.b.device->set_dead_after(0);  // no completion will come
    for (uint16_t i = 0; i < 16; ++i) rig.a.post(rig.write(rig.a, rig.b, i, 0, 8)), rig.run(10);
    rig.a.post(rig.write(rig.a, rig.b, 16, 0, 8));
    CHECK_EQ(rig.run_until_sent(rig.a).status, 2);
    CHECK(rig.a.device->diagnosis(rig.a.qp.handle).find("only 0 slots") != std::string::npos);
}

TEST(more_than_max_batch_slots_without_a_doorbell_stop_the_queue_pair) {
    Rig rig({.sq_depth = 64});
    CHECK_EQ(rig.a.qp.sq_max_batch, 16u);
    for (uint16_t i = 0; i < 16; ++i) rig.a.write_slot(rig.write(rig.a, rig.b, i, 0, 8));
    rig.run(10);
    CHECK(rig.a.device->qp_state(rig.a.qp.handle) == QpState::kReady);
    rig.a.write_slot(rig.write(rig.a, rig.b, 16, 0, 8));
    rig.run(10);
    CHECK(rig.a.device->qp_state(rig.a.qp.handle) == QpState::kError);
    CHECK(rig.a.device->diagnosis(rig.a.qp.handle).find("max_batch (16)") != std::string::npos);
    Rig large({.sq_depth = 64, .large_slots = true});
    CHECK_EQ(large.a.qp.sq_max_batch, 8u);
}

// ---- rings over many laps ----

TEST(send_and_completion_rings_wrap_beyond_16_bits) {
    Rig rig({.cq_depth = 16});
    for (uint32_t i = 0; i < 70'000; ++i) {
        rig.a.post(rig.write(rig.a, rig.b, static_cast<uint16_t>(i), i % 1000, 4));
        Completion done;
        for (int turn = 0; turn < 10 && done.status < 0; ++turn) {
            rig.a.device->step(++rig.now);
            rig.b.device->step(++rig.now);
            done = next_sent(rig.a);
        }
        CHECK_EQ(done.status, 0);
        CHECK_EQ(done.req_id, static_cast<uint16_t>(i));
    }
    CHECK_EQ(rig.a.posted, 70'000u);
}

TEST(a_doorbell_of_16_bits_is_as_good_as_one_of_32) {
    Rig rig({.cq_depth = 16});
    for (uint32_t i = 0; i < 66'000; ++i) {
        rig.a.write_slot(rig.write(rig.a, rig.b, 1, 0, 4));
        rig.a.ring(rig.a.posted & 0xffff);
        for (int turn = 0; turn < 4; ++turn) rig.a.device->step(++rig.now), rig.b.device->step(++rig.now);
        CHECK_EQ(next_sent(rig.a).status, 0);
    }
}

TEST(an_overrun_of_a_completion_queue_is_told_when_the_poller_says_where_it_is) {
    Rig rig({.sq_depth = 16, .cq_depth = 8});
    *rig.a.send_cq.consumer = 0;
    for (uint16_t i = 0; i < 9; ++i) rig.a.post(rig.write(rig.a, rig.b, i, 0, 8));
    rig.run(100'000);
    CHECK_EQ(rig.a.device->stats().cq_overruns, 1u);
    CHECK(rig.a.device->diagnosis(rig.a.qp.handle).find("overrun") != std::string::npos);
    for (int i = 0; i < 8; ++i) CHECK_EQ(next_sent(rig.a).status, 0);  // what was there was not overwritten
}

TEST(destroying_a_queue_pair_flushes_sends_and_receives) {
    Rig rig;
    rig.b.device->set_dead_after(0);
    rig.a.post(rig.write(rig.a, rig.b, 1, 0, 8));
    rig.run(1000);
    rig.a.post(rig.write(rig.a, rig.b, 2, 0, 8));  // not even seen by a step
    rig.a.post_receive(rig.a.addr(), 64, rig.a.region.lkey, 8);
    CHECK_FAILS(rig.a.device->destroy_cq(rig.a.send_cq.handle), Code::kInvalidArgument, "queue pair");
    CHECK_OK(rig.a.device->destroy_qp(rig.a.qp.handle));
    CHECK_EQ(next_sent(rig.a).status, 1);
    CHECK_EQ(next_sent(rig.a).status, 1);
    CHECK_EQ(next_received(rig.a).status, 1);
    CHECK_OK(rig.a.device->destroy_cq(rig.a.send_cq.handle));
    rig.run(10'000'000);  // nothing of it comes back to life
}

TEST(a_destroyed_queue_pairs_number_is_not_found_by_old_senders) {
    Rig rig;
    CHECK_OK(rig.b.device->destroy_qp(rig.b.qp.handle));
    Qp next;
    CHECK_OK(rig.b.device->create_qp(rig.qp_attr(rig.b), &next));
    CHECK(next.qp_num != rig.b.qp.qp_num);
    CHECK_EQ(rig.status_of(rig.write(rig.a, rig.b, 1, 0, 8)), 9);
}

TEST_MAIN()
