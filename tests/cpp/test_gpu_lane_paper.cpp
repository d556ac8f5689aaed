// SPDX-License-Identifier: Apache-2.0
// The host's side of GPU queues over rings of paper: counters that wrap, counters that only the GPU sees, rings that die,
// errors of devices with short request ids.
#include <thread>

#include "check.h"
#include "fake_cuda/fake_cuda.h"
#include "gpu_lane.h"
#include "../../perf/null_nic.h"

using namespace nvshmem_efa;

namespace {

constexpr uint32_t kDepth = 8, kCqDepth = 16;
constexpr uint32_t kWindow = 4;

// What a device would write, written by the test.
struct Paper {
    alignas(64) uint8_t slots[kDepth * kSlotBytesSmall] = {};
    uint8_t entries[kCqDepth * sizeof(RxCqeEx)] = {};
    alignas(64) uint32_t doorbell = 0;
    uint64_t words[2] = {};  // completions, errors
    uint64_t acks[2] = {};
    ReplySlot replies[2 * kWindow] = {};
    std::atomic<bool> is_dead{false};
    GpuRingView view;
};

class PaperRing final : public GpuRing {
   public:
    explicit PaperRing(Paper& paper) : paper_(paper) {}
    const GpuRingView& view() const override { return paper_.view; }
    Status failure() const override {
        return paper_.is_dead ? Status::error(Code::kInternal, "restart", "the thread that serves it has died") : Status();
    }
    const char* kind() const override { return "paper"; }

   private:
    Paper& paper_;
};

struct Bench {
    Paper paper;
    Job job;
    Knobs knobs;
    perf::NullNic nic;
    std::unique_ptr<GpuLane> lane;

    Bench() {
        job.n_pes = 2;
        job.n_rails = 1;
        job.window = kWindow;
        job.segment_bytes = 1 << 20;
        job.timeout_ms = 300;
        job.clock = &real_clock();
        job.peers.resize(2);
        job.peers[0].agent[0] = {10, 100, 1};
        job.peers[1].agent[0] = {11, 101, 2};
        GpuRingView& view = paper.view;
        view.slots = view.slots_at_gpu = paper.slots;
        view.doorbell = view.doorbell_at_gpu = &paper.doorbell;
        view.completions = view.completions_at_gpu = &paper.words[0];
        view.errors = view.errors_at_gpu = &paper.words[1];
        view.cq_entries = view.cq_entries_at_gpu = paper.entries;
        view.cq_depth = kCqDepth;
        view.cq_entry_bytes = sizeof(RxCqeEx);
        view.depth = kDepth;
        view.slots_are_readable = true;
    }
    Status open(MemoryKind posters = MemoryKind::kHost) {
        ConnectedQueues queues;
        queues.gpu.push_back(std::make_unique<PaperRing>(paper));
        queues.posters = posters;
        queues.ack_words[kLaneGpu] = paper.acks;
        queues.replies[kLaneGpu] = paper.replies;
        return GpuLane::create(job, knobs, queues, {&nic}, &lane);
    }
    void take_slots(uint32_t n) {
        const GpuQueue& queue = lane->state_at_posters()->queues[0];
        __atomic_fetch_add(&queue.state->head, n, __ATOMIC_RELAXED);
    }
    GpuQueueState& queue_state() { return *lane->state_at_posters()->queues[0].state; }
    void count(size_t word, uint32_t n) {
        const uint64_t next = (paper.words[word] + n) & kCounterMask31;
        __atomic_store_n(&paper.words[word], next, __ATOMIC_RELEASE);
    }
};

}  // namespace

