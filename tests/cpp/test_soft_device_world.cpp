// SPDX-License-Identifier: Apache-2.0
// The virtual world: PEs as fibers over software devices, one seed, virtual time.
#include "check.h"
#include "nvshmem_efa/ring.h"
#include "soft_efa/world.h"

using namespace nvshmem_efa;
using namespace nvshmem_efa::soft;

namespace {

// A PE that writes to its right neighbour through the seam, as a program does.
struct Pe {
    World& world;
    int pe;
    std::unique_ptr<Nic> nic;
    Cq send_cq, recv_cq;
    Qp qp;
    SendRing ring;
    CqRing sent;
    MemoryRegion region;
    AddressHandle next;
    std::vector<uint64_t> words = std::vector<uint64_t>(256);

    Pe(World& in, int number) : world(in), pe(number), nic(std::move(in.nics(number)[0])) {
        CHECK_OK(nic->create_cq({128}, &send_cq));
        CHECK_OK(nic->create_cq({128}, &recv_cq));
        QpAttr attr;
        attr.send_cq = send_cq.handle;
        attr.recv_cq = recv_cq.handle;
        attr.sq_depth = 32;
        attr.qkey = 9;
        CHECK_OK(nic->create_qp(attr, &qp));
        CHECK(send_ring_init(ring, qp.sq_slots, qp.sq_doorbell, qp.sq_slot_bytes, qp.sq_depth, qp.sq_max_batch));
        CHECK(cq_ring_init(sent, send_cq.entries, send_cq.entry_bytes, send_cq.depth));
        CHECK_OK(nic->register_memory({words.data(), words.size() * 8, MemoryKind::kHost, 7}, &region));
    }
    void put(const Pe& to, uint32_t from_word, uint32_t to_word) {
        uint32_t slot;
        while (!send_ring_reserve(ring, slot)) poll();
        SendWqe wqe;
        wqe_begin(wqe, SendOpcode::kRdmaWrite, {next.ahn, static_cast<uint16_t>(to.qp.qp_num), 9}, slot, false,
                  send_ring_phase(ring, slot));
        wqe_set_remote(wqe, reinterpret_cast<uint64_t>(&to.words[to_word]), 8, to.region.rkey);
        wqe_set_local(wqe, reinterpret_cast<uint64_t>(&words[from_word]), 8, region.lkey);
        send_ring_write(ring, slot, wqe);
        send_ring_ring(ring);
    }
    void poll() {
        while (const uint8_t* entry = cq_ring_peek(sent)) {
            statuses |= reinterpret_cast<const TxCqe*>(entry)->status;
            cq_ring_pop(sent);
            CHECK(send_ring_complete(ring, 1));
        }
        world.clock(pe).relax(0);
    }
    void quiet() {
        while (send_ring_in_flight(ring)) poll();
    }
    int statuses = 0;
};

WorldOptions options_for(uint64_t seed) {
    WorldOptions options;
    options.n_pes = 3;
    options.seed = seed;
    options.faults.duplicate_ppm = 100'000;
    options.faults.delay_ppm = 20'000;
    options.wire_refusals_ppm = 10'000;
    return options;
}

// Every PE hands a growing number round the ring, `laps` times. Returns the trace.
uint64_t pass_the_number_round(uint64_t seed, int laps) {
    World world(options_for(seed));
    std::vector<std::unique_ptr<Pe>> pes;
    for (int pe = 0; pe < 3; ++pe) pes.push_back(std::make_unique<Pe>(world, pe));
    for (int pe = 0; pe < 3; ++pe) {
        CHECK_OK(pes[static_cast<size_t>(pe)]->nic->create_address_handle(pes[static_cast<size_t>((pe + 1) % 3)]->nic->address(),
                                                                         &pes[static_cast<size_t>(pe)]->next));
        AddressHandle back;
        CHECK_OK(pes[static_cast<size_t>(pe)]->nic->create_address_handle(pes[static_cast<size_t>((pe + 2) % 3)]->nic->address(),
                                                                         &back));
        world.spawn(pe, [&, pe] {
            Pe& me = *pes[static_cast<size_t>(pe)];
            const Pe& right = *pes[static_cast<size_t>((pe + 1) % 3)];
            for (int lap = 0; lap < laps; ++lap) {
                const auto slot = static_cast<uint32_t>(lap);
                if (pe != 0 || lap != 0) {
                    const auto* word = &me.words[pe == 0 ? slot - 1 : slot];
                    while (__atomic_load_n(word, __ATOMIC_ACQUIRE) == 0) me.poll();
                    me.words[200] = *word + 1;
                } else {
                    me.words[200] = 1;
                }
                me.put(right, 200, slot);
                me.quiet();
            }
        });
    }
    CHECK_OK(world.run());
    CHECK_EQ(pes[0]->words[static_cast<size_t>(laps - 1)], static_cast<uint64_t>(3 * laps));
    for (const auto& pe : pes) CHECK_EQ(pe->statuses, 0);
    return world.trace_hash();
}

}  // namespace

TEST(blocking_code_of_several_pes_runs_in_one_thread) { (void)pass_the_number_round(1, 100); }

