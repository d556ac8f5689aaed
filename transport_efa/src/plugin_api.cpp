// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <iterator>

#include "log.h"
#include "nvshmem_efa/api.h"
#include "nvshmem_efa/device_state.h"
#include "plugin.h"
#include "soft_efa/stats.h"

namespace nvshmem_efa::plugin {

namespace {

// What the C API can see of the plugin. Guarded by its mutex; never touched on the data path.
struct Visible {
    std::mutex mutex;
    int error_code = 0;
    std::string error;
    PluginState* state = nullptr;  // the transport that is up
    std::string last_stats = "{}";  // of the last one that went away
};

Visible& visible() {
    static Visible* const instance = new Visible;  // outlives every static destructor that might still report
    return *instance;
}

int host_status(Code code) {
    switch (code) {
        case Code::kOk: return abi::kHostOk;
        case Code::kInvalidArgument:
        case Code::kUnregistered: return abi::kHostInvalidValue;
        case Code::kResource: return abi::kHostOutOfMemory;
        case Code::kUnsupported: return abi::kHostNotSupported;
        default: return abi::kHostInternal;
    }
}

std::string stats_json(const PluginState& state) {
    const TransportStats stats = state.transport->stats();
    std::string json = "{";
    const auto add = [&json](const char* name, uint64_t value) {
        json += (json.size() > 1 ? ", \"" : "\"") + std::string(name) + "\": " + std::to_string(value);
    };
    add("puts", stats.puts);
    add("gets", stats.gets);
    add("amos", stats.amos);
    add("signals", stats.signals);
    add("bytes_put", stats.bytes_put);
    add("bytes_got", stats.bytes_got);
    add("work_requests", stats.work_requests);
    add("doorbells", stats.doorbells);
    add("fence_waits", stats.fence_waits);
    add("rnr_retries", stats.rnr_retries);
    add("agent_records", stats.agent_records);
    add("agent_immediates", stats.agent_immediates);
    add("gpu_work_requests", stats.gpu_work_requests);
    if (state.mode == Mode::kSoft) {
        const soft::SoftStats device = soft::soft_stats();
        add("soft_work_requests", device.work_requests);
        add("soft_doorbells", device.doorbells);
        add("soft_packets_sent", device.packets_sent);
        add("soft_packets_received", device.packets_received);
        add("soft_out_of_order", device.out_of_order);
        add("soft_duplicates", device.duplicates);
        add("soft_delays", device.delays);
        add("soft_rnr", device.rnr);
        add("soft_bytes_placed", device.bytes_placed);
        add("soft_completions", device.completions);
    }
    return json + "}";
}

// What a C caller gets: text that is its thread's until the next call of the same function.
template <class Make>
const char* thread_text(std::string& text, Make make) noexcept {
    try {
        text = make();
        return text.c_str();
    } catch (...) {
        return "";
    }
}

}  // namespace

int report(const Status& status, const char* operation) noexcept {
    if (status.ok()) return abi::kHostOk;
    EFA_LOG(kError, "plugin", "%s: %s: %s", operation, code_name(status.code()), status.message());
    remember(status);
    return host_status(status.code());
}

void remember(const Status& status) noexcept {
    if (status.ok()) return;
    try {
        Visible& view = visible();
        const std::lock_guard<std::mutex> lock(view.mutex);
        view.error_code = static_cast<int>(status.code());
        view.error = status.message();
    } catch (...) {
        // No memory for the copy; its number is all that the caller gets.
    }
}

void publish_transport(PluginState* state) {
    Visible& view = visible();
    const std::lock_guard<std::mutex> lock(view.mutex);
    view.state = state;
}

void withdraw_transport(PluginState* state) {
    Visible& view = visible();
    const std::lock_guard<std::mutex> lock(view.mutex);
    if (view.state != state) return;
    view.last_stats = stats_json(*state);
    view.state = nullptr;
}

}  // namespace nvshmem_efa::plugin

using nvshmem_efa::plugin::thread_text;
using nvshmem_efa::plugin::visible;

const char* nvshmem_efa_version(void) { return NVSHMEM_EFA_VERSION; }

int nvshmem_efa_abi_list(int* numbers, int capacity) {
    const int count = static_cast<int>(std::size(nvshmem_efa::abi::kAbiNumbers));
    for (int i = 0; numbers && i < std::min(count, capacity); ++i) numbers[i] = nvshmem_efa::abi::kAbiNumbers[i];
    return count;
}

int nvshmem_efa_knob_count(void) try { return static_cast<int>(nvshmem_efa::knob_table().size()); } catch (...) {
    return 0;
}

int nvshmem_efa_knob_get(int index, nvshmem_efa_knob* knob) try {
    const auto& table = nvshmem_efa::knob_table();
    if (!knob || index < 0 || static_cast<size_t>(index) >= table.size()) return 1;
    const auto& info = table[static_cast<size_t>(index)];
    *knob = {info.name, info.type, info.default_value, info.range, info.doc};
    return 0;
} catch (...) {
    return 1;
}

int nvshmem_efa_check_settings(char* text, size_t capacity, size_t* length) try {
    nvshmem_efa::Knobs parsed;
    std::vector<std::string> warnings;
    const nvshmem_efa::Status status = nvshmem_efa::parse_knobs(nullptr, &parsed, &warnings);
    std::string message = status.ok() ? "" : status.message();
    for (const std::string& warning : warnings) message += (message.empty() ? "warning: " : "\nwarning: ") + warning;
    if (text && capacity > 0) {
        text[message.copy(text, capacity - 1)] = '\0';
    }
    if (length) *length = message.size();
    return static_cast<int>(status.code());
} catch (...) {
    return static_cast<int>(nvshmem_efa::Code::kInternal);
}

const char* nvshmem_efa_last_error(int* code) {
    thread_local std::string text;
    if (code) *code = 0;
    return thread_text(text, [code] {
        auto& view = visible();
        const std::lock_guard<std::mutex> lock(view.mutex);
        if (code) *code = view.error_code;
        return view.error;
    });
}

const char* nvshmem_efa_describe(void) {
    thread_local std::string text;
    return thread_text(text, [] {
        auto& view = visible();
        const std::lock_guard<std::mutex> lock(view.mutex);
        if (!view.state) return std::string();
        return std::string("mode ") + nvshmem_efa::mode_name(view.state->mode) + ", " + view.state->transport->describe();
    });
}

int nvshmem_efa_device_state(void** at_posters, uint32_t* version, size_t* bytes) try {
    using namespace nvshmem_efa;
    if (version) *version = kDeviceStateVersion;
    if (bytes) *bytes = sizeof(DeviceState);
    if (!at_posters) return static_cast<int>(Code::kInvalidArgument);
    *at_posters = nullptr;
    auto& view = visible();
    Status status;
    {
        const std::lock_guard<std::mutex> lock(view.mutex);
        const void* state = nullptr;
        status = view.state ? view.state->transport->device_state(&state)
                            : Status::error(Code::kMissing, "initialize NVSHMEM with NVSHMEM_REMOTE_TRANSPORT=efa first",
                                            "there is no device state: no transport is up in this process");
        *at_posters = const_cast<void*>(state);
    }
    plugin::remember(status);
    return static_cast<int>(status.code());
} catch (...) {
    return static_cast<int>(nvshmem_efa::Code::kInternal);
}

const char* nvshmem_efa_stats_json(void) {
    thread_local std::string text;
    return thread_text(text, [] {
        auto& view = visible();
        const std::lock_guard<std::mutex> lock(view.mutex);
        return view.state ? nvshmem_efa::plugin::stats_json(*view.state) : view.last_stats;
    });
}
