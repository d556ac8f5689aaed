// SPDX-License-Identifier: Apache-2.0
// No EFA device: NVSHMEM's own plugins are tried in order, and whatever keeps one from working is said.
#include "fallback.h"

#include <dlfcn.h>
#include <unistd.h>

#include <fstream>

#include "fake_nvshmem/folder.h"
#include "fake_nvshmem/stub_host.h"
#include "nvshmem_efa/api.h"
#include "nvshmem_locate.h"

using namespace fake;

namespace {

const std::string kGood = FAKES "/stock_good.so";
const std::string kFailing = FAKES "/stock_failing.so";
const std::string kCrashing = FAKES "/stock_crashing.so";
const std::string kMissing = FAKES "/stock_missing.so";
const std::string kLibfabric = FAKES "/stock_libfabric.so";

FallbackRequest request(const Folder& folder, std::vector<std::string> names, int abi = 3) {
    FallbackRequest made;
    made.names = std::move(names);
    made.lib_dir = folder.str();
    made.api_version = abi * 10000;
    made.sysfs = folder.str() + "/sys";
    made.dev = folder.str() + "/dev";
    return made;
}

void add_efa_device(const Folder& folder) {
    std::filesystem::create_directories(folder.path / "sys/class/infiniband/rdmap0s0/device");
    std::filesystem::create_directories(folder.path / "sys/drivers/efa");
    std::filesystem::create_symlink(folder.path / "sys/drivers/efa",
                                    folder.path / "sys/class/infiniband/rdmap0s0/device/driver");
}

bool has(const Status& status, const char* part) { return std::strstr(status.message(), part) != nullptr; }

}  // namespace

TEST(the_first_plugin_that_works_is_taken_with_the_arguments_that_we_got) {
    for (const int abi : {3, 4, 5, 6, 7}) {
        Folder folder;
        folder.add(kGood, "nvshmem_transport_ibrc.so." + std::to_string(abi));
        FallbackRequest wanted = request(folder, {"ibrc", "ucx"}, abi);
        int table = 0;
        wanted.cuda_table = &table;
        FallbackChoice choice;
        CHECK_OK(load_fallback(wanted, &choice));
        CHECK_EQ(choice.name, "ibrc");
        CHECK_EQ(*static_cast<int*>(choice.transport), abi * 10000);
        void* const state = abi == 3 ? static_cast<abi::v3::Transport*>(choice.transport)->state
                                     : static_cast<abi::v4::Transport*>(choice.transport)->state;
        CHECK_EQ(state, static_cast<void*>(&table));
        std::free(choice.transport);
    }
}

TEST(a_plugin_that_fails_makes_room_for_the_next) {
    Folder folder;
    folder.add(kFailing, "nvshmem_transport_ibrc.so.3").add(kMissing, "nvshmem_transport_ibdevx.so.3");
    folder.add(kGood, "nvshmem_transport_ucx.so.3").add(kGood, "dev/gdrdrv");
    FallbackChoice choice;
    CHECK_OK(load_fallback(request(folder, {"ibrc", "ibdevx", "ucx"}), &choice));
    CHECK_EQ(choice.name, "ucx");
    std::free(choice.transport);
}

TEST(when_none_works_the_error_lists_each_and_why) {
    Folder folder;
    folder.add(kFailing, "nvshmem_transport_ibrc.so.3").add(kMissing, "nvshmem_transport_ibdevx.so.3");
    folder.add(kGood, "nvshmem_transport_ucx.so.3").add(kCrashing, "nvshmem_transport_libfabric.so.3");
    FallbackChoice choice;
    const Status status = load_fallback(request(folder, {"ibrc", "ibdevx", "ucx", "libfabric"}), &choice);
    CHECK(status.code() == Code::kMissing && choice.transport == nullptr);
    CHECK(has(status, "ibrc: its init returned 7"));
    CHECK(has(status, "ibdevx: not_there.so: cannot open shared object file"));
    CHECK(has(status, "ucx: skipped, because without GDRCopy"));
    CHECK(has(status, "libfabric: skipped, because it crashes"));
    CHECK(has(status, "hint: "));
    CHECK(has(status, folder.str().c_str()));
}

TEST(a_plugin_that_is_not_there_is_said_to_be_not_there) {
    Folder folder;
    FallbackChoice choice;
    CHECK_FAILS(load_fallback(request(folder, {"ibrc"}), &choice), Code::kMissing, "ibrc: no such file");
    std::ofstream(folder.path / "nvshmem_transport_ibrc.so.3") << "not a library";
    CHECK_FAILS(load_fallback(request(folder, {"ibrc"}), &choice), Code::kMissing, "file too short");
}

