// SPDX-License-Identifier: Apache-2.0
#include "nvshmem_locate.h"

#include <dirent.h>
#include <dlfcn.h>
#include <link.h>

#include <cstdlib>
#include <cstring>
#include <vector>

namespace nvshmem_efa {

namespace {

std::string folder_of(const std::string& path) {
    const size_t slash = path.rfind('/');
    return slash == std::string::npos ? "." : path.substr(0, slash);
}

int match_host_library(dl_phdr_info* info, size_t /*size*/, void* out) {
    if (!info->dlpi_name) return 0;
    const char* slash = std::strrchr(info->dlpi_name, '/');
    const char* name = slash ? slash + 1 : info->dlpi_name;
    if (std::strncmp(name, "libnvshmem_host.so", 18) != 0) return 0;
    *static_cast<std::string*>(out) = info->dlpi_name;
    return 1;
}

bool holds_plugins(const std::string& folder) {
    DIR* dir = opendir(folder.c_str());
    if (!dir) return false;
    bool found = false;
    while (const dirent* entry = readdir(dir)) found = found || !std::strncmp(entry->d_name, "nvshmem_transport_", 18);
    closedir(dir);
    return found;
}

// <site-packages>/nvshmem_efa/lib/<this library> -> <site-packages>/nvidia/nvshmem/lib
std::string beside_our_package() {
    static const int anchor = 0;
    Dl_info info{};
    if (!dladdr(&anchor, &info) || !info.dli_fname) return "";
    return folder_of(info.dli_fname) + "/../../nvidia/nvshmem/lib";
}

}  // namespace

std::string loaded_host_library() {
    std::string path;
    dl_iterate_phdr(match_host_library, &path);
    return path;
}

Status find_nvshmem_lib_dir(const std::string& home, std::string* lib_dir) {
    std::vector<std::string> candidates;
    if (!home.empty()) {
        candidates = {home + "/lib", home};
    } else {
        const std::string host = loaded_host_library();
        if (!host.empty()) candidates.push_back(folder_of(host));
        const char* environment_home = std::getenv("NVSHMEM_HOME");
        if (environment_home && *environment_home) candidates.push_back(std::string(environment_home) + "/lib");
        if (const std::string ours = beside_our_package(); !ours.empty()) candidates.push_back(ours);
    }
    std::string looked_at;
    for (const std::string& candidate : candidates) {
        if (holds_plugins(candidate)) {
            *lib_dir = candidate;
            return Status();
        }
        looked_at += (looked_at.empty() ? "" : ", ") + candidate;
    }
    return Status::error(Code::kMissing, "set NVSHMEM_EFA_NVSHMEM_HOME to the folder of NVSHMEM that holds lib/",
                         "no nvshmem_transport_* plugin found; looked in: %s", looked_at.c_str());
}

std::string nvshmem_version() {
    const std::string path = loaded_host_library();
    if (path.empty()) return "unknown";
    // Not in the global scope when Python or another library loaded it: ask the mapped object itself.
    void* library = dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
    if (!library) return "unknown";
    using VersionFn = void (*)(int*, int*, int*);
    const auto ask = reinterpret_cast<VersionFn>(dlsym(library, "nvshmemx_vendor_get_version_info"));
    int major = 0, minor = 0, patch = 0;
    if (ask) ask(&major, &minor, &patch);
    dlclose(library);
    if (!ask) return "unknown";
    return std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(patch);
}

}  // namespace nvshmem_efa
