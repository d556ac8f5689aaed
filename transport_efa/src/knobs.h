// SPDX-License-Identifier: Apache-2.0
// The settings of this process: read once from the environment, checked, then immutable. Table: knobs.def.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "status.h"

namespace nvshmem_efa {

struct Knobs {
#define KNOB_ENUM(NAME, field, default_value, choices, doc) std::string field = default_value;
#define KNOB_INT(NAME, field, default_value, min, max, doc) int64_t field = default_value;
#define KNOB_TEXT(NAME, field, default_value, doc) std::string field = default_value;
#include "knobs.def"
#undef KNOB_ENUM
#undef KNOB_INT
#undef KNOB_TEXT
    // No setting: of programs whose CPU threads post, even where a GPU is current.
    bool posters_are_cpu = false;
};

struct KnobInfo {
    const char* name;  // "NVSHMEM_EFA_MODE"
    const char* type;  // "enum" | "int" | "text"
    const char* default_value;
    const char* range;  // "a|b|c", "10..3600000", or ""
    const char* doc;
};

const std::vector<KnobInfo>& knob_table();

// Reads `environment` (NAME=value strings, null-terminated array; null means the process's own).
// A value out of range or misspelt is kConfig naming the variable, what was given and what is allowed.
// A NVSHMEM_EFA_* name that is not in the table goes to `warnings`, with the nearest known name.
Status parse_knobs(const char* const* environment, Knobs* knobs, std::vector<std::string>* warnings);

// The knobs of this process, parsed at first use; a parse error is reported by load_knobs() and leaves defaults.
const Knobs& knobs();
// Parses again (a second init in one process sees a changed environment). Call with no transport alive.
Status load_knobs();

}  // namespace nvshmem_efa
