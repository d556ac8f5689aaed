// SPDX-License-Identifier: Apache-2.0
// The PE runtime on the loopback plugin: PEs are threads of this process.
#include <dlfcn.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "check.h"
#include "pe_loopback_plugin.h"
#include "pe_runtime/pe.h"
#include "pe_runtime/run.h"

using namespace nvshmem_efa;
using namespace nvshmem_efa::pe;

namespace {

std::string fresh_job() {
    static std::atomic<int> n{0};
    return "test-" + std::to_string(getpid()) + "-" + std::to_string(n.fetch_add(1)) + "-job";
}

struct Loopback {
    void* library = dlopen(PE_LOOPBACK_PLUGIN, RTLD_NOW | RTLD_LOCAL);
    decltype(&loopback_log) log = reinterpret_cast<decltype(&loopback_log)>(dlsym(library, "loopback_log"));
    decltype(&loopback_reset) reset = reinterpret_cast<decltype(&loopback_reset)>(dlsym(library, "loopback_reset"));
};

Loopback& loopback() {
    static Loopback instance;
    return instance;
}

PeOptions options_of(const std::string& job, int pe, int n_pes, int abi) {
    PeOptions options;
    options.job = job;
    options.pe = pe;
    options.n_pes = n_pes;
    options.abi = abi;
    options.plugin_path = PE_LOOPBACK_PLUGIN;
    options.heap_bytes = 1 << 20;
    options.heap.chunk_bytes = 1 << 20;
    options.heap.reserve_bytes = size_t{1} << 30;
    options.timeout_ms = 5000;
    return options;
}

// Runs `work` on n threads, each a PE; returns what each ended with.
std::vector<Status> run_pes(
    int n_pes, int abi, const std::function<Status(Pe&)>& work,
    const std::function<void(PeOptions&)>& change = [](PeOptions&) {}) {
    const std::string job = fresh_job();
    std::vector<Status> results(static_cast<size_t>(n_pes));
    // They end together: the loopback plugin writes straight into the other PEs' memory.
    std::vector<std::unique_ptr<Pe>> pes(results.size());
    std::vector<std::thread> threads;
    for (int i = 0; i < n_pes; ++i)
        threads.emplace_back([&, i] {
            PeOptions options = options_of(job, i, n_pes, abi);
            change(options);
            std::unique_ptr<Pe>& pe = pes[static_cast<size_t>(i)];
            Status status = Pe::create(options, &pe);
            if (status.ok()) status = work(*pe);
            if (status.ok()) status = pe->finalize();
            results[static_cast<size_t>(i)] = std::move(status);
        });
    for (std::thread& thread : threads) thread.join();
    return results;
}

void check_all_ok(const std::vector<Status>& results) {
    for (const Status& status : results)
        if (!status.ok()) check::fail(__FILE__, __LINE__, status.message());
}

DemoOptions small_demo() {
    DemoOptions demo;
    demo.tokens = 12;
    demo.hidden_bytes = 301;
    demo.topk = 3;
    demo.experts = 12;
    demo.rounds = 2;
    return demo;
}

Status demo_without_mismatch(Pe& pe, const RunOptions& options, Status (*program)(Run&) = run_demo) {
    Run run(pe, options);
    EFA_TRY(program(run));
    if (run.checker.mismatches())
        return Status::error(Code::kInternal, nullptr, "wrong data: %s", run.checker.json().c_str());
    return Status();
}

}  // namespace

TEST(init_and_finalize_call_the_plugin_in_the_order_of_the_host_library) {
    loopback().reset("", -1);
    check_all_ok(run_pes(2, 4, [](Pe&) { return Status(); }));
    CHECK_EQ(std::string(loopback().log()).substr(0, 5), std::string("init "));
    // PE 1 logs until it learns its number, so only PE 0's own later calls have a fixed order.
    const std::string log = loopback().log();
    const std::string tail =
        "connect_endpoints get_mem_handle add_device_remote_mem_handles release_mem_handle finalize ";
    CHECK(log.size() > tail.size() && log.compare(log.size() - tail.size(), tail.size(), tail) == 0);
    CHECK(log.rfind("can_reach_peer") < log.find("get_mem_handle"));
}

TEST(demo_is_right_on_every_abi) {
    loopback().reset("", -1);
    RunOptions options;
    options.demo = small_demo();
    for (const int abi : {3, 4, 5, 6, 7})
        check_all_ok(run_pes(3, abi, [&](Pe& pe) { return demo_without_mismatch(pe, options); }));
}

TEST(demo_works_with_one_pe) {
    loopback().reset("", -1);
    RunOptions options;
    options.demo = small_demo();
    check_all_ok(run_pes(1, 6, [&](Pe& pe) { return demo_without_mismatch(pe, options); }));
}

