// SPDX-License-Identifier: Apache-2.0
#include "module_registry.h"

#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <optional>
#include <thread>

#include "log.h"
#include "nvshmem_efa/device_state.h"

namespace nvshmem_efa {
namespace {

constexpr int64_t kWriteTimeoutMs = 5000;
constexpr auto kBusyTimeout = std::chrono::seconds(10);  // longer than a write may take
constexpr const char* kSymbol = "nvshmem_efa_state";
constexpr const char* kLayoutSymbol = "nvshmem_efa_state_layout";
constexpr const char* kBuildAgain = "build it again with the headers of this nvshmem-efa: docs/modules.md";

std::string file_name(const char* path) {
    const char* slash = path ? std::strrchr(path, '/') : nullptr;
    return slash ? slash + 1 : path ? path : "unknown";
}

// "libfoo.so (dispatch.cu)"; `source` may be null.
std::string name_of(const void* record, const char* source) {
    Dl_info info = {};
    const std::string object = dladdr(record, &info) && info.dli_fname ? file_name(info.dli_fname) : "unknown";
    return source ? object + " (" + file_name(source) + ")" : object;
}

}  // namespace

struct ModuleRegistry::Entry {
    const void* identity = nullptr;        // the record, or the CUmodule
    nvshmem_efa_module* record = nullptr;  // null: a driver module
    std::string name;
    const void* shows = nullptr;  // what its symbol holds
    bool busy = false;            // somebody writes the symbol, without the lock
    std::string trouble;          // why the symbol does not hold what it should
};

// One GPU's private stream, made where allocating is still harmless. One thread at a time, by its lock.
struct ModuleRegistry::Writer {
    std::mutex lock;
    std::unique_ptr<cuda::MarkedStream> stream;

