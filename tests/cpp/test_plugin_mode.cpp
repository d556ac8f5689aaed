// SPDX-License-Identifier: Apache-2.0
// Which mode a machine gets, and that no slower one is ever taken in silence.
#include <unistd.h>

#include <filesystem>

#include "fake_nvshmem/stub_host.h"

using namespace fake;
namespace fs = std::filesystem;

namespace {

// A made-up /sys with one RDMA device of this driver.
struct Sysfs {
    fs::path root;
    explicit Sysfs(const char* driver) {
        char path[] = "/tmp/nvshmem-efa-sysfs-XXXXXX";
        root = mkdtemp(path);
        if (!driver) return;
        fs::create_directories(root / "class/infiniband/dev0/device");
        fs::create_directories(root / "bus/pci/drivers" / driver);
        fs::create_symlink(root / "bus/pci/drivers" / driver, root / "class/infiniband/dev0/device/driver");
    }
    ~Sysfs() { fs::remove_all(root); }
};

struct Decided {
    Status status;
    ModeDecision decision;
};

Decided decide(const char* mode, OpenNics verbs, const char* driver = nullptr, int gpu_queues = 1) {
    Knobs knobs;
    knobs.mode = mode;
    knobs.gpu_queues = gpu_queues;
    const Sysfs sysfs(driver);
    ModeSources sources;
    sources.open_verbs = std::move(verbs);
    sources.open_soft = opens("soft0");
    sources.sysfs = sysfs.root;
    Decided decided;
    decided.status = decide_mode(knobs, sources, &decided.decision);
    return decided;
}

}  // namespace

TEST(auto_takes_efa_where_there_is_efa) {
    const Decided decided = decide("auto", opens("rdmap86s0"), "efa");
    CHECK(decided.status.ok() && decided.decision.mode == Mode::kProxy);
    CHECK_EQ(decided.decision.nics.at(0)->info().name, "rdmap86s0");
}

TEST(auto_falls_back_only_where_there_is_no_efa_device_and_never_to_soft) {
    for (const char* driver : {static_cast<const char*>(nullptr), "mlx5_core"}) {
        const Decided decided = decide("auto", opens_nothing(Code::kMissing, "no device"), driver);
        CHECK(decided.status.ok() && decided.decision.mode == Mode::kFallback && decided.decision.nics.empty());
        CHECK(decided.decision.why.find("no device") != std::string::npos);
    }
}

TEST(auto_with_an_efa_device_that_cannot_be_used_is_an_error) {
    Decided decided = decide("auto", opens_nothing(Code::kTooOld, "libefa 44 is too old"), "efa");
    CHECK_FAILS(std::move(decided.status), Code::kTooOld, "has an EFA device, but it cannot be used");
}

TEST(a_pinned_proxy_without_a_device_lists_what_is_missing) {
    Decided decided = decide("proxy", opens_nothing(Code::kMissing, "libibverbs.so.1, libefa.so.1"));
    CHECK_FAILS(std::move(decided.status), Code::kMissing, "NVSHMEM_EFA_MODE=proxy: libibverbs.so.1, libefa.so.1");
}

TEST(an_opener_that_opens_nothing_is_not_taken_for_success) {
    Decided decided = decide("proxy", [](const OpenOptions&, std::vector<std::unique_ptr<Nic>>*) { return Status(); });
    CHECK_FAILS(std::move(decided.status), Code::kMissing, "no device was opened");
}

TEST(soft_is_taken_only_by_name_and_a_pinned_mode_ignores_the_hardware) {
    const Decided soft = decide("soft", opens("rdmap86s0"), "efa");
    CHECK(soft.status.ok() && soft.decision.mode == Mode::kSoft);
    CHECK_EQ(soft.decision.nics.at(0)->info().name, "soft0");
    const Decided fallback = decide("fallback", opens("rdmap86s0"), "efa");
    CHECK(fallback.status.ok() && fallback.decision.mode == Mode::kFallback && fallback.decision.nics.empty());
}

TEST(relay_and_direct_open_efa_devices_and_keep_their_names) {
    const struct {
        const char* name;
        Mode mode;
    } cases[] = {{"relay", Mode::kRelay}, {"direct", Mode::kDirect}};
    for (const auto& one : cases) {
        const Decided decided = decide(one.name, opens("rdmap86s0"), "efa");
        CHECK(decided.status.ok() && decided.decision.mode == one.mode);
        CHECK_EQ(decided.decision.nics.at(0)->info().name, "rdmap86s0");
        CHECK_EQ(std::string(mode_name(one.mode)), one.name);
        Decided missing = decide(one.name, opens_nothing(Code::kMissing, "no device"));
        CHECK_FAILS(std::move(missing.status), Code::kMissing,
                    (std::string("NVSHMEM_EFA_MODE=") + one.name + ": no device").c_str());
        Decided idle = decide(one.name, opens("rdmap86s0"), "efa", 0);
        CHECK_FAILS(std::move(idle.status), Code::kConfig, "but there are none; hint: set NVSHMEM_EFA_GPU_QUEUES");
    }
}

TEST(an_efa_device_is_known_by_its_driver) {
    CHECK(has_efa_device(Sysfs("efa").root));
    CHECK(!has_efa_device(Sysfs("mlx5_core").root));
    CHECK(!has_efa_device(Sysfs(nullptr).root));
    CHECK(!has_efa_device("/nonexistent"));
}

TEST_MAIN()