TEST(libfabric_is_called_where_there_is_an_efa_device) {
    Folder folder;
    folder.add(kLibfabric, "nvshmem_transport_libfabric.so.3");
    add_efa_device(folder);
    FallbackChoice choice;
    CHECK_OK(load_fallback(request(folder, {"libfabric"}), &choice));
    CHECK_EQ(choice.name, "libfabric");
    std::free(choice.transport);
}

TEST(ucx_asked_for_alone_is_tried_even_without_gdrcopy) {
    Folder folder;
    folder.add(kGood, "nvshmem_transport_ucx.so.3");
    FallbackChoice choice;
    CHECK_OK(load_fallback(request(folder, {"ucx"}), &choice));
    std::free(choice.transport);
}

TEST(the_stock_plugin_is_loaded_although_ours_has_its_soname) {
    // As in a real process: ours is loaded already, under the SONAME of the stock plugin.
    void* ours = dlopen(INSTALLED "/nvshmem_transport_efa_abi5.so", RTLD_NOW | RTLD_LOCAL);
    CHECK(ours != nullptr);
    CHECK_EQ(dlopen("nvshmem_transport_libfabric.so.5", RTLD_NOW | RTLD_LOCAL), ours);  // what a bare name gets
    Folder folder;
    folder.add(FAKES "/stock_libfabric5.so", "nvshmem_transport_libfabric.so.5");
    add_efa_device(folder);
    FallbackChoice choice;
    CHECK_OK(load_fallback(request(folder, {"libfabric"}, 5), &choice));
    auto* t = static_cast<abi::v4::Transport*>(choice.transport);
    Dl_info info{};
    CHECK(dladdr(reinterpret_cast<void*>(t->host_ops.finalize), &info) != 0);
    CHECK_EQ(std::string(info.dli_fname), choice.path);
    std::free(t);
}

TEST(our_own_plugin_in_the_place_of_the_stock_one_is_recognised) {
    void* ours = dlopen(INSTALLED "/nvshmem_transport_efa_abi3.so", RTLD_NOW | RTLD_LOCAL);
    CHECK(ours != nullptr);
    Folder folder;
    std::filesystem::create_symlink(INSTALLED "/nvshmem_transport_efa_abi3.so",
                                    folder.path / "nvshmem_transport_libfabric.so.3");
    folder.add(INSTALLED "/nvshmem_transport_efa_abi4.so", "nvshmem_transport_ibrc.so.3");
    add_efa_device(folder);
    FallbackChoice choice;
    const Status status = load_fallback(request(folder, {"libfabric", "ibrc"}), &choice);
    CHECK(has(status, "libfabric: this file is nvshmem-efa's own plugin"));
    CHECK(has(status, "ibrc: this file is nvshmem-efa's own plugin"));
}

TEST(the_order_is_a_setting_and_its_names_are_checked) {
    std::vector<std::string> names;
    CHECK_OK(parse_fallback_names(" ucx , ibrc,", &names));
    CHECK(names == std::vector<std::string>({"ucx", "ibrc"}));
    CHECK_FAILS(parse_fallback_names("ibrc,efa", &names), Code::kConfig, "'efa' is not an NVSHMEM transport");
    CHECK_FAILS(parse_fallback_names(" ,", &names), Code::kConfig, "NVSHMEM_EFA_FALLBACK is empty");
}

TEST(nvshmem_is_found_by_setting_or_the_search_is_told) {
    Folder folder;
    folder.add(kGood, "lib/nvshmem_transport_ibrc.so.3");
    std::string lib_dir;
    CHECK_OK(find_nvshmem_lib_dir(folder.str(), &lib_dir));
    CHECK_EQ(lib_dir, folder.str() + "/lib");
    CHECK_FAILS(find_nvshmem_lib_dir(folder.str() + "/no", &lib_dir), Code::kMissing, "/no/lib");
    settings({{"NVSHMEM_HOME", folder.path.c_str()}});
    lib_dir.clear();
    CHECK_OK(find_nvshmem_lib_dir("", &lib_dir));
    CHECK_EQ(lib_dir, folder.str() + "/lib");
    settings({});
}

TEST(a_loaded_host_library_says_where_it_lies_and_its_version) {
    Folder folder;
    folder.add(FAKES "/fake_host.so", "libnvshmem_host.so.3").add(kGood, "nvshmem_transport_ibrc.so.3");
    CHECK_EQ(nvshmem_version(), "unknown");
    void* host = dlopen((folder.str() + "/libnvshmem_host.so.3").c_str(), RTLD_NOW | RTLD_LOCAL);
    CHECK(host != nullptr);
    CHECK_EQ(nvshmem_version(), "3.4.5");
    std::string lib_dir;
    CHECK_OK(find_nvshmem_lib_dir("", &lib_dir));
    CHECK_EQ(lib_dir, folder.str());
    dlclose(host);
}

