// SPDX-License-Identifier: Apache-2.0
// A made-up machine in a temporary folder: /sys with PCI bridges, GPUs, EFA and other RDMA devices, and /dev.
// Links are relative, as the kernel makes them.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace fake {

class MachineTree {
   public:
    MachineTree() {
        // In memory where possible: a machine is hundreds of small files.
        const bool has_shm = access("/dev/shm", W_OK) == 0;
        const std::filesystem::path base = has_shm ? "/dev/shm" : std::filesystem::temp_directory_path();
        std::string pattern = (base / "efa-machine-XXXXXX").string();
        root_ = mkdtemp(pattern.data());
        std::filesystem::create_directories(root_ / "sys/bus/pci/devices");
        std::filesystem::create_directories(root_ / "sys/class/infiniband");
        std::filesystem::create_directories(root_ / "dev");
    }
    ~MachineTree() {
        std::error_code ignored;
        std::filesystem::remove_all(root_, ignored);
    }
    MachineTree(const MachineTree&) = delete;
    MachineTree& operator=(const MachineTree&) = delete;

    std::string sys() const { return (root_ / "sys").string(); }
    std::string dev() const { return (root_ / "dev").string(); }
    std::filesystem::path root() const { return root_; }

    void write(const std::string& path, const std::string& text) {
        std::filesystem::create_directories((root_ / path).parent_path());
        std::ofstream(root_ / path) << text << "\n";
    }

    void link(const std::string& path, const std::string& target) {
        const std::filesystem::path from = root_ / path;
        std::filesystem::create_directories(from.parent_path());
        std::filesystem::create_directories(root_ / target);
        std::filesystem::create_symlink(std::filesystem::relative(root_ / target, from.parent_path()), from);
    }

    // `bridges`: path below sys/devices, for instance "pci0000:44/0000:44:01.0". Returns the device's folder.
    std::string pci(const std::string& bridges, const std::string& id, const std::string& vendor,
                    const std::string& device, const std::string& pci_class, int numa) {
        const std::string folder = "sys/devices/" + bridges + "/" + id;
        write(folder + "/vendor", vendor);
        write(folder + "/device", device);
        write(folder + "/class", pci_class);
        write(folder + "/numa_node", std::to_string(numa));
        link("sys/bus/pci/devices/" + id, folder);
        return folder;
    }

    void gpu(const std::string& bridges, const std::string& id, int numa) {
        pci(bridges, id, "0x10de", "0x2330", "0x030200", numa);
    }

    void nvswitch(const std::string& bridges, const std::string& id, int numa) {
        pci(bridges, id, "0x10de", "0x22a3", "0x068000", numa);
    }

    // An RDMA device bound to `driver`, with its uverbs node in /dev.
    void rdma(const std::string& bridges, const std::string& id, int numa, const std::string& name,
              const std::string& driver, const std::string& vendor, const std::string& device) {
        const std::string folder = pci(bridges, id, vendor, device, "0x020000", numa);
        const std::string node = "uverbs" + std::to_string(next_node_++);
        std::filesystem::create_directories(root_ / folder / "infiniband" / name);
        std::filesystem::create_directories(root_ / folder / "infiniband_verbs" / node);
        link(folder + "/driver", "sys/bus/pci/drivers/" + driver);
        link(folder + "/infiniband/" + name + "/device", folder);
        link("sys/class/infiniband/" + name, folder + "/infiniband/" + name);
        write("dev/infiniband/" + node, "");
        nodes_.push_back(node);
    }

    void efa(const std::string& bridges, const std::string& id, int numa, const std::string& name) {
        rdma(bridges, id, numa, name, "efa", "0x1d0f", "0xefa2");
        write("sys/module/efa/version", "3.3.0g");
    }

    void mlx5(const std::string& bridges, const std::string& id, int numa, const std::string& name) {
        rdma(bridges, id, numa, name, "mlx5_core", "0x15b3", "0x1021");
    }

    const std::vector<std::string>& nodes() const { return nodes_; }

   private:
    std::filesystem::path root_;
    int next_node_ = 0;
    std::vector<std::string> nodes_;
};

}  // namespace fake
