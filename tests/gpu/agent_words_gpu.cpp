// SPDX-License-Identifier: Apache-2.0
#include "agent_words_gpu.h"

#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>

#include "agent_words_kernels_ptx.h"

namespace nvshmem_efa::agent_words {
namespace {

constexpr size_t kStagingBytes = 4u << 20;
constexpr uint64_t kGiveUpNs = 60'000'000'000;  // a kernel ends by itself after this, whatever went wrong

// Driver calls that only this program makes.
template <class Call>
Call find(const char* symbol) {
    static void* library = dlopen("libcuda.so.1", RTLD_NOW);
    auto call = reinterpret_cast<Call>(library ? dlsym(library, symbol) : nullptr);
    if (!call) give_up(std::string("libcuda.so.1 has no ") + symbol);
    return call;
}

struct AllocationProp {  // CUmemAllocationProp
    int32_t type = 1;     // pinned
    int32_t handle_types = cuda::kHandlePosixFd;
    int32_t location_type = cuda::kLocationDevice;
    int32_t location_id = 0;
    void* win32 = nullptr;
    uint8_t compression = 0;
    uint8_t is_rdma_capable = 1;
    uint16_t usage = 0;
    uint8_t reserved[4] = {};
};
static_assert(sizeof(AllocationProp) == 32);

std::string quote(const std::string& text) {
    std::string out = "\"";
    for (char c : text) {
        if (c == '"' || c == '\\') out += '\\';
        out += c == '\n' ? ' ' : c;
    }
    return out + "\"";
}

}  // namespace

void give_up(const std::string& why) {
    std::fprintf(stderr, "agent_words: %s\n", why.c_str());
    std::exit(2);
}

void must(const Status& status, const char* what) {
    if (!status.ok()) give_up(std::string(what) + ": " + status.message());
}

double now_us() {
    using namespace std::chrono;
    return duration<double, std::micro>(steady_clock::now().time_since_epoch()).count();
}

void Gpu::check(cuda::Result result, const char* what) {
    if (result != cuda::kSuccess) must(cuda::driver_error(*driver_, result, what), "GPU");
}

Gpu::Gpu(int ordinal) : ordinal_(ordinal) {
    must(cuda::driver_load(&driver_), "loading the driver");
    check(driver_->init(0), "cuInit");
    check(driver_->driver_get_version(&driver_version_), "cuDriverGetVersion");
    char name[128] = {};
    check(find<int (*)(char*, int, int)>("cuDeviceGetName")(name, sizeof name, ordinal), "cuDeviceGetName");
    name_ = name;
    check(find<int (*)(int*, int, int)>("cuDeviceGetAttribute")(&sms_, 16, ordinal), "cuDeviceGetAttribute");
    check(find<int (*)(cuda::Context*, int)>("cuDevicePrimaryCtxRetain")(&context_, ordinal), "cuDevicePrimaryCtxRetain");
    check(find<int (*)(cuda::Context)>("cuCtxSetCurrent")(context_), "cuCtxSetCurrent");
    check(driver_->module_load_data(&kernels_, kAgentKernelsPtx), "cuModuleLoadData");
    stream_ = make_stream();
    staging_ = static_cast<uint8_t*>(alloc_pinned(kStagingBytes));
    filler_stream_ = make_stream();
    filler_pinned_ = static_cast<uint64_t*>(alloc_pinned(128));
    filler_halt_ = alloc(64);
    AllocationProp prop;
    prop.location_id = ordinal;
    check(find<int (*)(size_t*, const AllocationProp*, int)>("cuMemGetAllocationGranularity")(&granularity_, &prop, 0),
          "cuMemGetAllocationGranularity");
}

uint64_t Gpu::alloc(size_t bytes) {
    uint64_t addr = 0;
    check(find<int (*)(uint64_t*, size_t)>("cuMemAlloc_v2")(&addr, bytes), "cuMemAlloc");
    fill(addr, 0, bytes);
    return addr;
}

uint64_t Gpu::alloc_vmm(size_t piece_bytes, uint32_t pieces) {
    AllocationProp prop;
    prop.location_id = ordinal_;
    auto create = find<int (*)(uint64_t*, size_t, const AllocationProp*, unsigned long long)>("cuMemCreate");
    uint64_t addr = 0;
    check(driver_->mem_address_reserve(&addr, piece_bytes * pieces, 0, 0, 0), "cuMemAddressReserve");
    for (uint32_t i = 0; i < pieces; ++i) {
        uint64_t handle = 0;
        check(create(&handle, piece_bytes, &prop, 0), "cuMemCreate");
        check(driver_->mem_map(addr + i * piece_bytes, piece_bytes, 0, handle, 0), "cuMemMap");
        check(driver_->mem_release(handle), "cuMemRelease");
    }
    cuda::AccessDesc access;
    access.location_id = ordinal_;
    check(driver_->mem_set_access(addr, piece_bytes * pieces, &access, 1), "cuMemSetAccess");
    fill(addr, 0, piece_bytes * pieces);
    return addr;
}

void* Gpu::alloc_pinned(size_t bytes) {
    void* memory = nullptr;
    check(driver_->mem_host_alloc(&memory, bytes, cuda::kHostPortable), "cuMemHostAlloc");
    std::memset(memory, 0, bytes);
    return memory;
}

void Gpu::read(void* to, uint64_t from, size_t bytes) {
    for (size_t done = 0; done < bytes; done += kStagingBytes) {
        const size_t piece = std::min(kStagingBytes, bytes - done);
        check(driver_->memcpy_dtoh_async(staging_, from + done, piece, stream_), "cuMemcpyDtoHAsync");
        wait_idle(stream_, 10000, "reading GPU memory");
        std::memcpy(static_cast<uint8_t*>(to) + done, staging_, piece);
    }
}

void Gpu::write(uint64_t to, const void* from, size_t bytes) {
    for (size_t done = 0; done < bytes; done += kStagingBytes) {
        const size_t piece = std::min(kStagingBytes, bytes - done);
        std::memcpy(staging_, static_cast<const uint8_t*>(from) + done, piece);
        check(driver_->memcpy_htod_async(to + done, staging_, piece, stream_), "cuMemcpyHtoDAsync");
        wait_idle(stream_, 10000, "writing GPU memory");
    }
}

void Gpu::fill(uint64_t addr, uint8_t value, size_t bytes) {
    std::vector<uint8_t> pattern(bytes, value);
    write(addr, pattern.data(), bytes);
}

void Gpu::launch(const char* kernel, unsigned blocks, unsigned threads, cuda::Stream stream, void** parameters) {
    cuda::Function function = nullptr;
    check(driver_->module_get_function(&function, kernels_, kernel), kernel);
    check(driver_->launch_kernel(function, blocks, 1, 1, threads, 1, 1, 0, stream, parameters, nullptr), kernel);
}

cuda::Stream Gpu::make_stream() {
    cuda::Stream stream = nullptr;
    check(driver_->stream_create(&stream, cuda::kStreamNonBlocking, 0), "cuStreamCreateWithPriority");
    return stream;
}

bool Gpu::is_idle(cuda::Stream stream) {
    const cuda::Result result = driver_->stream_query(stream);
    if (result != cuda::kErrorNotReady) check(result, "cuStreamQuery");
    return result == cuda::kSuccess;
}

void Gpu::wait_idle(cuda::Stream stream, int64_t timeout_ms, const char* what) {
    if (!poll(timeout_ms, [&] { return is_idle(stream); })) give_up(std::string(what) + " did not end");
}

void Gpu::launch_filler(uint64_t word, uint8_t bytes, unsigned blocks, cuda::Stream stream) {
    uint64_t size = bytes, give_up = kGiveUpNs, halt = filler_halt_;
    uint64_t seen = reinterpret_cast<uint64_t>(filler_pinned_), started = reinterpret_cast<uint64_t>(filler_pinned_ + 8);
    void* parameters[] = {&word, &size, &seen, &started, &halt, &give_up};
    launch("fill_and_answer", blocks, 1024, stream, parameters);
}

Filler::Filler(Gpu& gpu, uint64_t word, uint8_t bytes, unsigned blocks)
    : gpu_(gpu), word_(word), bytes_(bytes), blocks_(blocks), pinned_(gpu.filler_pinned()) {
    gpu.fill(word, 0, bytes);
    gpu.fill(gpu.filler_halt(), 0, 4);
    pinned_[0] = pinned_[8] = 0;
    gpu.launch_filler(word, bytes, blocks, gpu.filler_stream());
}

bool Filler::is_everywhere(int64_t timeout_ms) const {
    return poll(timeout_ms, [&] {
        return __atomic_load_n(reinterpret_cast<const uint32_t*>(pinned_ + 8), __ATOMIC_ACQUIRE) == blocks_;
    });
}

bool Filler::saw(uint64_t value, int64_t timeout_ms) const {
    // pairs with the kernel's st.release.sys of `seen`
    return poll(timeout_ms, [&] { return __atomic_load_n(pinned_, __ATOMIC_ACQUIRE) == value; });
}

void Filler::end() {
    if (has_ended_) return;
    has_ended_ = true;
    const uint64_t all = ~uint64_t{0};
    gpu_.write(word_, &all, bytes_);
    gpu_.wait_idle(gpu_.filler_stream(), 70000, "the kernel that fills the GPU");
}

Filler::~Filler() { end(); }

void Report::check(const std::string& name, bool is_good, const std::string& detail) {
    failed_ += !is_good;
    std::fprintf(stderr, "%s %s %s\n", is_good ? "pass" : "FAIL", name.c_str(), detail.c_str());
    checks_.push_back("{\"name\": " + quote(name) + ", \"result\": \"" + (is_good ? "pass" : "fail") + "\", \"detail\": " +
                      quote(detail) + "}");
}

void Report::skip(const std::string& name, const std::string& why) {
    std::fprintf(stderr, "skip %s %s\n", name.c_str(), why.c_str());
    checks_.push_back("{\"name\": " + quote(name) + ", \"result\": \"skip\", \"detail\": " + quote(why) + "}");
}

void Report::note(const std::string& name, const std::string& value) {
    std::fprintf(stderr, "note %s: %s\n", name.c_str(), value.c_str());
    notes_.push_back(quote(name) + ": " + quote(value));
}

void Report::time(const std::string& name, std::vector<double> samples) {
    if (samples.empty()) return;
    std::sort(samples.begin(), samples.end());
    const auto at = [&](double part) { return samples[static_cast<size_t>(part * static_cast<double>(samples.size() - 1))]; };
    char text[256];
    std::snprintf(text, sizeof text, ": {\"p50_us\": %.2f, \"p99_us\": %.2f, \"min_us\": %.2f, \"max_us\": %.2f, \"n\": %zu}",
                  at(0.5), at(0.99), samples.front(), samples.back(), samples.size());
    std::fprintf(stderr, "time %s%s\n", name.c_str(), text);
    times_.push_back(quote(name) + text);
}

int Report::finish(const Gpu& gpu) {
    auto list = [](const std::vector<std::string>& parts) {
        std::string out;
        for (const auto& part : parts) out += (out.empty() ? "\n    " : ",\n    ") + part;
        return out;
    };
    std::printf("{\n  \"program\": \"agent_words\", \"gpu\": %s, \"driver_cuda\": %d, \"sms\": %d, \"failed\": %d,\n",
                quote(gpu.name()).c_str(), gpu.driver_version(), gpu.sms(), failed_);
    std::printf("  \"checks\": [%s],\n  \"times\": {%s},\n  \"notes\": {%s}\n}\n", list(checks_).c_str(), list(times_).c_str(),
                list(notes_).c_str());
    return failed_ ? 1 : 0;
}

}  // namespace nvshmem_efa::agent_words
