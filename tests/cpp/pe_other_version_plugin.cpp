// SPDX-License-Identifier: Apache-2.0
// The real plugin, but it tells its peers that it is another version: what it sends in the bootstrap's allgathers is
// changed on its way out. PE_REAL_PLUGIN names the real file.
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "abi/abi4.h"

using namespace nvshmem_efa::abi;

namespace {

decltype(BootstrapHandle::allgather) real_allgather;
decltype(v4::HostOps::connect_endpoints) real_connect;

int lying_allgather(const void* send, void* recv, int bytes, BootstrapHandle* handle) {
    std::string changed(static_cast<const char*>(send), static_cast<size_t>(bytes));
    const std::string version = NVSHMEM_EFA_VERSION;
    for (size_t at = changed.find(version); at != std::string::npos; at = changed.find(version, at + 1))
        changed.replace(at, version.size(), std::string(version.size(), '9'));
    return real_allgather(changed.data(), recv, bytes, handle);
}

int lying_connect(v4::Transport* t, int* devices, int n, int* out_qps, int n_qps) {
    real_allgather = t->boot_handle->allgather;
    t->boot_handle->allgather = lying_allgather;
    return real_connect(t, devices, n, out_qps, n_qps);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int nvshmemt_init(void** out, void* table, int api_version) {
    const char* path = std::getenv("PE_REAL_PLUGIN");
    void* library = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr;
    const auto init = library ? reinterpret_cast<InitFn>(dlsym(library, kInitName)) : nullptr;
    if (!init) return kHostInternal;
    if (const int rc = init(out, table, api_version)) return rc;
    auto* t = static_cast<v4::Transport*>(*out);
    real_connect = t->host_ops.connect_endpoints;
    t->host_ops.connect_endpoints = lying_connect;
    return 0;
}
