// SPDX-License-Identifier: Apache-2.0
// Start of the verbs provider: libraries, symbols, devices, and what it says when something is missing.
#include <sys/stat.h>

#include "verbs_rig.h"

using namespace nvshmem_efa;
using fake::Rig;
using fake::state;

namespace {

std::string names(const std::vector<std::unique_ptr<Nic>>& nics) {
    std::string text;
    for (const auto& nic : nics) text += (text.empty() ? "" : " ") + nic->info().name;
    return text;
}

bool is_demanded(const std::string& symbol) {
    for (const char* optional : {"ibv_reg_dmabuf_mr", "ibv_query_qp_data_in_order", "_ibv_query_comp_cntr_caps",
                                 "ibv_destroy_comp_cntr", "ibv_qp_attach_comp_cntr", "efadv_get_max_sq_depth",
                                 "efadv_get_max_rq_depth", "efadv_create_comp_cntr"}) {
        if (symbol == optional) return false;
    }
    return true;
}

struct KnownSymbol {
    const char* name;
    const char* version;
    const char* release;
};

const KnownSymbol kIbverbsSymbols[] = {
    {"ibv_get_device_list", "IBVERBS_1.1", "any"},      {"ibv_free_device_list", "IBVERBS_1.1", "any"},
    {"ibv_get_device_name", "IBVERBS_1.1", "any"},      {"ibv_open_device", "IBVERBS_1.1", "any"},
    {"ibv_close_device", "IBVERBS_1.1", "any"},         {"ibv_query_device", "IBVERBS_1.1", "any"},
    {"ibv_query_port", "IBVERBS_1.1", "any"},           {"ibv_query_gid", "IBVERBS_1.1", "any"},
    {"ibv_alloc_pd", "IBVERBS_1.1", "any"},             {"ibv_dealloc_pd", "IBVERBS_1.1", "any"},
    {"ibv_reg_mr", "IBVERBS_1.1", "any"},               {"ibv_dereg_mr", "IBVERBS_1.1", "any"},
    {"ibv_destroy_cq", "IBVERBS_1.1", "any"},           {"ibv_modify_qp", "IBVERBS_1.1", "any"},
    {"ibv_destroy_qp", "IBVERBS_1.1", "any"},           {"ibv_create_ah", "IBVERBS_1.1", "any"},
    {"ibv_destroy_ah", "IBVERBS_1.1", "any"},           {"ibv_reg_dmabuf_mr", "IBVERBS_1.12", "v34"},
    {"ibv_query_qp_data_in_order", "IBVERBS_1.14", "v36"}, {"_ibv_query_comp_cntr_caps", "IBVERBS_1.18", "v65"},
    {"ibv_destroy_comp_cntr", "IBVERBS_1.18", "v65"},   {"ibv_qp_attach_comp_cntr", "IBVERBS_1.18", "v65"},
};

const KnownSymbol kEfaSymbols[] = {
    {"efadv_query_device", "EFA_1.1", "v26"},     {"efadv_query_ah", "EFA_1.1", "v26"},
    {"efadv_create_qp_ex", "EFA_1.1", "v26"},     {"efadv_create_cq", "EFA_1.2", "v43"},
    {"efadv_query_qp_wqs", "EFA_1.4", "v59"},     {"efadv_query_cq", "EFA_1.4", "v59"},
    {"efadv_get_max_sq_depth", "EFA_1.5", "v63"}, {"efadv_get_max_rq_depth", "EFA_1.5", "v63"},
    {"efadv_create_comp_cntr", "EFA_1.7", "v65"},
};

// Each symbol gone, one at a time: a demanded one is named with version and release, an optional one is lived without.
void hide_each(const std::string& library, std::string verbs::Machine::*which, const KnownSymbol& symbol) {
    Rig rig;
    rig.machine.*which = rig.without_symbol(library, symbol.name);
    const Status status = rig.open_all();
    if (is_demanded(symbol.name)) {
        const std::string named =
            std::string(symbol.name) + " (" + symbol.version + ", rdma-core " + symbol.release + ")";
        CHECK_FAILS(rig.open_all(), Code::kTooOld, named.c_str());
        CHECK_FAILS(rig.open_all(), Code::kTooOld, "v59");
        CHECK_FAILS(rig.open_all(), Code::kTooOld, (rig.machine.*which).c_str());
        CHECK(state().calls.empty());
    } else {
        if (!status.ok()) check::fail(__FILE__, __LINE__, std::string(symbol.name) + ": " + status.message());
        CHECK_EQ(rig.nics.size(), size_t(1));
    }
    rig.nics.clear();
    fake::check_nothing_left();
}

}  // namespace

