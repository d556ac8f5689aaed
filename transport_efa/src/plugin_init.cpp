// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>
#include <cstring>
#include <deque>

#include "fallback.h"
#include "module_registry.h"
#include "nvshmem_efa/api.h"
#include "nvshmem_locate.h"
#include "plugin_table.h"
#include "start_line.h"

namespace nvshmem_efa::plugin {

namespace {

constexpr size_t kStructBytes = 2 * abi::kTransportBytesMin;  // room for fields that later minor versions append

struct FreeStruct {
    void operator()(void* memory) const { std::free(memory); }
};
using StructMemory = std::unique_ptr<void, FreeStruct>;

// What is alive behind structs that hosts hold. Not on the data path.
struct Live {
    struct Own {
        StructMemory memory;
        std::unique_ptr<PluginState> state;
    };
    struct Stock {
        void* transport = nullptr;
        void (*original)() = nullptr;  // its connect_endpoints
        FallbackChoice choice;
        int abi = 0;
    };
    std::mutex mutex;
    std::vector<Own> own;
    std::vector<Stock> stock;
    std::deque<StructMemory> retired;  // a host may look at a struct after finalize; the newest few are kept
};
constexpr size_t kRetiredMax = 16;

Live& live() {
    static Live* const instance = new Live;  // hosts may finalize after static destructors ran
    return *instance;
}

template <class Entry, class Struct>
void* host_struct(PluginState* state, StructMemory memory, int api_version, std::unique_ptr<PluginState> owned) {
    Struct* const t = static_cast<Struct*>(memory.get());
    Entry::fill(t, state, api_version);
    const std::lock_guard<std::mutex> lock(live().mutex);
    live().own.push_back({std::move(memory), std::move(owned)});
    return t;
}

Status start_own(ModeDecision decision, int api_version, void** transport) {
    auto owned = std::make_unique<PluginState>();
    PluginState* const state = owned.get();
    state->mode = decision.mode;
    state->abi = abi::abi_number(api_version);
    state->pci_path = decision.nics.front()->info().pci_path;
    state->pci_paths[0] = state->pci_path.data();
    TransportOptions options;
    options.knobs = knobs();
    options.knobs.mode = mode_name(decision.mode);
    options.nics = std::move(decision.nics);
    EFA_TRY(plugin_sources().create(std::move(options), &state->transport));
    StructMemory memory(std::calloc(1, kStructBytes));
    if (!memory) return Status::error(Code::kResource, nullptr, "out of memory");
    publish_transport(state);
    if (state->abi == 3) {
        *transport = host_struct<Entry3, abi::v3::Transport>(state, std::move(memory), api_version, std::move(owned));
    } else if (state->abi < 6) {
        *transport = host_struct<Entry4, abi::v4::Transport>(state, std::move(memory), api_version, std::move(owned));
    } else {
        *transport = host_struct<Entry6, abi::v6::Transport>(state, std::move(memory), api_version, std::move(owned));
    }
    return Status();
}

Live::Stock take_stock(void* transport) {
    Live& all = live();
    const std::lock_guard<std::mutex> lock(all.mutex);
    for (size_t i = 0; i < all.stock.size(); ++i) {
        if (all.stock[i].transport != transport) continue;
        Live::Stock stock = all.stock[i];
        all.stock.erase(all.stock.begin() + static_cast<ptrdiff_t>(i));
        return stock;
    }
    return {};
}

// Stands in for the stock plugin's connect_endpoints once: the first moment at which PEs can talk. Then it is gone.
template <class Struct, class... Args>
int connect_stock(Struct* t, Args... args) {
    const Live::Stock stock = take_stock(t);
    using Original = int (*)(Struct*, Args...);
    const Original original = reinterpret_cast<Original>(stock.original);
    if (!original) return abi::kHostInternal;
    t->host_ops.connect_endpoints = original;
    const int agreed = guarded("connect_endpoints", [&] {
        log_set_pe(t->my_pe);
        EFA_TRY(agree_on_mode(Mode::kFallback, stock.choice.name, stock.abi, t->boot_handle));
        if (t->my_pe == 0) {
            const StartFacts facts{"fallback to " + stock.choice.name, stock.choice.path, t->n_pes, stock.abi,
                                   nvshmem_version()};
            EFA_LOG(kInfo, "start", "%s", start_line(facts).c_str());
        }
        return Status();
    });
    return agreed != 0 ? agreed : original(t, args...);
}

template <class Struct>
void hook_connect(Live::Stock stock) {
    Struct* const t = static_cast<Struct*>(stock.transport);
    stock.original = reinterpret_cast<void (*)()>(t->host_ops.connect_endpoints);
    if (!stock.original) return;
    {
        const std::lock_guard<std::mutex> lock(live().mutex);
        live().stock.push_back(stock);
    }
    t->host_ops.connect_endpoints = connect_stock<Struct>;
}

Status start_fallback(const std::string& why, void* cuda_table, int api_version, void** transport) {
    const std::string context = "no EFA (" + why + ")";
    FallbackRequest request;
    EFA_TRY(parse_fallback_names(knobs().fallback, &request.names));
    EFA_TRY(find_nvshmem_lib_dir(knobs().nvshmem_home, &request.lib_dir).with_context(context));
    request.cuda_table = cuda_table;
    request.api_version = api_version;
    request.sysfs = plugin_sources().mode.sysfs;
    request.dev = plugin_sources().dev;
    Live::Stock stock;
    EFA_TRY(load_fallback(request, &stock.choice).with_context(context));
    stock.transport = stock.choice.transport;
    stock.abi = abi::abi_number(api_version);
    if (stock.abi == 3) {
        hook_connect<abi::v3::Transport>(stock);
    } else if (stock.abi < 6) {
        hook_connect<abi::v4::Transport>(stock);
    } else {
        hook_connect<abi::v6::Transport>(stock);
    }
    *transport = stock.transport;
    return Status();
}

Status init(void** transport, void* cuda_table, int api_version) {
    if (!transport) return Status::error(Code::kInvalidArgument, nullptr, "called with nowhere to put the transport");
    *transport = nullptr;
    const int abi_number = abi::abi_number(api_version);
    if (abi_number < abi::kAbiNumbers[0] || abi_number > abi::kAbiNumbers[std::size(abi::kAbiNumbers) - 1]) {
        return Status::error(Code::kUnsupported, "use NVSHMEM 3.2 to 3.8, or a nvshmem-efa that knows this version",
                             "NVSHMEM asks for plugin ABI %d (api_version %d); nvshmem-efa " NVSHMEM_EFA_VERSION
                             " serves 3 to 7",
                             abi_number, api_version);
    }
    EFA_TRY(load_knobs());
    ModeDecision decision;
    EFA_TRY(decide_mode(knobs(), plugin_sources().mode, &decision));
    if (decision.mode == Mode::kFallback) return start_fallback(decision.why, cuda_table, api_version, transport);
    return start_own(std::move(decision), api_version, transport);
}

}  // namespace

PluginSources& plugin_sources() {
    static PluginSources* const instance = new PluginSources;
    return *instance;
}

void retire(PluginState* state) {
    if (state->has_published_state) module_registry_withdraw();
    withdraw_transport(state);
    EFA_LOG(kDebug, "stats", "%s", nvshmem_efa_stats_json());
    Live::Own gone;
    {
        Live& all = live();
        const std::lock_guard<std::mutex> lock(all.mutex);
        for (size_t i = 0; i < all.own.size(); ++i) {
            if (all.own[i].state.get() != state) continue;
            gone = std::move(all.own[i]);
            all.own.erase(all.own.begin() + static_cast<ptrdiff_t>(i));
            break;
        }
        all.retired.push_back(std::move(gone.memory));
        if (all.retired.size() > kRetiredMax) all.retired.pop_front();
    }
    // Here, outside the lock, `gone` ends the transport: it joins the agent's thread.
}

}  // namespace nvshmem_efa::plugin

int nvshmem_efa_plugin_init(void** transport, void* cuda_table, int api_version) noexcept {
    using namespace nvshmem_efa::plugin;
    return guarded("nvshmemt_init", [&] { return init(transport, cuda_table, api_version); });
}