TEST(a_drain_goes_over_the_wrap_of_a_counter) {
    Bench bench;
    bench.paper.words[0] = kCounterMask31 - 1;
    CHECK_OK(bench.open());
    uint64_t sum = 0;
    for (const uint32_t n : {1u, 5u, 3u}) {
        bench.take_slots(n);
        CHECK_FAILS(bench.lane->drain(1), Code::kTimeout, (std::to_string(n) + " requests in GPU queue 0").c_str());
        std::thread device([&] {
            std::this_thread::sleep_for(std::chrono::milliseconds(20));
            bench.count(0, n);
        });
        const auto before = std::chrono::steady_clock::now();
        Status status = bench.lane->drain(1);
        const bool has_waited = std::chrono::steady_clock::now() - before > std::chrono::milliseconds(15);
        device.join();
        CHECK_OK(std::move(status));
        CHECK(has_waited);
        CHECK_EQ(bench.lane->work_requests(), sum += n);
    }
}

TEST(completions_of_later_requests_do_not_pass_for_those_of_earlier_ones) {
    Bench bench;
    CHECK_OK(bench.open());
    bench.take_slots(2);
    std::thread others([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        bench.take_slots(3);  // after the drain began
        bench.count(0, 4);    // one of five is in flight, and nobody can tell which
    });
    Status status = bench.lane->drain(1);
    others.join();
    CHECK_FAILS(std::move(status), Code::kTimeout, "1 requests in GPU queue 0");
    CHECK_EQ(__atomic_load_n(&bench.queue_state().host_hold, __ATOMIC_ACQUIRE), 0u);
    bench.count(0, 1);
    CHECK_OK(bench.lane->drain(1));
}

TEST(posters_that_never_pause_are_made_to) {
    Bench bench;
    CHECK_OK(bench.open());
    std::atomic<bool> is_over{false};
    std::atomic<int> pauses{0};
    bench.take_slots(2);
    std::thread poster([&] {  // as shared_post() does it: two requests are always in flight, unless a quiet asks for a pause
        while (!is_over) {
            bench.take_slots(1);
            bench.count(0, 1);
            if (__atomic_load_n(&bench.queue_state().host_hold, __ATOMIC_ACQUIRE) == 0) continue;
            ++pauses;
            bench.count(0, 2);
            while (__atomic_load_n(&bench.queue_state().host_hold, __ATOMIC_ACQUIRE) != 0) std::this_thread::yield();
            bench.take_slots(2);
        }
    });
    Status first = bench.lane->drain(1);
    Status beside;
    std::thread other([&] { beside = bench.lane->drain(0); });
    Status second = bench.lane->drain(1);
    other.join();
    is_over = true;
    poster.join();
    CHECK_OK(std::move(first));
    CHECK_OK(std::move(second));
    CHECK_OK(std::move(beside));
    CHECK(pauses >= 1);
    CHECK_EQ(__atomic_load_n(&bench.queue_state().host_hold, __ATOMIC_ACQUIRE), 0u);
}

TEST(record_numbers_wrap_too) {
    Bench bench;
    CHECK_OK(bench.open());
    DevicePeer& peer = bench.lane->state_at_posters()->peers[1];
    __atomic_store_n(&bench.paper.acks[1], uint64_t{0xfffffffe}, __ATOMIC_RELEASE);
    __atomic_store_n(&peer.next_seq, 1u, __ATOMIC_RELEASE);
    CHECK_FAILS(bench.lane->drain(1), Code::kTimeout, "3 signals or atomics at PE 1");
    CHECK_OK(bench.lane->drain(0));
    __atomic_store_n(&bench.paper.acks[1], uint64_t{1}, __ATOMIC_RELEASE);
    CHECK_OK(bench.lane->drain(1));
}

TEST(errors_counted_before_the_start_are_not_ours) {
    Bench bench;
    bench.paper.words[1] = 7;
    CHECK_OK(bench.open());
    CHECK_OK(bench.lane->drain(1));
    bench.take_slots(1);
    bench.count(1, 1);
    CHECK_FAILS(bench.lane->drain(1), Code::kDevice, "PE 0 -> an unknown PE (GPU queue 0 of null0): a request failed, and no completion tells how");
    CHECK_FAILS(bench.lane->check(), Code::kDevice, "no completion tells how");
}