TEST(init_with_no_efa_hands_the_stock_struct_through_and_says_so_in_one_line_at_connect) {
    const auto check = []<class Struct>(int abi) {
        Folder folder;
        folder.add(kGood, "nvshmem_transport_ibrc.so." + std::to_string(abi));
        const std::string log = folder.str() + "/log";
        settings({{"NVSHMEM_EFA_NVSHMEM_HOME", folder.path.c_str()}, {"NVSHMEM_EFA_LOG_FILE", log.c_str()}});
        plugin::plugin_sources().mode.open_verbs = opens_nothing(Code::kMissing, "no EFA device");
        plugin::plugin_sources().mode.sysfs = folder.str();
        void* out = nullptr;
        CHECK_EQ(nvshmem_efa_plugin_init(&out, &folder, abi * 10000), 0);
        auto* t = static_cast<Struct*>(out);
        CHECK_EQ(t->state, static_cast<void*>(&folder));  // their struct, our arguments
        StubBootstrap boot(0, 2);
        t->boot_handle = &boot.handle;
        t->my_pe = 0;
        t->n_pes = 2;
        for (int times = 1; times <= 2; ++times) {
            if constexpr (std::is_same_v<Struct, abi::v3::Transport>) {
                CHECK_EQ(t->host_ops.connect_endpoints(t, nullptr, 0), 0);
            } else {
                CHECK_EQ(t->host_ops.connect_endpoints(t, nullptr, 0, nullptr, 0), 0);
            }
            CHECK_EQ(t->n_devices, 1 + 100 * times);
            CHECK_EQ(boot.allgathers, 1);  // we agreed once; the second call went straight to the stock plugin
        }
        CHECK_EQ(t->host_ops.finalize(t), 0);
        std::ifstream file(log);
        std::string line, more;
        CHECK(std::getline(file, line) && !std::getline(file, more));
        CHECK(line.find(": mode fallback to ibrc, " + folder.str()) != std::string::npos);
    };
    check.operator()<abi::v3::Transport>(3);
    check.operator()<abi::v4::Transport>(4);
    check.operator()<abi::v4::Transport>(5);
    check.operator()<abi::v6::Transport>(6);
    check.operator()<abi::v6::Transport>(7);
}

TEST(a_pe_that_fell_back_to_another_transport_is_told) {
    Folder folder;
    folder.add(kGood, "nvshmem_transport_ibrc.so.3");
    settings({{"NVSHMEM_EFA_NVSHMEM_HOME", folder.path.c_str()}, {"NVSHMEM_EFA_MODE", "fallback"}});
    void* out = nullptr;
    CHECK_EQ(nvshmem_efa_plugin_init(&out, nullptr, 30000), 0);
    auto* t = static_cast<abi::v3::Transport*>(out);
    StubBootstrap boot(0, 2);
    boot.alter = [](int, void* bytes, int) { std::strcpy(static_cast<char*>(bytes) + 32, "ucx"); };
    t->boot_handle = &boot.handle;
    t->n_pes = 2;
    CHECK(t->host_ops.connect_endpoints(t, nullptr, 0) != 0);
    CHECK(std::strstr(nvshmem_efa_last_error(nullptr), "PE 1 is in mode fallback ucx, PE 0 in mode fallback ibrc"));
    CHECK_EQ(t->n_devices, 1);
    t->host_ops.finalize(t);
}

TEST(init_with_neither_efa_nor_a_fallback_says_what_both_lack) {
    Folder folder;
    folder.add(kFailing, "nvshmem_transport_ibrc.so.3");
    settings({{"NVSHMEM_EFA_NVSHMEM_HOME", folder.path.c_str()}});
    plugin::plugin_sources().mode.open_verbs = opens_nothing(Code::kMissing, "no EFA device");
    plugin::plugin_sources().mode.sysfs = folder.str();
    void* out = nullptr;
    CHECK(nvshmem_efa_plugin_init(&out, nullptr, 30000) != 0);
    CHECK(out == nullptr);
    const std::string error = nvshmem_efa_last_error(nullptr);
    CHECK(error.find("no EFA (no EFA device; hint: get one)") != std::string::npos);
    CHECK(error.find("ibrc: its init returned 7") != std::string::npos);
    CHECK(error.find("libfabric: skipped") != std::string::npos);
}

TEST_MAIN()
