// SPDX-License-Identifier: Apache-2.0
// The real plugin in this process, one PE: what a host library could do wrong, and init again after finalize.
#include <unistd.h>

#include <atomic>
#include <cstdlib>

#include "check.h"
#include "pe_runtime/pe.h"

using namespace nvshmem_efa;
using namespace nvshmem_efa::pe;

namespace {

PeOptions options_of(int abi) {
    static std::atomic<int> n{0};
    setenv("NVSHMEM_EFA_MODE", "soft", 1);
    setenv("NVSHMEM_EFA_TIMEOUT_MS", "4000", 1);
    PeOptions options;
    options.job = "plugin-" + std::to_string(getpid()) + "-" + std::to_string(n.fetch_add(1)) + "-job";
    options.abi = abi;
    options.plugin_path = std::string(PE_PLUGIN_FOLDER) + "/nvshmem_transport_efa_abi" + std::to_string(abi) + ".so";
    options.heap_bytes = options.heap.chunk_bytes = 1 << 20;
    options.heap.reserve_bytes = 64 << 20;
    options.timeout_ms = 5000;
    return options;
}

Status put_and_get_back(Pe& pe) {
    void* block = nullptr;
    EFA_TRY(pe.malloc(8192, &block));
    char* at = static_cast<char*>(block);
    std::memset(at, 0x3c, 1000);
    EFA_TRY(pe.put(0, at + 4097, at, 1000));
    if (std::memcmp(at, at + 4097, 1000) != 0)
        return Status::error(Code::kInternal, nullptr, "the bytes are not there");
    Amo amo{abi::kAmoFetchAdd, 5, 0, 8, false};
    uint64_t before = 1;
    std::memset(at, 0, 8);
    EFA_TRY(pe.amo(0, at, amo, &before));
    EFA_TRY(pe.proxy().amo(0, at, amo, &before));
    if (before != 5)
        return Status::error(Code::kInternal, nullptr, "the second atomic fetched %llu",
                             static_cast<unsigned long long>(before));
    return pe.free(block);
}

// What the host library would never pass if it were right.
RmaCall put_call(Pe& pe, char* remote, void* local, size_t bytes) {
    Piece piece;
    uint64_t address = 0, offset = 0;
    CHECK_OK(pe.heap().find_remote(0, remote, &piece, &address, &offset));
    RmaCall call;
    call.remote = {reinterpret_cast<void*>(address), offset, piece.handle};
    call.local = {local, 0, nullptr};
    call.n_elements = bytes;
    return call;
}

}  // namespace

TEST(init_finalize_and_init_again_in_one_process) {
    for (const int abi : {3, 6, 3, 4, 7}) {
        std::unique_ptr<Pe> pe;
        CHECK_OK(Pe::create(options_of(abi), &pe));
        CHECK_OK(put_and_get_back(*pe));
        CHECK_OK(pe->finalize());
        CHECK(pe->stats_json().find("\"work_requests\": 0") == std::string::npos);
    }
}

TEST(an_unregistered_source_is_named_by_the_plugin) {
    std::unique_ptr<Pe> pe;
    CHECK_OK(Pe::create(options_of(4), &pe));
    std::vector<char> local(100'000);
    RmaCall call = put_call(*pe, pe->heap().base(), local.data(), local.size());
    CHECK_FAILS(pe->port().rma(Caller::kHost, call), Code::kUnregistered, "hint:");
    CHECK_OK(put_and_get_back(*pe));  // a refused operation spoils nothing
    CHECK_OK(pe->finalize());
}

TEST(a_pe_out_of_range_is_named_by_the_plugin) {
    std::unique_ptr<Pe> pe;
    CHECK_OK(Pe::create(options_of(6), &pe));
    RmaCall call = put_call(*pe, pe->heap().base(), pe->heap().base() + 4096, 64);
    for (const int target : {-1, 1, 1 << 30}) {
        call.pe = target;
        CHECK_FAILS(pe->port().rma(Caller::kProxy, call), Code::kInvalidArgument, "hint:");
        CHECK(!pe->port().quiet(Caller::kHost, target).ok());
        CHECK(!pe->port().fence(Caller::kHost, target).ok());
    }
    CHECK_OK(pe->finalize());
}

TEST(a_transfer_beyond_its_chunk_is_an_error_and_not_a_crash) {
    std::unique_ptr<Pe> pe;
    CHECK_OK(Pe::create(options_of(4), &pe));
    char* base = pe->heap().base();
    Piece piece;
    CHECK_OK(pe->heap().find_local(base, &piece));
    RmaCall call = put_call(*pe, base + (1 << 20) - 64, base, 4096);
    call.local.handle = piece.handle;
    Status status = pe->port().rma(Caller::kHost, call);
    if (status.ok()) status = pe->port().quiet(Caller::kHost, 0);
    CHECK(!status.ok());
    CHECK(std::strstr(status.message(), "PE 0"));
}

TEST(rubbish_where_a_handle_should_be_is_refused) {
    std::unique_ptr<Pe> pe;
    CHECK_OK(Pe::create(options_of(3), &pe));
    abi::MemHandleBytes rubbish;
    std::memset(&rubbish, 0x77, sizeof rubbish);
    RmaCall call = put_call(*pe, pe->heap().base(), pe->heap().base() + 4096, 64);
    call.remote.handle = &rubbish;
    CHECK(!pe->port().rma(Caller::kHost, call).ok());
    CHECK(!pe->port().release_mem_handle(&rubbish).ok());
    CHECK_OK(put_and_get_back(*pe));
    CHECK_OK(pe->finalize());
}

TEST(a_setting_changed_between_two_inits_counts) {
    std::unique_ptr<Pe> pe;
    CHECK_OK(Pe::create(options_of(4), &pe));
    CHECK(pe->port().describe().find("soft1") != std::string::npos);
    CHECK_OK(pe->finalize());
    setenv("NVSHMEM_EFA_SOFT_RAILS", "1", 1);
    CHECK_OK(Pe::create(options_of(4), &pe));
    CHECK(pe->port().describe().find("soft1") == std::string::npos);
    CHECK_OK(pe->finalize());
    setenv("NVSHMEM_EFA_SOFT_RAILS", "0", 1);
    CHECK_FAILS(Pe::create(options_of(4), &pe), Code::kConfig, "NVSHMEM_EFA_SOFT_RAILS");
    unsetenv("NVSHMEM_EFA_SOFT_RAILS");
    CHECK_OK(Pe::create(options_of(4), &pe));
    CHECK_OK(pe->finalize());
}

TEST_MAIN()
