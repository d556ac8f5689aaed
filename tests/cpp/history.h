// SPDX-License-Identifier: Apache-2.0
// A simulated history: one job of a few PEs in one thread, on software devices under a virtual clock, driven through
// the plugin's ABI. Everything that happens is a function of one seed: the job's shape, every operation, every delay.
// A checker looks at all PEs' memory as it goes; the first thing that is wrong ends the history and names itself.
#pragma once

#include <cstdint>
#include <string>

namespace history {

struct Result {
    std::string violation;  // empty: all promises were kept
    std::string shape;      // what the seed drew
    uint64_t trace = 0;     // equal for equal seeds
    uint64_t operations = 0;
    uint64_t work_requests = 0;
    uint64_t out_of_order = 0;
    uint64_t duplicates = 0;
    uint64_t rnr = 0;
};

// `abi` is 3 to 7.
Result run(uint64_t seed, int abi);

}  // namespace history
