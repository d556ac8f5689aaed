// SPDX-License-Identifier: Apache-2.0
#include "plugin_port.h"

#include <dlfcn.h>

#include <algorithm>
#include <iterator>

#include "abi/abi3.h"
#include "abi/abi4.h"
#include "abi/abi6.h"

namespace nvshmem_efa::pe {
namespace {

constexpr size_t kCudaTableBytes = 4096;
// Of our own plugin (nvshmem_efa/api.h); another one does without.
constexpr const char* kStatsName = "nvshmem_efa_stats_json";
constexpr const char* kDescribeName = "nvshmem_efa_describe";
constexpr const char* kLastErrorName = "nvshmem_efa_last_error";

// The loaded file; closed last.
struct Library {
    void* handle = nullptr;
    std::string path;
    int api_version = 0;
    Library() = default;
    Library(const Library&) = delete;
    Library& operator=(const Library&) = delete;
    ~Library() {
        if (handle) dlclose(handle);
    }
    // The host library sees a number and exits; the plugin has logged why, and says it again if it is ours.
    Status explain(Code otherwise, int rc, const std::string& what) const {
        int code = 0;
        const auto last_error = symbol<const char* (*)(int*)>(kLastErrorName);
        const char* text = last_error ? last_error(&code) : nullptr;
        if (text && text[0] && code)
            return Status::error(static_cast<Code>(code), nullptr, "%s: %s", what.c_str(), text);
        return Status::error(otherwise, "the plugin's log line above names the cause",
                             "%s: the plugin answered status %d", what.c_str(), rc);
    }
    template <class Function>
    Function symbol(const char* name) const {
        return reinterpret_cast<Function>(dlsym(handle, name));
    }
};

template <class Transport, class AmoVerb>
class Port final : public PluginPort {
   public:
    Port(std::shared_ptr<Library> library, Transport* transport) : library_(std::move(library)), t_(transport) {}
    ~Port() override {
        if (t_) (void)finalize();
    }

    void share(const HostFields& fields) override {
        t_->boot_handle = fields.boot_handle;
        t_->heap_base = fields.heap_base;
        t_->log2_cumem_granularity = fields.log2_cumem_granularity;
        t_->cap = fields.cap;
        t_->index = kTransportIndex;
        t_->my_pe = fields.my_pe;
        t_->n_pes = fields.n_pes;
    }
    int n_devices() const override { return t_->n_devices; }
    bool has_put_signal() const override { return kHasPutSignal; }
    uint64_t max_op_bytes() const override { return t_->max_op_len; }

    Status check_complete() const {
        const auto& ops = t_->host_ops;
        bool complete = ops.can_reach_peer && ops.connect_endpoints && ops.get_mem_handle && ops.release_mem_handle &&
                        ops.finalize && ops.show_info && ops.rma && ops.amo && ops.quiet;
        if constexpr (kHasPutSignal) complete = complete && ops.put_signal;
        if (!complete)
            return Status::error(Code::kInternal, "the plugin does not fit this ABI",
                                 "%s leaves entries empty that NVSHMEM calls", library_->path.c_str());
        if (t_->attr != abi::kAttrConnected || t_->api_version != library_->api_version)
            return Status::error(Code::kInternal, "the plugin does not fit this ABI",
                                 "%s answers attr %d, api_version %d to version %d", library_->path.c_str(), t_->attr,
                                 t_->api_version, library_->api_version);
        return Status();
    }

