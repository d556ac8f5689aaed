// SPDX-License-Identifier: Apache-2.0
// The end of what a device has: a named error, nothing lost, and all of it there again afterwards.
#include "device_rig.h"

using namespace device;

namespace {

// Makes objects until one is refused, at most `most`.
template <class Make>
Status make_until_refused(size_t most, size_t* made, Make make) {
    for (*made = 0; *made < most; ++*made) {
        if (Status status = make(); !status.ok()) return status;
    }
    return Status();
}

}  // namespace

TEST(queue_pairs_run_out_by_name_and_come_back) {
    auto nics = open_devices(1);
    Nic& nic = *nics.front();
    for (int round = 0; round < 2; ++round) {
        Cq cq;
        CHECK_OK(nic.create_cq({64}, &cq));
        std::vector<Qp> qps;
        QpAttr attr;
        attr.send_cq = attr.recv_cq = cq.handle;
        attr.sq_depth = attr.rq_depth = 16;
        attr.req_id_64 = nic.info().caps.req_id_64;
        size_t made;
        const Status status = make_until_refused(nic.info().caps.max_qps + 8, &made, [&] {
            qps.emplace_back();
            Status one = nic.create_qp(attr, &qps.back());
            if (!one.ok()) qps.pop_back();
            return one;
        });
        std::printf("     %zu queue pairs, then: %s\n", made, status.ok() ? "no end" : status.message());
        CHECK(!status.ok());
        CHECK(status.code() == Code::kResource);
        CHECK(made > 16 && made <= nic.info().caps.max_qps);
        for (const Qp& qp : qps) CHECK_OK(nic.destroy_qp(qp.handle));
        CHECK_OK(nic.destroy_cq(cq.handle));
    }
}

TEST(memory_regions_run_out_by_name_and_come_back) {
    auto nics = open_devices(1);
    Nic& nic = *nics.front();
    std::vector<uint8_t> memory(4096);
    std::vector<MemoryRegion> regions;
    const auto make = [&] {
        regions.emplace_back();
        Status one = nic.register_memory({memory.data(), memory.size(), MemoryKind::kHost, kAllAccess}, &regions.back());
        if (!one.ok()) regions.pop_back();
        return one;
    };
    size_t made;
    const Status status = make_until_refused(nic.info().caps.max_mrs + 8, &made, make);
    std::printf("     %zu regions, then: %s\n", made, status.ok() ? "no end" : status.message());
    CHECK(!status.ok());
    CHECK(status.code() == Code::kResource);
    CHECK(made > 1000 && made <= nic.info().caps.max_mrs);
    while (regions.size() > made / 2) {
        CHECK_OK(nic.deregister_memory(regions.back()));
        regions.pop_back();
    }
    for (int i = 0; i < 100; ++i) CHECK_OK(make());
    for (const MemoryRegion& region : regions) CHECK_OK(nic.deregister_memory(region));
}

TEST(counters_run_out_by_name_and_come_back) {
    auto nics = open_devices(1);
    Nic& nic = *nics.front();
    if (!nic.info().caps.completion_counters) {
        uint64_t word[2], handle;
        CHECK(nic.create_counter({word, word + 1, MemoryKind::kHost}, &handle).code() == Code::kUnsupported);
        return;
    }
    const size_t most = nic.info().caps.max_counters;
    std::vector<uint64_t> words(2 * (most + 8));
    for (int round = 0; round < 2; ++round) {
        std::vector<uint64_t> counters;
        size_t made;
        const Status status = make_until_refused(most + 8, &made, [&] {
            uint64_t handle = 0;
            uint64_t* at = &words[2 * counters.size()];
            Status one = nic.create_counter({at, at + 1, MemoryKind::kHost}, &handle);
            if (one.ok()) counters.push_back(handle);
            return one;
        });
        std::printf("     %zu counters, then: %s\n", made, status.ok() ? "no end" : status.message());
        CHECK(!status.ok());
        CHECK(status.code() == Code::kResource);
        for (uint64_t counter : counters) CHECK_OK(nic.destroy_counter(counter));
        CHECK(made > 0 && made <= most);
    }
}

TEST(queues_deeper_than_the_device_has_are_refused_by_name) {
    auto nics = open_devices(1);
    Nic& nic = *nics.front();
    const NicCaps& caps = nic.info().caps;
    Cq cq;
    CHECK(nic.create_cq({caps.max_cq_depth * 2}, &cq).code() == Code::kInvalidArgument);
    CHECK_OK(nic.create_cq({caps.max_cq_depth}, &cq));
    QpAttr attr;
    attr.send_cq = attr.recv_cq = cq.handle;
    attr.req_id_64 = caps.req_id_64;
    attr.sq_depth = caps.max_sq_depth * 2;
    Qp qp;
    CHECK(nic.create_qp(attr, &qp).code() == Code::kInvalidArgument);
    attr.sq_depth = caps.max_sq_depth;
    attr.rq_depth = caps.max_rq_depth;
    CHECK_OK(nic.create_qp(attr, &qp));
    CHECK_EQ(qp.sq_depth, caps.max_sq_depth);
    CHECK_EQ(qp.rq_depth, caps.max_rq_depth);
    CHECK_OK(nic.destroy_qp(qp.handle));
    CHECK_OK(nic.destroy_cq(cq.handle));
}

TEST(objects_are_made_and_destroyed_a_hundred_times) {
    auto nics = open_devices(1);
    for (int i = 0; i < 100; ++i) {
        Endpoint a(*nics.front(), {.memory_bytes = 64 << 10}), b(*nics.front(), {.memory_bytes = 64 << 10});
        Endpoint::connect(a, b);
        CHECK_EQ(a.run(a.write(b, 1, 0, 0, 4096)), CqeStatus::kOk);
    }
}

// What is outstanding when a queue pair goes must not end in memory that is somebody else's by then.
TEST(devices_are_closed_with_work_under_way) {
    for (int i = 0; i < 20; ++i) {
        Pair pair;
        for (int n = 0; n < 32; ++n) pair.a->post(pair.a->write(*pair.b, 1, 0, 0, 1 << 20));
        pair.a->ring();
    }
}
