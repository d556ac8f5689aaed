// SPDX-License-Identifier: Apache-2.0
#include "words_cuda_rig.h"

using namespace nvshmem_efa;
using namespace words_rig;

TEST(stream_engine_agrees_with_the_oracle_in_random_batches) {
    for (uint64_t seed = 1; seed <= 12; ++seed) run_random_batches("stream", seed, 40, seed % 2 ? 64 : 4096);
}
TEST(gdrcopy_engine_agrees_with_the_oracle_in_random_batches) {
    for (uint64_t seed = 1; seed <= 12; ++seed) run_random_batches("gdrcopy", seed, 40, seed % 2 ? 64 : 4096);
    CHECK_EQ(fake_gdr_open_pins(), 0);
}
TEST(gpu_warp_engine_agrees_with_the_oracle_in_random_batches) {
    for (uint64_t seed = 1; seed <= 12; ++seed) run_random_batches("gpu-warp", seed, 40, seed % 2 ? 64 : 4096);
}

TEST(stream_engine_reads_again_what_the_gpu_changed_itself) {
    start(1);
    const uint64_t device = fake_cuda_alloc(64);
    auto engine = make("stream");
    for (uint64_t i = 0; i < 50; ++i) {
        *static_cast<uint64_t*>(fake_cuda_cpu(device)) = i * 1000;  // no shadow copy may hide this
        WordRequest request = add(device, 7);
        CHECK_OK(engine->apply(&request, 1));
        CHECK_EQ(request.fetched, i * 1000);
        CHECK_EQ(word_at(device), i * 1000 + 7);
    }
    fake_cuda_free(device);
}

TEST(stream_engine_makes_one_read_and_one_write_of_many_requests_to_a_word) {
    start(1);
    const uint64_t device = fake_cuda_alloc(64);
    auto engine = make("stream");
    std::vector<WordRequest> requests(100, add(device, 1));
    CHECK_OK(engine->apply(requests.data(), requests.size()));
    for (uint64_t i = 0; i < requests.size(); ++i) CHECK_EQ(requests[i].fetched, i);
    CHECK_EQ(word_at(device), uint64_t{100});
    CHECK_EQ(fake_cuda_calls("cuMemcpyDtoHAsync"), uint64_t{1});
    CHECK_EQ(fake_cuda_calls("cuStreamBatchMemOp"), uint64_t{1});  // the write, and the marker behind it
    CHECK_EQ(fake_cuda_calls("cuStreamWriteValue64"), uint64_t{2});  // the first marker, and the one after the read
    CHECK_EQ(fake_cuda_calls("cuMemcpyHtoDAsync"), uint64_t{0});
    fake_cuda_free(device);
}

TEST(stream_engine_sets_words_without_reading_them) {
    start(1);
    const uint64_t device = fake_cuda_alloc(64);
    auto engine = make("stream");
    WordRequest requests[] = {set(device, 5), set(device + 8, 6, 4), set(device + 16, 7, 2)};
    CHECK_OK(engine->apply(requests, 3));
    CHECK_EQ(fake_cuda_calls("cuMemcpyDtoHAsync"), uint64_t{0});
    CHECK_EQ(fake_cuda_calls("cuMemcpyHtoDAsync"), uint64_t{1});  // the 2-byte word only
    CHECK_EQ(word_at(device), uint64_t{5});
    CHECK_EQ(word_at(device + 8), uint64_t{6});
    CHECK_EQ(word_at(device + 16), uint64_t{7});
    fake_cuda_free(device);
}

TEST(a_fetch_or_a_compare_that_does_not_match_writes_nothing) {
    start(1);
    const uint64_t device = fake_cuda_alloc(64);
    auto engine = make("stream");
    WordRequest requests[] = {add(device, 0), add(device, 9)};
    requests[0].op = WordOp::kFetch;
    requests[1].op = WordOp::kCompareSwap, requests[1].compare = 1;
    CHECK_OK(engine->apply(requests, 2));
    CHECK_EQ(fake_cuda_calls("cuStreamBatchMemOp"), uint64_t{0});
    CHECK_EQ(word_at(device), uint64_t{0});
    fake_cuda_free(device);
}

