// SPDX-License-Identifier: Apache-2.0
// The host's side of the GPU executor, on a fake driver: memory, kernels and launches, and errors that kernels tell. No
// kernel runs here; tests/gpu/run_deep_ep.py is for a GPU.
#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>

#include "ep_gpu_launch.h"
#include "ep_ll_rig.h"
#include "fake_cuda/fake_cuda.h"

using namespace nvshmem_efa::ep;
using ep_rig::Error;
using ep_rig::error_of;
using ep_rig::Ranks;
using nvshmem_efa::Code;

namespace {

// What the fake driver takes for a module that has a kernel of each name.
const std::string kImage = std::string(".version 7.0 ") + kDispatchSymbol + " " + kCombineSymbol + " " + kResetSymbol;
constexpr int32_t kTokens = 4, kHidden = 512, kExperts = 4;

// One rank, which sends to itself through the network.
std::function<void(ep_options&)> one_rank() {
    return [](ep_options& options) {
        fake_cuda_use_device(0);
        options.executor = EP_EXECUTOR_GPU;
        options.low_latency = 1;
        options.nvlink_for_ll = -1;
        options.rdma_bytes = (ep_ll_bytes(kTokens, kHidden, options.n_ranks, kExperts) + 4095) & ~4095ll;
        options.timeout_ms = 2000;
    };
}

struct Gpu {
    ll_rig::Settings settings{{{"MODE", "soft"}, {"SOFT_RAILS", "1"}, {"SOFT_PROFILE", "efa3"}, {"LOG_LEVEL", "error"}}};
    Gpu() {
        fake_cuda_reset(1);
        fake_cuda_kernel(nullptr);
        fake_cuda_capture(0);
    }
};

ep_ll_dispatch_args some_dispatch(int32_t phases = EP_SEND | EP_RECV) {
    static uint8_t somewhere[64] = {};
    ep_ll_dispatch_args args = {};
    args.bytes = sizeof args;
    args.phases = phases;
    args.n_tokens = 2;
    args.hidden = kHidden;
    args.n_topk = 2;
    args.max_tokens = kTokens;
    args.n_experts = kExperts;
    args.x = args.recv_x = reinterpret_cast<void*>(uint64_t{1} << 44);  // a GPU's address: the host must not look there
    args.topk_idx = reinterpret_cast<const int64_t*>(uint64_t{1} << 44);
    args.recv_src_info = args.recv_count = reinterpret_cast<int32_t*>(somewhere);
    args.recv_layout_range = reinterpret_cast<int64_t*>(uint64_t{1} << 44);
    return args;
}

Error dispatch(ep_group* group, int32_t phases = EP_SEND | EP_RECV) {
    ep_ll_dispatch_args args = some_dispatch(phases);
    return error_of(ep_ll_dispatch(group, &args));
}

}  // namespace

TEST(a_group_opens_with_its_buffer_in_gpu_memory_all_zeroes) {
    Gpu gpu;
    Ranks ranks(1, one_rank());
    ranks.on_all([](int, ep_group* group) {
        CHECK(std::strstr(ep_describe(group), "on GPUs") != nullptr && std::strstr(ep_describe(group), "arrivals by") != nullptr);
        void* base = nullptr;
        int64_t bytes = 0;
        CHECK_OK(error_of(ep_buffer(group, 1, &base, &bytes)));
        const auto* seen = static_cast<const uint8_t*>(fake_cuda_cpu(reinterpret_cast<uint64_t>(base)));
        CHECK(seen != nullptr && bytes > 0);
        int64_t used = 0;
        for (int64_t i = 0; seen && i < bytes; ++i) used += seen[i] != 0;
        CHECK_EQ(used, 0);
    });
}

TEST(calls_put_kernels_into_the_stream_and_a_kernel_that_is_not_loaded_is_named) {
    Gpu gpu;
    Ranks ranks(1, one_rank());
    ranks.on_all([](int, ep_group* group) {
        fake_cuda_use_device(0);
        CHECK_FAILS(dispatch(group), Code::kMissing, "no kernel for low-latency dispatch is loaded");
        CHECK_FAILS(error_of(ep_load_kernels(group, "no image", 9)), Code::kDevice, "cuModuleLoadData");
        CHECK_OK(error_of(ep_load_kernels(group, kImage.data(), static_cast<int64_t>(kImage.size()))));
        CHECK_OK(dispatch(group));
        CHECK_OK(error_of(ep_wait(group)));
        CHECK_EQ(fake_cuda_calls("cuLaunchKernel"), 1u);
        fake_cuda_fail("cuLaunchKernel", 2, 0, 1);
        CHECK_FAILS(dispatch(group), Code::kResource, "launching the kernel for low-latency dispatch");
    });
}

TEST(what_a_kernel_tells_is_the_error_of_the_next_call_and_of_all_after_it) {
    struct {
        GpuStop stop;
        LlWait what;
        Code code;
        const char* text;
    } const cases[] = {{GpuStop::kFault, LlWait::kTokens, Code::kTimeout, "rank 0 waited 2000 ms for the tokens of rank 0"},
                       {GpuStop::kFault, LlWait::kShape, Code::kMismatch, "another shape"},
                       {GpuStop::kOrder, LlWait::kNone, Code::kInvalidArgument, "nothing was to be received"},
                       {GpuStop::kBlocks, LlWait::kNone, Code::kTimeout, "own blocks did not all run"}};
    static GpuStop stop;
    static LlWait what;
    for (const auto& one : cases) {
        Gpu gpu;
        stop = one.stop;
        what = one.what;
        fake_cuda_capture(1);  // so that the call does not wait for its kernel, as over a device that is not software
        fake_cuda_kernel([](void* first) {  // of the parameter
            GpuReport* const report = static_cast<GpuReport*>(first);
            report->stop = stop;
            report->fault.what = what;
            __atomic_store_n(&report->is_set, 1, __ATOMIC_RELEASE);
        });
        Ranks ranks(1, one_rank());
        ranks.on_all([&](int, ep_group* group) {
            fake_cuda_use_device(0);
            CHECK_OK(error_of(ep_load_kernels(group, kImage.data(), static_cast<int64_t>(kImage.size()))));
            CHECK_OK(dispatch(group));
            CHECK_FAILS(error_of(ep_wait(group)), one.code, one.text);
            CHECK_FAILS(dispatch(group), Code::kPeer, "of no use since");
        });
    }
}

