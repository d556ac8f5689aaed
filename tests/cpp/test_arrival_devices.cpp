// SPDX-License-Identifier: Apache-2.0
// What counts arrivals on devices behind verbs, for CPU threads and for a GPU: a made-up libibverbs, libefa and CUDA driver.
#include "arrival_queues.h"
#include "fake_cuda/fake_cuda.h"
#include "fake_verbs/verbs_rig.h"

using namespace nvshmem_efa;
using fake::Rig;
using fake::state;

namespace {

constexpr uint64_t kMappedAt = 1ull << 40;
constexpr uint32_t kUnsolicitedBit = 1u << 4, kCqExtMemBit = 1u << 5, kCountersBit = 1u << 6;  // of efadv's capabilities
constexpr size_t kN = 6;  // three PEs, two slots, one rail

struct Bench {
    Rig rig;
    Job job;
    ArrivalAttr attr;
    std::unique_ptr<ArrivalQueues> queues;
    int mappings_before = 0;

    explicit Bench(MemoryKind posters, bool by_immediate = false, uint32_t without = 0) {
        fake_cuda_reset(1);
        if (posters == MemoryKind::kCuda) fake_cuda_use_device(0);
        fake_cuda_map_host_at(kMappedAt);
        mappings_before = fake_cuda_open_mappings();
        state().answers.efa_caps &= ~without;
        rig.open_one();
        job.n_pes = 3;
        job.n_rails = 1;
        job.arrival_slots = 2;
        job.arrivals_by_immediate = by_immediate;
        attr.qkey = 0x77;
        attr.posters = posters;
    }
    ~Bench() { fake_cuda_use_device(-1); }
    Status open() { return ArrivalQueues::open(job, rig.nics, attr, &queues); }
    void check_nothing_left() {
        queues.reset();
        CHECK_EQ(state().live["qp"] + state().live["cq"] + state().live["counter"] + state().live["mr"], 0);
        CHECK_EQ(fake_cuda_open_mappings(), mappings_before);
        CHECK_EQ(fake_cuda_calls("cuMemFree"), fake_cuda_calls("cuMemAlloc"));
        CHECK(state().violations.empty());
    }
};

void check_text(const Bench& bench, const char* part) {
    const std::string text = bench.queues->describe();
    if (text.find(part) == std::string::npos) check::fail(__FILE__, __LINE__, std::string(part) + " is not in: " + text);
}

}  // namespace

TEST(each_pe_and_slot_has_a_queue_and_a_counter_of_remote_writes) {
    Bench bench(MemoryKind::kHost);
    CHECK_OK(bench.open());
    CHECK_EQ(state().live["qp"], static_cast<int>(kN));
    CHECK_EQ(state().live["counter"], static_cast<int>(kN));
    CHECK_EQ(state().live["cq"], 1);
    for (size_t i = 0; i < kN; ++i) CHECK_EQ(fake::call("ibv_qp_attach_comp_cntr", i).at<uint32_t>(4), 32u);
    check_text(bench, "arrivals at 2 slots a PE by counters in host memory");
    CHECK(bench.queues->queues().empty() && bench.queues->unread_max() == kCounterMask31);
    bench.check_nothing_left();
}

TEST(for_a_gpu_counters_lie_in_its_memory_or_else_in_host_memory_that_it_has_mapped) {
    {
        Bench bench(MemoryKind::kCuda);
        CHECK_OK(bench.open());
        check_text(bench, "by counters in GPU memory");
        CHECK(fake_cuda_cpu(reinterpret_cast<uint64_t>(bench.queues->counts_at_posters())) != nullptr);
        CHECK_EQ(bench.rig.exports, static_cast<int>(2 * kN));
        bench.check_nothing_left();
    }
    for (const int after : {0, 3}) {  // the first that is refused, or a later one
        Bench bench(MemoryKind::kCuda);
        state().failures["efadv_create_comp_cntr"] = {22, after, true};
        CHECK_OK(bench.open());
        check_text(bench, "by counters in host memory");
        CHECK(reinterpret_cast<uint64_t>(bench.queues->counts_at_posters()) >= kMappedAt);
        CHECK_EQ(state().live["qp"], static_cast<int>(kN));
        bench.check_nothing_left();
    }
}

TEST(each_failing_call_of_the_device_is_named_and_nothing_is_left) {
    for (const char* call : {"efadv_create_cq", "efadv_create_qp_ex", "efadv_create_comp_cntr", "ibv_qp_attach_comp_cntr"}) {
        for (const int after : {0, 2}) {
            if (after && std::strcmp(call, "efadv_create_cq") == 0) continue;
            Bench bench(MemoryKind::kHost);
            state().failures[call] = {22, after, true};
            const Status status = bench.open();
            if (status.ok() || !std::strstr(status.message(), call)) check::fail(__FILE__, __LINE__, std::string(call) + " gave: " + status.message());
            bench.check_nothing_left();
        }
    }
}

TEST(immediates_come_to_one_queue_whose_completions_lie_where_posters_can_read_them) {
    for (const MemoryKind posters : {MemoryKind::kHost, MemoryKind::kCuda}) {
        for (const uint32_t without : {kCountersBit, kCountersBit | kCqExtMemBit}) {
            Bench bench(posters, true, without);
            CHECK_OK(bench.open());
            const bool is_on_gpu = posters == MemoryKind::kCuda && !(without & kCqExtMemBit);
            check_text(bench, is_on_gpu ? "by immediates in GPU memory" : "by immediates in host memory");
            CHECK_EQ(state().live["qp"], 1);
            const ArrivalQueue& queue = bench.queues->queues().at(0);
            CHECK(queue.cq_depth == 32768 && queue.cq_depth_log2 == 15 && queue.cq_entry_bytes == 32 && queue.recv_depth == 0);
            CHECK_EQ(bench.queues->unread_max(), 32768u / 3);
            const auto at = reinterpret_cast<uint64_t>(queue.cq_entries);
            CHECK_EQ(fake_cuda_cpu(at) != nullptr, is_on_gpu);
            if (posters == MemoryKind::kCuda && !is_on_gpu) CHECK(at >= kMappedAt);
            bench.check_nothing_left();
        }
    }
}

TEST(without_unsolicited_receive_every_completion_has_a_descriptor_and_posters_have_the_doorbell) {
    for (const MemoryKind posters : {MemoryKind::kHost, MemoryKind::kCuda}) {
        Bench bench(posters, true, kCountersBit | kUnsolicitedBit);
        CHECK_OK(bench.open());
        const ArrivalQueue& queue = bench.queues->queues().at(0);
        CHECK(queue.recv_depth == 8192 && queue.cq_depth == 8192);
        CHECK_EQ(bench.queues->unread_max(), 8192u / 3);
        auto at = reinterpret_cast<uint64_t>(queue.recv_doorbell);
        if (posters == MemoryKind::kCuda) at -= kMappedAt;
        CHECK_EQ(*reinterpret_cast<const uint32_t*>(at), 8192u);
        CHECK_EQ(state().live["mr"], 1);
        if (posters == MemoryKind::kCuda) CHECK_EQ(fake_cuda_host_flags(reinterpret_cast<void*>(at)), 7);  // with IOMEMORY
        bench.check_nothing_left();
    }
}

TEST_MAIN()
