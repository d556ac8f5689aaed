// SPDX-License-Identifier: Apache-2.0
// What the loopback plugin exports for tests, beside the plugin interface.
#pragma once

extern "C" {
// What PE 0 (and PEs that do not yet know their number) called, in order, separated by spaces.
const char* loopback_log();
// Forgets log and errors; the call of `op` number `countdown` (from 0) will fail. "" never fails.
void loopback_reset(const char* op, int countdown);
}