TEST(a_complete_machine_opens_its_efa_device_and_skips_the_mlx5_that_comes_first) {
    Rig rig;
    CHECK_OK(rig.open_all());
    CHECK_EQ(names(rig.nics), std::string("efa_0"));
    CHECK_EQ(fake::count_calls("ibv_open_device"), size_t(1));
    const NicInfo& info = rig.nics[0]->info();
    CHECK_EQ(info.pci_path, rig.tree.sys() + "/devices/pci0000:44/0000:44:01.0/0000:40:00.0");
    CHECK_EQ(info.numa_node, 0);
    CHECK_EQ(info.driver_version, std::string("3.3.0g"));
    rig.nics.clear();
    fake::check_nothing_left();
}

TEST(opening_and_closing_make_these_calls_in_this_order) {
    Rig rig;
    CHECK_OK(rig.open_all());
    rig.nics.clear();
    CHECK_EQ(
        fake::joined(fake::call_names()),
        std::string("ibv_get_device_list ibv_open_device efadv_query_device ibv_query_device efadv_get_max_sq_depth "
                    "efadv_get_max_rq_depth _ibv_query_comp_cntr_caps ibv_query_port ibv_query_gid ibv_alloc_pd "
                    "efadv_create_cq efadv_query_cq efadv_create_qp_ex efadv_query_qp_wqs "
                    "ibv_query_qp_data_in_order ibv_destroy_qp ibv_destroy_cq ibv_free_device_list "
                    "ibv_dealloc_pd ibv_close_device"));
    fake::check_nothing_left();
}

TEST(every_symbol_of_libibverbs_may_be_missing) {
    for (const KnownSymbol& symbol : kIbverbsSymbols) hide_each(fake::kIbverbs, &verbs::Machine::libibverbs, symbol);
}

TEST(every_symbol_of_libefa_may_be_missing) {
    for (const KnownSymbol& symbol : kEfaSymbols) hide_each(fake::kEfa, &verbs::Machine::libefa, symbol);
}

TEST(a_symbol_under_another_version_counts_as_missing) {
    Rig rig;
    rig.machine.libefa = rig.without_symbol(fake::kEfa, "EFA_1.4");  // the version's name, not a function
    CHECK_FAILS(rig.open_all(), Code::kTooOld, "efadv_query_qp_wqs (EFA_1.4, rdma-core v59), efadv_query_cq (EFA_1.4");
    CHECK_FAILS(rig.open_all(), Code::kTooOld, "newest found is efadv_");
}

TEST(missing_libraries_are_both_named_with_the_release_to_install) {
    Rig rig;
    rig.machine.libibverbs = "libibverbs-nowhere.so.1";
    rig.machine.libefa = "libefa-nowhere.so.1";
    CHECK_FAILS(rig.open_all(), Code::kMissing, "2 things are missing");
    CHECK_FAILS(rig.open_all(), Code::kMissing, "cannot load libibverbs-nowhere.so.1");
    CHECK_FAILS(rig.open_all(), Code::kMissing, "cannot load libefa-nowhere.so.1");
    CHECK_FAILS(rig.open_all(), Code::kMissing, "rdma-core v59");
}

