// SPDX-License-Identifier: Apache-2.0
// Address handles of a verbs Nic, its end, stale handles and threads.
#include <thread>

#include "verbs_rig.h"

using namespace nvshmem_efa;
using fake::call;
using fake::Call;
using fake::check_rest_is_zero;
using fake::count_calls;
using fake::make_cq;
using fake::peer;
using fake::qp_attr;
using fake::Rig;
using fake::state;

namespace {

char memory[4096];

}  // namespace

TEST(an_address_handle_is_made_from_the_peers_gid) {
    Rig rig;
    Nic& nic = rig.open_one();
    AddressHandle ah;
    CHECK_OK(nic.create_address_handle(peer(0x20), &ah));
    const Call& made = call("ibv_create_ah");
    for (int i = 0; i < 16; ++i) CHECK_EQ(made.bytes[static_cast<size_t>(i)], static_cast<uint8_t>(0x20 + i));
    CHECK_EQ(made.bytes[29], uint8_t(1));  // global
    CHECK_EQ(made.bytes[30], uint8_t(1));  // port
    check_rest_is_zero(made.bytes, {{0, 16}, {29, 2}});
    CHECK_EQ(call("efadv_query_ah").args.at("bytes"), uint64_t(16));
    CHECK_EQ(ah.ahn, uint16_t(0x520));
}

TEST(one_peer_has_one_handle_until_the_last_user_is_gone) {
    Rig rig;
    Nic& nic = rig.open_one();
    AddressHandle first, second, other;
    CHECK_OK(nic.create_address_handle(peer(0x20), &first));
    CHECK_OK(nic.create_address_handle(peer(0x20), &second));
    CHECK_OK(nic.create_address_handle(peer(0x40), &other));
    CHECK_EQ(first.ahn, second.ahn);
    CHECK(first.ahn != other.ahn);
    CHECK_EQ(state().live["ah"], 2);
    CHECK_OK(nic.destroy_address_handle(first));
    CHECK_EQ(state().live["ah"], 2);
    CHECK_OK(nic.destroy_address_handle(second));
    CHECK_EQ(state().live["ah"], 1);
    CHECK_FAILS(nic.destroy_address_handle(first), Code::kInvalidArgument, "address handle");
}

TEST(an_empty_address_is_refused) {
    Rig rig;
    Nic& nic = rig.open_one();
    AddressHandle ah;
    CHECK_FAILS(nic.create_address_handle(PeerAddress(), &ah), Code::kInvalidArgument, "the peer's address is empty");
}

TEST(what_is_left_is_destroyed_in_the_devices_order) {
    Rig rig;
    Nic& nic = rig.open_one();
    const Cq cq = make_cq(nic);
    Qp qp;
    CHECK_OK(nic.create_qp(qp_attr(cq, cq), &qp));
    uint64_t words[2] = {};
    uint64_t counter = 0;
    CHECK_OK(nic.create_counter({&words[0], &words[1], MemoryKind::kHost}, &counter));
    CHECK_OK(nic.attach_counter(qp.handle, counter, kCountWrite));
    AddressHandle ah;
    CHECK_OK(nic.create_address_handle(peer(0x20), &ah));
    MemoryRegion region;
    CHECK_OK(nic.register_memory({memory, sizeof(memory)}, &region));
    state().calls.clear();
    rig.nics.clear();
    CHECK_EQ(
        fake::joined(fake::call_names()),
        std::string("ibv_destroy_qp ibv_destroy_comp_cntr ibv_destroy_cq ibv_destroy_ah ibv_dereg_mr ibv_dealloc_pd "
                    "ibv_close_device"));
    fake::check_nothing_left();
}

TEST(handles_that_are_gone_or_never_were_are_named_errors) {
    Rig rig;
    Nic& nic = rig.open_one();
    const Cq cq = make_cq(nic);
    Qp qp;
    CHECK_OK(nic.create_qp(qp_attr(cq, cq), &qp));
    CHECK_OK(nic.destroy_qp(qp.handle));
    CHECK_FAILS(nic.destroy_qp(qp.handle), Code::kInvalidArgument, "queue pair 2 is not known to efa_0");
    CHECK_FAILS(nic.destroy_cq(999), Code::kInvalidArgument, "completion queue 999");
    CHECK_FAILS(nic.deregister_memory({}), Code::kInvalidArgument, "memory region 0");
    CHECK_FAILS(nic.destroy_counter(7), Code::kInvalidArgument, "counter 7");
    CHECK_FAILS(nic.attach_counter(1, 2, kCountWrite), Code::kInvalidArgument, "queue pair 1");
    QpAttr attr = qp_attr(cq, cq);
    attr.recv_cq = 55;
    CHECK_FAILS(nic.create_qp(attr, &qp), Code::kInvalidArgument, "completion queue 55");
}

TEST(the_library_outlives_the_last_object) {
    Rig rig;
    rig.open_one();
    std::unique_ptr<Nic> last = std::move(rig.nics[0]);
    rig.nics.clear();
    Cq cq;
    CHECK_OK(last->create_cq({.depth = 16}, &cq));
    last.reset();
    fake::check_nothing_left();
}

TEST(control_calls_may_come_from_several_threads) {
    Rig rig;
    Nic& nic = rig.open_one();
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
        threads.emplace_back([&nic, t] {
            for (int i = 0; i < 25; ++i) {
                MemoryRegion region;
                AddressHandle ah;
                Cq cq;
                CHECK_OK(nic.register_memory({memory, sizeof(memory)}, &region));
                CHECK_OK(nic.create_address_handle(peer(static_cast<uint8_t>(0x10 + t % 2)), &ah));
                CHECK_OK(nic.create_cq({.depth = 16}, &cq));
                CHECK_OK(nic.destroy_cq(cq.handle));
                CHECK_OK(nic.destroy_address_handle(ah));
                CHECK_OK(nic.deregister_memory(region));
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    rig.nics.clear();
    fake::check_nothing_left();
}

TEST_MAIN()