// Two words are raised in turn, the first one first. A kernel must never find them more than one apart, nor the second
// one ahead: neither across words nor between the ways in which words of 2 and of 8 bytes are written.
TEST(changes_of_different_words_show_in_the_order_of_the_requests) {
    struct Case {
        const char* engine;
        uint8_t first_bytes, second_bytes;
    };
    for (const Case& one : {Case{"stream", 8, 8}, Case{"stream", 2, 8}, Case{"stream", 8, 2}, Case{"gdrcopy", 8, 8},
                            Case{"gpu-warp", 8, 2}}) {
        start(5);
        fake_cuda_delay_us(60);
        const uint64_t device = fake_cuda_alloc(64);
        auto engine = make(one.engine);
        std::atomic<bool> stop{false}, is_wrong{false};
        std::thread kernel([&] {
            while (!stop) {
                const uint64_t second = word_at(device + 8), first = word_at(device), again = word_at(device + 8);
                if (first < second || (second == again && first > second + 1)) is_wrong = true;
            }
        });
        for (int turn = 0; turn < 60; ++turn) {
            std::vector<WordRequest> requests;
            for (int i = 0; i < 8; ++i) {
                requests.push_back(add(device, 1, one.first_bytes));
                requests.push_back(add(device + 8, 1, one.second_bytes));
            }
            CHECK_OK(engine->apply(requests.data(), requests.size()));
        }
        stop = true;
        kernel.join();
        if (is_wrong) check::fail(__FILE__, __LINE__, std::string(one.engine) + ": seen out of order");
        CHECK_EQ(word_at(device), uint64_t{480});
        engine.reset();
        fake_cuda_free(device);
    }
}

TEST(refused_batches_become_single_writes_and_refused_writes_become_copies) {
    start(1);
    const uint64_t device = fake_cuda_alloc_vmm(2 << 20, 1, 1);
    auto engine = make("stream");
    fake_cuda_fail("cuStreamBatchMemOp", 801, 0, 1);
    WordRequest first[] = {set(device, 1), set(device + 8, 2, 4)};
    CHECK_OK(engine->apply(first, 2));
    CHECK_EQ(fake_cuda_calls("cuStreamWriteValue32"), uint64_t{1});
    CHECK_EQ(fake_cuda_calls("cuMemcpyHtoDAsync"), uint64_t{0});
    fake_cuda_fail("cuStreamWriteValue64", 801, 1, 1);  // not the marker behind the read: a write
    WordRequest second[] = {set(device + 16, 3), set(device + 24, 4), add(device, 1)};
    CHECK_OK(engine->apply(second, 3));
    CHECK_EQ(fake_cuda_calls("cuStreamBatchMemOp"), uint64_t{1});  // not tried again
    CHECK(fake_cuda_calls("cuMemcpyHtoDAsync") > 0);
    CHECK_EQ(word_at(device), uint64_t{2});
    CHECK_EQ(word_at(device + 8), uint64_t{2});
    CHECK_EQ(word_at(device + 16), uint64_t{3});
    CHECK_EQ(word_at(device + 24), uint64_t{4});
}

TEST(stream_engine_names_the_request_and_the_call_that_failed_and_goes_on) {
    start(1);
    const uint64_t device = fake_cuda_alloc(4096);
    auto engine = make("stream");
    fake_cuda_fail("cuMemcpyDtoHAsync", 700, 0, 1);
    WordRequest request = add(device, 1);
    CHECK_FAILS(engine->apply(&request, 1), Code::kDevice, "word request 0 of 1");
    fake_cuda_fail("cuStreamBatchMemOp", 700, 0, 1);
    CHECK_FAILS(engine->apply(&request, 1), Code::kDevice, "writing a word of GPU memory failed");
    int plain = 0;
    WordRequest host = set(reinterpret_cast<uint64_t>(&plain), 1, 4);
    CHECK_FAILS(engine->apply(&host, 1), Code::kDevice, "must lie in GPU memory");
    CHECK_OK(engine->apply(&request, 1));
    CHECK_EQ(word_at(device), uint64_t{1});
    fake_cuda_free(device);
}

TEST(a_request_after_an_invalid_one_is_not_applied) {
    for (const char* name : {"stream", "gdrcopy"}) {
        start(1);
        const uint64_t device = fake_cuda_alloc(64);
        auto engine = make(name);
        WordRequest requests[] = {set(device, 1), set(device + 12, 2), set(device + 16, 3)};
        CHECK_FAILS(engine->apply(requests, 3), Code::kInvalidArgument, "word request 1");
        CHECK_EQ(word_at(device), uint64_t{1});
        CHECK_EQ(word_at(device + 16), uint64_t{0});
        engine.reset();
        fake_cuda_free(device);
    }
}

