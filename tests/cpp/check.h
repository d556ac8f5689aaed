// SPDX-License-Identifier: Apache-2.0
// The least a C++ test needs: named cases, checks that say what they compared, skip. No dependency, so that the tests
// build wherever the library does. A program runs all its cases, or those named; --list prints them.
// Exit code: 0 good, 1 failed, 77 everything that ran was skipped.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

namespace check {

struct Failed {};
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
inline constexpr bool kIsSanitized = true;  // everything takes several times as long
#else
inline constexpr bool kIsSanitized = false;
#endif

struct Skipped {
    std::string why;
};

struct Case {
    const char* name;
    void (*run)();
};

inline std::vector<Case>& cases() {
    static std::vector<Case> all;
    return all;
}

struct Register {
    Register(const char* name, void (*run)()) { cases().push_back({name, run}); }
};

template <class T>
std::string show(const T& value) {
    std::ostringstream out;
    if constexpr (requires { out << value; }) {
        if constexpr (sizeof(T) == 1 && std::is_integral_v<T>) {
            out << static_cast<int>(value);
        } else {
            out << value;
        }
    } else if constexpr (std::is_enum_v<T>) {
        out << static_cast<long long>(value);
    } else {
        out << "<" << sizeof(T) << " bytes>";
    }
    return out.str();
}

[[noreturn]] inline void fail(const char* file, int line, const std::string& what) {
    std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
    throw Failed{};
}

inline int run_all(int argc, char** argv) {
    if (argc == 2 && std::strcmp(argv[1], "--list") == 0) {
        for (const Case& test : cases()) std::printf("%s\n", test.name);
        return 0;
    }
    int ran = 0, skipped = 0, failed = 0;
    for (const Case& test : cases()) {
        bool wanted = argc < 2;
        for (int i = 1; i < argc; ++i) wanted = wanted || std::strcmp(argv[i], test.name) == 0;
        if (!wanted) continue;
        ++ran;
        try {
            test.run();
            std::printf("ok   %s\n", test.name);
        } catch (const Failed&) {
            ++failed;
            std::printf("FAIL %s\n", test.name);
        } catch (const Skipped& skip) {
            ++skipped;
            std::printf("skip %s: %s\n", test.name, skip.why.c_str());
        }
        std::fflush(stdout);
    }
    if (ran == 0) {
        std::fprintf(stderr, "no such case; --list shows them\n");
        return 2;
    }
    if (failed) return 1;
    return skipped == ran ? 77 : 0;
}

}  // namespace check

#define TEST(name)                                               \
    static void test_##name();                                   \
    static const check::Register register_##name(#name, test_##name); \
    static void test_##name()

#define CHECK(condition)                                                              \
    do {                                                                              \
        if (!(condition)) check::fail(__FILE__, __LINE__, "not true: " #condition);    \
    } while (0)

#define CHECK_EQ(left, right)                                                                                      \
    do {                                                                                                           \
        const auto check_left = (left);                                                                            \
        const auto check_right = (right);                                                                          \
        if (!(check_left == check_right))                                                                          \
            check::fail(__FILE__, __LINE__, std::string(#left " == " #right ": ") + check::show(check_left) + " and " + \
                                                check::show(check_right));                                         \
    } while (0)

#define CHECK_OK(expression)                                                                             \
    do {                                                                                                 \
        if (auto check_status = (expression); !check_status.ok())                                        \
            check::fail(__FILE__, __LINE__, std::string(#expression " failed: ") + check_status.message()); \
    } while (0)

// The status has this code, and its message contains `part`.
#define CHECK_FAILS(expression, expected_code, part)                                                             \
    do {                                                                                                         \
        auto check_status = (expression);                                                                        \
        if (check_status.code() != (expected_code) || !std::strstr(check_status.message(), part))                \
            check::fail(__FILE__, __LINE__, std::string(#expression " gave: ") + check_status.message());        \
    } while (0)

#define SKIP(why) throw check::Skipped{why}

#define TEST_MAIN() \
    int main(int argc, char** argv) { return check::run_all(argc, argv); }
