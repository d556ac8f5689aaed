// SPDX-License-Identifier: Apache-2.0
// Timing and honest summaries: every figure is a median with its spread and sample count.
#pragma once

#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

namespace nvshmem_efa::perf {

inline double now_ns() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<double>(now.tv_sec) * 1e9 + static_cast<double>(now.tv_nsec);
}

struct Samples {
    std::vector<double> values;
    void add(double value) { values.push_back(value); }
    double at(double quantile) {
        std::sort(values.begin(), values.end());
        return values.empty() ? 0 : values[static_cast<size_t>(quantile * static_cast<double>(values.size() - 1))];
    }
    // {"unit": "ns", "median": .., "min": .., "p99": .., "max": .., "samples": ..}
    std::string json(const char* unit) {
        char text[256];
        snprintf(text, sizeof text, "{\"unit\": \"%s\", \"median\": %.4g, \"min\": %.4g, \"p99\": %.4g, \"max\": %.4g, \"samples\": %zu}",
                 unit, at(0.5), at(0), at(0.99), at(1), values.size());
        return text;
    }
};

}  // namespace nvshmem_efa::perf
