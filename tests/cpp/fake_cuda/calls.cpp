// SPDX-License-Identifier: Apache-2.0
// Contexts, streams, copies and kernels of the fake driver. Names and signatures are those of the real one's symbols.
#include <cstring>

#include "state.h"

using namespace fake;

#define ENTER(name)                                    \
    if (int refused = enter(name, false, false)) return refused
#define ENTER_CONTEXT(name)                            \
    if (int refused = enter(name, false, true)) return refused
#define ENTER_ALLOCATES(name)                          \
    if (int refused = enter(name, true, true)) return refused

namespace fake {
extern thread_local int context_device;
extern thread_local int pushed[8];
extern thread_local int depth;
}  // namespace fake

namespace {

void* context_of(int device) { return device < 0 ? nullptr : reinterpret_cast<void*>(0x1000 + device); }
int device_in(void* context) { return context ? static_cast<int>(reinterpret_cast<uintptr_t>(context) - 0x1000) : -1; }

// A copied word arrives whole, as it does on a GPU; tests watch words while they change.
void copy_now(uint8_t* to, const uint8_t* from, size_t bytes) {
    uint16_t word = 0;
    if (bytes != sizeof word || reinterpret_cast<uintptr_t>(to) % sizeof word != 0) {
        std::memcpy(to, from, bytes);
        return;
    }
    std::memcpy(&word, from, sizeof word);
    __atomic_store_n(reinterpret_cast<uint16_t*>(to), word, __ATOMIC_RELEASE);
}

int push_copy(void* stream, uint64_t to, uint64_t from, size_t bytes) {
    uint8_t* target = cpu_of(to, bytes);
    const uint8_t* source = cpu_of(from, bytes);
    if (!target || !source || !stream) return kInvalidValue;
    static_cast<Stream*>(stream)->push([=] { copy_now(target, source, bytes); });
    return 0;
}

int push_write(void* stream, uint64_t addr, uint64_t value, size_t bytes) {
    uint8_t* target = cpu_of(addr, bytes);
    bool is_known;
    {
        std::lock_guard<std::mutex> guard(state().lock);
        is_known = find_block(addr, bytes) != nullptr;
    }
    if (!target || !is_known || addr % bytes != 0) return kInvalidValue;
    static_cast<Stream*>(stream)->push([=] {
        // The real write makes a full barrier first; pairs with the pollers' acquire loads.
        if (bytes == 4) __atomic_store_n(reinterpret_cast<uint32_t*>(target), static_cast<uint32_t>(value), __ATOMIC_RELEASE);
        if (bytes == 8) __atomic_store_n(reinterpret_cast<uint64_t*>(target), value, __ATOMIC_RELEASE);
    });
    return 0;
}

struct MemOp {
    int32_t operation;
    uint32_t reserved;
    uint64_t addr;
    uint64_t value;
    uint32_t flags;
    uint32_t pad[5];
};
static_assert(sizeof(MemOp) == 48);

}  // namespace

FAKE_EXPORT int cuInit(unsigned) { ENTER("cuInit"); return 0; }
FAKE_EXPORT int cuDriverGetVersion(int* version) { ENTER("cuDriverGetVersion"); *version = 12040; return 0; }
FAKE_EXPORT int cuGetErrorName(int error, const char** text) {
    *text = error == 801 ? "CUDA_ERROR_NOT_SUPPORTED" : error == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_FAKE";
    return 0;
}
FAKE_EXPORT int cuGetErrorString(int, const char** text) { *text = "as planned by the test"; return 0; }

FAKE_EXPORT int cuCtxGetCurrent(void** context) {
    ENTER("cuCtxGetCurrent");
    *context = context_of(context_device);
    return 0;
}
FAKE_EXPORT int cuCtxPushCurrent_v2(void* context) {
    ENTER("cuCtxPushCurrent");
    if (depth == 8) return kInvalidContext;
    pushed[depth++] = context_device;
    context_device = device_in(context);
    return 0;
}
FAKE_EXPORT int cuCtxPopCurrent_v2(void** context) {
    ENTER("cuCtxPopCurrent");
    if (depth == 0) return kInvalidContext;
    *context = context_of(context_device);
    context_device = pushed[--depth];
    return 0;
}
FAKE_EXPORT int cuCtxGetDevice(int* device) { ENTER_CONTEXT("cuCtxGetDevice"); *device = context_device; return 0; }
FAKE_EXPORT int cuDeviceGetAttribute(int* value, int attribute, int) {
    ENTER("cuDeviceGetAttribute");
    if (attribute != 13 && attribute != 16) return kInvalidValue;
    *value = attribute == 16 ? 132 : 2'000'000;  // multiprocessors; kHz
    return 0;
}
FAKE_EXPORT int cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    ENTER_CONTEXT("cuCtxGetStreamPriorityRange");
    *least = 0, *greatest = -5;
    return 0;
}

