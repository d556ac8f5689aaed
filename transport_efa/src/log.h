// SPDX-License-Identifier: Apache-2.0
// One log sink for the process: "host:pid [pe] LEVEL subsys  message". See docs/env.md for the knobs.
#pragma once

#include "status.h"

namespace nvshmem_efa {

struct Knobs;

enum class LogLevel : int { kError = 0, kWarn = 1, kInfo = 2, kDebug = 3, kTrace = 4 };

// Called by knobs() and load_knobs(); a log file that cannot be opened is kConfig and leaves stderr.
Status log_configure(const Knobs& knobs);

bool log_enabled(LogLevel level);
void log_set_pe(int pe);  // shown in the prefix; -1 (not yet known) prints "-"
int log_pe();              // what was set
[[gnu::format(printf, 3, 4)]] void log_print(LogLevel level, const char* subsys, const char* format, ...);

#define EFA_LOG(level, subsys, ...)                                                    \
    do {                                                                               \
        if (::nvshmem_efa::log_enabled(::nvshmem_efa::LogLevel::level))                \
            ::nvshmem_efa::log_print(::nvshmem_efa::LogLevel::level, subsys, __VA_ARGS__); \
    } while (0)

}  // namespace nvshmem_efa
