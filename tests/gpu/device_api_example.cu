// SPDX-License-Identifier: Apache-2.0
// The example of docs/device-api.md, which quotes it from here on. A CPU test runs it: test_device_api_example.cpp.
#include "nvshmem_efa/device.cuh"

using namespace nvshmem_efa;

// PE 0 sends `bytes` with a signal; PE 1 waits for the signal, and then the data is there. All pointers but `is_good` are
// symmetric. Launched by both PEs with one block of any size.
__global__ void send(char* inbox, const char* outbox, size_t bytes, uint64_t* signal, int me, bool* is_good) {
    if (threadIdx.x != 0) return;
    if (me == 0) {
        *is_good = here::put_signal_nbi(inbox, outbox, bytes, signal, uint64_t{1}, SignalOp::kAdd, 1) && here::quiet();
    } else {
        *is_good = here::wait_until(signal, Cmp::kGe, uint64_t{1});  // from here on, inbox holds what PE 0 sent
    }
}
