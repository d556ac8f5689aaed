// SPDX-License-Identifier: Apache-2.0
// NVSHMEM_REMOTE_TRANSPORT=efa, as a user says it, through the launchers that users have. The host library is a fake that
// loads its plugin exactly as the real one, and a stock libfabric plugin lies beside it: ours must win.
#include <unistd.h>

#include <array>
#include <cstdio>

#include "fake_nvshmem/folder.h"

using fake::Folder;

namespace {

const std::string kShim = INSTALLED "/libnvshmem_efa_shim.so";
const std::string kProgram = FAKES "/fake_program";

void needs_preload() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    SKIP("a sanitizer's runtime cannot be preloaded into programs that were built without it");
#endif
}

// NVSHMEM as installed: its host library, and a stock plugin for every name.
struct Nvshmem : Folder {
    std::string host = str() + "/libnvshmem_host.so.3";
    explicit Nvshmem(int abi = 3) {
        add(FAKES "/fake_host.so", "libnvshmem_host.so.3");
        for (const char* name : {"ibrc", "libfabric"}) {
            add(FAKES "/stock_libfabric.so", std::string("nvshmem_transport_") + name + ".so." + std::to_string(abi));
        }
    }
    std::string stock(const std::string& name, int abi = 3) const {
        return str() + "/nvshmem_transport_" + name + ".so." + std::to_string(abi);
    }
};

std::string ours(int abi = 3) { return INSTALLED "/nvshmem_transport_efa_abi" + std::to_string(abi) + ".so"; }

// What `command` prints, both streams, with these assignments before it; the rest of the environment is the test's own.
std::string run(const std::string& assignments, const std::string& command) {
    const std::string line = "exec 2>&1; unset NVSHMEM_REMOTE_TRANSPORT NVSHMEM_EFA_SELECTED; export " + assignments + "; " +
                             command;
    FILE* pipe = popen(line.c_str(), "r");
    CHECK(pipe != nullptr);
    std::string text;
    std::array<char, 4096> buffer;
    while (const size_t got = fread(buffer.data(), 1, buffer.size(), pipe)) text.append(buffer.data(), got);
    pclose(pipe);
    while (!text.empty() && text.back() == '\n') text.pop_back();
    return text;
}

std::string preload(const std::string& transport) {
    return "LD_PRELOAD=" + kShim + (transport.empty() ? "" : " NVSHMEM_REMOTE_TRANSPORT=" + transport);
}

std::string program(const Nvshmem& nvshmem, int abi = 3) {
    return kProgram + " " + nvshmem.host + " " + std::to_string(abi);
}

}  // namespace

TEST(without_the_switch_the_host_library_takes_its_own_plugin_or_none) {
    Nvshmem nvshmem;
    CHECK_EQ(run("NVSHMEM_REMOTE_TRANSPORT=libfabric", program(nvshmem)), nvshmem.stock("libfabric"));
    CHECK_EQ(run("NVSHMEM_REMOTE_TRANSPORT=efa", program(nvshmem)), "unknown name, nothing loaded");
}

TEST(a_preloaded_switch_makes_the_host_library_take_ours_for_every_abi) {
    needs_preload();
    for (int abi = 3; abi <= 7; ++abi) {
        Nvshmem nvshmem(abi);
        CHECK_EQ(run(preload("efa"), program(nvshmem, abi)), ours(abi));
        CHECK_EQ(run(preload("EFA"), program(nvshmem, abi)), ours(abi));
    }
}

TEST(any_other_transport_stays_what_it_is_and_nothing_is_printed) {
    needs_preload();
    Nvshmem nvshmem;
    CHECK_EQ(run(preload("libfabric"), program(nvshmem)), nvshmem.stock("libfabric"));
    CHECK_EQ(run(preload("ibrc"), program(nvshmem)), nvshmem.stock("ibrc"));
    CHECK_EQ(run(preload(""), program(nvshmem)), "unknown name, nothing loaded");
    CHECK_EQ(run(preload(""), "env | grep NVSHMEM_"), "");
}

TEST(the_choice_reaches_a_program_through_a_chain_of_launchers) {
    needs_preload();
    Nvshmem nvshmem;
    const std::string exec = program(nvshmem);
    CHECK_EQ(run(preload("efa"), "sh -c '" + exec + "; true'"), ours());
    CHECK_EQ(run(preload("efa"), "timeout 60 env FOO=1 sh -c 'env BAR=2 " + exec + "; true'"), ours());
    const std::string python = "python3 -c \"import os,sys; a=sys.argv[1:]; os.execv(a[0], a)\" " + exec;
    CHECK_EQ(run(preload("efa"), "sh -c 'env timeout 60 " + python + "; true'"), ours());
    const std::string subprocess = "python3 -c \"import subprocess,sys; subprocess.run(sys.argv[1:])\" ";
    CHECK_EQ(run(preload("efa"), "env " + subprocess + "sh -c \"" + exec + "; true\""), ours());
}

