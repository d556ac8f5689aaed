// SPDX-License-Identifier: Apache-2.0
// Memory regions and completion queues of a verbs Nic, call by call: the bytes handed to the library, and what comes
// back.
#include "verbs_rig.h"

using namespace nvshmem_efa;
using fake::call;
using fake::Call;
using fake::check_rest_is_zero;
using fake::count_calls;
using fake::make_cq;
using fake::Rig;
using fake::state;

namespace {

char memory[4096];

// A CUDA driver that exports only ranges within [base, end), and keeps what it was asked.
struct FakeRanges {
    uint64_t base = 0, end = 0;
    std::vector<std::pair<uint64_t, size_t>> asked = {};
    int fd = -1;
};
FakeRanges ranges;

int get_handle_for_range(void* handle, uint64_t addr, size_t bytes, int type, unsigned long long flags) {
    if (type != 1) return 1;
    if (flags == 0) ranges.asked.emplace_back(addr, bytes);
    if (flags != 0 || addr < ranges.base || addr + bytes > ranges.end) return 1;
    ranges.fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    std::memcpy(handle, &ranges.fd, sizeof(int));
    return 0;
}

constexpr uint64_t kMiB = 1u << 20;
void* at(uint64_t addr) { return reinterpret_cast<void*>(addr); }

}  // namespace

TEST(a_range_is_exported_in_whole_2_mib_granules) {
    ranges = {.base = 0, .end = 64 * kMiB};
    verbs::Dmabuf dmabuf;
    CHECK_EQ(verbs::export_granules(get_handle_for_range, at(5 * kMiB + 256), 2 * kMiB, &dmabuf), 0);
    CHECK_EQ(ranges.asked.size(), size_t(1));
    CHECK_EQ(ranges.asked[0].first, 4 * kMiB);
    CHECK_EQ(ranges.asked[0].second, size_t(4 * kMiB));
    CHECK_EQ(dmabuf.offset(), kMiB + 256);
    CHECK_EQ(dmabuf.fd(), ranges.fd);
}

TEST(an_allocation_smaller_than_a_granule_is_exported_in_whole_pages) {
    ranges = {.base = 5 * kMiB, .end = 5 * kMiB + 8192};
    verbs::Dmabuf dmabuf;
    CHECK_EQ(verbs::export_granules(get_handle_for_range, at(5 * kMiB + 100), 4096, &dmabuf), 0);
    CHECK_EQ(ranges.asked.size(), size_t(2));
    CHECK_EQ(ranges.asked[1].first, 5 * kMiB);
    CHECK_EQ(ranges.asked[1].second, size_t(8192));
    CHECK_EQ(dmabuf.offset(), uint64_t(100));
}

TEST(a_range_that_cannot_be_exported_gives_cudas_error_and_no_file) {
    ranges = {};
    verbs::Dmabuf dmabuf;
    CHECK_EQ(verbs::export_granules(get_handle_for_range, at(4096), 4096, &dmabuf), 1);
    CHECK_EQ(dmabuf.fd(), -1);
}

TEST(a_dmabuf_closes_its_file_once_and_moves) {
    ranges = {.base = 0, .end = 64 * kMiB};
    {
        verbs::Dmabuf first, second;
        CHECK_EQ(verbs::export_granules(get_handle_for_range, at(0), 4096, &first), 0);
        second = std::move(first);
        CHECK_EQ(first.fd(), -1);
        CHECK_EQ(second.fd(), ranges.fd);
        const verbs::Dmabuf third(std::move(second));
        CHECK(fake::is_open(third.fd()));
    }
    CHECK(!fake::is_open(ranges.fd));
}

TEST(without_cuda_the_exporter_says_what_it_needs) {
    verbs::Dmabuf dmabuf;
    CHECK_FAILS(verbs::export_cuda_dmabuf(memory, 64, &dmabuf), Code::kUnsupported, "cuMemGetHandleForAddressRange");
    CHECK_EQ(verbs::current_gpu_pci_id(), std::string());
}

TEST(host_memory_is_registered_with_the_access_asked_for) {
    Rig rig;
    Nic& nic = rig.open_one();
    const struct {
        uint32_t ours;
        uint64_t library;
    } cases[] = {{kAccessLocalWrite, 1}, {kAccessRemoteWrite, 3}, {kAccessRemoteRead, 4},
                 {kAccessLocalWrite | kAccessRemoteWrite | kAccessRemoteRead, 7}, {0, 0}};
    for (const auto& one : cases) {
        state().calls.clear();
        MemoryRegion region;
        CHECK_OK(nic.register_memory({memory, sizeof(memory), MemoryKind::kHost, one.ours}, &region));
        CHECK_EQ(call("ibv_reg_mr").args.at("access"), one.library);
        CHECK_EQ(call("ibv_reg_mr").args.at("addr"), reinterpret_cast<uint64_t>(memory));
        CHECK_EQ(call("ibv_reg_mr").args.at("length"), sizeof(memory));
        CHECK(region.lkey != 0);
        CHECK_EQ(region.rkey, 0xab000000u + region.lkey);
        CHECK_OK(nic.deregister_memory(region));
    }
    CHECK_EQ(state().live["mr"], 0);
    CHECK_EQ(rig.exports, 0);
}

