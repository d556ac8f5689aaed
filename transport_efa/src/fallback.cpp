// SPDX-License-Identifier: Apache-2.0
#include "fallback.h"

#include <dirent.h>
#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>

#include "abi/nvshmem_abi.h"
#include "log.h"
#include "mode.h"

namespace nvshmem_efa {

namespace {

// Exported by our plugin's library and by nothing else: how a loaded plugin is recognised as one of ours.
constexpr const char* kOurMark = "nvshmem_efa_plugin_init";

bool is_known(const std::string& name) {
    return name == "ibrc" || name == "ucx" || name == "ibdevx" || name == "libfabric";
}

std::string trimmed(const std::string& text) {
    const size_t first = text.find_first_not_of(" \t");
    if (first == std::string::npos) return "";
    return text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

bool has_entries(const std::string& folder) {
    DIR* dir = opendir(folder.c_str());
    if (!dir) return false;
    bool found = false;
    while (const dirent* entry = readdir(dir)) found = found || entry->d_name[0] != '.';
    closedir(dir);
    return found;
}

// Why a plugin may not even be called, or "".
std::string reason_to_skip(const std::string& name, const FallbackRequest& request) {
    if (name == "libfabric" && !has_efa_device(request.sysfs) && !has_entries(request.sysfs + "/class/cxi")) {
        // Seen with 3.4.5: SIGSEGV inside nvshmemt_init on a machine with no device of a provider that it knows.
        return "skipped, because it crashes where there is no EFA or CXI device";
    }
    if (name == "ucx" && request.names.size() > 1 && access((request.dev + "/gdrdrv").c_str(), F_OK) != 0) {
        // Seen with 3.4.5: it starts, then refuses every signal and atomic, which ends the program.
        return "skipped, because without GDRCopy (/dev/gdrdrv) it refuses signals and atomics";
    }
    return "";
}

// Loads by absolute path: our own plugin has the SONAME of the stock libfabric plugin and is what a bare name would get.
Status load_init(const std::string& path, abi::InitFn* init) {
    if (access(path.c_str(), R_OK) != 0) return Status::error(Code::kMissing, nullptr, "no such file");
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        const char* why = dlerror();
        return Status::error(Code::kMissing, nullptr, "%s", why ? why : "dlopen failed");
    }
    if (dlsym(library, kOurMark)) {
        dlclose(library);
        return Status::error(Code::kConfig, nullptr, "this file is nvshmem-efa's own plugin, not NVSHMEM's");
    }
    *init = reinterpret_cast<abi::InitFn>(dlsym(library, abi::kInitName));
    if (*init) return Status();
    dlclose(library);
    return Status::error(Code::kMissing, nullptr, "it has no %s", abi::kInitName);
}

Status try_plugin(const std::string& name, const FallbackRequest& request, FallbackChoice* choice) {
    if (const std::string why = reason_to_skip(name, request); !why.empty()) {
        return Status::error(Code::kMissing, nullptr, "%s", why.c_str());
    }
    const std::string file = "nvshmem_transport_" + name + ".so." + std::to_string(abi::abi_number(request.api_version));
    const std::string path = (request.lib_dir.starts_with('/') ? "" : "./") + request.lib_dir + "/" + file;
    abi::InitFn init = nullptr;
    EFA_TRY(load_init(path, &init));
    void* transport = nullptr;
    const int result = init(&transport, request.cuda_table, request.api_version);
    if (result != 0) return Status::error(Code::kMissing, nullptr, "its init returned %d", result);
    if (!transport) return Status::error(Code::kMissing, nullptr, "its init returned no transport");
    *choice = FallbackChoice{name, path, transport};
    return Status();
}

}  // namespace

Status parse_fallback_names(const std::string& list, std::vector<std::string>* names) {
    names->clear();
    size_t at = 0;
    while (at <= list.size()) {
        const size_t comma = std::min(list.find(',', at), list.size());
        const std::string name = trimmed(list.substr(at, comma - at));
        at = comma + 1;
        if (name.empty()) continue;
        if (!is_known(name)) {
            return Status::error(Code::kConfig, "known names: ibrc, ucx, ibdevx, libfabric",
                                 "NVSHMEM_EFA_FALLBACK: '%s' is not an NVSHMEM transport", name.c_str());
        }
        names->push_back(name);
    }
    if (!names->empty()) return Status();
    return Status::error(Code::kConfig, "name at least one of ibrc, ucx, ibdevx, libfabric",
                         "NVSHMEM_EFA_FALLBACK is empty");
}

Status load_fallback(const FallbackRequest& request, FallbackChoice* choice) {
    std::string tried;
    for (const std::string& name : request.names) {
        const Status status = try_plugin(name, request, choice);
        if (status.ok()) return Status();
        EFA_LOG(kDebug, "fallback", "%s: %s", name.c_str(), status.message());
        tried += (tried.empty() ? "" : "; ") + name + ": " + status.message();
    }
    return Status::error(Code::kMissing,
                         "run on a machine with EFA, InfiniBand or RoCE, or develop with NVSHMEM_EFA_MODE=soft",
                         "none of NVSHMEM's own transports in %s can be used (%s)", request.lib_dir.c_str(), tried.c_str());
}

}  // namespace nvshmem_efa
