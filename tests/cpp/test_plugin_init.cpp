// SPDX-License-Identifier: Apache-2.0
// Init, connect and finalize as the host library does them; every way in which they can fail has a name.
#include <unistd.h>

#include <fstream>

#include "fake_nvshmem/stub_host.h"
#include "nvshmem_efa/api.h"

using namespace fake;

namespace {

int init(int api_version, void** out) {
    *out = &api_version;  // must be overwritten
    return nvshmem_efa_plugin_init(out, nullptr, api_version);
}

bool last_error_has(const char* part) { return std::strstr(nvshmem_efa_last_error(nullptr), part) != nullptr; }

// Runs `body` with the log in a file, and gives the file's lines.
template <class Body>
std::vector<std::string> logged(Body body) {
    char path[] = "/tmp/nvshmem-efa-test-XXXXXX";
    const int fd = mkstemp(path);
    CHECK(fd >= 0);
    close(fd);
    setenv("NVSHMEM_EFA_LOG_FILE", path, 1);
    unsetenv("NVSHMEM_EFA_LOG_LEVEL");
    body();
    std::ifstream file(path);
    std::vector<std::string> lines;
    for (std::string line; std::getline(file, line);) lines.push_back(line);
    unlink(path);
    return lines;
}

template <class Struct>
Struct* init_again(Recorded& recorded, StubBootstrap& boot, int api_version) {
    plugin::plugin_sources().create = [&recorded](TransportOptions, std::unique_ptr<Transport>* transport) {
        *transport = std::make_unique<RecordingTransport>(recorded);
        return Status();
    };
    plugin::plugin_sources().mode.open_verbs = opens("fake0");
    void* out = nullptr;
    CHECK_EQ(init(api_version, &out), 0);
    Struct* const t = static_cast<Struct*>(out);
    t->boot_handle = &boot.handle;
    t->my_pe = boot.handle.pg_rank;
    t->n_pes = boot.handle.pg_size;
    return t;
}

}  // namespace

TEST(an_abi_that_we_do_not_serve_is_refused_by_number) {
    settings({});
    void* out = nullptr;
    for (const int api_version : {0, 20000, 29999, 80000, 990000, -10000}) {
        CHECK_EQ(init(api_version, &out), 3);
        CHECK(out == nullptr);
        CHECK(last_error_has(("api_version " + std::to_string(api_version)).c_str()));
        CHECK(last_error_has("serves 3 to 7"));
    }
}

TEST(minor_versions_of_an_abi_are_served) {
    Recorded recorded;
    settings({{"NVSHMEM_EFA_MODE", "proxy"}});
    StubBootstrap boot(0, 1);
    auto* t = init_again<abi::v3::Transport>(recorded, boot, 30007);
    CHECK_EQ(t->api_version, 30007);
    CHECK_EQ(t->host_ops.finalize(t), 0);
}

TEST(a_wrong_setting_fails_init_by_name) {
    settings({{"NVSHMEM_EFA_TIMEOUT_MS", "soon"}});
    void* out = nullptr;
    CHECK(init(30000, &out) != 0);
    CHECK(out == nullptr);
    int code = 0;
    CHECK(std::strstr(nvshmem_efa_last_error(&code), "NVSHMEM_EFA_TIMEOUT_MS"));
    CHECK_EQ(code, static_cast<int>(Code::kConfig));
}

TEST(what_the_transport_lacks_fails_init_and_leaves_nothing) {
    settings({{"NVSHMEM_EFA_MODE", "proxy"}});
    plugin::plugin_sources().mode.open_verbs = opens("fake0");
    plugin::plugin_sources().create = [](TransportOptions, std::unique_ptr<Transport>*) {
        return Status::error(Code::kUnsupported, "p5", "no RDMA write");
    };
    void* out = nullptr;
    CHECK_EQ(init(70000, &out), 3);
    CHECK(out == nullptr && last_error_has("no RDMA write"));
    plugin::plugin_sources().create = [](TransportOptions, std::unique_ptr<Transport>*) -> Status {
        throw std::bad_alloc();
    };
    CHECK_EQ(init(70000, &out), 2);
    CHECK(out == nullptr && last_error_has("out of memory"));
}