    Status can_reach_peer(abi::PeInfo* peer, int* access) override {
        return answer(t_->host_ops.can_reach_peer(access, peer, t_), "can_reach_peer", peer->pe);
    }
    Status connect_endpoints(std::vector<int>& devices) override {
        const int n = static_cast<int>(devices.size());
        if constexpr (kHasPutSignal) {
            return answer(t_->host_ops.connect_endpoints(t_, devices.data(), n, nullptr, 0), "connect_endpoints", -1);
        } else {
            return answer(t_->host_ops.connect_endpoints(t_, devices.data(), n), "connect_endpoints", -1);
        }
    }
    Status get_mem_handle(abi::MemHandleBytes* handle, void* buffer, size_t bytes, bool local_only) override {
        return answer(t_->host_ops.get_mem_handle(handle, buffer, bytes, t_, local_only), "get_mem_handle", -1);
    }
    Status release_mem_handle(abi::MemHandleBytes* handle) override {
        return answer(t_->host_ops.release_mem_handle(handle, t_), "release_mem_handle", -1);
    }
    Status add_remote_handles(abi::MemHandleBytes* handles, uint64_t heap_offset, size_t bytes) override {
        const auto add = t_->host_ops.add_device_remote_mem_handles;
        if (!add) return Status();
        return answer(add(t_, kTransportStride, handles, heap_offset, bytes), "add_device_remote_mem_handles", -1);
    }
    Status show_info() override { return answer(t_->host_ops.show_info(t_, 0), "show_info", -1); }
    Status finalize() override {
        Transport* transport = t_;
        t_ = nullptr;  // the plugin frees the struct
        return answer(transport->host_ops.finalize(transport), "finalize", -1);
    }

    Status progress() override {
        return t_->host_ops.progress ? answer(t_->host_ops.progress(t_), "progress", -1) : Status();
    }
    Status rma(Caller caller, RmaCall& call) override {
        const int rc = t_->host_ops.rma(t_, call.pe, verb_of(call), &call.remote, &call.local, bytes_of(call),
                                        static_cast<int>(caller));
        return answer(rc, call.opcode == abi::kOpPut || call.opcode == abi::kOpP ? "put" : "get", call.pe);
    }
    Status amo(Caller caller, AmoCall& call) override {
        const abi::AmoBytesdesc bytes{0, call.bytes};
        const int rc =
            t_->host_ops.amo(t_, call.pe, nullptr, verb_of(call), &call.target, bytes, static_cast<int>(caller));
        return answer(rc, "atomic", call.pe);
    }
    Status fence(Caller caller, int pe) override {
        if (!t_->host_ops.fence) return Status();
        if constexpr (kHasPutSignal) {
            return answer(t_->host_ops.fence(t_, pe, static_cast<int>(caller), 0), "fence", pe);
        } else {
            return answer(t_->host_ops.fence(t_, pe, static_cast<int>(caller)), "fence", pe);
        }
    }
    Status quiet(Caller caller, int pe) override {
        return answer(t_->host_ops.quiet(t_, pe, static_cast<int>(caller)), "quiet", pe);
    }
    Status put_signal(Caller caller, std::vector<RmaCall>& puts, AmoCall& signal) override {
        if constexpr (kHasPutSignal) {
            std::vector<abi::RmaMemdesc> remote, local;
            std::vector<abi::RmaBytesdesc> bytes;
            for (const RmaCall& put : puts) {
                remote.push_back(put.remote);
                local.push_back(put.local);
                bytes.push_back(bytes_of(put));
            }
            const abi::RmaVerb verb{abi::kOpPutSignal, 1, 0, nullptr};
            const abi::AmoBytesdesc signal_bytes{0, signal.bytes};
            const int rc = t_->host_ops.put_signal(t_, signal.pe, verb, remote, local, bytes, verb_of(signal),
                                                   &signal.target, signal_bytes, static_cast<int>(caller));
            return answer(rc, "put_signal", signal.pe);
        } else {
            (void)caller, (void)puts, (void)signal;
            return Status::error(Code::kUnsupported, nullptr, "plugin ABI 3 has no put_signal");
        }
    }

