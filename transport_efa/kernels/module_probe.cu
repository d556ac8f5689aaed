// SPDX-License-Identifier: Apache-2.0
// What a kernel of a module of its own sees of the device state: shows that the state has reached the module.
#include "nvshmem_efa/module.cuh"

using namespace nvshmem_efa;

// seen: {1 if there is a state, version, bytes, pe, n_pes}
extern "C" __global__ void module_probe(int32_t* seen) {
    const DeviceState* state = nvshmem_efa_state;
    seen[0] = state != nullptr && state->magic == kDeviceStateMagic;
    if (seen[0] == 0) return;
    seen[1] = static_cast<int32_t>(state->version);
    seen[2] = static_cast<int32_t>(state->bytes);
    seen[3] = state->pe;
    seen[4] = state->n_pes;
}
