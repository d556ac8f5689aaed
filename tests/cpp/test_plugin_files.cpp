// SPDX-License-Identifier: Apache-2.0
// The files that are installed: what they export, what they need, what they are called.
#include <dlfcn.h>

#include <array>
#include <cstdio>
#include <set>

#include "abi/abi3.h"
#include "check.h"
#include "nvshmem_efa/api.h"

namespace {

std::string output_of(const std::string& command) {
    std::string text;
    FILE* pipe = popen(command.c_str(), "r");
    CHECK(pipe != nullptr);
    std::array<char, 4096> buffer;
    while (const size_t got = fread(buffer.data(), 1, buffer.size(), pipe)) text.append(buffer.data(), got);
    if (pclose(pipe) != 0) SKIP("binutils are not installed: " + command);
    return text;
}

std::set<std::string> exports_of(const char* file) {
    std::istringstream lines(output_of(std::string("nm -D --defined-only " INSTALLED "/") + file));
    std::set<std::string> names;
    std::string address, type, name;
    while (lines >> address >> type >> name) names.insert(name);
    return names;
}

std::string plugin(int abi) { return "nvshmem_transport_efa_abi" + std::to_string(abi) + ".so"; }

}  // namespace

TEST(a_plugin_file_exports_its_entry_point_and_nothing_else) {
    for (int abi = 3; abi <= 7; ++abi) CHECK(exports_of(plugin(abi).c_str()) == std::set<std::string>{"nvshmemt_init"});
}

TEST(the_library_exports_the_c_api_and_the_switch_its_own) {
    const std::set<std::string> expected = {
        "nvshmem_efa_version", "nvshmem_efa_abi_list", "nvshmem_efa_knob_count", "nvshmem_efa_knob_get",
        "nvshmem_efa_check_settings", "nvshmem_efa_last_error", "nvshmem_efa_describe", "nvshmem_efa_stats_json",
        "nvshmem_efa_module_add", "nvshmem_efa_module_add_driver", "nvshmem_efa_module_remove_driver", "nvshmem_efa_modules_json",
        "nvshmem_efa_device_state", "nvshmem_efa_plugin_init"};
    CHECK(exports_of("libnvshmem_efa.so") == expected);
    CHECK(exports_of("libnvshmem_efa_shim.so") == std::set<std::string>({"nvshmem_efa_select", "nvshmem_efa_module_add",
                                                                                "nvshmem_efa_modules_waiting"}));
}

TEST(a_plugin_file_bears_the_soname_that_hosts_of_its_abi_ask_for) {
    for (int abi = 3; abi <= 7; ++abi) {
        const std::string dynamic = output_of("readelf -d " INSTALLED "/" + plugin(abi));
        CHECK(dynamic.find("soname: [nvshmem_transport_libfabric.so." + std::to_string(abi) + "]") != std::string::npos);
        CHECK(dynamic.find("runpath: [$ORIGIN]") != std::string::npos);
        CHECK(dynamic.find("NODELETE") != std::string::npos);
    }
}

TEST(nothing_but_the_c_and_cpp_runtimes_is_needed) {
    const std::string dynamic = output_of("readelf -d " INSTALLED "/libnvshmem_efa.so");
    std::istringstream lines(dynamic);
    for (std::string line; std::getline(lines, line);) {
        if (line.find("(NEEDED)") == std::string::npos) continue;
        bool is_runtime = false;
        for (const char* name : {"libstdc++.so.6", "libgcc_s.so.1", "libc.so.6", "libm.so.6", "ld-linux", "libdl.so.2",
                                 "libpthread.so.0", "librt.so.1", "libasan", "libubsan", "libtsan"}) {
            is_runtime = is_runtime || line.find(name) != std::string::npos;
        }
        if (!is_runtime) check::fail(__FILE__, __LINE__, line);
    }
}

TEST(the_switch_needs_no_cpp_runtime) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    SKIP("a sanitizer's runtime needs it");
#endif
    CHECK(output_of("readelf -d " INSTALLED "/libnvshmem_efa_shim.so").find("libstdc++") == std::string::npos);
}

TEST(all_plugin_files_load_together_and_share_one_state) {
    void* last = nullptr;
    for (int abi = 3; abi <= 7; ++abi) {
        void* library = dlopen((INSTALLED "/" + plugin(abi)).c_str(), RTLD_NOW | RTLD_LOCAL);
        if (!library) check::fail(__FILE__, __LINE__, dlerror());
        CHECK(library != last);
        last = library;
        void* transport = nullptr;
        const auto init = reinterpret_cast<nvshmem_efa::abi::InitFn>(dlsym(library, "nvshmemt_init"));
        CHECK_EQ(init(&transport, nullptr, 990000 + abi), 3);
        const auto last_error = reinterpret_cast<const char* (*)(int*)>(dlsym(library, "nvshmem_efa_last_error"));
        CHECK(std::strstr(last_error(nullptr), ("api_version " + std::to_string(990000 + abi)).c_str()));
    }
    void* first = dlopen(INSTALLED "/nvshmem_transport_efa_abi3.so", RTLD_NOW | RTLD_LOCAL);
    const auto last_error = reinterpret_cast<const char* (*)(int*)>(dlsym(first, "nvshmem_efa_last_error"));
    CHECK(std::strstr(last_error(nullptr), "api_version 990007"));
}

TEST_MAIN()