TEST(a_stream_that_stands_still_ends_in_a_named_timeout) {
    start(1);
    const uint64_t device = fake_cuda_alloc(64);
    std::unique_ptr<WordEngine> engine;
    CHECK_OK(make_stream_words(50, &engine));
    fake_cuda_stall(1);
    WordRequest request = add(device, 1);
    CHECK_FAILS(engine->apply(&request, 1), Code::kTimeout, "reading words on GPU 0 did not complete within 50 ms");
    CHECK_FAILS(engine->apply(&request, 1), Code::kDevice, "earlier timeout");
    engine.reset();  // leaves what the GPU may still write to
    fake_cuda_stall(0);
}

TEST(the_engine_works_on_a_thread_that_never_saw_a_context) {
    for (const char* name : {"stream", "gdrcopy", "gpu-warp"}) {
        start(1);
        const uint64_t device = fake_cuda_alloc(64);
        auto engine = make(name);
        std::thread agent([&] {
            WordRequest request = add(device, 3);
            CHECK_OK(engine->apply(&request, 1));
            engine.reset();
        });
        agent.join();
        CHECK_EQ(word_at(device), uint64_t{3});
        fake_cuda_free(device);
    }
}

TEST(gdrcopy_sends_words_of_a_page_it_cannot_map_by_the_stream) {
    start(1);
    const uint64_t device = fake_cuda_alloc(4 * 65536);
    auto engine = make("gdrcopy");
    fake_gdr_refuse_pin(device + 65536);
    WordRequest requests[] = {add(device, 1), add(device + 65536, 2), add(device + 2 * 65536, 3)};
    const uint64_t copies = fake_cuda_calls("cuMemcpyDtoHAsync");
    CHECK_OK(engine->apply(requests, 3));
    CHECK_EQ(fake_cuda_calls("cuMemcpyDtoHAsync"), copies + 1);
    CHECK_EQ(word_at(device + 65536), uint64_t{2});
    CHECK_EQ(word_at(device + 2 * 65536), uint64_t{3});
    std::unique_ptr<WordEngine> alone;
    CHECK_OK(make_gdrcopy_words(nullptr, &alone));
    CHECK_FAILS(alone->apply(&requests[1], 1), Code::kResource, "gdr_pin_buffer");
    fake_cuda_free(device);
}

TEST(gdrcopy_pins_a_page_once_and_notices_memory_given_out_again) {
    start(1);
    const uint64_t device = fake_cuda_alloc(65536);
    auto engine = make("gdrcopy");
    for (int i = 0; i < 20; ++i) {
        WordRequest request = add(device + 8 * static_cast<uint64_t>(i), 1);
        CHECK_OK(engine->apply(&request, 1));
    }
    CHECK_EQ(fake_gdr_pins(), uint64_t{1});
    WordRequest request = add(device, 1);
    fake_cuda_renew(device);
    CHECK_OK(engine->apply(&request, 1));
    CHECK_EQ(fake_gdr_pins(), uint64_t{2});
    fake_cuda_free(device);
    CHECK_FAILS(engine->apply(&request, 1), Code::kDevice, "GPU memory");
}

TEST(gdrcopy_maps_no_more_pages_than_its_bound) {
    start(1);
    constexpr uint64_t kPages = 1100;
    const uint64_t device = fake_cuda_alloc(kPages * 65536);
    auto engine = make("gdrcopy");
    std::vector<WordRequest> requests;
    for (uint64_t page = 0; page < kPages; ++page) requests.push_back(add(device + page * 65536, page));
    CHECK_OK(engine->apply(requests.data(), requests.size()));
    CHECK_EQ(fake_gdr_open_pins(), 1024);
    for (uint64_t page = 0; page < kPages; ++page) CHECK_EQ(word_at(device + page * 65536), page);
    engine.reset();
    CHECK_EQ(fake_gdr_open_pins(), 0);
    fake_cuda_free(device);
}

TEST(gpu_warp_fails_by_name_on_a_full_gpu_and_leaves_its_ring) {
    start(1);
    fake_cuda_gpu_full(1);
    std::unique_ptr<WordEngine> engine;
    CHECK_FAILS(make_gpu_warp_words(50, &engine), Code::kTimeout, "the atomics warp did not start on GPU 0 within 50 ms");
    CHECK_EQ(fake_cuda_calls("cuModuleUnload"), uint64_t{0});
    CHECK_EQ(fake_cuda_calls("cuMemFreeHost"), uint64_t{0});
    fake_cuda_gpu_full(0);  // the warp runs now, finds that it is to stop, and must find its ring in place
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
}