TEST(everything_that_is_missing_stands_in_one_error) {
    fake::MachineTree bare;
    Rig rig;
    rig.machine.sysfs = bare.sys();
    rig.machine.libibverbs = "libibverbs-nowhere.so.1";
    rig.machine.libefa = rig.without_symbol(fake::kEfa, "efadv_query_cq");
    rig.machine.memlock_bytes = 65536;
    const Status status = rig.open_all();
    CHECK_EQ(status.code(), Code::kMissing);
    for (const char* part : {"4 things are missing", "(1) cannot load libibverbs-nowhere.so.1", "(2) ",
                             "efadv_query_cq", "(3) no EFA device on this machine",
                             "(4) only 64 KiB of memory may be locked", "hint: ulimit -l", "NVSHMEM_EFA_MODE=soft"}) {
        if (!std::strstr(status.message(), part))
            check::fail(__FILE__, __LINE__, std::string(part) + " not in " + status.message());
    }
    CHECK(state().calls.empty());
}

TEST(two_things_too_old_are_too_old_and_not_missing) {
    Rig rig;
    rig.machine.libefa = rig.without_symbol(fake::kEfa, "efadv_query_cq");
    rig.machine.libibverbs = rig.without_symbol(fake::kIbverbs, "ibv_query_gid");
    CHECK_FAILS(rig.open_all(), Code::kTooOld, "2 things are missing");
}

TEST(what_is_missing_outweighs_what_is_too_old_in_either_order) {
    Rig rig;
    rig.machine.libibverbs = "libibverbs-nowhere.so.1";
    rig.machine.libefa = rig.without_symbol(fake::kEfa, "efadv_query_cq");
    CHECK_FAILS(rig.open_all(), Code::kMissing, "2 things are missing");
    rig.machine.libibverbs = rig.without_symbol(fake::kIbverbs, "ibv_query_gid");
    rig.machine.libefa = "libefa-nowhere.so.1";
    CHECK_FAILS(rig.open_all(), Code::kMissing, "2 things are missing");
}

TEST(a_machine_with_only_mlx5_says_so) {
    Rig rig(0);
    CHECK_FAILS(rig.open_all(), Code::kMissing,
                "no EFA device on this machine; other RDMA devices, not EFA: mlx5_0 (mlx5_core)");
}

TEST(an_efa_driver_on_a_device_of_another_vendor_is_skipped) {
    Rig rig(0);
    rig.tree.rdma("pci0000:00", "0000:09:00.0", 0, "odd_0", "efa", "0x15b3", "0x1021");
    CHECK_FAILS(rig.open_all(), Code::kMissing, "odd_0 (efa)");
}

TEST(an_efa_pci_device_without_its_module_is_told_from_no_device) {
    Rig rig(0);
    rig.tree.pci("pci0000:00", "0000:0a:00.0", "0x1d0f", "0xefa2", "0x020000", 0);
    CHECK_FAILS(rig.open_all(), Code::kMissing, "the kernel module efa is not loaded, and 1 EFA PCI devices");
    CHECK_FAILS(rig.open_all(), Code::kMissing, "hint: modprobe efa");
}

TEST(a_loaded_module_that_made_no_device_is_named) {
    Rig rig(0);
    rig.tree.pci("pci0000:00", "0000:0a:00.0", "0x1d0f", "0xefa2", "0x020000", 0);
    rig.tree.write("sys/module/efa/version", "3.3.0g");
    CHECK_FAILS(rig.open_all(), Code::kMissing, "module efa is loaded but made no device of 1 EFA PCI devices");
}

TEST(an_ena_device_of_the_same_vendor_is_not_taken_for_efa) {
    Rig rig(0);
    rig.tree.pci("pci0000:00", "0000:0a:00.0", "0x1d0f", "0xec20", "0x020000", 0);
    CHECK_FAILS(rig.open_all(), Code::kMissing, "no EFA device on this machine");
}

TEST(a_container_without_dev_infiniband_is_told_how_to_pass_it) {
    Rig rig;
    std::filesystem::remove_all(rig.tree.root() / "dev/infiniband");
    CHECK_FAILS(rig.open_all(), Code::kMissing, "/infiniband, though the kernel has efa_0");
    CHECK_FAILS(rig.open_all(), Code::kMissing, "--device=/dev/infiniband");
}

