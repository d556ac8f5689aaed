// SPDX-License-Identifier: Apache-2.0
#include "topology.h"

#include <algorithm>

#include "check.h"
#include "machine_tree.h"

using namespace nvshmem_efa;
using fake::MachineTree;

namespace {

std::vector<PlacedNic> nics_of(const MachineTree& tree) {
    const Sysfs sysfs(tree.sys());
    std::vector<PlacedNic> nics;
    for (const std::string& name : sysfs.list("class/infiniband")) {
        const std::string device = "class/infiniband/" + name + "/device";
        if (sysfs.link_name(device + "/driver") != "efa") continue;
        PlacedNic nic;
        nic.name = name;
        nic.pci_path = sysfs.real_path(device);
        nic.numa_node = std::stoi(sysfs.read_line(device + "/numa_node"));
        nics.push_back(nic);
    }
    return nics;
}

std::string own(const std::vector<PlacedNic>& nics) {
    std::string names;
    for (const PlacedNic& nic : nics) {
        if (nic.is_own) names += (names.empty() ? "" : " ") + nic.name;
    }
    return names;
}

std::string own_of(const MachineTree& tree, const std::string& gpu) {
    std::vector<PlacedNic> nics = nics_of(tree);
    CHECK(order_nics_by_gpu(Sysfs(tree.sys()), gpu, &nics));
    return own(nics);
}

std::string hex2(int value) {
    char text[16];
    std::snprintf(text, sizeof(text), "%02x", value);
    return text;
}

// Eight switches, each with one GPU and four NICs; four a socket.
void build_p5(MachineTree& tree) {
    for (int i = 0; i < 8; ++i) {
        const std::string bus = hex2(0x40 + i * 0x10);
        const std::string bridges = "pci0000:" + bus + "/0000:" + bus + ":01.0/0000:" + hex2(0x41 + i * 0x10) + ":00.0";
        for (int n = 0; n < 4; ++n) {
            const std::string nic_bus = hex2(0x42 + i * 0x10 + n);
            tree.efa(bridges, "0000:" + nic_bus + ":00.0", i / 4, "rdmap" + std::to_string(0x42 + i * 0x10 + n) + "s0");
        }
        tree.gpu(bridges, "0000:" + hex2(0x4a + i * 0x10) + ":00.0", i / 4);
        tree.nvswitch("pci0000:" + bus, "0000:" + hex2(0x4d + i * 0x10) + ":00.0", i / 4);
    }
}

// Four switches, each with two GPUs and `nics` NICs.
void build_shared(MachineTree& tree, int nics) {
    for (int i = 0; i < 4; ++i) {
        const std::string bus = hex2(0x10 + i * 0x20);
        const std::string top = "pci0000:" + bus + "/0000:" + bus + ":01.0/0000:" + hex2(0x11 + i * 0x20) + ":00.0";
        for (int n = 0; n < nics; ++n) {
            const std::string id = "0000:" + hex2(0x14 + i * 0x20 + n) + ":00.0";
            tree.efa(top + "/0000:12:0" + std::to_string(n) + ".0", id, i / 2,
                     "sw" + std::to_string(i) + "nic" + std::to_string(n));
        }
        for (int g = 0; g < 2; ++g) {
            tree.gpu(top + "/0000:12:1" + std::to_string(g) + ".0", "0000:" + hex2(0x1a + i * 0x20 + g) + ":00.0",
                     i / 2);
        }
    }
}

}  // namespace

TEST(a_p5_gpu_owns_the_four_nics_of_its_switch) {
    MachineTree tree;
    build_p5(tree);
    CHECK_EQ(own_of(tree, "0000:4a:00.0"), std::string("rdmap66s0 rdmap67s0 rdmap68s0 rdmap69s0"));
    CHECK_EQ(own_of(tree, "0000:ba:00.0"), std::string("rdmap178s0 rdmap179s0 rdmap180s0 rdmap181s0"));
}

TEST(p5_nics_of_the_same_socket_come_before_those_of_the_other) {
    MachineTree tree;
    build_p5(tree);
    std::vector<PlacedNic> nics = nics_of(tree);
    CHECK_EQ(nics.size(), size_t(32));
    CHECK(order_nics_by_gpu(Sysfs(tree.sys()), "0000:5a:00.0", &nics));
    for (size_t i = 0; i < 32; ++i) {
        CHECK_EQ(nics[i].is_own, i < 4);
        CHECK_EQ(nics[i].nearness.same_numa, i < 16);
        CHECK_EQ(nics[i].nearness.shared, i < 4 ? 3u : 0u);
    }
}

TEST(two_p5en_gpus_divide_the_four_nics_of_their_switch) {
    MachineTree tree;
    build_shared(tree, 4);
    CHECK_EQ(own_of(tree, "0000:1a:00.0"), std::string("sw0nic0 sw0nic1"));
    CHECK_EQ(own_of(tree, "0000:1b:00.0"), std::string("sw0nic2 sw0nic3"));
    CHECK_EQ(own_of(tree, "0000:7b:00.0"), std::string("sw3nic2 sw3nic3"));
}

