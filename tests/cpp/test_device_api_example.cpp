// SPDX-License-Identifier: Apache-2.0
// The kernel that docs/device-api.md shows, as a function of the CPU, and the calls that need no state.
#include "device_api_rig.h"

// What the kernel needs of CUDA: one thread.
#define __global__ [[maybe_unused]] static
namespace {
struct {
    uint32_t x = 0;
} const threadIdx;
}  // namespace
#include "../gpu/device_api_example.cu"

using namespace device_api_test;

TEST(the_documented_kernel_delivers_its_message) {
    Rig rig({.n_pes = 2});
    char* inbox = rig.pe(0).at<char>(1000);
    char* outbox = rig.pe(0).at<char>(5000);
    for (int i = 0; i < 700; ++i) outbox[i] = static_cast<char>(mix64(static_cast<uint64_t>(i)));
    bool is_sent = false, is_seen = false;
    rig.poster(0, 0, [&](soft::Prng&) {
        nvshmem_efa_state = &rig.state(0);
        send(inbox, outbox, 700, rig.pe(0).at<uint64_t>(64), 0, &is_sent);
    });
    rig.run();
    rig.poster(1, 0, [&](soft::Prng&) {
        nvshmem_efa_state = &rig.state(1);
        send(rig.pe(1).at<char>(1000), rig.pe(1).at<char>(5000), 700, rig.pe(1).at<uint64_t>(64), 1, &is_seen);
        CHECK(std::equal(outbox, outbox + 700, rig.pe(1).at<char>(1000)));
    });
    rig.run();
    rig.check_no_errors();
    CHECK(is_sent && is_seen);
}

TEST(calls_before_nvshmem_is_initialised_are_refused) {
    nvshmem_efa_state = nullptr;
    uint64_t word = 1, old = 0;
    CHECK(!here::quiet());
    CHECK(!here::test(&word, Cmp::kEq, uint64_t{1}));
    CHECK(!here::atomic_fetch_add(&word, uint64_t{1}, 0, &old));
}

TEST_MAIN()
