// SPDX-License-Identifier: Apache-2.0
#include "fabric/verbs_devices.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "log.h"

namespace nvshmem_efa::verbs {
namespace {

constexpr const char* kAmazonVendor = "0x1d0f";
constexpr const char* kEfaPciIdPrefix = "0xefa";  // efa0 .. efa4
constexpr size_t kDevicesMax = 16;         // as the RAILS knob
constexpr uint64_t kMemlockLeast = 1u << 20;      // queues and control memory do not fit into less
constexpr uint64_t kMemlockComfortable = 64u << 20;

std::string join(const std::vector<std::string>& names) {
    std::string text;
    for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
    return text.empty() ? "none" : text;
}

std::vector<std::string> names_of(const std::vector<EfaDevice>& devices) {
    std::vector<std::string> names;
    for (const EfaDevice& device : devices) names.push_back(device.place.name);
    return names;
}

std::vector<std::string> split_names(const std::string& text) {
    std::vector<std::string> names;
    std::string name;
    for (const char c : text + ",") {
        if (c == ',') {
            if (!name.empty()) names.push_back(name);
            name.clear();
        } else if (c != ' ') {
            name += c;
        }
    }
    return names;
}

EfaDevice survey_one(const Machine& machine, const Sysfs& sysfs, const std::string& name) {
    const std::string folder = "class/infiniband/" + name + "/device";
    const std::string numa = sysfs.read_line(folder + "/numa_node");
    EfaDevice device;
    device.place.name = name;
    device.place.pci_path = sysfs.real_path(folder);
    device.place.numa_node = numa.empty() ? -1 : std::atoi(numa.c_str());
    const std::vector<std::string> nodes = sysfs.list(folder + "/infiniband_verbs");
    if (!nodes.empty()) device.device_node = machine.dev + "/infiniband/" + nodes[0];
    device.is_usable = !device.device_node.empty() && access(device.device_node.c_str(), R_OK | W_OK) == 0;
    return device;
}

size_t count_efa_on_pci_bus(const Sysfs& sysfs) {
    size_t count = 0;
    for (const std::string& id : sysfs.list("bus/pci/devices")) {
        const std::string device = "bus/pci/devices/" + id;
        if (sysfs.read_line(device + "/vendor") != kAmazonVendor) continue;
        count += sysfs.read_line(device + "/device").rfind(kEfaPciIdPrefix, 0) == 0;
    }
    return count;
}

void check_driver(const Sysfs& sysfs, const DeviceSurvey& survey, MissingList* missing) {
    if (!survey.efa.empty()) return;
    const std::string others =
        survey.others.empty() ? "" : "; other RDMA devices, not EFA: " + join(survey.others);
    const size_t on_bus = count_efa_on_pci_bus(sysfs);
    if (on_bus == 0) {
        missing->add(Code::kMissing, "no EFA device on this machine" + others,
                     "use an instance type with EFA (p5, p5en, p6) and network interfaces of type efa, or "
                     "NVSHMEM_EFA_MODE=soft for the software device");
    } else if (!sysfs.exists("module/efa")) {
        missing->add(Code::kMissing,
                     "the kernel module efa is not loaded, and " + std::to_string(on_bus) +
                         " EFA PCI devices wait for it" + others,
                     "modprobe efa, or install it with the EFA installer");
    } else {
        missing->add(Code::kMissing,
                     "the kernel module efa is loaded but made no device of " + std::to_string(on_bus) +
                         " EFA PCI devices" + others,
                     "dmesg | grep efa names the reason");
    }
}

void check_nodes(const Machine& machine, const DeviceSurvey& survey, MissingList* missing) {
    if (survey.efa.empty()) return;
    const auto usable = [](const EfaDevice& device) { return device.is_usable; };
    if (std::any_of(survey.efa.begin(), survey.efa.end(), usable)) return;
    const std::string folder = machine.dev + "/infiniband";
    if (access(folder.c_str(), F_OK) != 0) {
        missing->add(Code::kMissing, "no " + folder + ", though the kernel has " + join(names_of(survey.efa)),
                     "in a container, pass the devices in (docker --device=/dev/infiniband, Kubernetes resource "
                     "vpc.amazonaws.com/efa); on the host, modprobe ib_uverbs");
        return;
    }
    for (const EfaDevice& device : survey.efa) {
        const std::string node = device.device_node.empty() ? "a uverbs node" : device.device_node;
        const bool is_there = !device.device_node.empty() && access(node.c_str(), F_OK) == 0;
        missing->add(Code::kMissing, device.place.name + (is_there ? ": no permission for " : ": no ") + node,
                     is_there ? "give this user read and write access to the node (udev rules of rdma-core do)"
                              : "pass the node into the container, or modprobe ib_uverbs");
    }
}

void check_memlock(const Machine& machine, const DeviceSurvey& survey, MissingList* missing) {
    const uint64_t limit = machine.memlock();
    const std::string text = "only " + std::to_string(limit >> 10) + " KiB of memory may be locked (ulimit -l)";
    const char* hint = "ulimit -l unlimited; docker --ulimit memlock=-1; LimitMEMLOCK=infinity for services";
    if (limit < kMemlockLeast) {
        missing->add(Code::kMissing, text, hint);
    } else if (limit < kMemlockComfortable && !survey.efa.empty()) {
        EFA_LOG(kWarn, "verbs", "%s: registering host memory may fail; hint: %s", text.c_str(), hint);
    }
}

Status pick_by_name(const DeviceSurvey& survey, const std::vector<std::string>& names, std::vector<EfaDevice>* chosen) {
    for (const std::string& name : names) {
        const auto device = std::find_if(survey.efa.begin(), survey.efa.end(),
                                         [&](const EfaDevice& candidate) { return candidate.place.name == name; });
        if (device == survey.efa.end()) {
            return Status::error(
                Code::kConfig, "correct NVSHMEM_EFA_DEVICES, or leave it empty to use all",
                "NVSHMEM_EFA_DEVICES names %s, which is not an EFA device here; EFA devices: %s; others: %s",
                name.c_str(), join(names_of(survey.efa)).c_str(), join(survey.others).c_str());
        }
        if (!device->is_usable) {
            return Status::error(Code::kMissing, "pass its node into the container, or choose another device",
                                 "NVSHMEM_EFA_DEVICES names %s, but %s cannot be opened", name.c_str(),
                                 device->device_node.empty() ? "its uverbs node" : device->device_node.c_str());
        }
        for (const EfaDevice& earlier : *chosen) {
            if (earlier.place.name == name) {
                return Status::error(Code::kConfig, "name each device once", "NVSHMEM_EFA_DEVICES names %s twice",
                                     name.c_str());
            }
        }
        chosen->push_back(*device);
    }
    return Status();
}

// All usable ones, ordered by the GPU; their number is the GPU's own share when no number of rails is asked for.
size_t pick_by_gpu(const Sysfs& sysfs, const DeviceSurvey& survey, const std::string& gpu,
                   std::vector<EfaDevice>* chosen) {
    std::vector<PlacedNic> places;
    for (const EfaDevice& device : survey.efa) {
        if (device.is_usable) {
            places.push_back(device.place);
        } else {
            EFA_LOG(kDebug, "verbs", "%s skipped: its device node is not in this container", device.place.name.c_str());
        }
    }
    const bool found = order_nics_by_gpu(sysfs, gpu, &places);
    if (!found && !gpu.empty()) {
        EFA_LOG(kDebug, "verbs", "GPU %s is not in sysfs: devices are taken in the order of their names", gpu.c_str());
    }
    size_t own = 0;
    for (const PlacedNic& place : places) {
        own += place.is_own;
        for (const EfaDevice& device : survey.efa) {
            if (device.place.name != place.name) continue;
            chosen->push_back(device);
            chosen->back().place = place;
        }
    }
    return std::min(own, kDevicesMax);
}

}  // namespace

DeviceSurvey survey_devices(const Machine& machine) {
    const Sysfs sysfs(machine.sysfs);
    DeviceSurvey survey;
    for (const std::string& name : sysfs.list("class/infiniband")) {
        const std::string folder = "class/infiniband/" + name + "/device";
        const std::string driver = sysfs.link_name(folder + "/driver");
        // By driver and vendor both: virtual RDMA devices have no PCI device at all.
        if (driver == "efa" && sysfs.read_line(folder + "/vendor") == kAmazonVendor) {
            survey.efa.push_back(survey_one(machine, sysfs, name));
        } else {
            survey.others.push_back(name + " (" + (driver.empty() ? "no driver" : driver) + ")");
            EFA_LOG(kDebug, "verbs", "%s skipped: not an EFA device", survey.others.back().c_str());
        }
    }
    return survey;
}

void check_machine(const Machine& machine, const DeviceSurvey& survey, MissingList* missing) {
    check_driver(Sysfs(machine.sysfs), survey, missing);
    check_nodes(machine, survey, missing);
    check_memlock(machine, survey, missing);
}

Status choose_devices(const Machine& machine, const DeviceSurvey& survey, const OpenOptions& options,
                      std::vector<EfaDevice>* chosen) {
    chosen->clear();
    const std::vector<std::string> names = split_names(options.device_filter);
    size_t rails = 0;
    if (names.empty()) {
        rails = pick_by_gpu(Sysfs(machine.sysfs), survey, options.gpu_pci_id, chosen);
    } else {
        EFA_TRY(pick_by_name(survey, names, chosen));  // in the user's order
        rails = chosen->size();
    }
    if (options.rails_max > 0) rails = static_cast<size_t>(options.rails_max);
    if (rails > kDevicesMax) {
        return Status::error(Code::kConfig, "name fewer devices, or set NVSHMEM_EFA_RAILS",
                             "NVSHMEM_EFA_DEVICES names %zu devices, and a PE uses at most %zu", rails, kDevicesMax);
    }
    if (rails > chosen->size()) {
        return Status::error(Code::kConfig, "lower NVSHMEM_EFA_RAILS, or name more in NVSHMEM_EFA_DEVICES",
                             "NVSHMEM_EFA_RAILS asks for %zu devices, and there are %zu: %s", rails, chosen->size(),
                             join(names_of(*chosen)).c_str());
    }
    chosen->resize(rails);
    return Status();
}

}  // namespace nvshmem_efa::verbs