TEST(a_right_that_the_device_cannot_grant_is_not_asked_for) {
    Rig rig;
    state().answers.efa_caps &= ~1u;  // no RDMA read
    Nic& nic = rig.open_one();
    MemoryRegion region;
    CHECK_OK(nic.register_memory({memory, 64, MemoryKind::kHost, kAccessRemoteWrite | kAccessRemoteRead}, &region));
    CHECK_EQ(call("ibv_reg_mr").args.at("access"), uint64_t(3));
    CHECK_OK(nic.register_memory({memory, 512, MemoryKind::kCuda, kAccessRemoteRead}, &region));
    CHECK_EQ(call("ibv_reg_dmabuf_mr").args.at("access"), uint64_t(0));
}

TEST(gpu_memory_goes_by_dmabuf_at_its_own_address) {
    Rig rig;
    Nic& nic = rig.open_one();
    MemoryRegion region;
    CHECK_OK(nic.register_memory({memory, 512, MemoryKind::kCuda, kAccessRemoteWrite}, &region));
    const Call& made = call("ibv_reg_dmabuf_mr");
    CHECK_EQ(made.args.at("offset"), uint64_t(0x1000));
    CHECK_EQ(made.args.at("length"), uint64_t(512));
    CHECK_EQ(made.args.at("iova"), reinterpret_cast<uint64_t>(memory));
    CHECK_EQ(made.args.at("fd"), static_cast<uint64_t>(rig.last_fd));
    CHECK_EQ(made.args.at("access"), uint64_t(3));
    CHECK_EQ(rig.exported_bytes, size_t(512));
    CHECK(!fake::is_open(rig.last_fd));
    CHECK_EQ(count_calls("ibv_reg_mr"), size_t(0));
}

TEST(a_refused_dmabuf_falls_to_the_peer_memory_module) {
    Rig rig;
    Nic& nic = rig.open_one();
    state().answers.refuse_dmabuf = true;
    MemoryRegion region;
    CHECK_OK(nic.register_memory({memory, 512, MemoryKind::kCuda, kAccessRemoteWrite}, &region));
    CHECK_EQ(count_calls("ibv_reg_dmabuf_mr"), size_t(1));
    CHECK_EQ(call("ibv_reg_mr").args.at("length"), uint64_t(512));
    CHECK(!fake::is_open(rig.last_fd));
}

TEST(an_export_that_fails_falls_to_the_peer_memory_module) {
    Rig rig;
    Nic& nic = rig.open_one();
    rig.export_error = "not a GPUDirect allocation";
    MemoryRegion region;
    CHECK_OK(nic.register_memory({memory, 512, MemoryKind::kCuda, kAccessRemoteWrite}, &region));
    CHECK_EQ(count_calls("ibv_reg_dmabuf_mr"), size_t(0));
    CHECK_EQ(count_calls("ibv_reg_mr"), size_t(1));
}

TEST(a_library_without_dmabuf_goes_to_the_peer_memory_module) {
    Rig rig;
    rig.machine.libibverbs = rig.without_symbol(fake::kIbverbs, "ibv_reg_dmabuf_mr");
    Nic& nic = rig.open_one();
    MemoryRegion region;
    CHECK_OK(nic.register_memory({memory, 512, MemoryKind::kCuda, kAccessRemoteWrite}, &region));
    CHECK_EQ(rig.exports, 0);
    CHECK_EQ(count_calls("ibv_reg_mr"), size_t(1));
}

TEST(when_both_ways_fail_the_error_names_both) {
    Rig rig;
    Nic& nic = rig.open_one();
    state().answers.refuse_dmabuf = true;
    MemoryRegion region;
    const auto attempt = [&](int error) {
        state().failures["ibv_reg_mr"] = {.error = error};
        return nic.register_memory({memory, 512, MemoryKind::kCuda, kAccessRemoteWrite}, &region);
    };
    CHECK_FAILS(attempt(14), Code::kUnsupported, "by dma-buf: ibv_reg_dmabuf_mr failed on efa_0");
    CHECK_FAILS(attempt(14), Code::kUnsupported, "by peer memory: ibv_reg_mr: Bad address (errno 14)");
    CHECK_FAILS(attempt(14), Code::kUnsupported, "512 bytes of GPU memory");
    CHECK_FAILS(attempt(12), Code::kResource, "ibv_reg_mr: Cannot allocate memory");
    CHECK_EQ(state().live["mr"], 0);
}

TEST(host_memory_beyond_the_lock_limit_hints_at_it) {
    Rig rig;
    Nic& nic = rig.open_one();
    state().failures["ibv_reg_mr"] = {.error = 12};
    MemoryRegion region;
    CHECK_FAILS(nic.register_memory({memory, 64}, &region), Code::kResource, "ulimit -l");
}

