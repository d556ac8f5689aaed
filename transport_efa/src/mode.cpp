// SPDX-License-Identifier: Apache-2.0
#include "mode.h"

#include <dirent.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

namespace nvshmem_efa {

namespace {

constexpr uint64_t kModeMagic = 0x31656d6f642d6665ull;  // changes with the layout of ModeHeader

// The basename of the link <sysfs>/class/infiniband/<device>/device/driver, or "".
std::string driver_of(const std::string& device_dir) {
    char target[512];
    const std::string link = device_dir + "/device/driver";
    const ssize_t length = readlink(link.c_str(), target, sizeof target - 1);
    if (length <= 0) return "";
    target[length] = '\0';
    const char* slash = std::strrchr(target, '/');
    return slash ? slash + 1 : target;
}

Status open_with(const OpenNics& open, const Knobs& knobs, ModeDecision* decision) {
    OpenOptions options;
    options.device_filter = knobs.devices;
    options.rails_max = static_cast<int>(knobs.rails);
    EFA_TRY(open(options, &decision->nics));
    if (decision->nics.empty()) {
        return Status::error(Code::kMissing, "set NVSHMEM_EFA_DEVICES to a device that exists, or leave it empty",
                             "no device was opened");
    }
    return Status();
}

Status decide_auto(const Knobs& knobs, const ModeSources& sources, ModeDecision* decision) {
    Status opened = open_with(sources.open_verbs, knobs, decision);
    if (opened.ok()) {
        decision->mode = Mode::kProxy;
        return Status();
    }
    decision->nics.clear();
    if (has_efa_device(sources.sysfs)) {
        return std::move(opened).with_context(
            "this machine has an EFA device, but it cannot be used (NVSHMEM_EFA_MODE=fallback would take NVSHMEM's own "
            "transport instead)");
    }
    decision->mode = Mode::kFallback;
    decision->why = opened.message();
    return Status();
}

void copy_field(char (&field)[16], const std::string& text) {
    std::snprintf(field, sizeof field, "%s", text.c_str());
}

bool same_field(const char (&left)[16], const char (&right)[16]) { return std::strncmp(left, right, sizeof left) == 0; }

}  // namespace

const char* mode_name(Mode mode) {
    switch (mode) {
        case Mode::kProxy: return "proxy";
        case Mode::kDirect: return "direct";
        case Mode::kRelay: return "relay";
        case Mode::kSoft: return "soft";
        case Mode::kFallback: return "fallback";
    }
    return "unknown";
}

bool has_efa_device(const std::string& sysfs) {
    const std::string folder = sysfs + "/class/infiniband";
    DIR* dir = opendir(folder.c_str());
    if (!dir) return false;
    bool found = false;
    while (const dirent* entry = readdir(dir)) {
        if (entry->d_name[0] != '.') found = found || driver_of(folder + "/" + entry->d_name) == "efa";
    }
    closedir(dir);
    return found;
}

Status decide_mode(const Knobs& knobs, const ModeSources& sources, ModeDecision* decision) {
    if (knobs.mode == "auto") return decide_auto(knobs, sources, decision);
    if (knobs.mode == "fallback") {
        decision->mode = Mode::kFallback;
        decision->why = "NVSHMEM_EFA_MODE=fallback";
        return Status();
    }
    if (knobs.mode == "soft") {
        decision->mode = Mode::kSoft;
        return open_with(sources.open_soft, knobs, decision).with_context("NVSHMEM_EFA_MODE=soft");
    }
    const bool is_for_gpu = knobs.mode == "direct" || knobs.mode == "relay";
    if (is_for_gpu && knobs.gpu_queues == 0)
        return Status::error(Code::kConfig, "set NVSHMEM_EFA_GPU_QUEUES to 1 or more, or use NVSHMEM_EFA_MODE=proxy",
                             "NVSHMEM_EFA_MODE=%s says what the GPU's queues are, but there are none", knobs.mode.c_str());
    decision->mode = knobs.mode == "direct" ? Mode::kDirect : knobs.mode == "relay" ? Mode::kRelay : Mode::kProxy;
    return open_with(sources.open_verbs, knobs, decision).with_context("NVSHMEM_EFA_MODE=" + knobs.mode);
}

ModeHeader make_mode_header(Mode mode, const std::string& detail, int abi) {
    ModeHeader header;
    header.magic = kModeMagic;
    header.abi = static_cast<uint32_t>(abi);
    copy_field(header.mode, mode_name(mode));
    copy_field(header.detail, detail);
    copy_field(header.version, NVSHMEM_EFA_VERSION);
    return header;
}

Status check_mode_headers(const ModeHeader& own, int own_pe, const ModeHeader* all, int n_pes) {
    for (int pe = 0; pe < n_pes; ++pe) {
        const ModeHeader& other = all[pe];
        if (other.magic != kModeMagic) {
            return Status::error(Code::kMismatch, "set NVSHMEM_REMOTE_TRANSPORT=efa for every PE, with one version",
                                 "PE %d does not run this nvshmem-efa (PE %d runs " NVSHMEM_EFA_VERSION ")", pe, own_pe);
        }
        if (!same_field(other.version, own.version) || other.abi != own.abi) {
            return Status::error(Code::kMismatch, "install one version of NVSHMEM and nvshmem-efa on every machine",
                                 "PE %d runs nvshmem-efa %.15s on plugin ABI %u, PE %d runs %.15s on ABI %u", pe,
                                 other.version, other.abi, own_pe, own.version, own.abi);
        }
        if (!same_field(other.mode, own.mode) || !same_field(other.detail, own.detail)) {
            return Status::error(Code::kMismatch, "pin NVSHMEM_EFA_MODE to the same mode on every PE",
                                 "PE %d is in mode %.15s %.15s, PE %d in mode %.15s %.15s", pe, other.mode, other.detail,
                                 own_pe, own.mode, own.detail);
        }
    }
    return Status();
}

}  // namespace nvshmem_efa