TEST(with_short_request_ids_the_ring_tells_whose_request_failed) {
    Bench bench;
    CHECK_OK(bench.open());
    bench.take_slots(3);
    SendWqe wqe;
    wqe_begin(wqe, SendOpcode::kRdmaRead, {11, 101, 2}, 2, false, 0);
    wqe_set_remote(wqe, 0xabc000, 64, 5);
    std::memcpy(bench.paper.slots + 2 * kSlotBytesSmall, &wqe, kSlotBytesSmall);
    for (uint32_t i = 0; i < 3; ++i) {
        TxCqe entry{};
        entry.req_id = static_cast<uint16_t>(i);
        entry.status = static_cast<uint8_t>(i == 2 ? CqeStatus::kUnrespRemote : CqeStatus::kOk);
        entry.flags = static_cast<uint8_t>(kCqePhase | static_cast<uint8_t>(SendOpcode::kRdmaRead) << kCqeOpShift);
        std::memcpy(bench.paper.entries + i * sizeof(RxCqeEx), &entry, sizeof entry);
    }
    bench.count(0, 2);
    bench.count(1, 1);
    CHECK_FAILS(bench.lane->drain(0), Code::kPeer, "PE 0 -> PE 1 (GPU queue 0 of null0): RDMA READ at 0xabc000 failed: UNRESP");
}

TEST(a_ring_that_died_is_named) {
    Bench bench;
    CHECK_OK(bench.open());
    CHECK_OK(bench.lane->drain(1));
    bench.paper.is_dead = true;
    CHECK_FAILS(bench.lane->drain(1), Code::kInternal, "GPU queue 0 of null0: the thread that serves it has died");
}

TEST(a_ring_whose_completions_cannot_be_counted_is_refused) {
    Bench bench;
    bench.paper.view.completions = bench.paper.view.completions_at_gpu = nullptr;
    CHECK_FAILS(bench.open(), Code::kUnsupported, "GPU queues: a paper ring without completion counters");
}

TEST(counters_that_only_the_gpu_sees_are_read_by_copies) {
    fake_cuda_reset(1);
    fake_cuda_use_device(0);
    const uint64_t words = fake_cuda_alloc(4096);
    auto* const seen = static_cast<uint64_t*>(fake_cuda_cpu(words));
    seen[0] = kCounterMask31;
    seen[8] = 3;
    {
        Bench bench;
        bench.paper.view.completions = bench.paper.view.errors = nullptr;
        bench.paper.view.completions_at_gpu = reinterpret_cast<const uint64_t*>(words);
        bench.paper.view.errors_at_gpu = reinterpret_cast<const uint64_t*>(words + 64);
        CHECK_OK(bench.open(MemoryKind::kCuda));
        CHECK_OK(bench.lane->drain(1));
        const auto* state = static_cast<const DeviceState*>(fake_cuda_cpu(reinterpret_cast<uint64_t>(bench.lane->state_at_posters())));
        const auto* queue = static_cast<const GpuQueue*>(fake_cuda_cpu(reinterpret_cast<uint64_t>(state->queues)));
        auto* posters = static_cast<GpuQueueState*>(fake_cuda_cpu(reinterpret_cast<uint64_t>(queue->state)));
        __atomic_fetch_add(&posters->head, 2, __ATOMIC_RELAXED);
        CHECK_FAILS(bench.lane->drain(1), Code::kTimeout, "2 requests in GPU queue 0");
        __atomic_store_n(seen, uint64_t{1}, __ATOMIC_RELEASE);
        CHECK_OK(bench.lane->drain(1));
        __atomic_store_n(seen + 8, uint64_t{4}, __ATOMIC_RELEASE);
        CHECK_FAILS(bench.lane->drain(1), Code::kDevice, "a request failed");
    }
    fake_cuda_free(words);
    fake_cuda_use_device(-1);
}

TEST_MAIN()
