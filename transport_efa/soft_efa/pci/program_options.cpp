// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>
#include <cstring>

#include "knobs.h"
#include "log.h"
#include "program.h"

namespace nvshmem_efa::soft::pci {

const char* const kUsage =
    "usage: nvshmem-efa-pci --socket PATH [options]\n"
    "  --socket PATH    unix socket for QEMU's vfio-user-pci; made by this program, removed at its end\n"
    "  --fabric DIR     private folder through which functions find each other; made if needed (none: alone)\n"
    "  --profile NAME   efa2, efa3 or efa4                          (NVSHMEM_EFA_SOFT_PROFILE)\n"
    "  --without LIST   capabilities of the profile that this device lacks: rdma_read, rdma_write, rnr_retry,\n"
    "                   unsolicited, inline_write, req_id_64, counters, data_polling_128 (comma-separated)\n"
    "  --seed N         seed of every random choice                 (NVSHMEM_EFA_SOFT_SEED)\n"
    "  --reorder-ns N   window of random order of arrival           (NVSHMEM_EFA_SOFT_REORDER_NS)\n"
    "  --duplicate-ppm N   payloads written twice, per million      (NVSHMEM_EFA_SOFT_DUPLICATE_PPM)\n"
    "  --fault dead_rail=0@N  falls silent after N packets          (NVSHMEM_EFA_SOFT_FAULT)\n"
    "  --timeout-ms N   twice the time to call a peer unresponsive  (NVSHMEM_EFA_TIMEOUT_MS)\n"
    "More faults: NVSHMEM_EFA_SOFT_*, see `nvshmem-efa env`. SIGTERM ends it.\n"
    "exit codes: 0 ended by a signal, 2 usage or setting, 3 other\n";

namespace {

struct SettingOption {
    const char* option;
    const char* variable;
};

constexpr SettingOption kSettings[] = {{"--profile", "NVSHMEM_EFA_SOFT_PROFILE"},
                                       {"--seed", "NVSHMEM_EFA_SOFT_SEED"},
                                       {"--reorder-ns", "NVSHMEM_EFA_SOFT_REORDER_NS"},
                                       {"--duplicate-ppm", "NVSHMEM_EFA_SOFT_DUPLICATE_PPM"},
                                       {"--fault", "NVSHMEM_EFA_SOFT_FAULT"},
                                       {"--timeout-ms", "NVSHMEM_EFA_TIMEOUT_MS"}};

}  // namespace

Status parse_arguments(int argc, char** argv, ProgramOptions* options) {
    for (int i = 1; i < argc; ++i) {
        const std::string name = argv[i];
        if (name == "--help") {
            options->shows_help = true;
            return Status();
        }
        if (name == "--version") {
            options->shows_version = true;
            return Status();
        }
        const char* variable = nullptr;
        for (const SettingOption& setting : kSettings) {
            if (name == setting.option) variable = setting.variable;
        }
        std::string* const text = name == "--socket"    ? &options->socket
                                  : name == "--fabric"  ? &options->fabric
                                  : name == "--without" ? &options->without
                                                        : nullptr;
        if (!variable && !text)
            return Status::error(Code::kConfig, nullptr, "unknown option %s", argv[i]);
        if (++i == argc) return Status::error(Code::kConfig, nullptr, "%s needs a value", name.c_str());
        if (variable) {
            setenv(variable, argv[i], 1);
        } else {
            *text = argv[i];
        }
    }
    if (options->socket.empty()) return Status::error(Code::kConfig, nullptr, "--socket is missing");
    return load_knobs();
}

}  // namespace nvshmem_efa::soft::pci
