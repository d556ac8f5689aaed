// SPDX-License-Identifier: Apache-2.0
// What the software device's network does: disorder, repeats, delays, dead peers, a full wire.
#include <set>

#include "soft_device_rig.h"

using namespace rig;

TEST(messages_arrive_in_another_order_than_they_were_posted_in) {
    Rig rig({.faults = {.reorder_ns = 2000}, .sq_depth = 64, .cq_depth = 256});
    int inversions = 0, last = -1;
    for (uint16_t i = 0; i < 64; ++i) rig.a.post(rig.write(rig.a, rig.b, i, i * 64u, 8));
    for (int i = 0; i < 64; ++i) {
        const Completion done = rig.run_until_sent(rig.a);
        CHECK_EQ(done.status, 0);
        inversions += static_cast<int>(done.req_id) < last;
        last = static_cast<int>(done.req_id);
    }
    CHECK(inversions > 10);
    CHECK(rig.b.device->stats().out_of_order > 10);
}

TEST(without_a_window_everything_arrives_in_order) {
    Rig rig({.sq_depth = 64, .cq_depth = 256});
    for (uint16_t i = 0; i < 64; ++i) rig.a.post(rig.write(rig.a, rig.b, i, i * 64u, 8));
    for (uint16_t i = 0; i < 64; ++i) CHECK_EQ(rig.run_until_sent(rig.a).req_id, i);
    CHECK_EQ(rig.b.device->stats().out_of_order, 0u);
}

TEST(a_small_write_overtakes_a_large_one_and_segments_land_in_any_order) {
    int overtaken = 0, last_before_first = 0;
    for (uint64_t seed = 1; seed <= 20; ++seed) {
        Rig rig({.faults = {.reorder_ns = 2000}, .payload_max = 8192, .seed = seed});
        fill(rig.a);
        rig.a.post(rig.write(rig.a, rig.b, 1, 0, 512 << 10));
        rig.a.post(rig.write(rig.a, rig.b, 2, (512 << 10) + 64, 8));
        const size_t small_at = (512 << 10) + 64, last_at = (512 << 10) - 1;
        bool has_seen_small = false, has_seen_tail = false;
        for (int turn = 0; turn < 100'000; ++turn) {
            rig.run(10);
            const bool large_done = std::memcmp(rig.a.memory.data(), rig.b.memory.data(), 512 << 10) == 0;
            if (rig.b.memory[small_at] == rig.a.memory[small_at] && rig.a.memory[small_at] != 2) has_seen_small = true;
            if (!has_seen_tail && rig.b.memory[last_at] == rig.a.memory[last_at]) {
                has_seen_tail = true;
                last_before_first += rig.b.memory[0] != rig.a.memory[0];
            }
            if (large_done) break;
            overtaken += has_seen_small;
            if (has_seen_small && has_seen_tail) break;
        }
    }
    CHECK(overtaken > 0);
    CHECK(last_before_first > 0);
}

