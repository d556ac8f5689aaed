// SPDX-License-Identifier: Apache-2.0
#include "knobs.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <mutex>
#include <string_view>

#include "log.h"

namespace nvshmem_efa {
namespace {

constexpr std::string_view kPrefix = "NVSHMEM_EFA_";

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

// The value of `name` as getenv() would find it, or null. An empty value counts as unset: launchers export such.
const char* find_value(const char* const* environment, std::string_view name) {
    for (const char* const* entry = environment; *entry; ++entry) {
        const std::string_view text = *entry;
        if (text.size() > name.size() && text.substr(0, name.size()) == name && text[name.size()] == '=') {
            return text.size() > name.size() + 1 ? *entry + name.size() + 1 : nullptr;
        }
    }
    return nullptr;
}

Status parse_choice(const char* given, const char* name, const char* choices, std::string* out) {
    if (!given) return {};
    std::string value = given;
    std::transform(value.begin(), value.end(), value.begin(), lower);
    std::string_view rest = choices;
    for (;;) {
        const size_t bar = rest.find('|');
        if (rest.substr(0, bar) == value) {
            *out = value;
            return {};
        }
        if (bar == std::string_view::npos) break;
        rest.remove_prefix(bar + 1);
    }
    return Status::error(Code::kConfig, "set one of the allowed values, or unset it for the default",
                         "%s=%.64s is not one of %s", name, given, choices);
}

// Decimal or 0x hex with an optional suffix k, m or g; nothing else before or after. False if not such a number.
bool parse_number(std::string_view text, int64_t* out) {
    const bool negative = !text.empty() && text[0] == '-';
    if (negative) text.remove_prefix(1);
    const bool hex = text.size() > 2 && text[0] == '0' && lower(text[1]) == 'x';
    if (hex) text.remove_prefix(2);
    int64_t value = 0;
    if (text.empty() || text[0] == '-') return false;  // from_chars would take a sign here
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, hex ? 16 : 10);
    if (error != std::errc()) return false;
    text.remove_prefix(static_cast<size_t>(end - text.data()));
    if (text.size() > 1) return false;
    if (text.size() == 1) {
        const char suffix = lower(text[0]);
        const int shift = suffix == 'k' ? 10 : suffix == 'm' ? 20 : suffix == 'g' ? 30 : 0;
        if (shift == 0 || __builtin_mul_overflow(value, int64_t{1} << shift, &value)) return false;
    }
    *out = negative ? -value : value;
    return true;
}

Status parse_integer(const char* given, const char* name, int64_t min, int64_t max, int64_t* out) {
    if (!given) return {};
    int64_t value = 0;
    if (!parse_number(given, &value)) {
        return Status::error(Code::kConfig, "use digits or 0x hex, with k, m or g for 2^10, 2^20 or 2^30",
                             "%s=%.64s is not a number", name, given);
    }
    if (value < min || value > max) {
        return Status::error(Code::kConfig, "set a value in the range, or unset it for the default",
                             "%s=%.64s is not in %lld..%lld", name, given, static_cast<long long>(min),
                             static_cast<long long>(max));
    }
    *out = value;
    return {};
}

Status parse_text(const char* given, std::string* out) {
    if (given) *out = given;
    return {};
}

// Levenshtein's distance: insertions, deletions and replacements of one letter.
size_t edit_distance(std::string_view a, std::string_view b) {
    std::vector<size_t> row(b.size() + 1);
    for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
    for (size_t i = 1; i <= a.size(); ++i) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= b.size(); ++j) {
            const size_t above = row[j];
            row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
            diagonal = above;
        }
    }
    return row[b.size()];
}

void warn_of_unknown(const char* const* environment, std::vector<std::string>* warnings) {
    for (const char* const* entry = environment; *entry; ++entry) {
        std::string_view name = *entry;
        if (name.substr(0, kPrefix.size()) != kPrefix) continue;
        name = name.substr(0, std::min(name.find('='), size_t{128}));
        const KnobInfo* nearest = nullptr;
        size_t best = SIZE_MAX;
        for (const KnobInfo& knob : knob_table()) {
            const size_t distance = edit_distance(name, knob.name);
            if (distance < best) {
                best = distance;
                nearest = &knob;
            }
        }
        if (best != 0) {
            warnings->push_back(std::string(name) + " is not a setting and has no effect; did you mean " +
                                nearest->name + "?");
        }
    }
}

struct Loaded {
    std::mutex mutex;
    bool done = false;
    Knobs knobs;
};

Loaded& loaded() {
    static Loaded* state = new Loaded;  // never destroyed: threads may log while the process exits
    return *state;
}

// Parses and applies the log's settings. The caller holds the mutex. A parse error leaves defaults.
Status load(Loaded& state, std::vector<std::string>* warnings) {
    Knobs parsed;
    Status status = parse_knobs(nullptr, &parsed, warnings);
    if (!status.ok()) parsed = Knobs{};
    state.knobs = parsed;
    state.done = true;
    Status log_status = log_configure(state.knobs);
    return status.ok() ? std::move(log_status) : std::move(status);
}

}  // namespace

const std::vector<KnobInfo>& knob_table() {
#define KNOB_ENUM(NAME, field, default_value, choices, doc) {"NVSHMEM_EFA_" #NAME, "enum", default_value, choices, doc},
#define KNOB_INT(NAME, field, default_value, min, max, doc) \
    {"NVSHMEM_EFA_" #NAME, "int", #default_value, #min ".." #max, doc},
#define KNOB_TEXT(NAME, field, default_value, doc) {"NVSHMEM_EFA_" #NAME, "text", default_value, "", doc},
    static const std::vector<KnobInfo>* table = new std::vector<KnobInfo>{
#include "knobs.def"
    };
#undef KNOB_ENUM
#undef KNOB_INT
#undef KNOB_TEXT
    return *table;
}

Status parse_knobs(const char* const* environment, Knobs* knobs, std::vector<std::string>* warnings) {
    if (!environment) environment = environ;
    Knobs parsed;
#define KNOB_VALUE(NAME) find_value(environment, "NVSHMEM_EFA_" #NAME)
#define KNOB_ENUM(NAME, field, default_value, choices, doc) \
    EFA_TRY(parse_choice(KNOB_VALUE(NAME), "NVSHMEM_EFA_" #NAME, choices, &parsed.field));
#define KNOB_INT(NAME, field, default_value, min, max, doc) \
    EFA_TRY(parse_integer(KNOB_VALUE(NAME), "NVSHMEM_EFA_" #NAME, min, max, &parsed.field));
#define KNOB_TEXT(NAME, field, default_value, doc) EFA_TRY(parse_text(KNOB_VALUE(NAME), &parsed.field));
#include "knobs.def"
#undef KNOB_ENUM
#undef KNOB_INT
#undef KNOB_TEXT
#undef KNOB_VALUE
    *knobs = parsed;
    if (warnings) warn_of_unknown(environment, warnings);
    return {};
}

const Knobs& knobs() {
    Loaded& state = loaded();
    const std::lock_guard lock(state.mutex);
    if (!state.done) {
        const Status ignored = load(state, nullptr);  // load_knobs() is the one that reports
        (void)ignored;
    }
    return state.knobs;
}

Status load_knobs() {
    Loaded& state = loaded();
    std::vector<std::string> warnings;
    const std::lock_guard lock(state.mutex);
    Status status = load(state, &warnings);
    for (const std::string& warning : warnings) EFA_LOG(kWarn, "knobs", "%s", warning.c_str());
    return status;
}

}  // namespace nvshmem_efa
