// SPDX-License-Identifier: Apache-2.0
// What the made-up modules export.
#pragma once

#define MODULE_EXPORT extern "C" __attribute__((visibility("default")))

MODULE_EXPORT unsigned long module_first();   // the state's address in the first translation unit, as a number
MODULE_EXPORT unsigned long module_second();  // in the second