TEST(conformance_run_is_right_on_every_abi) {
    loopback().reset("", -1);
    RunOptions options;
    options.is_quick = true;
    for (const int abi : {3, 4, 6, 7})
        check_all_ok(run_pes(2, abi, [&](Pe& pe) { return demo_without_mismatch(pe, options, run_conformance); }));
}

TEST(a_corrupt_byte_is_found_and_named) {
    loopback().reset("", -1);
    RunOptions options;
    options.demo = small_demo();
    options.corrupt = true;
    std::string found;
    check_all_ok(run_pes(2, 4, [&](Pe& pe) {
        Run run(pe, options);
        EFA_TRY(run_demo(run));
        if (pe.id() == 0) found = run.checker.json();
        return Status();
    }));
    CHECK(found.find("\"first_mismatch\": \"a token: byte 0 of 301") != std::string::npos);
}

TEST(blocks_are_reused_and_the_heap_grows_when_it_must) {
    loopback().reset("", -1);
    check_all_ok(run_pes(2, 6, [](Pe& pe) -> Status {
        void *first = nullptr, *second = nullptr, *third = nullptr, *large = nullptr;
        EFA_TRY(pe.malloc(1000, &first));
        EFA_TRY(pe.malloc(1000, &second));
        EFA_TRY(pe.free(first));
        EFA_TRY(pe.malloc(500, &third));
        if (third != first) return Status::error(Code::kInternal, nullptr, "the freed block was not used again");
        const int chunks = pe.heap().n_chunks();
        EFA_TRY(pe.malloc(5 << 20, &large));
        if (pe.heap().n_chunks() < chunks + 4) return Status::error(Code::kInternal, nullptr, "the heap did not grow");
        if (Status twice = pe.free(static_cast<char*>(second) + 8); twice.code() != Code::kInvalidArgument)
            return Status::error(Code::kInternal, nullptr, "freeing a wrong address was accepted");
        return pe.free(large);
    }));
}

TEST(the_heap_grows_while_the_proxy_is_busy) {
    loopback().reset("", -1);
    check_all_ok(run_pes(2, 4, [](Pe& pe) -> Status {
        void* block = nullptr;
        EFA_TRY(pe.malloc(8192, &block));
        std::atomic<bool> is_done{false};
        Status kernel_status;
        std::thread kernel([&] {
            char* at = static_cast<char*>(block);
            while (kernel_status.ok() && !is_done) {
                kernel_status = pe.proxy().put_nbi({1 - pe.id(), at, at + 4096, 4096});
                if (kernel_status.ok()) kernel_status = pe.proxy().quiet();
            }
        });
        Status status;
        for (int i = 0; i < 20 && status.ok(); ++i) status = pe.grow(1 << 20);
        is_done = true;
        kernel.join();
        EFA_TRY(std::move(status));
        return kernel_status;
    }));
}

TEST(different_sizes_of_a_symmetric_allocation_are_named) {
    loopback().reset("", -1);
    const auto results = run_pes(2, 4, [](Pe& pe) {
        void* block = nullptr;
        return pe.malloc(pe.id() ? 4096 : 8192, &block);
    });
    CHECK_EQ(results[0].code(), Code::kMismatch);
    CHECK(std::strstr(results[0].message(), "PE 1 asks for 4096 bytes, PE 0 for 8192"));
    CHECK(std::strstr(results[0].message(), "hint:"));
}

TEST(an_unregistered_address_is_named_with_its_hint) {
    loopback().reset("", -1);
    const auto results = run_pes(2, 3, [](Pe& pe) -> Status {
        char local[64] = {};
        void* block = nullptr;
        EFA_TRY(pe.malloc(64, &block));
        if (pe.id() == 0) EFA_TRY(pe.put(1, block, local, sizeof local));
        return pe.barrier_all();
    });
    CHECK_EQ(results[0].code(), Code::kUnregistered);
    CHECK(std::strstr(results[0].message(), "register_buffer()"));
    CHECK_EQ(results[1].code(), Code::kPeer);
    CHECK(std::strstr(results[1].message(), "PE 0 gave up"));
}

TEST(a_remote_address_outside_the_heap_is_named) {
    loopback().reset("", -1);
    const auto results = run_pes(1, 3, [](Pe& pe) -> Status {
        char local[64] = {};
        EFA_TRY(pe.register_buffer(local, sizeof local));
        return pe.put(0, pe.heap().base() + pe.heap().committed_bytes(), local, sizeof local);
    });
    CHECK_EQ(results[0].code(), Code::kUnregistered);
    CHECK(std::strstr(results[0].message(), "symmetric heap"));
}

