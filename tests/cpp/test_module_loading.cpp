// SPDX-License-Identifier: Apache-2.0
// Modules get the device state whatever is loaded first: real programs and shared libraries, through the real loader.
// Their "kernels" are code of the CPU; on a GPU the same records carry addresses of GPU symbols.
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <string>

#include "check.h"

namespace {

std::string run(const std::string& before, const std::string& program, const std::string& actions) {
    const std::string line = "exec 2>&1; unset NVSHMEM_REMOTE_TRANSPORT NVSHMEM_EFA_SELECTED LD_PRELOAD; exec env " + before + " " +
                             MODULES "/" + program + " " + actions;
    FILE* pipe = popen(line.c_str(), "r");
    CHECK(pipe != nullptr);
    std::string text;
    std::array<char, 4096> buffer;
    while (const size_t got = fread(buffer.data(), 1, buffer.size(), pipe)) text.append(buffer.data(), got);
    const int status = pclose(pipe);
    if (status != 0) text += "exit status " + std::to_string(WEXITSTATUS(status));
    return text;
}

std::string plain(const std::string& actions) { return run("", "module_program", actions); }
std::string linked(const std::string& actions) { return run("", "module_program_linked", actions); }

std::string preloaded(const std::string& actions) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    SKIP("a sanitizer's runtime cannot be preloaded into programs that were built without it");
#endif
    return run("LD_PRELOAD=" SHIM, "module_program", actions);
}

}  // namespace

TEST(a_program_that_is_linked_with_the_switch_has_the_state_from_init_to_finalize) {
    CHECK_EQ(linked("show library show init=64 show finalize show"), "program=0\nprogram=0\nprogram=64\nprogram=0\n");
}

TEST(a_preloaded_switch_serves_a_program_that_exports_nothing) {
    CHECK_EQ(preloaded("show library init=64 show finalize show"), "program=0\nprogram=64\nprogram=0\n");
}

TEST(a_program_without_the_switch_is_served_when_it_exports_its_symbols) {
    CHECK_EQ(run("", "module_program_exports", "library init=64 show finalize show"), "program=64\nprogram=0\n");
    CHECK_EQ(plain("library init=64 show"), "program=0\n");  // it cannot be found: docs/modules.md says so
}

TEST(a_library_that_is_opened_after_init_has_the_state_in_each_translation_unit) {
    CHECK_EQ(plain("library init=64 module show finalize show"),
             "program=0 module_first=64 module_second=64\nprogram=0 module_first=0 module_second=0\n");
    CHECK_EQ(linked("library init=64 module show"), "program=64 module_first=64 module_second=64\n");
}

TEST(a_library_that_is_opened_before_everything_else_is_found) {
    CHECK_EQ(plain("module library init=64 show"), "program=0 module_first=64 module_second=64\n");
    CHECK_EQ(plain("module shim library init=64 show"), "program=0 module_first=64 module_second=64\n");
}

TEST(a_library_that_is_opened_between_switch_and_library_waits_in_the_switch) {
    CHECK_EQ(plain("shim module library init=64 show"), "program=0 module_first=64 module_second=64\n");
    CHECK_EQ(linked("module show library init=64 show"),
             "program=0 module_first=0 module_second=0\nprogram=64 module_first=64 module_second=64\n");
}

TEST(init_after_finalize_gives_the_new_state) {
    CHECK_EQ(linked("module library init=64 show finalize init=128 show"),
             "program=64 module_first=64 module_second=64\nprogram=128 module_first=128 module_second=128\n");
}

TEST(a_library_that_is_unloaded_is_forgotten_wherever_its_record_is) {
    const std::string one = "[{\"name\": \"module_program_linked (program.cpp)\", \"has_state\": true, \"trouble\": \"\"}]\n";
    CHECK_EQ(linked("library init=64 module unload list finalize init=128 finalize"), one);  // in the registry
    CHECK_EQ(linked("shim module unload library init=64 list"), one);                         // in the switch
    CHECK_EQ(plain("module unload library init=64 list"), "[]\n");                            // in its own list
    // The list of a program that exports its symbols is also that of the libraries it opens.
    CHECK_EQ(run("", "module_program_exports", "module unload library init=64 list"),
             "[{\"name\": \"module_program_exports (program.cpp)\", \"has_state\": true, \"trouble\": \"\"}]\n");
    CHECK_EQ(plain("module library unload init=64 list module show"),
             "[]\nprogram=0 module_first=64 module_second=64\n");
}

TEST_MAIN()