TEST(no_memory_at_all_is_refused_before_the_library_sees_it) {
    Rig rig;
    Nic& nic = rig.open_one();
    MemoryRegion region;
    CHECK_FAILS(nic.register_memory({nullptr, 64}, &region), Code::kInvalidArgument, "cannot register");
    CHECK_FAILS(nic.register_memory({memory, 0}, &region), Code::kInvalidArgument, "cannot register");
    CHECK(state().calls.empty());
}

TEST(a_completion_queue_is_asked_for_in_these_bytes) {
    Rig rig;
    Nic& nic = rig.open_one();
    const Cq cq = make_cq(nic, 300);
    const Call& made = call("efadv_create_cq");
    CHECK_EQ(made.at<uint32_t>(0), 300u);
    check_rest_is_zero(made.bytes, {{0, 4}});
    CHECK_EQ(made.at2<uint64_t>(8), uint64_t(1));  // with source GID
    check_rest_is_zero(made.bytes2, {{8, 8}});
    CHECK_EQ(cq.depth, 512u);
    CHECK_EQ(cq.entry_bytes, 32u);
    CHECK(cq.entries != nullptr);
}

TEST(without_the_sgid_capability_it_is_not_asked_for) {
    Rig rig;
    state().answers.efa_caps &= ~4u;
    Nic& nic = rig.open_one();
    make_cq(nic);
    CHECK_EQ(call("efadv_create_cq").at2<uint64_t>(8), uint64_t(0));
}

TEST(entries_of_16_bytes_are_taken_as_the_device_says) {
    Rig rig;
    state().answers.cq_entry_bytes = 16;
    Nic& nic = rig.open_one();
    CHECK_EQ(make_cq(nic).entry_bytes, 16u);
}

TEST(entries_of_an_unknown_size_are_refused_and_nothing_is_left) {
    Rig rig;
    Nic& nic = rig.open_one();
    state().answers.cq_entry_bytes = 64;
    Cq cq;
    CHECK_FAILS(nic.create_cq({.depth = 16}, &cq), Code::kUnsupported, "entries of 64 bytes");
    CHECK_EQ(state().live["cq"], 0);
}

TEST(a_completion_queue_deeper_than_the_device_allows_is_refused) {
    Rig rig;
    Nic& nic = rig.open_one();
    Cq cq;
    for (const uint32_t depth : {0u, 32769u, 0xffffffffu}) {
        CHECK_FAILS(nic.create_cq({.depth = depth}, &cq), Code::kInvalidArgument, "at most 32768");
    }
    CHECK_OK(nic.create_cq({.depth = 32768}, &cq));
}

TEST(a_completion_queue_in_gpu_memory_is_given_as_dmabuf) {
    Rig rig;
    Nic& nic = rig.open_one();
    Cq cq;
    CHECK_OK(nic.create_cq({.depth = 64, .memory = memory, .memory_bytes = 2048}, &cq));
    const Call& made = call("efadv_create_cq");
    CHECK_EQ(made.at2<uint64_t>(16), uint64_t(1));
    CHECK_EQ(made.at2<uint64_t>(24), reinterpret_cast<uint64_t>(memory));
    CHECK_EQ(made.at2<uint64_t>(32), uint64_t(2048));
    CHECK_EQ(made.at2<uint64_t>(40), uint64_t(0x1000));
    CHECK_EQ(made.at2<int32_t>(48), rig.last_fd);
    CHECK_EQ(cq.entries, static_cast<const void*>(memory));
    CHECK(!fake::is_open(rig.last_fd));
}

TEST(a_completion_queue_in_gpu_memory_needs_the_capability) {
    Rig rig;
    state().answers.efa_caps &= ~32u;
    Nic& nic = rig.open_one();
    Cq cq;
    CHECK_FAILS(nic.create_cq({.depth = 64, .memory = memory, .memory_bytes = 2048}, &cq), Code::kUnsupported,
                "caller's memory");
    CHECK_EQ(rig.exports, 0);
}

TEST(a_completion_queue_that_does_not_fit_its_memory_is_refused) {
    Rig rig;
    Nic& nic = rig.open_one();
    Cq cq;
    CHECK_FAILS(nic.create_cq({.depth = 65, .memory = memory, .memory_bytes = 4095}, &cq), Code::kInvalidArgument,
                "4096 bytes");
}

TEST(scattered_gpu_memory_is_named_as_the_reason) {
    Rig rig;
    Nic& nic = rig.open_one();
    state().failures["efadv_create_cq"] = {.error = 22};
    Cq cq;
    CHECK_FAILS(nic.create_cq({.depth = 64, .memory = memory, .memory_bytes = 2048}, &cq), Code::kDevice,
                "physically contiguous");
    CHECK(!fake::is_open(rig.last_fd));
}

TEST_MAIN()
