// SPDX-License-Identifier: Apache-2.0
// Direct rings, and relay rings for a GPU: what is mapped where, each step failing in turn, and what is left afterwards.
// The GPU and the device are made up; only rings for CPU posters carry data here.
#include <filesystem>
#include <fstream>
#include <thread>

#include "fake_cuda/fake_cuda.h"
#include "fake_verbs/verbs_rig.h"
#include "gpu_ring_rig.h"
#include "knobs.h"
#include "peer_mapping.h"
#include "soft_efa/engine.h"

using namespace ring_rig;

namespace {

constexpr uint64_t kMappedAt = 1ull << 40;
constexpr int kRefused = 801;

template <class T>
bool is_mapped(const T* host, const T* at_gpu) {
    return reinterpret_cast<uint64_t>(at_gpu) == reinterpret_cast<uint64_t>(host) + kMappedAt;
}

// A GPU and a device of paper that can do everything.
struct Bench {
    PaperNic nic;
    int mappings_before = 0;
    std::unique_ptr<GpuRing> ring;

    Bench() {
        fake_cuda_reset(1);
        fake_cuda_use_device(0);
        fake_cuda_map_host_at(kMappedAt);
        mappings_before = fake_cuda_open_mappings();
        nic.the_info.caps.cq_ext_mem = nic.the_info.caps.completion_counters = true;
        nic.max_batch = 16;
    }
    ~Bench() { fake_cuda_use_device(-1); }
    Status open(uint32_t depth = 32) {
        return make_direct_ring(nic, {.depth = depth, .qkey = 5, .posters = MemoryKind::kCuda}, &ring);
    }
    Status probe(const char* mode) {
        Knobs knobs;
        knobs.mode = mode;
        return make_gpu_ring(knobs, nic, {.depth = 32, .qkey = 5, .posters = MemoryKind::kCuda}, &ring);
    }
    std::string kind() const { return ring->kind(); }
    const GpuRingView& view() const { return ring->view(); }
    int mappings() const { return fake_cuda_open_mappings() - mappings_before; }
    void check_nothing_left() {
        ring.reset();
        CHECK(nic.is_empty());
        CHECK_EQ(mappings(), 0);
        CHECK_EQ(fake_cuda_calls("cuMemFree"), fake_cuda_calls("cuMemAlloc"));
    }
};

bool has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST(queue_and_doorbell_are_mapped_as_device_memory_and_completions_lie_on_the_gpu) {
    Bench bench;
    CHECK_OK(bench.open());
    const GpuRingView& view = bench.view();
    CHECK(view.slots == bench.nic.slots.data() && is_mapped(view.slots, view.slots_at_gpu));
    CHECK(view.doorbell == &bench.nic.doorbell() && is_mapped(view.doorbell, view.doorbell_at_gpu));
    CHECK_EQ(fake_cuda_host_flags(view.slots), 7);  // PORTABLE, DEVICEMAP, IOMEMORY
    CHECK_EQ(fake_cuda_host_flags(view.doorbell), 7);
    CHECK(view.depth == 32 && view.max_batch == 16 && view.qp_num == 77 && view.qkey == 5 && !view.slots_are_readable);
    CHECK_EQ(bench.kind(), "direct (counters in GPU memory)");
    // One block on the GPU: counters on lines of their own, then the completion queue. The CPU can use none of it.
    CHECK(view.completions == nullptr && view.errors == nullptr && view.cq_entries == nullptr);
    CHECK_EQ(bench.nic.counter_attr.kind, MemoryKind::kCuda);
    CHECK(view.completions_at_gpu == bench.nic.counter_attr.completions && view.errors_at_gpu == bench.nic.counter_attr.errors);
    CHECK_EQ(view.errors_at_gpu - view.completions_at_gpu, 8);
    CHECK_EQ(bench.nic.counted_ops, uint32_t{kCountSend | kCountRead | kCountWrite});
    CHECK(bench.nic.cq_attr.memory == view.cq_entries_at_gpu && bench.nic.cq_attr.memory_kind == MemoryKind::kCuda);
    CHECK_EQ(bench.nic.cq_attr.memory_bytes, size_t{64 * 32});
    CHECK(view.cq_depth == 64 && view.cq_entry_bytes == 32);
    const auto* bytes = static_cast<const uint8_t*>(fake_cuda_cpu(reinterpret_cast<uint64_t>(view.completions_at_gpu)));
    for (size_t i = 0; i < 4096 + 64 * 32; ++i) CHECK_EQ(bytes[i], 0);
    bench.check_nothing_left();
}

TEST(the_gpu_lets_go_of_the_queue_before_it_is_destroyed_and_its_memory_goes_last) {
    Bench bench;
    CHECK_OK(bench.open());
    CHECK_EQ(bench.mappings(), 2);
    bench.nic.calls.clear();
    int mapped = 0;
    uint64_t freed = 0;
    bench.nic.on_call = [&](const char*) {
        mapped += bench.mappings();
        freed += fake_cuda_calls("cuMemFree");
    };
    bench.ring.reset();
    CHECK_EQ(mapped, 0);
    CHECK_EQ(freed, uint64_t{0});
    CHECK(bench.nic.calls == (std::vector<std::string>{"destroy_qp", "destroy_counter", "destroy_cq"}));
    CHECK_EQ(fake_cuda_calls("cuMemFree"), uint64_t{1});
    bench.nic.on_call = nullptr;
    bench.check_nothing_left();
}

TEST(the_ladder_goes_down_one_rung_at_a_time) {
    {
        Bench bench;
        bench.nic.fails = "create_gpu_counter";
        CHECK_OK(bench.open());
        CHECK_EQ(bench.kind(), "direct (counters in host memory)");
        CHECK(is_mapped(bench.view().completions, bench.view().completions_at_gpu));
        CHECK(is_mapped(bench.view().errors, bench.view().errors_at_gpu));
        CHECK_EQ(fake_cuda_host_flags(bench.view().completions), 3);  // RAM
        CHECK_EQ(bench.nic.counter_attr.kind, MemoryKind::kHost);
        CHECK(bench.view().cq_entries_at_gpu == bench.nic.cq_attr.memory);
        bench.check_nothing_left();
    }
    for (const bool is_attach : {false, true}) {
        Bench bench;
        bench.nic.the_info.caps.completion_counters = is_attach;
        if (is_attach) bench.nic.fails = "attach_counter";
        CHECK_OK(bench.open());
        CHECK_EQ(bench.nic.live["counter"], 0);
        CHECK_EQ(bench.kind(), "direct (CQ in GPU memory)");
        CHECK(bench.view().completions_at_gpu == nullptr && bench.view().cq_entries_at_gpu == bench.nic.cq_attr.memory);
        bench.check_nothing_left();
    }
    for (const bool is_refused : {false, true}) {
        Bench bench;
        bench.nic.the_info.caps.completion_counters = false;
        bench.nic.the_info.caps.cq_ext_mem = is_refused;
        if (is_refused) bench.nic.fails = "create_cq_in_gpu";
        CHECK_OK(bench.open());
        CHECK_EQ(bench.kind(), "direct (CQ in host memory)");
        CHECK(bench.view().cq_entries == bench.nic.entries.data());
        CHECK(is_mapped(bench.view().cq_entries, bench.view().cq_entries_at_gpu));
        bench.check_nothing_left();
    }
}

TEST(without_memory_on_the_gpu_counters_are_in_host_memory) {
    for (const char* call : {"cuMemAlloc", "cuStreamCreateWithPriority", "cuMemcpyHtoDAsync"}) {
        Bench bench;
        fake_cuda_fail(call, kRefused, 0, 1);
        CHECK_OK(bench.open());
        CHECK_EQ(bench.kind(), "direct (counters in host memory)");
        CHECK(is_mapped(bench.view().cq_entries, bench.view().cq_entries_at_gpu));
        bench.ring.reset();
        CHECK(bench.nic.is_empty() && bench.mappings() == 0);
        CHECK_EQ(fake_cuda_calls("cuMemFree"), uint64_t{std::string(call) == "cuMemAlloc" ? 0u : 1u});
    }
}

TEST(beside_counters_a_completion_queue_that_the_gpu_cannot_read_is_done_without) {
    Bench bench;
    bench.nic.the_info.caps.cq_ext_mem = false;
    fake_cuda_fail("cuMemHostRegister", kRefused, 0, 1);
    CHECK_OK(bench.open());
    CHECK_EQ(bench.kind(), "direct (counters in GPU memory)");
    CHECK(bench.view().cq_entries == bench.nic.entries.data() && bench.view().cq_entries_at_gpu == nullptr);
    bench.check_nothing_left();
}

TEST(where_no_rung_holds_the_error_names_each) {
    Bench bench;
    bench.nic.the_info.caps.cq_ext_mem = bench.nic.the_info.caps.completion_counters = false;
    fake_cuda_fail("cuMemHostRegister", kRefused, 0, 1);
    const Status status = bench.open();
    CHECK_EQ(status.code(), Code::kUnsupported);
    const std::string text = status.message();
    for (const char* part : {"direct ring on paper0: ", "paper0 cannot put a completion queue into GPU memory; hint: it needs "
                             "efa.ko 2.17", "paper0 has no completion counters; hint: they need p5en",
                             "completion queue in host memory: cuMemHostRegister of the device's completion queue failed: "
                             "CUDA_ERROR_NOT_SUPPORTED", "hint: enable one of them, or use NVSHMEM_EFA_MODE=relay"})
        if (!has(text, part)) check::fail(__FILE__, __LINE__, std::string(part) + " is not in: " + text);
    bench.check_nothing_left();
}

TEST(a_queue_that_cannot_be_mapped_is_an_error_that_tells_how_to_enable_it) {
    const struct {
        const char* call;
        uint32_t skip;
        const char* text;
    } cases[] = {{"cuMemHostRegister", 0, "cuMemHostRegister of the device's send queue failed: CUDA_ERROR_NOT_SUPPORTED"},
                 {"cuMemHostRegister", 1, "cuMemHostRegister of the device's doorbell failed"},
                 {"cuMemHostGetDevicePointer", 1, "cuMemHostGetDevicePointer of the device's send queue failed"},
                 {"cuMemHostGetDevicePointer", 2, "cuMemHostGetDevicePointer of the device's doorbell failed"}};
    for (const auto& one : cases) {  // the first device pointer is that of zeroing
        Bench bench;
        fake_cuda_fail(one.call, kRefused, one.skip, 1);
        const Status status = bench.open();
        CHECK_EQ(status.code(), Code::kUnsupported);
        if (!has(status.message(), one.text)) check::fail(__FILE__, __LINE__, status.message());
        CHECK(has(status.message(), "PeerMappingOverride=1") && has(status.message(), "NVSHMEM_EFA_MODE=relay"));
        bench.check_nothing_left();
    }
}

TEST(a_failing_device_call_is_named_and_leaves_nothing) {
    for (const char* call : {"create_cq", "create_qp"}) {
        Bench bench;
        bench.nic.the_info.caps.cq_ext_mem = false;
        bench.nic.fails = call;
        CHECK_FAILS(bench.open(), Code::kResource, (std::string("direct ring on paper0: ") + call + " failed").c_str());
        bench.check_nothing_left();
    }
    Bench bench;
    bench.nic.slot_bytes = kSlotBytesLarge;
    CHECK_FAILS(bench.open(), Code::kUnsupported, "slots of 128 bytes");
    CHECK_FAILS(bench.open(12), Code::kInvalidArgument, "12 slots");
    bench.check_nothing_left();
}

TEST(without_a_current_gpu_a_ring_for_it_is_refused) {
    Bench bench;
    fake_cuda_use_device(-1);
    CHECK_FAILS(bench.open(), Code::kMissing, "no current CUDA context");
    CHECK_FAILS(make_relay_ring(bench.nic, {.depth = 8, .qkey = 5, .posters = MemoryKind::kCuda}, &bench.ring), Code::kMissing,
                "no current CUDA context");
    CHECK(bench.nic.is_empty());
}

TEST(the_hint_follows_what_the_driver_says_of_itself) {
    namespace fs = std::filesystem;
    const fs::path proc = fs::temp_directory_path() / ("efa-proc-" + std::to_string(getpid()));
    const auto hint = [&](const char* params, const char* version) {
        fs::create_directories(proc / "driver/nvidia");
        std::ofstream(proc / "driver/nvidia/params") << params;
        std::ofstream(proc / "driver/nvidia/version") << version;
        const std::string text = peer_mapping_hint(proc);
        fs::remove_all(proc);
        CHECK(has(text, "NVSHMEM_EFA_MODE=relay"));
        return text;
    };
    const char* const open_modules = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.1";
    const char* const closed_modules = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.1";
    CHECK(has(hint("RegistryDwords: \"\"\n", open_modules), "it is not set now"));
    CHECK(!has(hint("RegistryDwords: \"\"\n", open_modules), "proprietary"));
    CHECK(has(hint("RegistryDwords: \"PeerMappingOverride=1;\"\n", closed_modules), "proprietary"));
    CHECK(!has(hint("RegistryDwords: \"PeerMappingOverride=1;\"\n", closed_modules), "modprobe"));
    CHECK(has(hint("RegistryDwords: \"PeerMappingOverride=1;\"\n", open_modules), "dmesg"));
    CHECK(has(peer_mapping_hint(proc), "cannot be read here"));
}

// ---- chosen by probe ----

TEST(without_a_wish_a_gpu_gets_the_devices_own_ring_where_every_step_holds) {
    for (const char* mode : {"auto", "proxy"}) {
        Bench bench;
        CHECK_OK(bench.probe(mode));
        CHECK_EQ(bench.kind(), "direct (counters in GPU memory)");
        bench.check_nothing_left();
    }
}

TEST(where_a_step_fails_a_gpu_gets_a_relay_and_the_log_says_why) {
    for (const bool has_counters : {true, false}) {  // without them the host could not wait for what is posted
        Bench bench;
        bench.nic.the_info.caps.completion_counters = has_counters;
        if (has_counters) fake_cuda_fail("cuMemHostRegister", kRefused, 0, 1);
        CHECK_OK(bench.probe("proxy"));
        CHECK_EQ(bench.kind(), "relay");
        bench.check_nothing_left();
    }
}

TEST(a_ring_that_was_asked_for_by_name_is_never_replaced) {
    Bench bench;
    fake_cuda_fail("cuMemHostRegister", kRefused, 0, 1);
    CHECK_FAILS(bench.probe("direct"), Code::kUnsupported, "NVSHMEM_EFA_MODE=direct");
}

// The same through the verbs provider: what reaches the library.
TEST(over_verbs_counters_and_completion_queue_are_given_as_dma_bufs) {
    fake_cuda_reset(1);
    fake_cuda_use_device(0);
    {
        fake::Rig rig;
        Nic& nic = rig.open_one();
        std::unique_ptr<GpuRing> ring;
        CHECK_OK(make_direct_ring(nic, {.depth = 128, .qkey = 5, .posters = MemoryKind::kCuda}, &ring));
        CHECK_EQ(std::string(ring->kind()), "direct (counters in GPU memory)");
        CHECK_EQ(rig.exports, 3);  // the queue and each of two words
        const fake::Call& cq = fake::call("efadv_create_cq");
        CHECK_EQ(cq.at2<uint64_t>(16) & 1u, 1u);  // the caller's memory
        CHECK(cq.at2<const void*>(24) == ring->view().cq_entries_at_gpu);
        CHECK_EQ(fake::call("efadv_create_comp_cntr").at2<uint32_t>(8), 3u);
        CHECK_EQ(fake::call("ibv_qp_attach_comp_cntr").at<uint32_t>(4), 1u | 4u | 16u);  // send, read, write
        CHECK_EQ(ring->view().max_batch, 16u);
        CHECK(ring->view().req_id_64);
        fake::state().calls.clear();
        ring.reset();
        CHECK_EQ(fake::joined(fake::call_names()), std::string("ibv_destroy_qp ibv_destroy_comp_cntr ibv_destroy_cq"));
    }
    fake::check_nothing_left();
    fake_cuda_use_device(-1);
}

TEST(over_verbs_a_machine_without_dma_bufs_counts_in_host_memory) {
    fake_cuda_reset(1);
    fake_cuda_use_device(0);
    {
        fake::Rig rig;
        Nic& nic = rig.open_one();
        rig.export_error = "no dma-buf here";
        std::unique_ptr<GpuRing> ring;
        CHECK_OK(make_direct_ring(nic, {.depth = 128, .qkey = 5, .posters = MemoryKind::kCuda}, &ring));
        CHECK_EQ(std::string(ring->kind()), "direct (counters in host memory)");
        const fake::Call& made = fake::call("efadv_create_comp_cntr");
        CHECK_EQ(made.at2<uint64_t>(16), reinterpret_cast<uint64_t>(ring->view().completions));
        CHECK(ring->view().cq_entries != nullptr);
    }
    fake::check_nothing_left();
    fake_cuda_use_device(-1);
}

// ---- relay rings for a GPU ----

TEST(a_relay_ring_is_one_piece_of_pinned_memory_for_the_gpu) {
    Bench bench;
    CHECK_OK(make_relay_ring(bench.nic, {.depth = 32, .qkey = 5, .posters = MemoryKind::kCuda}, &bench.ring));
    const GpuRingView& view = bench.view();
    CHECK_EQ(bench.mappings(), 1);
    CHECK(is_mapped(view.slots, view.slots_at_gpu) && is_mapped(view.doorbell, view.doorbell_at_gpu));
    CHECK(is_mapped(view.completions, view.completions_at_gpu) && is_mapped(view.errors, view.errors_at_gpu));
    CHECK(is_mapped(view.cq_entries, view.cq_entries_at_gpu));
    CHECK_EQ(fake_cuda_host_flags(view.slots), 3);
    CHECK_EQ(bench.kind(), "relay");
    int mapped = 0;
    bench.nic.on_call = [&](const char*) { mapped += bench.mappings(); };
    bench.ring.reset();
    CHECK_EQ(mapped, 0);
    bench.nic.on_call = nullptr;
    bench.check_nothing_left();
    for (const char* call : {"cuMemHostRegister", "cuMemHostGetDevicePointer"}) {
        fake_cuda_fail(call, kRefused, 0, 1);
        CHECK_FAILS(make_relay_ring(bench.nic, {.depth = 32, .qkey = 5, .posters = MemoryKind::kCuda}, &bench.ring),
                    Code::kUnsupported, (std::string(call) + " of a relay ring failed").c_str());
        bench.check_nothing_left();
    }
}

// ---- CPU posters: the device's own ring, no GPU asked ----

TEST(cpu_threads_post_to_the_devices_own_ring_with_counters_and_without) {
    const struct {
        const char* profile;
        const char* kind;
    } cases[] = {{"efa3", "direct (counters in host memory)"}, {"efa2", "direct (CQ in host memory)"}};
    for (const auto& one : cases) {
        constexpr size_t kWords = 600;
        std::vector<uint64_t> source(kWords), target(kWords);
        for (size_t i = 0; i < kWords; ++i) source[i] = i * 0x9e3779b97f4a7c15u + 1;
        Knobs knobs;
        knobs.soft_profile = one.profile;
        knobs.soft_duplicate_ppm = 50'000;
        std::shared_ptr<soft::Engine> engine;
        CHECK_OK(soft::Engine::open({2, -1, knobs}, &engine));
        const auto near = engine->make_nic(0), far = engine->make_nic(1);
        AddressHandle peer, back;
        CHECK_OK(near->create_address_handle(far->address(), &peer));
        CHECK_OK(far->create_address_handle(near->address(), &back));
        MemoryRegion from, to;
        CHECK_OK(near->register_memory({source.data(), kWords * 8, MemoryKind::kHost, 7}, &from));
        CHECK_OK(far->register_memory({target.data(), kWords * 8, MemoryKind::kHost, 7}, &to));
        Cq cq;
        Qp qp;
        CHECK_OK(far->create_cq({64}, &cq));
        CHECK_OK(far->create_qp({.send_cq = cq.handle, .recv_cq = cq.handle, .sq_depth = 16, .rq_depth = 0, .qkey = 9}, &qp));
        std::unique_ptr<GpuRing> ring;
        CHECK_OK(make_direct_ring(*near, {.depth = 8, .qkey = 9, .posters = MemoryKind::kHost}, &ring));
        CHECK_EQ(std::string(ring->kind()), one.kind);
        RingQueue queue(ring->view());
        std::atomic<int> failed{0};
        std::vector<std::thread> posters;
        for (size_t t = 0; t < 3; ++t) {
            posters.emplace_back([&, t] {
                for (size_t i = t * kWords / 3; i < (t + 1) * kWords / 3; ++i) {
                    SendWqe wqe;
                    wqe_begin(wqe, SendOpcode::kRdmaWrite, {peer.ahn, static_cast<uint16_t>(qp.qp_num), 9}, 0, false, 0);
                    wqe_set_remote(wqe, reinterpret_cast<uint64_t>(&target[i]), 8, to.rkey);
                    wqe_set_local(wqe, reinterpret_cast<uint64_t>(&source[i]), 8, from.lkey);
                    failed += queue.post(wqe) ? 0 : 1;
                }
            });
        }
        for (std::thread& poster : posters) poster.join();
        CHECK(queue.quiet());
        CHECK_EQ(failed.load(), 0);
        ring.reset();
        CHECK_EQ(engine->stats().work_requests, uint64_t{kWords});
        CHECK(source == target);
    }
}

TEST_MAIN()
