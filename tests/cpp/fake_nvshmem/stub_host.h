// SPDX-License-Identifier: Apache-2.0
// The host library's side of the plugin ABI, as far as the tests need it: settings in the environment, init, the fields
// that the host fills, a bootstrap of PEs that are not there.
#pragma once

#include <cstdlib>
#include <initializer_list>

#include "abi/abi3.h"
#include "abi/abi4.h"
#include "abi/abi6.h"
#include "check.h"
#include "fake_nvshmem/recording_transport.h"

extern char** environ;

namespace fake {

// The environment holds these NVSHMEM_EFA_* settings and no others.
inline void settings(std::initializer_list<std::pair<const char*, const char*>> values) {
    std::vector<std::string> old;
    for (char** entry = environ; *entry; ++entry) {
        if (!std::strncmp(*entry, "NVSHMEM_", 8)) old.emplace_back(*entry, std::strcspn(*entry, "="));
    }
    for (const std::string& name : old) unsetenv(name.c_str());
    for (const auto& [name, value] : values) setenv(name, value, 1);
}

// Gives every PE this PE's contribution, changed by `alter`.
struct StubBootstrap {
    abi::BootstrapHandle handle{};
    int allgathers = 0, barriers = 0;
    int fails_at = -1;  // the allgather with this number returns 5
    std::function<void(int pe, void* contribution, int bytes)> alter;

    StubBootstrap(int rank, int size) {
        handle.pg_rank = rank;
        handle.pg_size = size;
        handle.comm_state = this;
        handle.allgather = [](const void* send, void* recv, int bytes, abi::BootstrapHandle* h) {
            StubBootstrap& self = *static_cast<StubBootstrap*>(h->comm_state);
            if (self.allgathers++ == self.fails_at) return 5;
            for (int pe = 0; pe < h->pg_size; ++pe) {
                char* const out = static_cast<char*>(recv) + static_cast<ptrdiff_t>(pe) * bytes;
                std::memcpy(out, send, static_cast<size_t>(bytes));
                if (self.alter && pe != h->pg_rank) self.alter(pe, out, bytes);
            }
            return 0;
        };
        handle.barrier = [](abi::BootstrapHandle* h) {
            ++static_cast<StubBootstrap*>(h->comm_state)->barriers;
            return 0;
        };
    }
};

struct V3 {
    using Struct = abi::v3::Transport;
    using Verb = abi::AmoVerb3;
    static constexpr int kAbi = 3;
};
template <int N>
struct V4 {
    using Struct = abi::v4::Transport;
    using Verb = abi::AmoVerb3;
    static constexpr int kAbi = N;
};
template <int N>
struct V6 {
    using Struct = abi::v6::Transport;
    using Verb = abi::AmoVerb6;
    static constexpr int kAbi = N;
};

// PE 1 of 4 over a recording transport, connected.
template <class V>
struct StubHost {
    Recorded recorded;
    StubBootstrap boot{1, 4};
    typename V::Struct* t = nullptr;

    explicit StubHost(bool connects = true) {
        settings({{"NVSHMEM_EFA_MODE", "proxy"}, {"NVSHMEM_EFA_LOG_LEVEL", "error"}});
        plugin::PluginSources& sources = plugin::plugin_sources();
        sources.mode.open_verbs = opens("fake0");
        sources.create = [this](TransportOptions options, std::unique_ptr<Transport>* transport) {
            recorded.mode = options.knobs.mode;
            recorded.nics = options.nics.size();
            *transport = std::make_unique<RecordingTransport>(recorded);
            return Status();
        };
        void* out = nullptr;
        CHECK_EQ(nvshmem_efa_plugin_init(&out, nullptr, V::kAbi * 10000), 0);
        t = static_cast<typename V::Struct*>(out);
        CHECK(t != nullptr);
        t->boot_handle = &boot.handle;
        t->my_pe = 1;
        t->n_pes = 4;
        t->index = 1;
        if (connects) CHECK_EQ(connect(), 0);
        recorded.registered.clear();  // the plugin's own scratch memory; tests count theirs
    }
    ~StubHost() { finalize(); }
    StubHost(const StubHost&) = delete;
    StubHost& operator=(const StubHost&) = delete;

    int connect() {
        int device = 0;
        if constexpr (V::kAbi == 3) {
            return t->host_ops.connect_endpoints(t, &device, 1);
        } else {
            return t->host_ops.connect_endpoints(t, &device, 1, nullptr, 0);
        }
    }
    int finalize() {
        typename V::Struct* const ended = std::exchange(t, nullptr);
        return ended ? ended->host_ops.finalize(ended) : 0;
    }
    abi::MemHandleBytes handle(void* buffer, size_t bytes, bool local_only = false) {
        abi::MemHandleBytes made{};
        CHECK_EQ(t->host_ops.get_mem_handle(&made, buffer, bytes, t, local_only), 0);
        return made;
    }
};

// Runs `body.template operator()<V>()` for every ABI.
template <class Body>
void for_every_abi(Body body) {
    body.template operator()<V3>();
    body.template operator()<V4<4>>();
    body.template operator()<V4<5>>();
    body.template operator()<V6<6>>();
    body.template operator()<V6<7>>();
}

}  // namespace fake