TEST(a_missing_uverbs_node_is_named) {
    Rig rig;
    std::filesystem::remove(rig.tree.root() / "dev/infiniband/uverbs1");  // uverbs0 is the mlx5's
    CHECK_FAILS(rig.open_all(), Code::kMissing, "efa_0: no ");
    CHECK_FAILS(rig.open_all(), Code::kMissing, "/infiniband/uverbs1");
}

TEST(a_uverbs_node_without_permission_is_named) {
    Rig rig;
    chmod((rig.tree.root() / "dev/infiniband/uverbs1").c_str(), 0);
    const bool is_root = geteuid() == 0;  // root may open everything: be nobody for a moment
    if (is_root) {
        chmod(rig.tree.root().c_str(), 0755);
        CHECK_EQ(setresuid(65534, 65534, 0), 0);
    }
    const Status status = rig.open_all();
    if (is_root) CHECK_EQ(setresuid(0, 0, 0), 0);
    CHECK_EQ(status.code(), Code::kMissing);
    CHECK(std::strstr(status.message(), "efa_0: no permission for ") != nullptr);
}

TEST(devices_that_the_container_does_not_have_are_left_out) {
    Rig rig(3);
    std::filesystem::remove(rig.tree.root() / "dev/infiniband/uverbs2");
    CHECK_OK(rig.open_all());
    CHECK_EQ(names(rig.nics), std::string("efa_0 efa_2"));
}

TEST(naming_a_device_that_the_container_does_not_have_is_an_error) {
    Rig rig(3);
    std::filesystem::remove(rig.tree.root() / "dev/infiniband/uverbs2");
    CHECK_FAILS(rig.open_all({.device_filter = "efa_1"}), Code::kMissing, "names efa_1, but ");
}

TEST(a_low_lock_limit_alone_only_warns_and_a_tiny_one_stops) {
    Rig rig;
    rig.machine.memlock_bytes = 8u << 20;
    CHECK_OK(rig.open_all());
    rig.machine.memlock_bytes = 64u << 10;
    CHECK_FAILS(rig.open_all(), Code::kMissing, "only 64 KiB of memory may be locked (ulimit -l)");
}

TEST(the_system_is_asked_for_the_lock_limit_when_none_is_given) {
    verbs::Machine machine;
    CHECK(machine.memlock() > 0);
}

TEST(the_filter_takes_the_named_devices_in_their_order) {
    Rig rig(4);
    CHECK_OK(rig.open_all({.device_filter = "efa_3, efa_1"}));
    CHECK_EQ(names(rig.nics), std::string("efa_3 efa_1"));
}

TEST(an_unknown_name_in_the_filter_lists_what_is_there) {
    Rig rig(2);
    CHECK_FAILS(
        rig.open_all({.device_filter = "efa_1,rdmap9s0"}), Code::kConfig,
        "names rdmap9s0, which is not an EFA device here; EFA devices: efa_0, efa_1; others: mlx5_0 (mlx5_core)");
    CHECK_FAILS(rig.open_all({.device_filter = "mlx5_0"}), Code::kConfig, "names mlx5_0, which is not an EFA device");
    CHECK(rig.nics.empty());
    CHECK(state().calls.empty());
}

TEST(a_name_given_twice_is_refused) {
    Rig rig(2);
    CHECK_FAILS(rig.open_all({.device_filter = "efa_1,efa_1"}), Code::kConfig, "names efa_1 twice");
}

TEST(a_filter_of_commas_and_spaces_means_all) {
    Rig rig(2);
    CHECK_OK(rig.open_all({.device_filter = " , ,"}));
    CHECK_EQ(rig.nics.size(), size_t(2));
}

TEST(more_rails_than_devices_is_refused) {
    Rig rig(2);
    CHECK_FAILS(rig.open_all({.rails_max = 3}), Code::kConfig, "asks for 3 devices, and there are 2: efa_0, efa_1");
    CHECK_FAILS(rig.open_all({.device_filter = "efa_1", .rails_max = 2}), Code::kConfig, "there are 1: efa_1");
    CHECK_OK(rig.open_all({.rails_max = 1}));
    CHECK_EQ(names(rig.nics), std::string("efa_0"));
}