    Status write(uint64_t address, const void* value);
};

struct ModuleRegistry::Wanted {
    const void* value;
    std::shared_ptr<Writer> writer;
};

Status ModuleRegistry::Writer::write(uint64_t address, const void* value) {
    const std::lock_guard<std::mutex> guard(lock);
    const cuda::Driver& driver = stream->driver();
    int device = -1;
    if (driver.pointer_get_attribute(&device, cuda::kAttrDeviceOrdinal, address) == cuda::kSuccess && device != stream->device())
        return Status::error(Code::kInvalidArgument, "load the module on the GPU on which NVSHMEM was initialised",
                             "its symbol lies on GPU %d, NVSHMEM of this process is on GPU %d", device, stream->device());
    std::memcpy(stream->scratch(), &value, sizeof value);
    if (const cuda::Result result = driver.memcpy_htod_async(address, stream->scratch(), sizeof value, stream->stream()))
        return cuda::driver_error(driver, result, std::string("cuMemcpyHtoDAsync to ") + kSymbol);
    cuda::MarkedStream::Ticket ticket = 0;
    EFA_TRY(stream->mark(&ticket));
    Status status = stream->wait(ticket, kWriteTimeoutMs, "the copy of the device state's address");
    if (!status.ok()) stream->abandon();
    return status;
}

namespace {

Status locate(const nvshmem_efa_module& record, void** address) {
    const int code = record.locate(address);
    if (code == 0 && *address) return Status();
    const char* text = code != 0 && record.error_text ? record.error_text(code) : "it gave no address";
    return Status::error(Code::kDevice, "was it compiled for this GPU? Look at its -arch option: docs/modules.md",
                         "CUDA's runtime does not find %s (%d, %s)", kSymbol, code, text ? text : "");
}

Status locate(cuda::Module module, void** address) {
    const cuda::Driver* driver = nullptr;
    EFA_TRY(cuda::driver_load(&driver));
    size_t bytes = 0;
    cuda::DevicePtr at = 0;
    if (const cuda::Result result = driver->module_get_global(&at, &bytes, module, kSymbol))
        return cuda::driver_error(*driver, result, std::string("cuModuleGetGlobal of ") + kSymbol,
                                  "the program must include nvshmem_efa/module.cuh, and the module must be loaded");
    if (bytes != sizeof(void*))
        return Status::error(Code::kMismatch, kBuildAgain, "%s of the module has %zu bytes, not 8", kSymbol, bytes);
    *address = reinterpret_cast<void*>(at);
    return Status();
}

}  // namespace

ModuleRegistry::ModuleRegistry(uint32_t state_version, uint32_t state_bytes, uint32_t trial_ms)
    : state_version_(state_version), state_bytes_(state_bytes), trial_ms_(trial_ms) {}

ModuleRegistry::~ModuleRegistry() {
    Lock lock(lock_);
    calm_.wait_for(lock, kBusyTimeout, [this] { return !watching_; });
}

ModuleRegistry& module_registry() {
    static ModuleRegistry* const instance = new ModuleRegistry(kDeviceStateVersion, sizeof(DeviceState));
    return *instance;
}

Status ModuleRegistry::write(const Entry& entry, const Wanted& want) {
    std::optional<cuda::ScopedContext> scope;
    if (want.writer) scope.emplace(want.writer->stream->driver(), want.writer->stream->context());
    void* address = nullptr;
    EFA_TRY(entry.record ? locate(*entry.record, &address)
                         : locate(static_cast<cuda::Module>(const_cast<void*>(entry.identity)), &address));
    if (want.writer) return want.writer->write(reinterpret_cast<uint64_t>(address), want.value);
    // pairs with the acquire load of whoever reads the variable while it may change
    __atomic_store_n(static_cast<const void**>(address), want.value, __ATOMIC_RELEASE);
    return Status();
}

// A symbol of the CPU never holds an address of the GPU's, nor the other way round.
ModuleRegistry::Wanted ModuleRegistry::wanted(const Entry& entry) const {
    const bool is_host = entry.record && entry.record->is_host;
    return {is_host == (posters_ == MemoryKind::kHost) ? state_ : nullptr, is_host ? nullptr : writer_};
}

// Makes the entry's symbol hold what it should. The lock is given up while code of others runs. Whoever changes what is
// wanted meanwhile settles the entry again, behind us.
Status ModuleRegistry::settle(Lock& lock, Entry& entry) {
    if (!calm_.wait_for(lock, kBusyTimeout, [&entry] { return !entry.busy; }))
        return Status::error(Code::kTimeout, "look for a GPU that stands still", "module %s: another thread still writes its %s",
                             entry.name.c_str(), kSymbol);
    if (!entry.identity) return Status();  // it was removed
    const Wanted want = wanted(entry);
    if (entry.shows == want.value) return Status();
    entry.busy = true;
    lock.unlock();
    Status status = write(entry, want);
    lock.lock();
    entry.busy = false;
    calm_.notify_all();
    entry.trouble = status.ok() ? "" : status.message();
    if (!status.ok()) return std::move(status).with_context("module " + entry.name);
    entry.shows = want.value;
    return Status();
}

Status ModuleRegistry::insert(std::shared_ptr<Entry> entry, bool is_tried_again) {
    Lock lock(lock_);
    const auto is_same = [&entry](const auto& other) { return other->identity == entry->identity; };
    if (std::any_of(entries_.begin(), entries_.end(), is_same)) return Status();
    entries_.push_back(entry);
    // Translation units of one library are registered one by one: what failed for the first may go now.
    if (is_tried_again) {
        const Entries all = entries_;
        for (const auto& other : all) {
            if (!other->trouble.empty() && !other->busy) static_cast<void>(settle(lock, *other));
        }
    }
    Status status = settle(lock, *entry);
    if (status.ok() || !is_tried_again) return status;
    watch();
    return Status();
}

Status ModuleRegistry::add(nvshmem_efa_module* record) {
    if (!record) return Status::error(Code::kInvalidArgument, nullptr, "nvshmem_efa_module_add: no record");
    if (record->version != NVSHMEM_EFA_MODULE_VERSION || record->bytes != sizeof *record)
        return Status::error(Code::kMismatch, kBuildAgain,
                             "module %s registers by version %u of the record (%u bytes), this library by version %u (%zu bytes)",
                             name_of(record, nullptr).c_str(), record->version, record->bytes, NVSHMEM_EFA_MODULE_VERSION,
                             sizeof *record);
    const std::string name = name_of(record, record->source);
    if (record->state_version != state_version_ || record->state_bytes != state_bytes_)
        return Status::error(Code::kMismatch, kBuildAgain,
                             "module %s was built for device state version %u (%u bytes), this library has version %u (%u bytes)",
                             name.c_str(), record->state_version, record->state_bytes, state_version_, state_bytes_);
    auto entry = std::make_shared<Entry>();
    entry->identity = entry->record = record;
    entry->name = name;
    return insert(std::move(entry), true);
}

Status ModuleRegistry::add_driver(void* module) {
    const cuda::Driver* driver = nullptr;
    EFA_TRY(cuda::driver_load(&driver));
    size_t bytes = 0;
    cuda::DevicePtr address = 0;
    if (const cuda::Result result = driver->module_get_global(&address, &bytes, static_cast<cuda::Module>(module), kLayoutSymbol))
        return cuda::driver_error(*driver, result, std::string("cuModuleGetGlobal of ") + kLayoutSymbol,
                                  "the program must include nvshmem_efa/module.cuh, and the module must be loaded");
    if (bytes != module_layout_bytes(state_version_, state_bytes_))
        return Status::error(Code::kMismatch, kBuildAgain,
                             "the module was compiled for device state version %zu (%zu bytes), this library has version %u (%u bytes)",
                             bytes / 4096, bytes % 4096, state_version_, state_bytes_);
    auto entry = std::make_shared<Entry>();
    entry->identity = module;
    char text[32];
    std::snprintf(text, sizeof text, "CUmodule %p", module);
    entry->name = text;
    Status status = insert(std::move(entry), false);
    if (!status.ok()) erase(module);
    return status;
}

bool ModuleRegistry::erase(const void* identity) {
    Lock lock(lock_);
    const auto at = std::find_if(entries_.begin(), entries_.end(), [=](const auto& entry) { return entry->identity == identity; });
    if (at == entries_.end()) return false;
    const std::shared_ptr<Entry> entry = *at;
    entries_.erase(at);
    if (!calm_.wait_for(lock, kBusyTimeout, [&entry] { return !entry->busy; }))
        EFA_LOG(kError, "module", "%s is unloaded while a thread still writes its %s; hint: look for a GPU that stands still",
                entry->name.c_str(), kSymbol);
    entry->identity = nullptr;
    return true;
}

void ModuleRegistry::remove(const nvshmem_efa_module* record) { erase(record); }

Status ModuleRegistry::remove_driver(void* module) {
    if (erase(module)) return Status();
    return Status::error(Code::kInvalidArgument, "give the CUmodule that was added", "no module %p was added", module);
}

void ModuleRegistry::settle_all(const char* occasion) {
    Lock lock(lock_);
    const Entries all = entries_;  // the list may change while the lock is given up
    for (const auto& entry : all) {
        if (Status status = settle(lock, *entry); !status.ok())
            EFA_LOG(kWarn, "module", "%s: %s", occasion, status.message());
    }
}

Status ModuleRegistry::publish(const void* state, MemoryKind posters) {
    std::shared_ptr<Writer> writer;
    if (posters == MemoryKind::kCuda) {
        writer = std::make_shared<Writer>();
        EFA_TRY(cuda::MarkedStream::create(sizeof(void*), &writer->stream));
    }
    withdraw();  // symbols of another GPU, or of posters of another kind
    {
        const Lock lock(lock_);
        state_ = state;
        posters_ = posters;
        writer_ = writer;
    }
    settle_all("no device state for a module");
    return Status();
}

void ModuleRegistry::withdraw() {
    {
        const Lock lock(lock_);
        if (!state_) return;
        state_ = nullptr;
    }
    settle_all("the device state's address stays in a module");
    const Lock lock(lock_);
    writer_.reset();
    for (const auto& entry : entries_) entry->shows = nullptr;  // a symbol that cannot be written has gone with its GPU
}

void ModuleRegistry::watch() {
    if (watching_) return;
    watching_ = true;
    std::thread([this] { retry(); }).detach();
}

// A module that was linked from several translation units with -rdc=true is known to CUDA's runtime only when its last
// constructor has run, and nothing of ours runs after that. So a thread tries again, right behind the loader.
void ModuleRegistry::retry() {
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(trial_ms_);
    while (true) {
        if (void* self = dlopen(nullptr, RTLD_LAZY | RTLD_NOLOAD)) dlclose(self);  // returns when no constructor runs any more
        Lock lock(lock_);
        const Entries all = entries_;
        std::string trouble;
        for (const auto& entry : all) {
            if (entry->trouble.empty()) continue;
            if (Status status = settle(lock, *entry); !status.ok()) trouble = status.message();
        }
        if (trouble.empty() || std::chrono::steady_clock::now() > end) {
            if (!trouble.empty()) EFA_LOG(kWarn, "module", "no device state for a module: %s", trouble.c_str());
            watching_ = false;
            calm_.notify_all();
            return;
        }
        lock.unlock();
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
}

std::string ModuleRegistry::json() {
    const Lock lock(lock_);
    std::string text = "[";
    for (const auto& entry : entries_) {
        const auto quoted = [](std::string value) {
            for (char& letter : value) {
                if (letter == '"' || letter == '\\' || static_cast<unsigned char>(letter) < ' ') letter = '\'';
            }
            return "\"" + value + "\"";
        };
        text += std::string(text.size() > 1 ? ", " : "") + "{\"name\": " + quoted(entry->name) +
                ", \"has_state\": " + (entry->shows ? "true" : "false") + ", \"trouble\": " + quoted(entry->trouble) + "}";
    }
    return text + "]";
}

}  // namespace nvshmem_efa
