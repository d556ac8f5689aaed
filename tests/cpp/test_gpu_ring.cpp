// SPDX-License-Identifier: Apache-2.0
// Which kind of ring the settings give.
#include "gpu_ring_rig.h"
#include "knobs.h"

using namespace ring_rig;

namespace {

struct Chosen {
    PaperNic nic;
    std::unique_ptr<GpuRing> ring;
    Status choose(const char* mode, const char* wish, bool has_counters = true) {
        ring.reset();  // paper has one queue
        Knobs knobs;
        knobs.mode = mode;
        knobs.gpu_ring = wish;
        nic.the_info.caps.completion_counters = has_counters;
        return make_gpu_ring(knobs, nic, {.depth = 8, .qkey = 5, .posters = MemoryKind::kHost}, &ring);
    }
    std::string kind() const { return ring->kind(); }
};

}  // namespace

TEST(a_mode_of_that_name_gives_that_ring) {
    Chosen chosen;
    CHECK_OK(chosen.choose("relay", "auto"));
    CHECK_EQ(chosen.kind(), "relay");
    CHECK_OK(chosen.choose("direct", "direct"));
    CHECK_EQ(chosen.kind(), "direct (counters in host memory)");
    CHECK_FAILS(chosen.choose("relay", "direct"), Code::kConfig, "NVSHMEM_EFA_MODE=relay and NVSHMEM_EFA_GPU_RING=direct");
    CHECK_FAILS(chosen.choose("direct", "relay"), Code::kConfig, "contradict");
}

TEST(without_a_wish_a_real_device_gets_a_relay_and_a_soft_one_its_own) {
    Chosen chosen;
    CHECK_OK(chosen.choose("proxy", "auto"));
    CHECK_EQ(chosen.kind(), "relay");
    CHECK_OK(chosen.choose("soft", "auto"));
    CHECK_EQ(chosen.kind(), "soft");
    CHECK_OK(chosen.choose("soft", "auto", false));
    CHECK_EQ(chosen.kind(), "relay");
}

TEST(a_wish_is_kept_in_every_mode) {
    for (const char* mode : {"proxy", "soft"}) {
        Chosen chosen;
        CHECK_OK(chosen.choose(mode, "relay"));
        CHECK_EQ(chosen.kind(), "relay");
        CHECK_OK(chosen.choose(mode, "direct"));
        CHECK_EQ(chosen.kind(), "direct (counters in host memory)");
    }
}

TEST(what_was_asked_for_and_failed_is_named_and_nothing_else_is_taken) {
    Chosen chosen;
    chosen.nic.fails = "create_qp";
    CHECK_FAILS(chosen.choose("direct", "auto"), Code::kResource, "NVSHMEM_EFA_MODE=direct: direct ring on paper0: create_qp");
    CHECK_FAILS(chosen.choose("soft", "relay"), Code::kResource, "NVSHMEM_EFA_GPU_RING=relay: relay ring on paper0: create_qp");
    CHECK(chosen.ring == nullptr && chosen.nic.is_empty());
}

TEST_MAIN()
