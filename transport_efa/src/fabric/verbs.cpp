// SPDX-License-Identifier: Apache-2.0
#include "fabric/verbs.h"

#include <sys/resource.h>

#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <utility>

#include "fabric/verbs_devices.h"
#include "fabric/verbs_errno.h"
#include "fabric/verbs_library.h"
#include "fabric/verbs_nic.h"
#include "log.h"

namespace nvshmem_efa::verbs {
namespace {

bool has_ipc_lock() {
    constexpr int kCapIpcLock = 14;
    std::ifstream file("/proc/self/status");
    for (std::string line; std::getline(file, line);) {
        if (line.rfind("CapEff:", 0) != 0) continue;
        return (std::strtoull(line.c_str() + 7, nullptr, 16) >> kCapIpcLock & 1) != 0;
    }
    return false;
}

// The library's list of devices, freed on destruction. Devices opened from it outlive it.
class DeviceList {
   public:
    explicit DeviceList(std::shared_ptr<const VerbsLibrary> library) : library_(std::move(library)) {}
    ~DeviceList() {
        if (list_) library_->api().free_device_list(list_);
    }
    DeviceList(const DeviceList&) = delete;
    DeviceList& operator=(const DeviceList&) = delete;

    Status get() {
        errno = 0;
        list_ = library_->api().get_device_list(&count_);
        if (list_ != nullptr) return Status();
        return Status::error(Code::kMissing, "modprobe ib_uverbs; in a container, pass in /dev/infiniband",
                             "ibv_get_device_list failed: %s", errno_text(errno ? errno : EIO).c_str());
    }

    IbvDevice* find(const std::string& name) const {
        for (int i = 0; i < count_; ++i) {
            const char* known = library_->api().get_device_name(list_[i]);
            if (known != nullptr && name == known) return list_[i];
        }
        return nullptr;
    }

   private:
    std::shared_ptr<const VerbsLibrary> library_;
    IbvDevice** list_ = nullptr;
    int count_ = 0;
};

Status open_one(const Machine& machine, const std::shared_ptr<const VerbsLibrary>& library, const DeviceList& list,
                const EfaDevice& device, std::unique_ptr<Nic>* nic) {
    IbvDevice* listed = list.find(device.place.name);
    if (listed == nullptr) {
        return Status::error(Code::kMissing,
                             "libibverbs loads the EFA provider by /etc/libibverbs.d/efa.driver; reinstall rdma-core's "
                             "EFA provider (package ibverbs-providers)",
                             "libibverbs does not list %s, which the kernel has", device.place.name.c_str());
    }
    std::unique_ptr<OpenDevice> opened;
    EFA_TRY(OpenDevice::open(library, listed, device.place.name, &opened));
    NicInfo info;
    info.name = device.place.name;
    info.pci_path = device.place.pci_path;
    info.numa_node = device.place.numa_node;
    info.driver_version = Sysfs(machine.sysfs).read_line("module/efa/version");
    info.caps = opened->caps();
    *nic = std::make_unique<VerbsNic>(std::move(opened), std::move(info), machine.export_dmabuf);
    return Status();
}

}  // namespace

uint64_t Machine::memlock() const {
    if (memlock_bytes != 0) return memlock_bytes;
    rlimit limit = {};
    if (getrlimit(RLIMIT_MEMLOCK, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY || has_ipc_lock()) {
        return kMemlockUnlimited;
    }
    return limit.rlim_cur;
}

Status open_nics(const Machine& machine, const OpenOptions& options, std::vector<std::unique_ptr<Nic>>* nics) {
    nics->clear();
    MissingList missing;
    const std::shared_ptr<const VerbsLibrary> library =
        VerbsLibrary::open(machine.libibverbs, machine.libefa, &missing);
    const DeviceSurvey survey = survey_devices(machine);
    check_machine(machine, survey, &missing);
    EFA_TRY(missing.status());
    std::vector<EfaDevice> chosen;
    EFA_TRY(choose_devices(machine, survey, options, &chosen));
    DeviceList list(library);
    EFA_TRY(list.get());
    std::vector<std::unique_ptr<Nic>> opened(chosen.size());
    for (size_t i = 0; i < chosen.size(); ++i) EFA_TRY(open_one(machine, library, list, chosen[i], &opened[i]));
    *nics = std::move(opened);
    return Status();
}

}  // namespace nvshmem_efa::verbs

namespace nvshmem_efa {

Status open_verbs_nics(const OpenOptions& options, std::vector<std::unique_ptr<Nic>>* nics) {
    OpenOptions completed = options;
    if (completed.gpu_pci_id.empty()) completed.gpu_pci_id = verbs::current_gpu_pci_id();
    return verbs::open_nics(verbs::Machine(), completed, nics);
}

}  // namespace nvshmem_efa