TEST(a_child_that_lost_the_variable_of_the_loader_is_served_by_its_own_switch) {
    needs_preload();
    Nvshmem nvshmem;
    // The launcher was preloaded; the program loads the switch itself, as `import nvshmem_efa` does.
    CHECK_EQ(run(preload("efa"), "env -u LD_PRELOAD " + program(nvshmem) + " " + kShim), "select 1\n" + ours());
}

TEST(a_transport_chosen_inside_the_chain_wins_over_the_inherited_choice) {
    needs_preload();
    Nvshmem nvshmem;
    CHECK_EQ(run(preload("efa"), "env NVSHMEM_REMOTE_TRANSPORT=ibrc " + program(nvshmem)), nvshmem.stock("ibrc"));
    CHECK_EQ(run(preload("efa"), "env -u NVSHMEM_REMOTE_TRANSPORT " + program(nvshmem)), "unknown name, nothing loaded");
    CHECK_EQ(run(preload("efa"), "env -u NVSHMEM_EFA_SELECTED NVSHMEM_REMOTE_TRANSPORT=libfabric " + program(nvshmem)),
             nvshmem.stock("libfabric"));
}

TEST(the_marker_alone_selects_nothing) {
    needs_preload();
    Nvshmem nvshmem;
    CHECK_EQ(run(preload("") + " NVSHMEM_EFA_SELECTED=1", program(nvshmem)), "unknown name, nothing loaded");
    CHECK_EQ(run(preload("libfabric") + " NVSHMEM_EFA_SELECTED=", program(nvshmem)), nvshmem.stock("libfabric"));
}

TEST(a_program_linked_with_the_switch_needs_no_preload) {
    Nvshmem nvshmem;
    CHECK_EQ(run("NVSHMEM_REMOTE_TRANSPORT=efa LD_LIBRARY_PATH=" INSTALLED,
                 FAKES "/fake_linked_program " + nvshmem.host + " 3"),
             ours());
}

TEST(the_c_function_selects_and_says_whether_it_was_asked_to) {
    Nvshmem nvshmem;
    CHECK_EQ(run("NVSHMEM_REMOTE_TRANSPORT=efa", program(nvshmem) + " " + kShim), "select 1\n" + ours());
    CHECK_EQ(run("NVSHMEM_REMOTE_TRANSPORT=ibrc", program(nvshmem) + " " + kShim), "select 0\n" + nvshmem.stock("ibrc"));
}

TEST(a_host_library_that_is_already_there_decides_the_abi) {
    needs_preload();
    Nvshmem nvshmem(5);
    const std::string both = "LD_PRELOAD=" + nvshmem.host + ":" + kShim + " NVSHMEM_REMOTE_TRANSPORT=efa";
    CHECK_EQ(run(both, program(nvshmem, 5)), ours(5));
    const std::string maps = run(both, "grep -o 'nvshmem_transport_efa_abi.*' /proc/self/maps | sort -u");
    CHECK_EQ(maps, "nvshmem_transport_efa_abi5.so");
}

TEST(an_abi_of_the_future_is_refused_by_name_and_nothing_is_loaded_in_its_place) {
    needs_preload();
    Nvshmem nvshmem(8);
    const std::string both = "LD_PRELOAD=" + nvshmem.host + ":" + kShim + " NVSHMEM_REMOTE_TRANSPORT=efa";
    const std::string text = run(both, "exec " + program(nvshmem, 8));
    CHECK(text.find("does not know the plugin ABI of the NVSHMEM in " + nvshmem.str()) != std::string::npos);
    CHECK(text.find("hint: update nvshmem-efa") != std::string::npos);
    CHECK(text.find("unknown name, nothing loaded") != std::string::npos);
}

TEST(an_incomplete_installation_is_an_error_and_never_the_stock_plugin) {
    Nvshmem nvshmem;
    Folder broken;
    broken.add(kShim, "libnvshmem_efa_shim.so");
    const std::string text =
        run("NVSHMEM_REMOTE_TRANSPORT=efa", program(nvshmem) + " " + broken.str() + "/libnvshmem_efa_shim.so");
    CHECK(text.find("NVSHMEM_REMOTE_TRANSPORT=efa cannot be honoured: ") != std::string::npos);
    CHECK(text.find("select -1") != std::string::npos);
    CHECK(text.find("unknown name, nothing loaded") != std::string::npos);
}

TEST(programs_that_have_nothing_to_do_with_nvshmem_run_as_before) {
    needs_preload();
    CHECK_EQ(run(preload("efa"), "echo hello | cat | tr a-z A-Z"), "HELLO");
    CHECK_EQ(run(preload("efa"), "python3 -c \"print(6*7)\""), "42");
}

TEST_MAIN()