TEST(a_completion_means_that_every_byte_was_placed) {
    for (uint64_t seed = 1; seed <= 200; ++seed) {
        Rig rig({.faults = {.reorder_ns = 5000, .duplicate_ppm = 200'000, .delay_ppm = 50'000},
                 .payload_max = 8192,
                 .seed = seed});
        rig.wire.set_refusals(100'000);
        fill(rig.a);
        Prng prng(seed);
        size_t at[16], length[16];
        size_t next = 0;
        for (uint16_t i = 0; i < 16; ++i) {
            at[i] = next;
            length[i] = 1 + prng.below(prng.below(2) ? 100 : 60'000);
            next += length[i] + prng.below(9);
            rig.a.post(rig.write(rig.a, rig.b, i, at[i], static_cast<uint32_t>(length[i])));
        }
        for (int i = 0; i < 16; ++i) {
            const Completion done = rig.run_until_sent(rig.a);
            CHECK_EQ(done.status, 0);
            const size_t id = done.req_id;
            CHECK(std::memcmp(&rig.a.memory[at[id]], &rig.b.memory[at[id]], length[id]) == 0);
        }
    }
}

TEST(a_repeat_clobbers_a_flag_that_its_receiver_reset_too_early_but_only_before_the_completion) {
    int clobbered = 0;
    for (uint64_t seed = 1; seed <= 50; ++seed) {
        Rig rig({.faults = {.reorder_ns = 1000, .duplicate_ppm = 1'000'000}, .seed = seed});
        rig.a.memory[0] = 5;
        rig.b.memory[0] = 0;
        rig.a.post(rig.write(rig.a, rig.b, 1, 0, 1));
        while (rig.b.memory[0] != 5) rig.run(10);
        CHECK_EQ(next_sent(rig.a).status, -1);
        rig.b.memory[0] = 0;  // the mistake: nobody knows yet that the sender's completion came
        CHECK_EQ(rig.run_until_sent(rig.a).status, 0);
        clobbered += rig.b.memory[0] == 5;
        rig.b.memory[0] = 0;  // now it is safe
        rig.run(1'000'000);
        CHECK_EQ(rig.b.memory[0], 0);
    }
    CHECK_EQ(clobbered, 50);
}

TEST(a_repeat_is_not_delivered_twice) {
    Rig rig({.faults = {.reorder_ns = 1000, .duplicate_ppm = 1'000'000}, .unsolicited = true, .payload_max = 8192});
    uint64_t words[2] = {};
    uint64_t counter;
    CHECK_OK(rig.b.device->create_counter({&words[0], &words[1], MemoryKind::kHost}, &counter));
    CHECK_OK(rig.b.device->attach_counter(rig.b.qp.handle, counter, kCountRemoteWrite));
    for (uint16_t i = 0; i < 8; ++i) {
        const uint32_t bytes = i % 2 ? 8 : 100'000;
        rig.a.post(rig.write(rig.a, rig.b, i, i * 100'000u, bytes).set(0x02, 0x92, 1).set(0x08, i, 4));
    }
    for (int i = 0; i < 8; ++i) CHECK_EQ(rig.run_until_sent(rig.a).status, 0);
    std::set<uint32_t> immediates;
    for (Completion c = next_received(rig.b); c.status >= 0; c = next_received(rig.b))
        CHECK(immediates.insert(c.entry.base.immediate).second);
    CHECK_EQ(immediates.size(), 8u);
    CHECK_EQ(words[0], 8u);
    CHECK(rig.b.device->stats().duplicates >= 8);
}

TEST(small_payloads_are_torn_at_8_bytes_and_never_within) {
    int torn = 0;
    for (uint64_t seed = 1; seed <= 100; ++seed) {
        Rig rig({.faults = {.reorder_ns = 2000}, .seed = seed});
        for (size_t i = 0; i < 64; ++i) rig.a.memory[i] = 0xaa;
        rig.a.post(rig.write(rig.a, rig.b, 1, 0, 64));
        for (bool is_whole = false; !is_whole;) {
            rig.run(20);
            int new_words = 0;
            for (size_t word = 0; word < 8; ++word) {
                const std::set<uint8_t> values(&rig.b.memory[word * 8], &rig.b.memory[word * 8 + 8]);
                CHECK_EQ(values.size(), 1u);
                new_words += *values.begin() == 0xaa;
            }
            is_whole = new_words == 8;
            torn += new_words != 0 && !is_whole;
        }
    }
    CHECK(torn > 10);
}

TEST(a_source_that_is_reused_before_the_completion_is_caught) {
    int caught = 0;
    for (uint64_t seed = 1; seed <= 50; ++seed) {
        Rig rig({.faults = {.reorder_ns = 2000}, .seed = seed});
        rig.a.memory[0] = 5;
        rig.a.post(rig.write(rig.a, rig.b, 1, 0, 1));
        rig.run(1);
        rig.a.memory[0] = 6;
        CHECK_EQ(rig.run_until_sent(rig.a).status, 0);
        caught += rig.b.memory[0] == 6;
    }
    CHECK(caught > 25);
}

TEST(a_device_writes_to_itself) {
    Rig rig({.faults = {.reorder_ns = 1000}});
    AddressHandle self;
    CHECK_OK(rig.a.device->create_address_handle(rig.a.device->gid(), &self));
    rig.a.memory[0] = 42;
    Bytes wqe = rig.write(rig.a, rig.a, 1, 0, 300).set(0x0c, self.ahn, 2).set(0x28, rig.a.addr(5000), 8);
    CHECK_EQ(rig.status_of(wqe), 0);
    CHECK_EQ(rig.a.memory[5000], 42);
}

TEST(forced_rnr_refuses_a_message_once) {
    Rig rig({.faults = {.rnr_ppm = 1'000'000}});
    rig.b.post_receive(rig.b.addr(), 64, rig.b.region.lkey, 1);
    CHECK_EQ(rig.status_of(rig.send(rig.a, rig.b, 1, 0, 8)), 0);
    CHECK_EQ(rig.b.device->stats().rnr, 1u);
    Rig old({.profile = "efa2", .faults = {.rnr_ppm = 1'000'000}});
    old.b.post_receive(old.b.addr(), 64, old.b.region.lkey, 1);
    CHECK_EQ(old.status_of(old.send(old.a, old.b, 1, 0, 8)), 10);
}

TEST(a_peer_that_does_not_answer_is_status_13_after_the_timeout) {
    Rig rig({.unresponsive_ns = 1'000'000});
    CHECK_EQ(rig.status_of(rig.write(rig.a, rig.b, 1, 0, 8)), 0);
    rig.b.device->set_dead_after(0);
    const uint64_t start = rig.now;
    CHECK_EQ(rig.status_of(rig.write(rig.a, rig.b, 2, 0, 8)), 13);
    CHECK(rig.now - start >= 1'000'000 && rig.now - start < 2'500'000);
    CHECK_EQ(rig.status_of(rig.read(rig.a, rig.b, 3, 0, 8)), 13);
}

TEST(a_peer_that_is_known_to_be_gone_is_status_13_without_the_timeout) {
    Rig rig({.unresponsive_ns = 1'000'000'000});
    rig.wire.set_gone(rig.b.device->gid());
    const uint64_t start = rig.now;
    rig.a.post(rig.write(rig.a, rig.b, 2, 0, 8));
    CHECK_EQ(rig.run_until_sent(rig.a, 100'000'000).status, 13);
    CHECK(rig.now - start < 50'000'000);
}

TEST(a_peer_may_die_after_some_messages) {
    Rig rig;
    rig.b.device->set_dead_after(2);
    CHECK_EQ(rig.status_of(rig.write(rig.a, rig.b, 1, 0, 8)), 0);
    CHECK_EQ(rig.status_of(rig.write(rig.a, rig.b, 2, 0, 8)), 13);  // it received the second, and answers no more
}

TEST(a_long_delay_holds_back_what_is_behind_nothing_else) {
    Rig rig({.faults = {.delay_ppm = 500'000, .far_delay_ns = 400'000}, .sq_depth = 64, .cq_depth = 256});
    for (uint16_t i = 0; i < 64; ++i) rig.a.post(rig.write(rig.a, rig.b, i, i * 64u, 8));
    rig.run(2000);
    int early = 0;
    for (Completion c = next_sent(rig.a); c.status >= 0; c = next_sent(rig.a)) ++early;
    CHECK(early > 5 && early < 40);
    CHECK(rig.a.device->stats().delays + rig.b.device->stats().delays > 20);
    for (int i = early; i < 64; ++i) CHECK_EQ(rig.run_until_sent(rig.a).status, 0);
}

TEST(packets_that_are_not_valid_are_dropped_and_counted) {
    Rig rig;
    PacketHeader header;
    header.src_gid = rig.a.device->gid();
    header.dst_gid = rig.b.device->gid();
    header.dst_qp_num = static_cast<uint16_t>(rig.b.qp.qp_num);
    header.qkey = kQkey;
    header.rkey = rig.b.region.rkey;
    header.remote_addr = rig.b.addr();
    header.type = PacketType::kWrite;
    header.message_bytes = header.segment_bytes = header.payload_bytes = 8;
    const uint64_t payload = 0x0505050505050505;
    const auto receive = [&](PacketHeader spoilt) {
        rig.b.device->receive(spoilt, &payload, rig.now);
        rig.run(1000);
        return rig.b.device->stats().packets_refused;
    };
    PacketHeader bad = header;
    bad.segment_offset = 1;
    CHECK_EQ(receive(bad), 1u);
    bad = header, bad.segment_offset = ~0ull - 3, bad.message_bytes = ~0ull;
    CHECK_EQ(receive(bad), 2u);
    bad = header, bad.payload_bytes = 7;
    CHECK_EQ(receive(bad), 3u);
    bad = header, bad.magic = 1;
    CHECK_EQ(receive(bad), 4u);
    bad = header, bad.type = static_cast<PacketType>(9);
    CHECK_EQ(receive(bad), 5u);
    bad = header, bad.type = PacketType::kAck, bad.payload_bytes = 0, bad.status = 200;
    CHECK_EQ(receive(bad), 6u);
    bad = header, bad.payload_bytes = bad.segment_bytes = 2u << 20, bad.message_bytes = 2u << 20;
    CHECK_EQ(receive(bad), 7u);
    bad = header, bad.type = PacketType::kAck, bad.payload_bytes = 0, bad.message = 12345;  // of no request of ours
    CHECK_EQ(receive(bad), 7u);
    CHECK_EQ(rig.b.memory[0], 2);
    CHECK_EQ(receive(header), 7u);
    CHECK_EQ(rig.b.memory[0], 5);
}

// ---- counters ----

TEST(counters_count_what_their_mask_says_and_wrap_at_31_bits) {
    Rig rig({.cq_depth = 256, .unsolicited = true});
    uint64_t initiator[2] = {}, target[2] = {};
    uint64_t first, second;
    CHECK_OK(rig.a.device->create_counter({&initiator[0], &initiator[1], MemoryKind::kHost}, &first));
    CHECK_OK(rig.a.device->attach_counter(rig.a.qp.handle, first, kCountWrite | kCountRead));
    CHECK_OK(rig.b.device->create_counter({&target[0], &target[1], MemoryKind::kHost}, &second));
    CHECK_OK(rig.b.device->attach_counter(rig.b.qp.handle, second, kCountRemoteWrite));
    rig.b.device->set_counter_for_test(second, 0x7ffffffe);
    CHECK_EQ(rig.status_of(rig.write(rig.a, rig.b, 1, 0, 8)), 0);
    CHECK_EQ(target[0], 0x7fffffffu);
    CHECK_EQ(rig.status_of(rig.write(rig.a, rig.b, 2, 0, 200'000)), 0);
    CHECK_EQ(target[0], 0u);
    CHECK_EQ(rig.status_of(rig.read(rig.a, rig.b, 3, 0, 8)), 0);
    rig.b.post_receive(rig.b.addr(), 64, rig.b.region.lkey, 1);
    CHECK_EQ(rig.status_of(rig.send(rig.a, rig.b, 4, 0, 8)), 0);
    CHECK_EQ(initiator[0], 3u);  // two writes and a read, not the SEND
    CHECK_EQ(initiator[1], 0u);
    CHECK_EQ(target[0], 0u);
    CHECK_EQ(rig.status_of(rig.write(rig.a, rig.b, 5, 0, 8).set(0x24, 1, 4)), 7);
    CHECK_EQ(initiator[0], 3u);
    CHECK_EQ(initiator[1], 1u);
}

TEST(receives_sends_and_remote_reads_have_counters_too) {
    Rig rig;
    uint64_t words[3] = {}, handles[3];
    const uint32_t masks[3] = {kCountSend, kCountRecv, kCountRemoteRead};
    for (int i = 0; i < 3; ++i) {
        Side& side = i == 0 ? rig.a : rig.b;
        CHECK_OK(side.device->create_counter({&words[i], nullptr, MemoryKind::kHost}, &handles[i]));
        CHECK_OK(side.device->attach_counter(side.qp.handle, handles[i], masks[i]));
    }
    rig.b.post_receive(rig.b.addr(), 64, rig.b.region.lkey, 1);
    CHECK_EQ(rig.status_of(rig.send(rig.a, rig.b, 4, 0, 8)), 0);
    CHECK_EQ(rig.status_of(rig.read(rig.a, rig.b, 3, 0, 300'000)), 0);
    for (uint64_t word : words) CHECK_EQ(word, 1u);
}

TEST(counters_obey_the_devices_limits) {
    Rig rig;
    std::vector<uint64_t> words(513);
    uint64_t handle = 0;
    for (int i = 0; i < 512; ++i)
        CHECK_OK(rig.a.device->create_counter({&words[static_cast<size_t>(i)], nullptr, MemoryKind::kHost}, &handle));
    uint64_t beyond;
    CHECK_FAILS(rig.a.device->create_counter({&words[512], nullptr, MemoryKind::kHost}, &beyond), Code::kResource, "512");
    CHECK_OK(rig.a.device->attach_counter(rig.a.qp.handle, handle, kCountWrite));
    CHECK_FAILS(rig.a.device->attach_counter(rig.a.qp.handle, handle - 1, kCountWrite), Code::kInvalidArgument, "already");
    CHECK_FAILS(rig.a.device->destroy_counter(handle), Code::kInvalidArgument, "attached");
    CHECK_EQ(rig.status_of(rig.write(rig.a, rig.b, 1, 0, 8)), 0);
    CHECK_FAILS(rig.a.device->attach_counter(rig.a.qp.handle, handle - 1, kCountSend), Code::kInvalidArgument, "in use");
    CHECK_OK(rig.a.device->destroy_qp(rig.a.qp.handle));
    CHECK_OK(rig.a.device->destroy_counter(handle));
    CHECK_OK(rig.a.device->create_counter({&words[512], nullptr, MemoryKind::kHost}, &beyond));
}

TEST(tables_and_queues_obey_the_devices_limits) {
    Rig rig;
    Qp qp;
    QpAttr attr = rig.qp_attr(rig.a);
    attr.sq_depth = 8192;
    CHECK_FAILS(rig.a.device->create_qp(attr, &qp), Code::kInvalidArgument, "4096");
    attr.sq_depth = 4096;
    attr.large_slots = true;
    CHECK_FAILS(rig.a.device->create_qp(attr, &qp), Code::kInvalidArgument, "2048");
    attr.sq_depth = 100;
    CHECK_FAILS(rig.a.device->create_qp(attr, &qp), Code::kInvalidArgument, "power of two");
    attr.sq_depth = 16;
    attr.rq_depth = 65536;
    CHECK_FAILS(rig.a.device->create_qp(attr, &qp), Code::kInvalidArgument, "32768");
    attr.rq_depth = 0;
    attr.send_cq = 99;
    CHECK_FAILS(rig.a.device->create_qp(attr, &qp), Code::kInvalidArgument, "completion queues");
    Cq cq;
    CHECK_FAILS(rig.a.device->create_cq({65537}, &cq), Code::kInvalidArgument, "65536");
    CHECK_FAILS(rig.a.device->create_cq({0}, &cq), Code::kInvalidArgument, "1 to");
    CHECK_OK(rig.a.device->create_cq({100}, &cq));
    CHECK_EQ(cq.depth, 128u);
    attr = rig.qp_attr(rig.a);
    attr.sq_depth = 1;
    for (uint32_t i = 1; i < rig.a.device->caps().max_qps - 1; ++i) CHECK_OK(rig.a.device->create_qp(attr, &qp));
    CHECK_FAILS(rig.a.device->create_qp(attr, &qp), Code::kResource, "queue pairs");
    MemoryRegion region;
    MemoryAttr memory{rig.a.memory.data(), 1, MemoryKind::kHost, kAllAccess};
    for (uint32_t i = 1; i < rig.a.device->caps().max_mrs; ++i) CHECK_OK(rig.a.device->register_memory(memory, &region));
    CHECK_FAILS(rig.a.device->register_memory(memory, &region), Code::kResource, "memory regions");
    memory.bytes = 0;
    CHECK_FAILS(rig.a.device->register_memory(memory, &region), Code::kInvalidArgument, "empty");
}

TEST(the_send_queue_takes_4096_slots_at_once_and_no_bound_of_ours_is_less) {
    Rig rig({.faults = {.reorder_ns = 2000}, .sq_depth = 4096, .cq_depth = 4096});
    for (uint32_t i = 0; i < 4096; ++i) {
        rig.a.post(rig.write(rig.a, rig.b, static_cast<uint16_t>(i), i * 8, 8));
        if (i % 16 == 15) rig.a.device->step(++rig.now);
    }
    for (int i = 0; i < 4096; ++i) CHECK_EQ(rig.run_until_sent(rig.a).status, 0);
    CHECK(rig.a.device->last_diagnosis().empty());
}

TEST_MAIN()