FAKE_EXPORT int cuStreamCreateWithPriority(void** stream, unsigned flags, int) {
    ENTER_ALLOCATES("cuStreamCreateWithPriority");
    if (flags != 1) return kInvalidValue;  // a blocking stream would wait for the program's default stream
    *stream = new Stream;
    return 0;
}
// As the real one: returns at once; the stream's work still runs.
FAKE_EXPORT int cuStreamDestroy_v2(void* stream) {
    ENTER_CONTEXT("cuStreamDestroy");
    if (static_cast<Stream*>(stream)->is_idle()) delete static_cast<Stream*>(stream);
    return 0;
}
FAKE_EXPORT int cuStreamQuery(void* stream) {
    ENTER_CONTEXT("cuStreamQuery");
    return static_cast<Stream*>(stream)->is_idle() ? 0 : kNotReady;
}
FAKE_EXPORT int cuStreamIsCapturing(void*, int* answer) {
    ENTER_CONTEXT("cuStreamIsCapturing");
    *answer = state().is_capturing ? 1 : 0;
    return 0;
}
FAKE_EXPORT int cuStreamWriteValue32_v2(void* stream, uint64_t addr, uint32_t value, unsigned flags) {
    ENTER_CONTEXT("cuStreamWriteValue32");
    return flags != 0 ? kInvalidValue : push_write(stream, addr, value, 4);
}
FAKE_EXPORT int cuStreamWriteValue64_v2(void* stream, uint64_t addr, uint64_t value, unsigned flags) {
    ENTER_CONTEXT("cuStreamWriteValue64");
    return flags != 0 ? kInvalidValue : push_write(stream, addr, value, 8);
}
FAKE_EXPORT int cuStreamBatchMemOp_v2(void* stream, unsigned count, MemOp* ops, unsigned flags) {
    ENTER_CONTEXT("cuStreamBatchMemOp");
    if (count == 0 || count >= 256 || flags != 0) return kInvalidValue;
    for (unsigned i = 0; i < count; ++i) {
        if (ops[i].flags != 0 || (ops[i].operation != 2 && ops[i].operation != 5)) return kInvalidValue;
        if (int result = push_write(stream, ops[i].addr, ops[i].value, ops[i].operation == 2 ? 4 : 8)) return result;
    }
    return 0;
}

FAKE_EXPORT int cuMemcpyAsync(uint64_t to, uint64_t from, size_t bytes, void* stream) {
    ENTER_CONTEXT("cuMemcpyAsync");
    if (is_device(to) && is_device(from)) {
        std::lock_guard<std::mutex> guard(state().lock);
        if (find_block(to, 1)->device == find_block(from, 1)->device) ++state().same_device_copies;
    }
    return push_copy(stream, to, from, bytes);
}
FAKE_EXPORT int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    ENTER_CONTEXT("cuMemcpyHtoDAsync");
    if (!is_device(to)) return kInvalidValue;
    return push_copy(stream, to, reinterpret_cast<uint64_t>(from), bytes);
}
FAKE_EXPORT int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    ENTER_CONTEXT("cuMemcpyDtoHAsync");
    if (!is_device(from)) return kInvalidValue;
    return push_copy(stream, reinterpret_cast<uint64_t>(to), from, bytes);
}

FAKE_EXPORT int cuModuleLoadData(void** module, const void* image) {
    ENTER_ALLOCATES("cuModuleLoadData");
    if (!std::strstr(static_cast<const char*>(image), ".version 7.0")) return 218;
    *module = const_cast<void*>(image);
    return 0;
}
FAKE_EXPORT int cuModuleUnload(void*) { ENTER_CONTEXT("cuModuleUnload"); return 0; }
FAKE_EXPORT int cuModuleGetFunction(void** function, void* module, const char* name) {
    ENTER_CONTEXT("cuModuleGetFunction");
    if (!std::strstr(static_cast<const char*>(module), name)) return 500;
    *function = module;
    return 0;
}
FAKE_EXPORT int cuModuleGetGlobal_v2(uint64_t* addr, size_t* bytes, void* module, const char* name) {
    ENTER("cuModuleGetGlobal");
    std::lock_guard<std::mutex> guard(state().lock);
    const auto found = state().globals.find({module, name});
    if (found == state().globals.end()) return 500;
    *addr = found->second.first, *bytes = found->second.second;
    return 0;
}
FAKE_EXPORT int cuLaunchKernel(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void* stream,
                               void** parameters, void**) {
    ENTER_CONTEXT("cuLaunchKernel");
    void* pointer = *static_cast<void**>(parameters[0]);
    const uint8_t* const first = static_cast<const uint8_t*>(parameters[0]);
    std::vector<uint8_t> all(first, first + state().kernel_bytes);
    static_cast<Stream*>(stream)->push([pointer, all]() mutable {
        while (state().is_full) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        if (auto* run = state().kernel.load()) run(all.empty() ? pointer : all.data());
    });
    return 0;
}