TEST(the_neighbours_nics_come_right_after_ones_own) {
    MachineTree tree;
    build_shared(tree, 4);
    std::vector<PlacedNic> nics = nics_of(tree);
    CHECK(order_nics_by_gpu(Sysfs(tree.sys()), "0000:1b:00.0", &nics));
    CHECK_EQ(nics[0].name, std::string("sw0nic2"));
    CHECK_EQ(nics[2].name, std::string("sw0nic0"));
    CHECK_EQ(nics[3].name, std::string("sw0nic1"));
    CHECK_EQ(nics[4].name, std::string("sw1nic0"));  // the same socket
    CHECK_EQ(nics[8].name.substr(0, 3), std::string("sw2"));
}

TEST(two_p6_b200_gpus_take_one_nic_each) {
    MachineTree tree;
    build_shared(tree, 2);
    CHECK_EQ(own_of(tree, "0000:1a:00.0"), std::string("sw0nic0"));
    CHECK_EQ(own_of(tree, "0000:1b:00.0"), std::string("sw0nic1"));
    CHECK_EQ(own_of(tree, "0000:5b:00.0"), std::string("sw2nic1"));
}

TEST(gpus_that_outnumber_the_nics_of_their_switch_share_them) {
    MachineTree tree;
    build_shared(tree, 1);
    CHECK_EQ(own_of(tree, "0000:1a:00.0"), std::string("sw0nic0"));
    CHECK_EQ(own_of(tree, "0000:1b:00.0"), std::string("sw0nic0"));
}

TEST(a_gpu_without_a_common_bridge_takes_the_nics_of_its_socket) {
    MachineTree tree;
    tree.gpu("pci0000:aa", "0000:ab:00.0", 1);
    tree.efa("pci0000:10", "0000:11:00.0", 0, "far0");
    tree.efa("pci0000:20", "0000:21:00.0", 1, "near0");
    tree.efa("pci0000:30", "0000:31:00.0", 1, "near1");
    CHECK_EQ(own_of(tree, "0000:ab:00.0"), std::string("near0 near1"));
}

TEST(a_machine_without_numa_gives_a_lone_gpu_all_nics) {
    MachineTree tree;
    tree.gpu("pci0000:aa", "0000:ab:00.0", -1);
    tree.efa("pci0000:10", "0000:11:00.0", -1, "a");
    tree.efa("pci0000:20", "0000:21:00.0", -1, "b");
    CHECK_EQ(own_of(tree, "0000:ab:00.0"), std::string("a b"));
}

TEST(without_a_gpu_all_nics_are_own_and_sorted_by_name) {
    MachineTree tree;
    build_shared(tree, 2);
    std::vector<PlacedNic> nics = nics_of(tree);
    std::reverse(nics.begin(), nics.end());
    CHECK(!order_nics_by_gpu(Sysfs(tree.sys()), "", &nics));
    CHECK_EQ(own(nics), std::string("sw0nic0 sw0nic1 sw1nic0 sw1nic1 sw2nic0 sw2nic1 sw3nic0 sw3nic1"));
}

TEST(a_gpu_that_is_not_in_sysfs_counts_as_none) {
    MachineTree tree;
    build_shared(tree, 2);
    std::vector<PlacedNic> nics = nics_of(tree);
    CHECK(!order_nics_by_gpu(Sysfs(tree.sys()), "0000:ff:00.0", &nics));
    CHECK_EQ(nics.size(), size_t(8));
    CHECK(nics[7].is_own);
}

TEST(a_pci_id_is_read_in_every_usual_spelling) {
    CHECK_EQ(normal_pci_id("0000:0B:00.0"), std::string("0000:0b:00.0"));
    CHECK_EQ(normal_pci_id("00000000:53:00.0"), std::string("0000:53:00.0"));
    CHECK_EQ(normal_pci_id("53:00.0"), std::string("0000:53:00.0"));
    CHECK_EQ(normal_pci_id("0001:53:1f.7"), std::string("0001:53:1f.7"));
}

TEST(what_is_not_a_pci_id_is_refused) {
    for (const char* text : {"", "GPU-12", "0000:53:00", "0000:53:00.0x", "0000:53:20.0", "0000:53:00.8",
                             "10000:53:00.0", "53:00.0 ", "0000:53:00.0\n"}) {
        CHECK_EQ(normal_pci_id(text), std::string());
    }
}

TEST(an_id_in_upper_case_finds_the_gpu) {
    MachineTree tree;
    build_p5(tree);
    CHECK_EQ(own_of(tree, "00000000:4A:00.0"), own_of(tree, "0000:4a:00.0"));
}

TEST(sysfs_that_is_not_there_reads_as_empty) {
    const Sysfs sysfs("/nowhere");
    CHECK(!sysfs.exists("class"));
    CHECK(sysfs.list("class/infiniband").empty());
    CHECK_EQ(sysfs.read_line("module/efa/version"), std::string());
    CHECK_EQ(sysfs.real_path("class"), std::string());
    CHECK_EQ(sysfs.link_name("class"), std::string());
}

TEST_MAIN()
