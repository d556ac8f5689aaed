// SPDX-License-Identifier: Apache-2.0
// NVSHMEM_REMOTE_TRANSPORT=efa, for host libraries that do not know the name: see docs/switch.md.
// With LD_PRELOAD this runs in every program that a job starts, shells and launchers included. So: nothing but libc, no
// C++ runtime, and not a byte of output unless `efa` was asked for and cannot be had.
#include <dirent.h>
#include <dlfcn.h>
#include <link.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "nvshmem_efa/api.h"

namespace {

constexpr const char* kVariable = "NVSHMEM_REMOTE_TRANSPORT";
constexpr const char* kMarker = "NVSHMEM_EFA_SELECTED";
constexpr const char* kStockName = "libfabric";  // a name that every host library takes; our plugins bear its SONAMEs
constexpr int kAbiMin = 3;
constexpr int kAbiMax = 7;

bool names_value(const char* name, const char* expected) {
    const char* value = getenv(name);
    return value && strcasecmp(value, expected) == 0;
}

// `efa` itself, or what a parent of this process turned `efa` into. A value that somebody set since then wins.
bool is_asked_for() {
    if (names_value(kVariable, "efa")) return true;
    return names_value(kMarker, "1") && names_value(kVariable, kStockName);
}

// The N of nvshmem_transport_<any>.so.<N>; 0 for other names.
int plugin_number(const char* file) {
    if (strncmp(file, "nvshmem_transport_", 18) != 0) return 0;
    const char* suffix = strstr(file, ".so.");
    return suffix ? atoi(suffix + 4) : 0;
}

struct HostFolder {
    char path[PATH_MAX];
};

int match_host_library(dl_phdr_info* info, size_t /*size*/, void* out) {
    const char* slash = info->dlpi_name ? strrchr(info->dlpi_name, '/') : nullptr;
    if (!slash || strncmp(slash + 1, "libnvshmem_host.so", 18) != 0) return 0;
    const size_t length = static_cast<size_t>(slash - info->dlpi_name);
    HostFolder* folder = static_cast<HostFolder*>(out);
    if (length >= sizeof folder->path) return 0;
    memcpy(folder->path, info->dlpi_name, length);
    folder->path[length] = '\0';
    return 1;
}

// The plugin ABI of the host library in this process, from the plugin files beside it; 0 when not known.
int loaded_abi(HostFolder* folder) {
    folder->path[0] = '\0';
    if (!dl_iterate_phdr(match_host_library, folder)) return 0;
    DIR* dir = opendir(folder->path);
    if (!dir) return 0;
    int number = 0;
    for (const dirent* entry = readdir(dir); entry && !number; entry = readdir(dir)) number = plugin_number(entry->d_name);
    closedir(dir);
    return number;
}

void complain(const char* what, const char* detail, const char* hint) {
    fprintf(stderr, "nvshmem-efa: %s=efa cannot be honoured: %s%s; hint: %s\n", kVariable, what, detail, hint);
}

bool preload(const char* own_folder, int abi) {
    char path[PATH_MAX];
    const int length = snprintf(path, sizeof path, "%s/nvshmem_transport_efa_abi%d.so", own_folder, abi);
    if (length < 0 || static_cast<size_t>(length) >= sizeof path) return false;
    // Local: its nvshmemt_init must not stand in for another plugin's. Never unloaded: the host's later dlopen by name
    // is answered with an object only while it is there.
    if (dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE)) return true;
    const char* why = dlerror();
    complain("", why ? why : path, "install nvshmem-efa again; all its libraries belong in one folder");
    return false;
}

// Puts our plugin where the host library's dlopen by name will find it: for the ABI of the host library if that is
// already here, else for every ABI. A plugin that is not asked for costs a page or two.
bool preload_plugins() {
    static const int anchor = 0;
    Dl_info self = {};
    if (!dladdr(&anchor, &self) || !self.dli_fname) return false;
    char folder[PATH_MAX];
    const char* slash = strrchr(self.dli_fname, '/');
    snprintf(folder, sizeof folder, "%.*s", slash ? static_cast<int>(slash - self.dli_fname) : 1,
             slash ? self.dli_fname : ".");
    HostFolder host;
    const int abi = loaded_abi(&host);
    if (abi != 0 && (abi < kAbiMin || abi > kAbiMax)) {
        complain("this nvshmem-efa does not know the plugin ABI of the NVSHMEM in ", host.path, "update nvshmem-efa");
        return false;
    }
    if (abi != 0) return preload(folder, abi);
    for (int number = kAbiMin; number <= kAbiMax; ++number) {
        if (!preload(folder, number)) return false;
    }
    return true;
}

__attribute__((constructor)) void on_load() { nvshmem_efa_select(); }

}  // namespace

int nvshmem_efa_select(void) {
    if (!is_asked_for()) return 0;
    if (!preload_plugins()) {
        // Back to a name that no host library knows: the stock plugin must not be taken in our place.
        setenv(kVariable, "efa", 1);
        return -1;
    }
    // The marker first: a child that sees the new value must also see who made it.
    setenv(kMarker, "1", 1);
    setenv(kVariable, kStockName, 1);
    return 1;
}