    std::string describe() const override {
        const auto describe = library_->symbol<const char* (*)()>(kDescribeName);
        return describe ? describe() : "";
    }
    std::string stats_json() const override {
        const auto stats = library_->symbol<const char* (*)()>(kStatsName);
        const char* text = stats ? stats() : nullptr;
        return text && text[0] == '{' ? text : "null";
    }
    const std::string& path() const override { return library_->path; }
    int api_version() const override { return library_->api_version; }

   private:
    static constexpr bool kHasPutSignal = requires(Transport* t) { t->host_ops.put_signal; };

    static abi::RmaVerb verb_of(const RmaCall& call) { return {call.opcode, call.is_nbi, 0, nullptr}; }
    static abi::RmaBytesdesc bytes_of(const RmaCall& call) {
        const bool is_put = call.opcode != abi::kOpGet && call.opcode != abi::kOpG;
        return {call.n_elements, call.element_bytes, is_put ? call.local_stride : call.remote_stride,
                is_put ? call.remote_stride : call.local_stride};
    }
    static AmoVerb verb_of(const AmoCall& call) {
        AmoVerb verb{};
        verb.desc = call.opcode;
        verb.is_fetch = call.opcode >= abi::kAmoFetch;
        verb.has_value =
            call.opcode != abi::kAmoFetch && call.opcode != abi::kAmoInc && call.opcode != abi::kAmoFetchInc;
        verb.has_compare = call.opcode == abi::kAmoCompareSwap;
        if constexpr (requires { verb.is_float; }) verb.is_float = call.is_float;
        return verb;
    }

    Status answer(int rc, const char* what, int pe) const {
        if (rc == 0) return Status();
        return library_->explain(Code::kDevice, rc, pe < 0 ? what : what + (" (PE " + std::to_string(pe) + ")"));
    }

    std::shared_ptr<Library> library_;
    Transport* t_;
};

template <class Transport, class AmoVerb>
Status make_port(std::shared_ptr<Library> library, void* transport, std::unique_ptr<PluginPort>* port) {
    auto made = std::make_unique<Port<Transport, AmoVerb>>(std::move(library), static_cast<Transport*>(transport));
    if (Status status = made->check_complete(); !status.ok()) {
        (void)made.release();  // its entries cannot be trusted: neither called nor unloaded
        return status;
    }
    *port = std::move(made);
    return Status();
}

}  // namespace

Status PluginPort::load(const std::string& path, int abi_number, std::unique_ptr<PluginPort>* port) {
    if (std::find(std::begin(abi::kAbiNumbers), std::end(abi::kAbiNumbers), abi_number) == std::end(abi::kAbiNumbers))
        return Status::error(Code::kInvalidArgument, "use 3, 4, 5, 6 or 7", "plugin ABI %d is not known", abi_number);
    auto library = std::make_shared<Library>();
    library->path = path;
    library->api_version = abi_number * 10000;
    library->handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library->handle)
        return Status::error(Code::kMissing, "pass the file with --plugin", "cannot load the plugin: %s", dlerror());
    const auto init = library->symbol<abi::InitFn>(abi::kInitName);
    if (!init)
        return Status::error(Code::kMissing, "this is no NVSHMEM transport", "%s exports no %s", path.c_str(),
                             abi::kInitName);
    // The plugin must not use the table, whose layout differs between versions: it gets nulls.
    static uint64_t cuda_table[kCudaTableBytes / sizeof(uint64_t)];
    void* transport = nullptr;
    const int rc = init(&transport, cuda_table, library->api_version);
    if (rc != 0 || !transport) return library->explain(Code::kMissing, rc, path + " does not start");
    if (abi_number == 3) return make_port<abi::v3::Transport, abi::v3::AmoVerb>(std::move(library), transport, port);
    if (abi_number <= 5) return make_port<abi::v4::Transport, abi::v4::AmoVerb>(std::move(library), transport, port);
    return make_port<abi::v6::Transport, abi::v6::AmoVerb>(std::move(library), transport, port);
}

}  // namespace nvshmem_efa::pe
