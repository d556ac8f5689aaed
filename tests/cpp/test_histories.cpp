// SPDX-License-Identifier: Apache-2.0
// Simulated histories: 10^4 seeds on every run, the plugin's real code on devices that reorder, duplicate, delay and
// refuse. A failure prints its one-line replay: SEED=n ABI=n ./test_histories one_history_from_the_environment
// SEEDS=n runs n seeds of each ABI in place of 2500 (a build with sanitizers is slow).
#include <cstdio>
#include <cstdlib>

#include "check.h"
#include "history.h"

namespace {

uint64_t from_environment(const char* name, uint64_t otherwise) {
    const char* text = std::getenv(name);
    return text ? std::strtoull(text, nullptr, 0) : otherwise;
}

void run_seeds(uint64_t first, int abi) {
    const uint64_t last = first + from_environment("SEEDS", 2500);
    uint64_t operations = 0, work_requests = 0, out_of_order = 0, duplicates = 0, rnr = 0;
    for (uint64_t seed = first; seed < last; ++seed) {
        const history::Result result = history::run(seed, abi);
        operations += result.operations;
        work_requests += result.work_requests;
        out_of_order += result.out_of_order;
        duplicates += result.duplicates;
        rnr += result.rnr;
        if (result.violation.empty()) continue;
        std::fprintf(stderr, "%s\n  drawn: %s\n  replay: SEED=%llu ABI=%d ./test_histories one_history_from_the_environment\n",
                     result.violation.c_str(), result.shape.c_str(), static_cast<unsigned long long>(seed), abi);
        CHECK(result.violation.empty());
    }
    std::printf("  %llu histories: %llu operations, %llu work requests, %llu out of order, %llu duplicates, %llu RNR\n",
                static_cast<unsigned long long>(last - first), static_cast<unsigned long long>(operations),
                static_cast<unsigned long long>(work_requests), static_cast<unsigned long long>(out_of_order),
                static_cast<unsigned long long>(duplicates), static_cast<unsigned long long>(rnr));
    CHECK(out_of_order > 0 && duplicates > 0 && rnr > 0);
}

}  // namespace

TEST(histories_of_plugin_abi_3_keep_every_promise) { run_seeds(1, 3); }
TEST(histories_of_plugin_abi_4_keep_every_promise) { run_seeds(10'001, 4); }
TEST(histories_of_plugin_abi_6_keep_every_promise) { run_seeds(20'001, 6); }
TEST(histories_of_plugin_abi_7_keep_every_promise) { run_seeds(30'001, 7); }

TEST(one_history_from_the_environment) {
    const uint64_t seed = from_environment("SEED", 1), count = from_environment("COUNT", 1);
    const int abi = static_cast<int>(from_environment("ABI", 4));
    for (uint64_t n = seed; n < seed + count; ++n) {
        const history::Result result = history::run(n, abi);
        if (!result.violation.empty())
            std::fprintf(stderr, "seed %llu: %s\n  drawn: %s\n", static_cast<unsigned long long>(n), result.violation.c_str(),
                         result.shape.c_str());
        CHECK(result.violation.empty());
    }
}

TEST(equal_seeds_give_equal_histories) {
    for (uint64_t seed = 1; seed <= 20; ++seed) {
        const history::Result once = history::run(seed, 4), again = history::run(seed, 4);
        CHECK_EQ(once.trace, again.trace);
        CHECK_EQ(once.work_requests, again.work_requests);
        CHECK(history::run(seed + 1000, 4).trace != once.trace);
    }
}

TEST_MAIN()
