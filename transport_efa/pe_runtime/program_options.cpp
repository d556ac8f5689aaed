// SPDX-License-Identifier: Apache-2.0
#include "program_options.h"

#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>

namespace nvshmem_efa::pe {
namespace {

constexpr uint64_t kHiddenBytesMax = 1u << 20;

struct Number {
    uint64_t min;
    uint64_t max;
    std::function<void(uint64_t)> store;
};

Status wrong(const char* name, const char* given, const char* wanted) {
    return Status::error(Code::kInvalidArgument, "nvshmem-efa-pe --help lists the options", "%s %s: %s", name,
                         given ? given : "", wanted);
}

Status store_number(const char* name, const Number& number, const char* text) {
    char* end = nullptr;
    const unsigned long long value = text && *text >= '0' && *text <= '9' ? std::strtoull(text, &end, 0) : 0;
    if (!end || *end || value < number.min || value > number.max) {
        char range[80];
        std::snprintf(range, sizeof range, "a number from %llu to %llu is needed",
                      static_cast<unsigned long long>(number.min), static_cast<unsigned long long>(number.max));
        return wrong(name, text, range);
    }
    number.store(value);
    return Status();
}

template <class T>
Number into(uint64_t min, uint64_t max, T* field) {
    return {min, max, [field](uint64_t value) { *field = static_cast<T>(value); }};
}

std::map<std::string, Number> numbers_of(ProgramOptions* options) {
    DemoOptions& demo = options->run.demo;
    PeOptions& pe = options->pe;
    return {
        {"--abi", into(3, 7, &pe.abi)},
        {"--pe", into(0, kPesMax - 1, &pe.pe)},
        {"--pes", into(1, kPesMax, &pe.n_pes)},
        {"--spawn", into(1, kPesMax, &options->spawn)},
        {"--seed", into(0, ~uint64_t{0}, &demo.seed)},
        {"--tokens", into(1, 65536, &demo.tokens)},
        {"--hidden", into(1, kHiddenBytesMax, &demo.hidden_bytes)},
        {"--topk", into(1, 64, &demo.topk)},
        {"--experts", into(1, 4096, &demo.experts)},
        {"--rounds", into(1, 1000000, &demo.rounds)},
        {"--heap-mb", {1, 65536, [&pe](uint64_t mb) { pe.heap_bytes = mb << 20; }}},
        {"--timeout-ms", into(10, 3600000, &pe.timeout_ms)},
        {"--record-fd", into(0, 65535, &options->record_fd)},
        {"--progress-fd", into(0, 65535, &options->run.progress_fd)},
        {"--die-pe", into(0, kPesMax - 1, &options->run.die_pe)},
    };
}

Status check_together(const ProgramOptions& options, bool has_pe, bool has_pes) {
    if (options.pe.plugin_path.empty()) return wrong("--plugin", nullptr, "the plugin's file is needed");
    const bool has_place = has_pe || has_pes || !options.pe.job.empty();
    if (options.spawn && has_place) return wrong("--spawn", nullptr, "cannot be given with --job, --pe or --pes");
    if (!options.spawn && (!has_pe || !has_pes || options.pe.job.empty()))
        return wrong("--job, --pe, --pes", nullptr, "all three, or --spawn, are needed");
    const int n_pes = options.spawn ? options.spawn : options.pe.n_pes;
    if (options.pe.pe >= n_pes) return wrong("--pe", nullptr, "PEs are numbered from 0: it must be less than --pes");
    const DemoOptions& demo = options.run.demo;
    if (demo.experts < demo.topk) return wrong("--experts", nullptr, "at least as many as --topk are needed");
    if (demo.experts % static_cast<uint32_t>(n_pes))
        return wrong("--experts", nullptr, "a multiple of the number of PEs is needed");
    return Status();
}

}  // namespace

Status parse_arguments(int argc, char** argv, ProgramOptions* options) {
    const char* action = argc > 1 ? argv[1] : "";
    if (std::strcmp(action, "--help") == 0 || std::strcmp(action, "-h") == 0) return Status();
    if (std::strcmp(action, "--version") == 0) return options->action = ProgramOptions::Action::kVersion, Status();
    if (std::strcmp(action, "demo") == 0) options->action = ProgramOptions::Action::kDemo;
    else if (std::strcmp(action, "check") == 0) options->action = ProgramOptions::Action::kCheck;
    else return wrong("command", action, "demo or check is needed");

    const std::map<std::string, Number> numbers = numbers_of(options);
    const std::map<std::string, std::string*> texts = {
        {"--plugin", &options->pe.plugin_path}, {"--job", &options->pe.job}, {"--die-at", &options->run.die_at}};
    const std::map<std::string, bool*> flags = {{"--quick", &options->run.is_quick},
                                                {"--corrupt", &options->run.corrupt},
                                                {"--in-place", &options->run.in_place}};
    bool has_pe = false, has_pes = false;
    for (int i = 2; i < argc; ++i) {
        const char* name = argv[i];
        const char* value = i + 1 < argc ? argv[i + 1] : nullptr;
        if (std::strcmp(name, "--help") == 0) return options->action = ProgramOptions::Action::kHelp, Status();
        if (const auto flag = flags.find(name); flag != flags.end()) {
            *flag->second = true;
            continue;
        }
        if (const auto text = texts.find(name); text != texts.end()) {
            if (!value) return wrong(name, value, "a value is needed");
            *text->second = value;
        } else if (const auto number = numbers.find(name); number != numbers.end()) {
            EFA_TRY(store_number(name, number->second, value));
        } else {
            return wrong(name, nullptr, "no such option");
        }
        has_pe = has_pe || std::strcmp(name, "--pe") == 0;
        has_pes = has_pes || std::strcmp(name, "--pes") == 0;
        ++i;
    }
    return check_together(*options, has_pe, has_pes);
}

}  // namespace nvshmem_efa::pe
