// SPDX-License-Identifier: Apache-2.0
#include "fake_gdrapi.h"

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <map>

#include "../fake_cuda/fake_cuda.h"

#define FAKE_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

struct Pin {
    unsigned long value;
};
std::map<unsigned long, uint64_t> pinned;  // page by pin
std::atomic<bool> no_driver{false};
uint64_t refused_page = 0;
uint64_t pins = 0;
int gdr = 0;

}  // namespace

FAKE_EXPORT void fake_gdr_reset() { no_driver = false, refused_page = 0, pins = 0; }
FAKE_EXPORT void fake_gdr_no_driver(int missing) { no_driver = missing != 0; }
FAKE_EXPORT void fake_gdr_refuse_pin(uint64_t page) { refused_page = page; }
FAKE_EXPORT uint64_t fake_gdr_pins() { return pins; }
FAKE_EXPORT int fake_gdr_open_pins() { return static_cast<int>(pinned.size()); }

FAKE_EXPORT void* gdr_open() { return no_driver ? nullptr : &gdr; }
FAKE_EXPORT int gdr_close(void*) { return 0; }
FAKE_EXPORT int gdr_pin_buffer(void*, unsigned long addr, size_t bytes, uint64_t, uint32_t, Pin* pin) {
    if (addr % 65536 != 0 || bytes != 65536 || !fake_cuda_cpu(addr)) return EINVAL;
    if (addr == refused_page) return EPERM;
    pin->value = ++pins;
    pinned[pin->value] = addr;
    return 0;
}
FAKE_EXPORT int gdr_unpin_buffer(void*, Pin pin) { return pinned.erase(pin.value) == 1 ? 0 : EINVAL; }
FAKE_EXPORT int gdr_map(void*, Pin pin, void** mapped, size_t) {
    *mapped = fake_cuda_cpu(pinned.at(pin.value));
    return *mapped ? 0 : ENOMEM;
}
FAKE_EXPORT int gdr_unmap(void*, Pin, void*, size_t) { return 0; }
