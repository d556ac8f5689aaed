// SPDX-License-Identifier: Apache-2.0
#include "state.h"

#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstring>

namespace fake {

State& state() {
    static State* one = new State;  // streams may still run when the program's statics go
    return *one;
}

thread_local int context_device = -1;  // the current context, as its device
thread_local int pushed[8];
thread_local int depth = 0;

int enter(const char* name, bool allocates, bool needs_context) {
    State& s = state();
    std::lock_guard<std::mutex> guard(s.lock);
    Plan& plan = s.plans[name];
    ++plan.calls;
    if (allocates && s.is_forbidden) {
        ++s.violations;
        return kForbidden;
    }
    if (plan.count != 0) {
        if (plan.skip != 0) {
            --plan.skip;
        } else {
            --plan.count;
            return plan.code;
        }
    }
    return needs_context && context_device < 0 ? kInvalidContext : 0;
}

Block* find_block(uint64_t addr, size_t bytes) {
    State& s = state();
    auto after = s.blocks.upper_bound(addr);
    if (after == s.blocks.begin()) return nullptr;
    --after;
    Block& block = after->second;
    return addr - after->first < block.bytes && bytes <= block.bytes - (addr - after->first) ? &block : nullptr;
}

bool is_device(uint64_t addr) {
    std::lock_guard<std::mutex> guard(state().lock);
    Block* block = find_block(addr, 1);
    return block && !block->is_host;
}

uint8_t* cpu_of(uint64_t addr, size_t bytes) {
    State& s = state();
    std::lock_guard<std::mutex> guard(s.lock);
    if (find_block(addr, 1) == nullptr) return reinterpret_cast<uint8_t*>(addr);  // pageable host memory
    Block* block = find_block(addr, bytes);
    if (block) {
        if (!block->has_access) return nullptr;
        auto at = std::prev(s.blocks.upper_bound(addr));
        return block->cpu + (addr - at->first);
    }
    return nullptr;
}

int make_memfd(size_t bytes) {
    const int fd = memfd_create("fake_cuda", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, static_cast<off_t>(bytes)) != 0) return -1;
    return fd;
}

Stream::Stream() : random_(state().seed.fetch_add(1) * 0x9e3779b97f4a7c15ull + 1), thread_([this] { run(); }) {}

Stream::~Stream() {
    {
        std::lock_guard<std::mutex> guard(lock_);
        stop_ = true;
    }
    wake_.notify_all();
    thread_.join();
}

void Stream::push(std::function<void()> work) {
    {
        std::lock_guard<std::mutex> guard(lock_);
        work_.push_back(std::move(work));
    }
    wake_.notify_all();
}

bool Stream::is_idle() {
    std::lock_guard<std::mutex> guard(lock_);
    return work_.empty() && !busy_;
}

void Stream::nap() {
    random_ ^= random_ << 13, random_ ^= random_ >> 7, random_ ^= random_ << 17;
    const uint32_t longest = state().delay_us;
    const uint32_t turn = static_cast<uint32_t>(random_ >> 32);
    if (longest != 0 && turn % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds(turn / 4 % longest));
}

void Stream::run() {
    std::unique_lock<std::mutex> guard(lock_);
    for (;;) {
        wake_.wait(guard, [this] { return stop_ || !work_.empty(); });
        if (work_.empty()) return;
        auto work = std::move(work_.front());
        work_.pop_front();
        busy_ = true;
        guard.unlock();
        nap();
        while (state().is_stalled) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        work();
        guard.lock();
        busy_ = false;
    }
}

}  // namespace fake

using namespace fake;

FAKE_EXPORT void fake_cuda_reset(uint64_t seed) {
    State& s = state();
    std::lock_guard<std::mutex> guard(s.lock);
    s.plans.clear();
    s.violations = 0;
    s.is_forbidden = s.is_stalled = s.is_full = s.is_old = false;
    s.delay_us = 20;
    s.seed = seed;
    s.same_device_copies = 0;
    s.mapped_at = 0;
}
FAKE_EXPORT void fake_cuda_use_device(int device) {
    context_device = device;
    if (device >= 0) state().device = device;
}
FAKE_EXPORT void fake_cuda_fail(const char* name, int code, uint32_t skip, uint32_t count) {
    std::lock_guard<std::mutex> guard(state().lock);
    Plan& plan = state().plans[name];
    plan.code = code, plan.skip = skip, plan.count = count;
}
FAKE_EXPORT uint64_t fake_cuda_calls(const char* name) {
    std::lock_guard<std::mutex> guard(state().lock);
    return state().plans[name].calls;
}
FAKE_EXPORT void fake_cuda_forbid_allocation(int forbid) { state().is_forbidden = forbid != 0; }
FAKE_EXPORT uint64_t fake_cuda_violations() {
    std::lock_guard<std::mutex> guard(state().lock);
    return state().violations;
}
FAKE_EXPORT void fake_cuda_delay_us(uint32_t longest) { state().delay_us = longest; }
FAKE_EXPORT void fake_cuda_stall(int stall) { state().is_stalled = stall != 0; }
FAKE_EXPORT void fake_cuda_capture(int capture) { state().is_capturing = capture != 0; }
FAKE_EXPORT void fake_cuda_gpu_full(int full) { state().is_full = full != 0; }
FAKE_EXPORT void fake_cuda_old_driver(int old) { state().is_old = old != 0; }
FAKE_EXPORT uint64_t fake_cuda_same_device_copies() { return state().same_device_copies; }
FAKE_EXPORT void fake_cuda_map_host_at(uint64_t distance) { state().mapped_at = distance; }
FAKE_EXPORT void fake_cuda_kernel_of(size_t bytes, void (*run)(void*)) { state().kernel_bytes = bytes, state().kernel = run; }
FAKE_EXPORT void fake_cuda_kernel(void (*run)(void*)) { fake_cuda_kernel_of(0, run); }
FAKE_EXPORT void fake_cuda_module_global(void* module, const char* name, uint64_t addr, size_t bytes) {
    std::lock_guard<std::mutex> guard(state().lock);
    state().globals[{module, name}] = {addr, bytes};
}
FAKE_EXPORT int fake_cuda_open_mappings() {
    State& s = state();
    std::lock_guard<std::mutex> guard(s.lock);
    int open = s.host_registrations + static_cast<int>(s.handles.size());
    for (auto& [addr, block] : s.blocks) open += block.is_ipc || block.handle != 0;
    return open + static_cast<int>(s.reservations.size());
}
FAKE_EXPORT void* fake_cuda_cpu(uint64_t addr) { return is_device(addr) ? cpu_of(addr, 1) : nullptr; }