TEST(the_transport_is_told_the_mode_that_was_decided) {
    for_every_abi([]<class V>() {
        StubHost<V> host;
        CHECK_EQ(host.recorded.mode, "proxy");
        CHECK_EQ(host.recorded.nics, 1u);
    });
}

TEST(connect_agrees_on_the_mode_first_and_then_connects) {
    for_every_abi([]<class V>() {
        StubHost<V> host;
        CHECK_EQ(host.boot.allgathers, 2);  // the mode, the fake transport's own
        CHECK_EQ(host.boot.barriers, 1);
        CHECK_EQ(host.recorded.connected, 1);
    });
}

TEST(pes_in_different_modes_or_versions_are_told_so) {
    for_every_abi([]<class V>() {
        StubHost<V> host(false);
        const auto alter = [&host](int offset, const char* text) {
            host.boot.alter = [offset, text](int pe, void* bytes, int) {
                if (pe == 3) std::strcpy(static_cast<char*>(bytes) + offset, text);
            };
            CHECK(host.connect() != 0);
        };
        alter(16, "soft");
        CHECK(last_error_has("PE 3 is in mode soft") && last_error_has("PE 1 in mode proxy"));
        alter(48, "9.9.9");
        CHECK(last_error_has("PE 3 runs nvshmem-efa 9.9.9"));
        alter(0, "junk");
        CHECK(last_error_has("PE 3 does not run this nvshmem-efa"));
        CHECK_EQ(host.recorded.connected, 0);
    });
}

TEST(a_bootstrap_that_fails_or_is_missing_is_named) {
    StubHost<V3> host(false);
    host.boot.fails_at = 0;
    CHECK(host.connect() != 0);
    CHECK(last_error_has("bootstrap failed an allgather of 64 bytes on PE 1 (it returned 5)"));
    host.t->my_pe = 2;
    CHECK(host.connect() != 0);
    CHECK(last_error_has("the host says PE 2 of 4, its bootstrap 1 of 4"));
    host.t->boot_handle = nullptr;
    CHECK(host.connect() != 0);
    CHECK(last_error_has("without a usable bootstrap"));
}

TEST(an_operation_before_connect_is_refused) {
    StubHost<V4<4>> host(false);
    CHECK_EQ(host.t->host_ops.quiet(host.t, 0, 1), 1);
    CHECK(last_error_has("before connect_endpoints"));
}

TEST(finalize_ends_the_transport_once_and_init_works_again) {
    for_every_abi([]<class V>() {
        Recorded recorded;
        settings({{"NVSHMEM_EFA_MODE", "proxy"}, {"NVSHMEM_EFA_LOG_LEVEL", "error"}});
        StubBootstrap boot(0, 2);
        for (int round = 1; round <= 40; ++round) {
            auto* t = init_again<typename V::Struct>(recorded, boot, V::kAbi * 10000);
            CHECK_EQ(recorded.created, round);
            CHECK(nvshmem_efa_describe() == std::string("mode proxy, recording rails"));
            CHECK_EQ(t->host_ops.finalize(t), 0);
            CHECK_EQ(recorded.destroyed, round);
            CHECK_EQ(t->host_ops.finalize(t), 0);  // the struct may still be looked at; nothing more happens
            CHECK_EQ(recorded.destroyed, round);
            CHECK_EQ(std::string(nvshmem_efa_describe()), "");
        }
    });
}

