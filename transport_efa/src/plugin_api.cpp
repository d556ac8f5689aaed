// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>

#include "log.h"
#include "nvshmem_efa/api.h"
#include "plugin.h"

namespace nvshmem_efa::plugin {

namespace {

// What the C API can see of the plugin. Guarded by its mutex; never touched on the data path.
struct Visible {
    std::mutex mutex;
    int error_code = 0;
    std::string error;
    PluginState* state = nullptr;  // the transport that is up
    bool has_stats = false;
    TransportStats stats;  // of the last one that went away
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

size_t copy_text(const std::string& from, char* text, size_t capacity) {
    if (text && capacity > 0) {
        const size_t length = std::min(from.size(), capacity - 1);
        std::memcpy(text, from.data(), length);
        text[length] = '\0';
    }
    return from.size();
}

}  // namespace

int report(const Status& status, const char* operation) noexcept {
    if (status.ok()) return abi::kHostOk;
    EFA_LOG(kError, "plugin", "%s: %s: %s", operation, code_name(status.code()), status.message());
    try {
        Visible& view = visible();
        const std::lock_guard<std::mutex> lock(view.mutex);
        view.error_code = static_cast<int>(status.code());
        view.error = std::string(operation) + ": " + status.message();
    } catch (...) {
        // No memory for the copy: the log line above has said it.
    }
    return host_status(status.code());
}

void publish_transport(PluginState* state) {
    Visible& view = visible();
    const std::lock_guard<std::mutex> lock(view.mutex);
    view.state = state;
    view.has_stats = true;
}

void withdraw_transport(PluginState* state) {
    Visible& view = visible();
    const std::lock_guard<std::mutex> lock(view.mutex);
    if (view.state != state) return;
    view.stats = state->transport->stats();
    view.state = nullptr;
}

}  // namespace nvshmem_efa::plugin

using nvshmem_efa::plugin::copy_text;
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
    const size_t full = copy_text(message, text, capacity);
    if (length) *length = full;
    return static_cast<int>(status.code());
} catch (...) {
    return static_cast<int>(nvshmem_efa::Code::kInternal);
}

int nvshmem_efa_last_error(char* text, size_t capacity) try {
    auto& view = visible();
    const std::lock_guard<std::mutex> lock(view.mutex);
    copy_text(view.error, text, capacity);
    return view.error_code;
} catch (...) {
    return static_cast<int>(nvshmem_efa::Code::kInternal);
}

size_t nvshmem_efa_describe(char* text, size_t capacity) try {
    auto& view = visible();
    const std::lock_guard<std::mutex> lock(view.mutex);
    if (!view.state) return copy_text("", text, capacity);
    return copy_text(std::string("mode ") + nvshmem_efa::mode_name(view.state->mode) + ", " +
                         view.state->transport->describe(),
                     text, capacity);
} catch (...) {
    return 0;
}

int nvshmem_efa_stats_get(nvshmem_efa_stats* stats) try {
    if (!stats || stats->struct_bytes < sizeof(uint64_t)) return 1;
    auto& view = visible();
    const std::lock_guard<std::mutex> lock(view.mutex);
    if (!view.has_stats) return 1;
    const nvshmem_efa::TransportStats from = view.state ? view.state->transport->stats() : view.stats;
    nvshmem_efa_stats full = {stats->struct_bytes, from.puts, from.gets, from.amos, from.signals,
                              from.bytes_put, from.bytes_got, from.work_requests, from.doorbells,
                              from.fence_waits, from.rnr_retries, from.agent_records, from.agent_immediates};
    std::memcpy(stats, &full, std::min<size_t>(sizeof full, stats->struct_bytes));
    return 0;
} catch (...) {
    return 1;
}
