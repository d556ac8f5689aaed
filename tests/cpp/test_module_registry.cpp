// SPDX-License-Identifier: Apache-2.0
// The registry of modules, with records made by hand and a fake driver as the GPU. How records come to it:
// test_module_loading.cpp.
#include "module_registry.h"

#include <atomic>
#include <chrono>
#include <thread>

#include "check.h"
#include "fake_cuda/fake_cuda.h"

using namespace nvshmem_efa;

namespace {

constexpr uint32_t kVersion = 3, kBytes = 200;
const void* const kState = reinterpret_cast<void*>(0x1000);
const void* const kNextState = reinterpret_cast<void*>(0x2000);

const char* error_text(int) { return "as planned"; }

nvshmem_efa_module record_of(int (*locate)(void**), bool is_host) {
    nvshmem_efa_module record = {};
    record.bytes = sizeof record;
    record.version = NVSHMEM_EFA_MODULE_VERSION;
    record.state_version = kVersion;
    record.state_bytes = kBytes;
    record.is_host = is_host;
    record.source = "/somewhere/sample.cu";
    record.locate = locate;
    record.error_text = error_text;
    return record;
}

const void* symbol = nullptr;
const void* shown() { return __atomic_load_n(&symbol, __ATOMIC_ACQUIRE); }
int locate_symbol(void** address) {
    *address = &symbol;
    return 0;
}

std::atomic<bool> is_known{false};
int locate_late(void** address) { return is_known ? locate_symbol(address) : 13; }

// A word of the fake GPU's memory.
struct GpuWord {
    uint64_t addr = fake_cuda_alloc(64);
    GpuWord() { __atomic_store_n(static_cast<const void**>(fake_cuda_cpu(addr)), nullptr, __ATOMIC_RELEASE); }
    ~GpuWord() { fake_cuda_free(addr); }
    const void* value() const { return __atomic_load_n(static_cast<const void**>(fake_cuda_cpu(addr)), __ATOMIC_ACQUIRE); }
};
GpuWord* gpu_word = nullptr;
int locate_on_gpu(void** address) {
    *address = reinterpret_cast<void*>(gpu_word->addr);
    return 0;
}

struct Gpu {
    GpuWord word;
    Gpu() : word((fake_cuda_reset(1), fake_cuda_use_device(0), GpuWord())) { gpu_word = &word; }
};

// A CUmodule as NVRTC makes it.
struct DriverModule {
    void* handle = this;
    GpuWord word;
    explicit DriverModule(size_t layout_bytes = module_layout_bytes(kVersion, kBytes)) {
        fake_cuda_module_global(handle, "nvshmem_efa_state", word.addr, 8);
        fake_cuda_module_global(handle, "nvshmem_efa_state_layout", word.addr, layout_bytes);
    }
};

}  // namespace

TEST(a_symbol_holds_the_state_while_there_is_one) {
    ModuleRegistry registry(kVersion, kBytes);
    nvshmem_efa_module record = record_of(locate_symbol, true);
    symbol = nullptr;
    CHECK_OK(registry.add(&record));
    CHECK(shown() == nullptr);
    CHECK_OK(registry.publish(kState, MemoryKind::kHost));
    CHECK(shown() == kState);
    CHECK_OK(registry.publish(kNextState, MemoryKind::kHost));
    CHECK(shown() == kNextState);
    registry.withdraw();
    CHECK(shown() == nullptr);
    CHECK_OK(registry.publish(kState, MemoryKind::kHost));
    registry.remove(&record);
    registry.withdraw();
    CHECK(shown() == kState);  // nobody touches the symbol of a module that has gone
}

TEST(a_module_that_comes_late_gets_the_state_at_once_and_only_one_entry) {
    ModuleRegistry registry(kVersion, kBytes);
    CHECK_OK(registry.publish(kState, MemoryKind::kHost));
    static nvshmem_efa_module record = record_of(locate_symbol, true);  // in the program's image, which gives it its name
    symbol = nullptr;
    CHECK_OK(registry.add(&record));
    CHECK(shown() == kState);
    CHECK_OK(registry.add(&record));
    CHECK_EQ(registry.json(), "[{\"name\": \"test_module_registry (sample.cu)\", \"has_state\": true, \"trouble\": \"\"}]");
}