TEST(a_call_over_software_devices_returns_when_its_kernel_has_ended_unless_a_graph_takes_it) {
    Gpu gpu;
    static std::atomic<int> ended;
    ended = 0;
    fake_cuda_kernel([](void*) {
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
        ++ended;
    });
    Ranks ranks(1, one_rank());
    ranks.on_all([](int, ep_group* group) {
        fake_cuda_use_device(0);
        CHECK_OK(error_of(ep_load_kernels(group, kImage.data(), static_cast<int64_t>(kImage.size()))));
        CHECK_OK(dispatch(group));
        CHECK_EQ(ended.load(), 1);
        CHECK_OK(dispatch(group, EP_SEND));
        CHECK_EQ(ended.load(), 2);
        fake_cuda_capture(1);
        CHECK_OK(dispatch(group));
        CHECK_EQ(ended.load(), 2);
        CHECK_OK(error_of(ep_wait(group)));
        CHECK_EQ(ended.load(), 3);
    });
}

TEST(an_error_that_such_a_call_waits_for_is_its_own) {
    Gpu gpu;
    fake_cuda_kernel([](void* first) {
        GpuReport* const report = static_cast<GpuReport*>(first);
        report->stop = GpuStop::kBlocks;
        __atomic_store_n(&report->is_set, 1, __ATOMIC_RELEASE);
    });
    Ranks ranks(1, one_rank());
    ranks.on_all([](int, ep_group* group) {
        fake_cuda_use_device(0);
        CHECK_OK(error_of(ep_load_kernels(group, kImage.data(), static_cast<int64_t>(kImage.size()))));
        CHECK_FAILS(dispatch(group), Code::kTimeout, "own blocks did not all run");
    });
}

TEST(a_group_that_ends_gives_all_of_it_back) {
    Gpu gpu;
    {
        Ranks ranks(1, one_rank());
        ranks.on_all([](int, ep_group* group) {
            fake_cuda_use_device(0);
            CHECK_OK(error_of(ep_load_kernels(group, kImage.data(), static_cast<int64_t>(kImage.size()))));
            CHECK_OK(dispatch(group));
        });
    }
    CHECK_EQ(fake_cuda_calls("cuMemFree"), fake_cuda_calls("cuMemAlloc"));
    CHECK_EQ(fake_cuda_calls("cuMemFreeHost"), fake_cuda_calls("cuMemHostAlloc"));
    CHECK_EQ(fake_cuda_calls("cuStreamDestroy"), fake_cuda_calls("cuStreamCreateWithPriority"));
    CHECK_EQ(fake_cuda_calls("cuModuleUnload"), 1u);
    CHECK_EQ(fake_cuda_open_mappings(), 0);
}

TEST(what_the_driver_refuses_while_a_group_opens_is_named_and_all_of_it_given_back) {
    Gpu gpu;
    for (const char* call : {"cuMemAlloc", "cuMemHostAlloc", "cuStreamCreateWithPriority", "cuMemcpyDtoHAsync"}) {
        Ranks ranks(1, Ranks::Closed{});
        fake_cuda_reset(1);
        fake_cuda_fail(call, 2, 0, 1);
        const Error refused = ranks.open(0, one_rank());
        CHECK(!refused.ok());
        CHECK(refused.text.find(call) != std::string::npos);
        fake_cuda_fail(call, 0, 0, 0);
        CHECK_EQ(fake_cuda_open_mappings(), 0);
    }
    Ranks none(1, Ranks::Closed{});
    const Error no_gpu = none.open(0, [](ep_options& options) {
        one_rank()(options);
        fake_cuda_use_device(-1);
    });
    CHECK_FAILS(no_gpu, Code::kMissing, "no current CUDA context");
}

TEST(a_rank_can_send_to_itself_through_the_network) {
    ll_rig::Settings settings(ll_rig::bad_network("efa3"));
    fake_cuda_reset(1);
    ll_rig::Shape s{1, 1, -1};
    s.E = 6;
    const auto options = ll_rig::options_of(s);
    Ranks ranks(1, [&](ep_options& one) {
        fake_cuda_use_device(-1);
        options(one);
    });
    ranks.on_all([&](int rank, ep_group* group) {
        CHECK(std::strstr(ep_describe(group), "arrivals by counters") != nullptr);
        for (uint64_t seed = 1; seed < 5; ++seed) ll_rig::exchange(ll_rig::Round(s, seed), rank, group, static_cast<int>(seed) - 1, seed == 2);
        CHECK(std::strstr(ep_stats_json(group), "\"gpu_work_requests\": 0") == nullptr);
    });
}

TEST(the_cpu_executor_stays_on_the_cpu_where_a_gpu_is_current) {
    Gpu gpu;
    Ranks ranks(1, [](ep_options& options) {
        one_rank()(options);
        options.executor = EP_EXECUTOR_CPU;
    });
    ranks.on_all([](int, ep_group* group) { CHECK(std::strstr(ep_describe(group), "CPU threads post") != nullptr); });
}

TEST_MAIN()
