// SPDX-License-Identifier: Apache-2.0
// Which data path this process takes. Decided once at init, by name; no mode is ever entered silently.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "fabric/fabric.h"
#include "knobs.h"
#include "status.h"

namespace nvshmem_efa {

// kDirect and kRelay are kProxy's data path for the host, and pin the kind of ring that the GPU posts to (gpu_ring.h).
enum class Mode { kProxy, kDirect, kRelay, kSoft, kFallback };

const char* mode_name(Mode mode);  // "proxy", "direct", "relay", "soft", "fallback"

using OpenNics = std::function<Status(const OpenOptions&, std::vector<std::unique_ptr<Nic>>*)>;

// What the decision asks the machine; tests put their own in.
struct ModeSources {
    OpenNics open_verbs = open_verbs_nics;
    OpenNics open_soft = open_soft_nics;
    std::string sysfs = "/sys";
};

struct ModeDecision {
    Mode mode = Mode::kFallback;
    std::vector<std::unique_ptr<Nic>> nics;  // opened; empty for kFallback
    std::string why;                         // for kFallback: what is missing for EFA
};

// True when the kernel has bound its EFA driver to a device of this machine, usable or not.
bool has_efa_device(const std::string& sysfs);

// auto: EFA devices -> proxy; no EFA device at all -> fallback. An EFA device that is there and cannot be opened is an
// error, not a fallback. A pinned mode that cannot be had is an error naming what is missing. soft is never chosen.
Status decide_mode(const Knobs& knobs, const ModeSources& sources, ModeDecision* decision);

// What every PE tells the others before anything else in connect: a job in which some PEs fell back and others did not
// would otherwise hang in the first collective whose sizes differ. 64 bytes of plain text fields.
struct ModeHeader {
    uint64_t magic = 0;
    uint32_t abi = 0;
    uint32_t reserved = 0;
    char mode[16] = {};     // mode_name()
    char detail[16] = {};   // kFallback: "ibrc"
    char version[16] = {};  // ours
};
static_assert(sizeof(ModeHeader) == 64);

ModeHeader make_mode_header(Mode mode, const std::string& detail, int abi);
// kMismatch naming the first PE that differs from `own`, and in what.
Status check_mode_headers(const ModeHeader& own, int own_pe, const ModeHeader* all, int n_pes);

}  // namespace nvshmem_efa