TEST(modules_built_with_other_headers_are_refused_by_name) {
    ModuleRegistry registry(kVersion, kBytes);
    static nvshmem_efa_module record = record_of(locate_symbol, true);
    record.state_version = kVersion + 1;
    CHECK_FAILS(registry.add(&record), Code::kMismatch, "sample.cu) was built for device state version 4 (200 bytes), this library has version 3");
    record.state_version = kVersion;
    record.state_bytes = kBytes + 8;
    CHECK_FAILS(registry.add(&record), Code::kMismatch, "version 3 (208 bytes)");
    record.state_bytes = kBytes;
    record.version = NVSHMEM_EFA_MODULE_VERSION + 1;
    record.source = nullptr;  // of another version only the first two fields are looked at
    CHECK_FAILS(registry.add(&record), Code::kMismatch, "module test_module_registry registers by version 2 of the record");
    record.version = NVSHMEM_EFA_MODULE_VERSION;
    record.bytes = sizeof record + 8;
    CHECK_FAILS(registry.add(&record), Code::kMismatch, "by version 1 of the record (72 bytes)");
    CHECK_EQ(registry.json(), "[]");
}

TEST(a_symbol_of_the_cpu_never_gets_an_address_of_the_gpu_nor_the_other_way_round) {
    Gpu gpu;
    ModuleRegistry registry(kVersion, kBytes);
    nvshmem_efa_module on_cpu = record_of(locate_symbol, true), on_gpu = record_of(locate_on_gpu, false);
    symbol = nullptr;
    CHECK_OK(registry.add(&on_cpu));
    CHECK_OK(registry.add(&on_gpu));
    CHECK_OK(registry.publish(kState, MemoryKind::kHost));
    CHECK(shown() == kState && gpu.word.value() == nullptr);
    CHECK_OK(registry.publish(kNextState, MemoryKind::kCuda));
    CHECK(shown() == nullptr && gpu.word.value() == kNextState);
    registry.withdraw();
    CHECK(gpu.word.value() == nullptr);
}

