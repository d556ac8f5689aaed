// SPDX-License-Identifier: Apache-2.0
#include "topology.h"

#include <dirent.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <fstream>

namespace nvshmem_efa {
namespace {

constexpr const char* kNvidiaVendor = "0x10de";
constexpr const char* kDisplayClass = "0x03";  // PCI base class of every GPU; NVSwitches are bridges (0x06)

std::vector<std::string> split_path(const std::string& path) {
    std::vector<std::string> parts;
    size_t start = 0;
    while (start < path.size()) {
        size_t end = path.find('/', start);
        if (end == std::string::npos) end = path.size();
        if (end > start) parts.push_back(path.substr(start, end - start));
        start = end + 1;
    }
    return parts;
}

bool is_pci_root(const std::string& part) { return part.rfind("pci", 0) == 0; }

// Bridges from the root complex to the device: the part of the path after .../devices.
std::vector<std::string> bridges_of(const std::string& pci_path) {
    std::vector<std::string> parts = split_path(pci_path);
    auto root = std::find_if(parts.begin(), parts.end(), is_pci_root);
    if (root == parts.end()) return {};
    return std::vector<std::string>(root, parts.end() - 1);  // the device itself is not a bridge
}

int numa_node_of(const Sysfs& sysfs, const std::string& device_path) {
    const std::string text = sysfs.read_line(device_path + "/numa_node");
    return text.empty() ? -1 : std::atoi(text.c_str());
}

struct PlacedGpu {
    std::string pci_id;
    std::string pci_path;
    int numa_node = -1;
};

PlacedGpu place_gpu(const Sysfs& sysfs, const std::string& pci_id) {
    const std::string device = "bus/pci/devices/" + pci_id;
    return {pci_id, sysfs.real_path(device), numa_node_of(sysfs, device)};
}

std::vector<PlacedGpu> list_gpus(const Sysfs& sysfs) {
    std::vector<PlacedGpu> gpus;
    for (const std::string& id : sysfs.list("bus/pci/devices")) {
        const std::string device = "bus/pci/devices/" + id;
        if (sysfs.read_line(device + "/vendor") != kNvidiaVendor) continue;
        if (sysfs.read_line(device + "/class").rfind(kDisplayClass, 0) != 0) continue;
        gpus.push_back(place_gpu(sysfs, id));
    }
    return gpus;
}

Nearness nearness_of(const PlacedGpu& gpu, const PlacedNic& nic) {
    const std::vector<std::string> from = bridges_of(gpu.pci_path), to = bridges_of(nic.pci_path);
    Nearness result;
    while (result.shared < from.size() && result.shared < to.size() && from[result.shared] == to[result.shared]) {
        ++result.shared;
    }
    result.hops = static_cast<uint32_t>(from.size() + to.size()) - 2 * result.shared;
    result.same_numa = gpu.numa_node >= 0 && gpu.numa_node == nic.numa_node;
    return result;
}

// Names of the NICs that are nearest to this GPU, sorted.
std::vector<std::string> nearest_names(const PlacedGpu& gpu, const std::vector<PlacedNic>& nics) {
    Nearness best;
    for (const PlacedNic& nic : nics) {
        const Nearness nearness = nearness_of(gpu, nic);
        if (nearness.nearer_than(best) && !nearness.as_near_as(best)) best = nearness;
    }
    std::vector<std::string> names;
    for (const PlacedNic& nic : nics) {
        if (nearness_of(gpu, nic).as_near_as(best)) names.push_back(nic.name);
    }
    std::sort(names.begin(), names.end());
    return names;
}

// This GPU's slice of its nearest NICs, which it shares with all GPUs that have the same nearest ones.
std::vector<std::string> own_share(const Sysfs& sysfs, const PlacedGpu& gpu, const std::vector<PlacedNic>& nics) {
    const std::vector<std::string> nearest = nearest_names(gpu, nics);
    size_t sharers = 0, position = 0;
    for (const PlacedGpu& other : list_gpus(sysfs)) {
        if (other.pci_id != gpu.pci_id && nearest_names(other, nics) != nearest) continue;
        if (other.pci_id == gpu.pci_id) position = sharers;
        ++sharers;
    }
    if (sharers <= 1 || nearest.empty()) return nearest;
    if (nearest.size() < sharers) return {nearest[position % nearest.size()]};
    const size_t share = nearest.size() / sharers;  // a remainder stays unused: all PEs need the same number of rails
    const auto first = nearest.begin() + static_cast<std::ptrdiff_t>(position * share);
    return std::vector<std::string>(first, first + static_cast<std::ptrdiff_t>(share));
}

}  // namespace

bool Sysfs::exists(const std::string& path) const { return access((root_ + "/" + path).c_str(), F_OK) == 0; }

std::string Sysfs::read_line(const std::string& path) const {
    std::ifstream file(root_ + "/" + path);
    std::string line;
    std::getline(file, line);
    return line;
}

std::vector<std::string> Sysfs::list(const std::string& path) const {
    std::vector<std::string> names;
    DIR* folder = opendir((root_ + "/" + path).c_str());
    if (folder == nullptr) return names;
    while (const dirent* entry = readdir(folder)) {
        if (entry->d_name[0] != '.') names.push_back(entry->d_name);
    }
    closedir(folder);
    std::sort(names.begin(), names.end());
    return names;
}

std::string Sysfs::real_path(const std::string& path) const {
    char real[PATH_MAX];
    return realpath((root_ + "/" + path).c_str(), real) ? real : "";
}

std::string Sysfs::link_name(const std::string& path) const {
    const std::string real = real_path(path);
    const size_t slash = real.rfind('/');
    return slash == std::string::npos ? real : real.substr(slash + 1);
}

std::string normal_pci_id(const std::string& text) {
    unsigned domain = 0, bus = 0, device = 0, function = 0;
    int used = 0;
    const int size = static_cast<int>(text.size());
    const bool full = std::sscanf(text.c_str(), "%8x:%2x:%2x.%1x%n", &domain, &bus, &device, &function, &used) == 4 &&
                      used == size;
    if (!full) {
        domain = 0;
        used = 0;
        if (std::sscanf(text.c_str(), "%2x:%2x.%1x%n", &bus, &device, &function, &used) != 3 || used != size) return "";
    }
    if (domain > 0xffff || device > 0x1f || function > 7) return "";
    char normal[32];
    std::snprintf(normal, sizeof(normal), "%04x:%02x:%02x.%x", domain, bus, device, function);
    return normal;
}

bool Nearness::nearer_than(const Nearness& other) const {
    if (shared != other.shared) return shared > other.shared;
    if (same_numa != other.same_numa) return same_numa;
    return hops < other.hops;
}

bool order_nics_by_gpu(const Sysfs& sysfs, const std::string& gpu_pci_id, std::vector<PlacedNic>* nics) {
    const auto by_name = [](const PlacedNic& a, const PlacedNic& b) { return a.name < b.name; };
    std::sort(nics->begin(), nics->end(), by_name);
    for (PlacedNic& nic : *nics) nic.is_own = true;
    const std::string pci_id = normal_pci_id(gpu_pci_id);
    if (pci_id.empty()) return false;
    const PlacedGpu gpu = place_gpu(sysfs, pci_id);
    if (gpu.pci_path.empty()) return false;
    const std::vector<std::string> own = own_share(sysfs, gpu, *nics);
    for (PlacedNic& nic : *nics) {
        nic.nearness = nearness_of(gpu, nic);
        nic.is_own = std::binary_search(own.begin(), own.end(), nic.name);
    }
    std::stable_sort(nics->begin(), nics->end(), [](const PlacedNic& a, const PlacedNic& b) {
        if (a.is_own != b.is_own) return a.is_own;
        if (!a.nearness.as_near_as(b.nearness)) return a.nearness.nearer_than(b.nearness);
        return false;
    });
    return true;
}

}  // namespace nvshmem_efa
