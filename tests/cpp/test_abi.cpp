// SPDX-License-Identifier: Apache-2.0
// The struct that the host library reads, as bytes: offsets written out by hand from the reference, not from our headers.
#include "fake_nvshmem/stub_host.h"

using namespace fake;

namespace {

template <class T>
T at(const void* base, size_t offset) {
    T value;
    std::memcpy(&value, static_cast<const char*>(base) + offset, sizeof value);
    return value;
}

void check_common(const void* t, size_t attr, size_t flags, int api_version) {
    CHECK_EQ(at<int>(t, 0x00), api_version);
    CHECK_EQ(at<int>(t, 0x04), 0);
    CHECK_EQ(at<int>(t, attr), 2);
    CHECK_EQ(at<int>(t, attr + 4), 1);
    CHECK_EQ(at<uint8_t>(t, flags), 0);      // atomics do not complete on quiet alone: {value, flag} is written
    CHECK_EQ(at<uint8_t>(t, flags + 1), 1);  // successfully initialised
    CHECK_EQ(at<uint8_t>(t, flags + 2), 0);  // needs the proxy
    const char* const* paths = at<const char* const*>(t, attr - 8);
    CHECK_EQ(std::string(paths[0]), "/sys/devices/fake0");
    CHECK(paths[1] == nullptr);
}

// Which of the operations are null, as a bit mask by position.
uint32_t null_ops(const void* t, size_t offset, int count) {
    uint32_t mask = 0;
    for (int i = 0; i < count; ++i) {
        if (!at<void*>(t, offset + static_cast<size_t>(i) * 8)) mask |= 1u << i;
    }
    return mask;
}

}  // namespace

TEST(abi_3_has_its_fields_and_14_operations_at_the_reference_offsets) {
    StubHost<V3> host;
    check_common(host.t, 0xa8, 0xb0, 30000);
    CHECK_EQ(null_ops(host.t, 0x10, 14), 1u << 12);  // only enforce_cst_at_target
    CHECK(at<void*>(host.t, 0x88) != nullptr);       // state
    CHECK_EQ(at<uint64_t>(host.t, 0xc8), 0u);        // operations of any length
}

TEST(abi_4_and_5_have_their_fields_and_15_operations_at_the_reference_offsets) {
    StubHost<V4<4>> four;
    check_common(four.t, 0x38, 0x40, 40000);
    CHECK_EQ(null_ops(four.t, 0x80, 15), 1u << 13);
    CHECK(at<void*>(four.t, 0x18) != nullptr);
    StubHost<V4<5>> five;
    check_common(five.t, 0x38, 0x40, 50000);
    CHECK_EQ(null_ops(five.t, 0x80, 15), 1u << 13);
}

TEST(abi_6_and_7_have_their_fields_and_15_operations_at_the_reference_offsets) {
    StubHost<V6<6>> six;
    check_common(six.t, 0x38, 0x40, 60000);
    CHECK_EQ(null_ops(six.t, 0x80, 15), 1u << 13);
    StubHost<V6<7>> seven;
    check_common(seven.t, 0x38, 0x40, 70000);
    CHECK_EQ(null_ops(seven.t, 0x80, 15), 1u << 13);
}

TEST(what_the_host_appends_later_reads_as_absent) {
    StubHost<V3> three;
    for (size_t offset = sizeof(abi::v3::Transport); offset < 0x200; ++offset) CHECK_EQ(at<uint8_t>(three.t, offset), 0);
    StubHost<V6<7>> seven;
    for (size_t offset = sizeof(abi::v6::Transport); offset < 0x200; ++offset) CHECK_EQ(at<uint8_t>(seven.t, offset), 0);
}

TEST(every_peer_is_reachable_by_the_proxy_and_not_by_kernels) {
    for_every_abi([]<class V>() {
        StubHost<V> host(false);
        for (int pe = 0; pe < 4; ++pe) {
            abi::PeInfo peer{};
            peer.pe = pe;
            int access = -1;
            CHECK_EQ(host.t->host_ops.can_reach_peer(&access, &peer, host.t), 0);
            CHECK_EQ(access, (1 << 4) | (1 << 5) | (1 << 6));
        }
    });
}

TEST_MAIN()