TEST(a_pe_out_of_range_is_named_on_both_lanes) {
    loopback().reset("", -1);
    for (const bool by_proxy : {false, true}) {
        const auto results = run_pes(2, 4, [&](Pe& pe) -> Status {
            void* block = nullptr;
            EFA_TRY(pe.malloc(64, &block));
            if (pe.id() == 1) {
                EFA_TRY(by_proxy ? pe.proxy().p(2, block, 1, 8) : pe.p(2, block, 1, 8));
                EFA_TRY(pe.proxy().quiet());
            }
            return pe.barrier_all();
        });
        CHECK(std::strstr(results[1].message(), "PE 2 does not exist: the job has 2"));
        CHECK(std::strstr(results[0].message(), "PE 1 gave up"));
    }
}

TEST(a_status_of_the_plugin_ends_the_job_with_its_text) {
    for (const char* op : {"rma", "quiet", "progress", "get_mem_handle", "init"}) {
        loopback().reset(op, 3);
        RunOptions options;
        options.demo = small_demo();
        const auto results = run_pes(4, 6, [&](Pe& pe) { return demo_without_mismatch(pe, options); });
        int named = 0;
        for (const Status& status : results) {
            CHECK(!status.ok());
            if (!std::strstr(status.message(), "told to fail in "))
                std::fprintf(stderr, "%s: %s\n", op, status.message());
            named += std::strstr(status.message(), "told to fail in ") != nullptr;
        }
        CHECK_EQ(named, 4);  // the one that failed told the others why
    }
    loopback().reset("", -1);
}

TEST(a_wait_for_a_signal_that_never_comes_names_the_peer) {
    loopback().reset("", -1);
    const auto results = run_pes(
        2, 4,
        [](Pe& pe) -> Status {
            uint64_t* word = nullptr;
            void* block = nullptr;
            EFA_TRY(pe.malloc(8, &block));
            word = static_cast<uint64_t*>(block);
            return pe.id() ? pe.barrier_all() : pe.wait_until(word, Compare::kAtLeast, 7, 1);
        },
        [](PeOptions& options) { options.timeout_ms = options.pe ? 3000 : 300; });
    CHECK_EQ(results[0].code(), Code::kTimeout);
    CHECK(std::strstr(results[0].message(), "waited 300 ms for PE 1"));
    CHECK(std::strstr(results[1].message(), "PE 0"));
}

TEST(pes_with_different_abis_are_refused) {
    loopback().reset("", -1);
    const auto results =
        run_pes(2, 4, [](Pe&) { return Status(); }, [](PeOptions& options) { options.abi = options.pe ? 6 : 4; });
    for (const Status& status : results) {
        CHECK_EQ(status.code(), Code::kMismatch);
        CHECK(std::strstr(status.message(), "plugin ABI 6"));
    }
}

TEST(init_and_finalize_many_times_in_one_process) {
    loopback().reset("", -1);
    for (int i = 0; i < 5; ++i)
        check_all_ok(run_pes(2, 3 + i, [](Pe& pe) -> Status {
            void* block = nullptr;
            EFA_TRY(pe.malloc(64, &block));
            EFA_TRY(pe.p(1 - pe.id(), block, 5, 8));
            return pe.barrier_all();
        }));
}

TEST(a_missing_plugin_and_a_file_that_is_none_are_named) {
    for (const char* path : {"/nowhere/plugin.so", "libdl.so.2"}) {
        const auto results =
            run_pes(1, 4, [](Pe&) { return Status(); }, [&](PeOptions& options) { options.plugin_path = path; });
        CHECK_EQ(results[0].code(), Code::kMissing);
        CHECK(std::strstr(results[0].message(), "hint:"));
    }
}

TEST(overlapping_user_buffers_are_refused) {
    loopback().reset("", -1);
    check_all_ok(run_pes(1, 4, [](Pe& pe) -> Status {
        static char memory[4096];
        EFA_TRY(pe.register_buffer(memory + 1000, 1000));
        for (const auto& [start, bytes] :
             {std::pair<int, size_t>{500, 501}, {1999, 10}, {1100, 10}, {0, 4096}, {3000, 0}})
            if (pe.register_buffer(memory + start, bytes).code() != Code::kInvalidArgument)
                return Status::error(Code::kInternal, nullptr, "a buffer at %d was accepted", start);
        EFA_TRY(pe.register_buffer(memory, 1000));
        if (pe.unregister_buffer(memory + 5).code() != Code::kUnregistered)
            return Status::error(Code::kInternal, nullptr, "unknown buffer");
        return pe.unregister_buffer(memory);
    }));
}

TEST_MAIN()
