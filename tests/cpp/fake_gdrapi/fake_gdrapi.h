// SPDX-License-Identifier: Apache-2.0
// A libgdrapi.so.2 for tests, on top of the fake driver's memory.
#pragma once

#include <cstdint>

extern "C" {
void fake_gdr_reset();
void fake_gdr_no_driver(int missing);       // gdr_open fails
void fake_gdr_refuse_pin(uint64_t page);    // this 64 KiB page cannot be pinned; 0: none
uint64_t fake_gdr_pins();                   // ever made
int fake_gdr_open_pins();                   // made and not undone
}