TEST(a_symbol_on_the_gpu_is_written_when_the_call_returns_from_any_thread_and_without_allocating) {
    Gpu gpu;
    fake_cuda_delay_us(20'000);
    ModuleRegistry registry(kVersion, kBytes);
    CHECK_OK(registry.publish(kState, MemoryKind::kCuda));
    fake_cuda_forbid_allocation(1);
    nvshmem_efa_module record = record_of(locate_on_gpu, false);
    std::thread opener([&] { CHECK_OK(registry.add(&record)); });  // it has no GPU of its own
    opener.join();
    CHECK(gpu.word.value() == kState);
    std::thread ender([&] { registry.withdraw(); });
    ender.join();
    fake_cuda_forbid_allocation(0);
    fake_cuda_delay_us(20);
    CHECK(gpu.word.value() == nullptr);
}

TEST(a_gpu_state_needs_a_gpu) {
    fake_cuda_reset(1);
    fake_cuda_use_device(-1);
    ModuleRegistry registry(kVersion, kBytes);
    CHECK_FAILS(registry.publish(kState, MemoryKind::kCuda), Code::kMissing, "no current CUDA context");
}

TEST(a_module_whose_symbol_cannot_be_written_is_named_and_the_others_are_served) {
    Gpu gpu;
    ModuleRegistry registry(kVersion, kBytes);
    nvshmem_efa_module broken = record_of([](void**) { return 209; }, false), good = record_of(locate_on_gpu, false);
    CHECK_OK(registry.add(&broken));
    CHECK_OK(registry.add(&good));
    CHECK_OK(registry.publish(kState, MemoryKind::kCuda));
    CHECK(gpu.word.value() == kState);
    CHECK(registry.json().find("CUDA's runtime does not find nvshmem_efa_state (209, as planned)") != std::string::npos);
    registry.withdraw();
    CHECK(gpu.word.value() == nullptr);
}

TEST(a_module_that_cudas_runtime_knows_only_after_all_constructors_gets_the_state_then) {
    ModuleRegistry registry(kVersion, kBytes);
    CHECK_OK(registry.publish(kState, MemoryKind::kHost));
    nvshmem_efa_module record = record_of(locate_late, true);
    symbol = nullptr;
    is_known = false;
    CHECK_OK(registry.add(&record));
    CHECK(shown() == nullptr);
    is_known = true;
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(5);
    while (shown() != kState && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    CHECK(shown() == kState);
}

TEST(a_module_that_stays_unknown_is_given_up_and_may_go) {
    ModuleRegistry registry(kVersion, kBytes, /*trial_ms=*/20);
    CHECK_OK(registry.publish(kState, MemoryKind::kHost));
    nvshmem_efa_module record = record_of(locate_late, true);
    is_known = false;
    CHECK_OK(registry.add(&record));
    std::this_thread::sleep_for(std::chrono::milliseconds(60));
    CHECK(registry.json().find("does not find") != std::string::npos);
    registry.remove(&record);
    record.locate = nullptr;  // whoever still used it would crash
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    CHECK_EQ(registry.json(), "[]");
}

TEST(a_driver_module_gets_the_state_before_and_after_init) {
    Gpu gpu;
    ModuleRegistry registry(kVersion, kBytes);
    DriverModule early, late;
    CHECK_OK(registry.add_driver(early.handle));
    CHECK_OK(registry.publish(kState, MemoryKind::kCuda));
    CHECK_OK(registry.add_driver(late.handle));
    CHECK(early.word.value() == kState && late.word.value() == kState);
    CHECK_OK(registry.remove_driver(early.handle));
    CHECK_FAILS(registry.remove_driver(early.handle), Code::kInvalidArgument, "was added");
    registry.withdraw();
    CHECK(early.word.value() == kState && late.word.value() == nullptr);
}

TEST(a_driver_module_of_other_headers_or_without_the_symbol_is_refused) {
    Gpu gpu;
    ModuleRegistry registry(kVersion, kBytes);
    DriverModule other(module_layout_bytes(kVersion + 1, kBytes + 8));
    CHECK_FAILS(registry.add_driver(other.handle), Code::kMismatch, "device state version 4 (208 bytes), this library has version 3 (200 bytes)");
    int stranger = 0;
    CHECK_FAILS(registry.add_driver(&stranger), Code::kDevice, "nvshmem_efa/module.cuh");
    CHECK_EQ(registry.json(), "[]");
}

TEST(a_driver_module_on_another_gpu_is_refused) {
    Gpu gpu;
    ModuleRegistry registry(kVersion, kBytes);
    CHECK_OK(registry.publish(kState, MemoryKind::kCuda));
    fake_cuda_use_device(1);
    DriverModule other;
    CHECK_FAILS(registry.add_driver(other.handle), Code::kInvalidArgument, "lies on GPU 1, NVSHMEM of this process is on GPU 0");
    CHECK(other.word.value() == nullptr);
    CHECK_EQ(registry.json(), "[]");
    fake_cuda_use_device(0);
}

TEST(nobody_waits_for_a_module_that_takes_its_time_but_its_own_unloading) {
    static std::atomic<bool> is_inside, may_end;
    is_inside = may_end = false;
    ModuleRegistry registry(kVersion, kBytes);
    nvshmem_efa_module slow = record_of([](void** address) {
        is_inside = true;
        while (!may_end) std::this_thread::yield();
        return locate_symbol(address);
    }, true);
    CHECK_OK(registry.add(&slow));
    symbol = nullptr;
    std::thread starter([&] { CHECK_OK(registry.publish(kState, MemoryKind::kHost)); });
    while (!is_inside) std::this_thread::yield();
    static const void* quick_symbol = nullptr;
    nvshmem_efa_module quick = record_of([](void** address) { return *address = &quick_symbol, 0; }, true);
    CHECK_OK(registry.add(&quick));  // as another thread that is inside the loader, for which the slow one may wait
    CHECK(quick_symbol == kState);
    std::atomic<bool> is_gone{false};
    std::thread closer([&] {
        registry.remove(&slow);
        is_gone = true;
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    CHECK(!is_gone);  // its code still runs
    may_end = true;
    closer.join();
    starter.join();
    registry.withdraw();
    CHECK(quick_symbol == nullptr);
}

TEST(modules_come_and_go_while_nvshmem_starts_and_ends) {
    ModuleRegistry registry(kVersion, kBytes);
    std::atomic<bool> stop{false};
    std::thread starter([&] {
        while (!stop) {
            CHECK_OK(registry.publish(kState, MemoryKind::kHost));
            registry.withdraw();
        }
    });
    const auto come_and_go = [&](int (*locate)(void**), const void** mine) {
        for (int i = 0; i < 300; ++i) {
            nvshmem_efa_module record = record_of(locate, true);
            CHECK_OK(registry.add(&record));
            registry.remove(&record);
            *mine = nullptr;  // nobody writes to it any more
        }
    };
    static const void *first, *second;
    const auto locate_first = [](void** address) { return *address = &first, 0; };
    const auto locate_second = [](void** address) { return *address = &second, 0; };
    std::thread other([&] { come_and_go(locate_first, &first); });
    come_and_go(locate_second, &second);
    other.join();
    stop = true;
    starter.join();
    CHECK_EQ(registry.json(), "[]");
}

TEST_MAIN()
