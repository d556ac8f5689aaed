// SPDX-License-Identifier: Apache-2.0
// Which devices are near a GPU, read from sysfs. Everything starts at a root that tests replace by a made-up machine.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace nvshmem_efa {

// Reads below a sysfs root ("/sys"). What cannot be read is empty: sysfs is looked at, never relied on.
class Sysfs {
   public:
    explicit Sysfs(std::string root) : root_(std::move(root)) {}
    bool exists(const std::string& path) const;
    std::string read_line(const std::string& path) const;  // first line, without its end
    std::vector<std::string> list(const std::string& path) const;  // sorted names
    std::string real_path(const std::string& path) const;  // absolute, all links followed
    std::string link_name(const std::string& path) const;  // last component of what a link points to
    const std::string& root() const { return root_; }

   private:
    std::string root_;
};

// "0000:0b:00.0" from any spelling that CUDA, NVML or lspci use (upper case, 8-digit or no domain). Empty: not an id.
std::string normal_pci_id(const std::string& text);

// How near a device is to the GPU. Better is: more bridges of the path shared, then the same NUMA node, then fewer
// hops.
struct Nearness {
    uint32_t shared = 0;  // bridges (with the root complex) that the two paths have in common; 0: none
    bool same_numa = false;
    uint32_t hops = 0;  // bridges between the two, through the nearest common one

    bool nearer_than(const Nearness& other) const;
    // Equally near as far as the choice of rails goes: hops may differ within one switch.
    bool as_near_as(const Nearness& other) const { return shared == other.shared && same_numa == other.same_numa; }
};

struct PlacedNic {
    std::string name;
    std::string pci_path;  // real path of its PCI device
    int numa_node = -1;
    Nearness nearness;
    bool is_own = true;  // this GPU's share of the NICs nearest to it
};

// Orders `nics` (name, pci_path, numa_node filled in), nearest to the GPU first, ties by name.
// NICs below a switch that several GPUs share are divided among those GPUs, in the order of their PCI ids, so that the
// PEs of one host use them all; each GPU's own come first. With no GPU (empty, or not in sysfs): by name, all own.
// True when the GPU was found.
bool order_nics_by_gpu(const Sysfs& sysfs, const std::string& gpu_pci_id, std::vector<PlacedNic>* nics);

}  // namespace nvshmem_efa