TEST(a_gpu_takes_its_near_devices_unless_more_rails_are_asked_for) {
    Rig rig(2);
    rig.tree.efa("pci0000:80/0000:80:01.0", "0000:81:00.0", 1, "aaa_far");
    state().devices.push_back("aaa_far");
    CHECK_OK(rig.open_all({.gpu_pci_id = "0000:53:00.0"}));
    CHECK_EQ(names(rig.nics), std::string("efa_0 efa_1"));
    CHECK_OK(rig.open_all({.rails_max = 3, .gpu_pci_id = "0000:53:00.0"}));
    CHECK_EQ(names(rig.nics), std::string("efa_0 efa_1 aaa_far"));
    CHECK_OK(rig.open_all());
    CHECK_EQ(names(rig.nics), std::string("aaa_far efa_0 efa_1"));
}

TEST(without_a_gpu_at_most_sixteen_devices_become_rails) {
    Rig rig(0);
    std::string all;
    for (int i = 0; i < 17; ++i) {
        const std::string name = "nic" + std::to_string(10 + i);
        rig.tree.efa("pci0000:60",
                     "0000:6" + std::string(1, static_cast<char>(i < 10 ? '0' + i : 'a' + i - 10)) + ":00.0", 0, name);
        state().devices.push_back(name);
        all += name + ",";
    }
    CHECK_OK(rig.open_all());
    CHECK_EQ(rig.nics.size(), size_t(16));
    CHECK_FAILS(rig.open_all({.device_filter = all}), Code::kConfig, "names 17 devices, and a PE uses at most 16");
}

TEST(a_device_that_libibverbs_does_not_list_blames_the_provider_library) {
    Rig rig;
    state().devices = {"mlx5_0"};
    CHECK_FAILS(rig.open_all(), Code::kMissing, "libibverbs does not list efa_0");
    CHECK_FAILS(rig.open_all(), Code::kMissing, "efa.driver");
    fake::check_nothing_left();
}

TEST(a_device_list_that_fails_hints_at_ib_uverbs) {
    Rig rig;
    state().failures["ibv_get_device_list"] = {.error = 38};
    CHECK_FAILS(rig.open_all(), Code::kMissing, "ibv_get_device_list failed: Function not implemented (errno 38)");
}

TEST(two_copies_of_libefa_are_recognised) {
    Rig rig;
    state().failures["efadv_query_device"] = {.error = 95};
    CHECK_FAILS(rig.open_all(), Code::kUnsupported, "another copy of libefa");
    fake::check_nothing_left();
}

TEST(a_port_that_is_down_is_an_error_and_not_a_missing_rail) {
    Rig rig;
    state().answers.port_state = 1;
    CHECK_FAILS(rig.open_all(), Code::kMissing, "the port of efa_0 is not active (state 1)");
    fake::check_nothing_left();
}

TEST(a_device_without_an_address_is_refused) {
    Rig rig;
    state().answers.has_gid = false;
    CHECK_FAILS(rig.open_all(), Code::kDevice, "efa_0 has no address");
    fake::check_nothing_left();
}

TEST(one_bad_device_closes_the_others_again) {
    Rig rig(3);
    state().failures["ibv_alloc_pd"] = {.error = 12, .after = 2};
    CHECK_FAILS(rig.open_all(), Code::kResource, "ibv_alloc_pd failed on efa_2: Cannot allocate memory (errno 12)");
    CHECK(rig.nics.empty());
    fake::check_nothing_left();
}

TEST(the_public_entry_point_never_crashes_on_this_machine) {
    std::vector<std::unique_ptr<Nic>> nics;
    const Status status = open_verbs_nics({}, &nics);
    if (!status.ok()) CHECK(std::strstr(status.message(), "hint:") != nullptr);
    CHECK_EQ(status.ok(), !nics.empty());
}

TEST_MAIN()
