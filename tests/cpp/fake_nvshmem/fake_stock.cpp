// SPDX-License-Identifier: Apache-2.0
// One of NVSHMEM's own plugins, as far as the fallback sees it. STOCK_RESULT: what its init returns; STOCK_CRASHES: it
// dies there, as the real libfabric plugin does on a machine without a device.
#include <cstdlib>

#include "abi/abi3.h"
#include "abi/abi4.h"
#include "abi/abi6.h"

namespace {

using namespace nvshmem_efa;

template <class Struct, class... Args>
int connect(Struct* t, Args...) {
    t->n_devices += 100;  // seen by the test
    return 0;
}

template <class Struct>
int finalize(Struct* t) {
    std::free(t);
    return 0;
}

template <class Struct>
void* make(void* cuda_table, int api_version) {
    Struct* t = static_cast<Struct*>(std::calloc(1, abi::kTransportBytesMin));
    t->api_version = api_version;
    t->state = cuda_table;  // handed through: the test looks at it
    t->attr = abi::kAttrConnected;
    t->n_devices = 1;
    t->host_ops.connect_endpoints = connect<Struct>;
    t->host_ops.finalize = finalize<Struct>;
    return t;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int nvshmemt_init(void** out, void* cuda_table, int api_version) {
#ifdef STOCK_CRASHES
    std::abort();
#endif
    if (STOCK_RESULT != 0) return STOCK_RESULT;
    const int number = abi::abi_number(api_version);
    *out = number == 3  ? make<abi::v3::Transport>(cuda_table, api_version)
           : number < 6 ? make<abi::v4::Transport>(cuda_table, api_version)
                        : make<abi::v6::Transport>(cuda_table, api_version);
    return 0;
}