TEST(gpu_warp_unloads_after_its_warp_has_ended) {
    start(1);
    make("gpu-warp").reset();
    CHECK_EQ(fake_cuda_calls("cuModuleUnload"), uint64_t{1});
    CHECK_EQ(fake_cuda_calls("cuMemFreeHost"), uint64_t{1});
}

TEST(gpu_warp_ends_when_idle_and_comes_back_for_the_next_request) {
    start(1);
    const uint64_t device = fake_cuda_alloc(64);
    auto engine = make("gpu-warp");
    for (uint64_t round = 1; round <= 5; ++round) {
        std::this_thread::sleep_for(std::chrono::milliseconds(5));  // far beyond kWarpIdleNs
        WordRequest request = add(device, 1);
        CHECK_OK(engine->apply(&request, 1));
        CHECK_EQ(word_at(device), round);
    }
    CHECK(fake_cuda_calls("cuLaunchKernel") >= 6);
    fake_cuda_free(device);
}

TEST(gpu_warp_loses_nothing_when_a_request_meets_its_end) {
    start(1);
    const uint64_t device = fake_cuda_alloc(64);
    auto engine = make("gpu-warp");
    std::mt19937_64 random(7);
    for (uint64_t round = 1; round <= 400; ++round) {  // pauses on both sides of kWarpIdleNs
        const auto until = std::chrono::steady_clock::now() + std::chrono::nanoseconds(kWarpIdleNs - 60'000 + random() % 120'000);
        while (std::chrono::steady_clock::now() < until) std::this_thread::yield();
        WordRequest request = add(device, 1);
        CHECK_OK(engine->apply(&request, 1));
        CHECK_EQ(word_at(device), round);
    }
    const uint64_t launches = fake_cuda_calls("cuLaunchKernel");
    CHECK(launches > 10 && launches < 400);
    fake_cuda_free(device);
}

TEST(gpu_warp_names_a_launch_that_is_refused_later) {
    start(1);
    const uint64_t device = fake_cuda_alloc(64);
    auto engine = make("gpu-warp");
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    fake_cuda_fail("cuLaunchKernel", 222, 0, 1);
    WordRequest request = add(device, 1);
    CHECK_FAILS(engine->apply(&request, 1), Code::kDevice, "launching the atomics warp");
    fake_cuda_free(device);
}

TEST(gpu_warp_names_each_call_that_fails_at_its_start) {
    for (const char* call : {"cuModuleLoadData", "cuModuleGetFunction", "cuLaunchKernel"}) {
        start(1);
        fake_cuda_fail(call, 222, 0, 1);
        std::unique_ptr<WordEngine> engine;
        CHECK_FAILS(make_gpu_warp_words(50, &engine), Code::kDevice, "atomics warp");
    }
}

TEST(the_knobs_choose_the_engine) {
    struct Choice {
        const char* amo;
        const char* gdrcopy;
        const char* engine;
    };
    for (const Choice& choice : {Choice{"agent", "off", "stream"}, Choice{"agent", "auto", "gdrcopy"},
                                 Choice{"agent", "on", "gdrcopy"}, Choice{"gpu", "auto", "gpu-warp"}}) {
        start(1);
        setenv("NVSHMEM_EFA_AMO", choice.amo, 1);
        setenv("NVSHMEM_EFA_GDRCOPY", choice.gdrcopy, 1);
        CHECK_OK(load_knobs());
        std::unique_ptr<WordEngine> engine;
        CHECK_OK(make_cuda_words(&engine));
        CHECK_EQ(std::string(engine->name()), std::string(choice.engine));
    }
}

TEST(without_gdrcopys_driver_auto_goes_by_the_stream_and_on_is_an_error) {
    start(1);
    fake_gdr_no_driver(1);
    setenv("NVSHMEM_EFA_AMO", "agent", 1);
    setenv("NVSHMEM_EFA_GDRCOPY", "auto", 1);
    CHECK_OK(load_knobs());
    std::unique_ptr<WordEngine> engine;
    CHECK_OK(make_cuda_words(&engine));
    CHECK_EQ(std::string(engine->name()), std::string("stream"));
    setenv("NVSHMEM_EFA_GDRCOPY", "on", 1);
    CHECK_OK(load_knobs());
    CHECK_FAILS(make_cuda_words(&engine), Code::kMissing, "gdr_open failed");
    setenv("NVSHMEM_EFA_AMO", "gpu", 1);
    CHECK_OK(load_knobs());
    CHECK_FAILS(make_cuda_words(&engine), Code::kConfig, "NVSHMEM_EFA_AMO=gpu");
}

TEST_MAIN()