TEST(counters_are_json_and_outlive_the_transport) {
    {
        StubHost<V3> host;
        CHECK(std::strstr(nvshmem_efa_stats_json(), "{\"puts\": 0, \"gets\": 0"));
        unsigned char byte = 0;
        abi::MemHandleBytes handle = host.handle(&byte, 1);
        abi::RmaMemdesc desc{&byte, 0, &handle};
        CHECK_EQ(host.t->host_ops.rma(host.t, 0, {1, 0, 0, nullptr}, &desc, &desc, {1, 1, 1, 1}, 1), 0);
        CHECK(std::strstr(nvshmem_efa_stats_json(), "\"puts\": 1,"));
    }
    CHECK(std::strstr(nvshmem_efa_stats_json(), "\"puts\": 1,"));
    CHECK(!std::strstr(nvshmem_efa_stats_json(), "soft_"));
}

TEST(pe_0_logs_one_start_line_with_all_the_facts_and_the_others_none) {
    Recorded recorded;
    settings({{"NVSHMEM_EFA_MODE", "proxy"}});
    const auto run = [&recorded](int rank) {
        return logged([&recorded, rank] {
            StubBootstrap boot(rank, 4);
            auto* t = init_again<abi::v3::Transport>(recorded, boot, 30000);
            CHECK_EQ(t->host_ops.connect_endpoints(t, nullptr, 0), 0);
            CHECK_EQ(t->host_ops.finalize(t), 0);
        });
    };
    const auto lines = run(0);
    CHECK_EQ(lines.size(), 1u);
    CHECK(lines[0].find(" INFO") != std::string::npos);
    const std::string expected = std::string(" start  nvshmem-efa ") + nvshmem_efa_version() +
                                 ": mode proxy, recording rails, 4 PEs, plugin ABI 3, NVSHMEM unknown";
    CHECK(lines[0].ends_with(expected));
    CHECK_EQ(run(2).size(), 0u);
}

TEST(a_failure_is_logged_exactly_once) {
    settings({});
    const auto lines = logged([] {
        settings({{"NVSHMEM_EFA_MODE", "proxy"}, {"NVSHMEM_EFA_LOG_FILE", std::getenv("NVSHMEM_EFA_LOG_FILE")}});
        plugin::plugin_sources().mode.open_verbs = opens_nothing(Code::kMissing, "no libefa");
        void* out = nullptr;
        CHECK(init(30000, &out) != 0);
    });
    CHECK_EQ(lines.size(), 1u);
    CHECK(lines[0].find("ERROR plugin  nvshmemt_init: missing: NVSHMEM_EFA_MODE=proxy: no libefa; hint: get one") !=
          std::string::npos);
}

TEST(the_c_api_lists_abis_and_settings_and_checks_them) {
    int numbers[8] = {};
    CHECK_EQ(nvshmem_efa_abi_list(numbers, 8), 5);
    CHECK(numbers[0] == 3 && numbers[4] == 7 && numbers[5] == 0);
    CHECK_EQ(nvshmem_efa_abi_list(nullptr, 0), 5);
    nvshmem_efa_knob knob{};
    CHECK_EQ(nvshmem_efa_knob_get(0, &knob), 0);
    CHECK_EQ(std::string(knob.name), "NVSHMEM_EFA_MODE");
    CHECK_EQ(nvshmem_efa_knob_get(nvshmem_efa_knob_count(), &knob), 1);
    CHECK_EQ(nvshmem_efa_knob_get(-1, &knob), 1);
    char text[32];
    size_t length = 99;
    settings({});
    CHECK_EQ(nvshmem_efa_check_settings(text, sizeof text, &length), 0);
    CHECK(length == 0 && text[0] == '\0');
    settings({{"NVSHMEM_EFA_MDOE", "soft"}});
    CHECK_EQ(nvshmem_efa_check_settings(text, sizeof text, &length), 0);
    CHECK(!std::strncmp(text, "warning: NVSHMEM_EFA_MDOE", 25) && length > 31 && std::strlen(text) == 31);
    settings({{"NVSHMEM_EFA_MODE", "quick"}});
    CHECK_EQ(nvshmem_efa_check_settings(text, sizeof text, nullptr), static_cast<int>(Code::kConfig));
}

TEST_MAIN()