TEST(the_same_seed_gives_the_same_trace_and_another_seed_another) {
    for (uint64_t seed = 1; seed <= 50; ++seed) {
        const uint64_t first = pass_the_number_round(seed, 10);
        CHECK_EQ(pass_the_number_round(seed, 10), first);
        CHECK(pass_the_number_round(seed + 1000, 10) != first);
    }
}

TEST(virtual_time_follows_the_profiles_timing) {
    for (const char* profile : {"efa2", "efa4"}) {
        WorldOptions options;
        options.profile = profile;
        options.faults = {};
        World world(options);
        Pe left(world, 0), right(world, 1);
        CHECK_OK(left.nic->create_address_handle(right.nic->address(), &left.next));
        CHECK_OK(right.nic->create_address_handle(left.nic->address(), &right.next));
        const uint64_t start = world.now_ns();
        world.spawn(0, [&] {
            left.put(right, 0, 0);
            left.quiet();
        });
        CHECK_OK(world.run());
        const uint64_t took = world.now_ns() - start;
        const uint64_t least = std::string(profile) == "efa2" ? 34'000 : 29'200;
        CHECK(took >= least && took < least + 8'000);
    }
}

TEST(a_poller_runs_between_the_pes_turns_until_it_is_removed) {
    World world({.n_pes = 1});
    int polls = 0;
    const int id = world.add_poller(0, [&polls] { return ++polls % 10 == 0; });
    world.spawn(0, [&] {
        while (polls < 100) world.clock(0).relax(0);
    });
    CHECK_OK(world.run());
    CHECK(polls >= 100);
    world.remove_poller(id);
    const int before = polls;
    for (int i = 0; i < 100; ++i) world.turn();
    CHECK_EQ(polls, before);
}

TEST(waiting_outside_run_moves_the_world_too) {
    World world({});
    const uint64_t start = world.now_ns();
    Deadline deadline(world.clock(0), 30'000);
    while (!deadline.passed()) deadline.relax();
    CHECK(world.now_ns() - start >= 30'000'000'000);
}

TEST(a_deadlock_ends_with_the_names_of_those_who_wait) {
    WorldOptions options;
    options.time_limit_ns = 1'000'000'000;
    options.seed = 77;
    World world(options);
    world.spawn(0, [] {});
    bool unwound = false;
    world.spawn(1, [&] {
        struct Mark {
            bool& flag;
            ~Mark() { flag = true; }
        } mark{unwound};
        while (true) world.clock(1).relax(0);
    });
    CHECK_FAILS(world.run(), Code::kTimeout, "seed 77), waiting: PE 1");
    CHECK(!unwound);
}

TEST(an_abandoned_fiber_is_unwound) {
    bool unwound = false;
    {
        World world({});
        world.spawn(0, [&] {
            struct Mark {
                bool& flag;
                ~Mark() { flag = true; }
            } mark{unwound};
            while (true) world.clock(0).relax(0);
        });
        for (int i = 0; i < 10; ++i) world.turn();
    }
    CHECK(unwound);
}

TEST(what_a_pe_throws_comes_out_of_run) {
    World world({});
    world.spawn(1, [&] {
        world.clock(1).relax(0);
        throw std::string("broken");
    });
    std::string caught;
    try {
        (void)world.run();
    } catch (const std::string& what) {
        caught = what;
    }
    CHECK_EQ(caught, "broken");
}

TEST(a_killed_pe_is_an_error_for_the_others_and_never_a_hang) {
    World world(options_for(3));
    Pe left(world, 0), right(world, 1);
    CHECK_OK(left.nic->create_address_handle(right.nic->address(), &left.next));
    CHECK_OK(right.nic->create_address_handle(left.nic->address(), &right.next));
    world.spawn(0, [&] {
        for (uint32_t i = 0; i < 200; ++i) left.put(right, 0, 0);
        left.quiet();
    });
    world.spawn(1, [&] {
        for (int i = 0; i < 20; ++i) right.poll();
        world.kill_pe(1);
    });
    CHECK_OK(world.run());
    CHECK_EQ(left.statuses & 13, 13);
}

TEST(a_nic_destroys_what_is_left_and_the_device_can_be_used_again) {
    World world({.n_pes = 1});
    for (int round = 0; round < 3; ++round) {
        Pe pe(world, 0);
        CHECK_OK(pe.nic->create_address_handle(pe.nic->address(), &pe.next));
        pe.put(pe, 0, 1);
        uint64_t word = 0, counter;
        CHECK_OK(pe.nic->create_counter({&word, nullptr, MemoryKind::kHost}, &counter));
        CHECK_OK(pe.nic->deregister_memory(pe.region));
        CHECK_FAILS(pe.nic->deregister_memory(pe.region), Code::kInvalidArgument, "lkey");
    }
    CHECK(world.device(0, 0).qp_state(1) == QpState::kFree);
}

TEST(unknown_peers_are_a_named_error) {
    World world({});
    Pe pe(world, 0);
    PeerAddress nobody;
    nobody.gid.raw[0] = 1;
    AddressHandle ah;
    CHECK_FAILS(pe.nic->create_address_handle(nobody, &ah), Code::kPeer, "no such software device");
}

TEST_MAIN()
