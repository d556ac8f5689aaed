// SPDX-License-Identifier: Apache-2.0
// The GPU test program: nvshmem_ops --pe P --npes N --dir DIR [--seed S] [--cases a,b,...] [--cycles C] [--scale X]
//   [--max-bytes B] [--p2p] [--list]. Started by launch.py; uses NVSHMEM's public API and nothing of ours.
#include "nvshmem_ops.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>

namespace gpu_ops {

std::vector<CaseInfo>& all_cases() {
    static std::vector<CaseInfo> cases;
    return cases;
}

void Run::fail(const char* format, ...) {
    if (++failures_ > 4) return;  // the first few tell the story
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (!differences.empty()) differences += " | ";
    differences += text;
}

void Run::note(const char* format, ...) {
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (!notes.empty()) notes += "; ";
    notes += text;
}

void Run::check(DeviceTrouble& trouble, const char* where) {
    stage("%s: %s", name, where);
    CUDA_CHECK(cudaStreamSynchronize(job.stream));
    const Trouble found = trouble.take();
    if (found.count == 0) return;
    static const char* const kWhat[] = {"nothing", "byte", "a wait timed out, address", "value", "ticket"};
    fail("%s: %u wrong; first: %s at %llu (0x%llx): expected %llu (0x%llx), got %llu (0x%llx)", where, found.count,
         kWhat[found.what < 5 ? found.what : 0], found.where, found.where, found.wanted, found.wanted, found.found,
         found.found);
    if (found.timeouts == 0) return;
    print("fail", differences);
    fflush(stdout);
    _exit(kExitCaseFailed);  // not return: frees are collective, and would wait for a PE that may never come
}

void Run::print(const char* status, const std::string& detail) const {
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
    char numbers[128];
    snprintf(numbers, sizeof numbers, ",\"pe\":%d,\"status\":\"%s\",\"seconds\":%.3f,\"digest\":\"%016llx\"", job.pe, status,
             seconds, static_cast<unsigned long long>(digest));
    event("case", "\"case\":" + quoted(name) + numbers + ",\"detail\":" + quoted(detail));
}

namespace {

struct Options {
    Job job;
    std::vector<std::string> cases;
    int cycles = 1;
    bool list = false;
};

[[noreturn]] void usage(const char* why) {
    fprintf(stderr,
            "nvshmem_ops: %s\nusage: nvshmem_ops --pe P --npes N --dir DIR [--seed S] [--cases a,b] [--cycles C] "
            "[--scale X] [--max-bytes B] [--p2p] | --list\n",
            why);
    exit(kExitUsage);
}

Options parse(int argc, char** argv) {
    Options options;
    std::map<std::string, std::string> values;
    for (int i = 1; i < argc; ++i) {
        const std::string name = argv[i];
        if (name == "--list") options.list = true;
        else if (name == "--p2p") options.job.p2p = true;
        else if (name.rfind("--", 0) == 0 && i + 1 < argc) values[name.substr(2)] = argv[++i];
        else usage(("unknown argument " + name).c_str());
    }
    if (options.list) return options;
    for (const char* needed : {"pe", "npes", "dir"})
        if (!values.count(needed)) usage((std::string("missing --") + needed).c_str());
    options.job.pe = atoi(values["pe"].c_str());
    options.job.npes = atoi(values["npes"].c_str());
    options.job.dir = values["dir"];
    if (options.job.npes < 2 || options.job.pe < 0 || options.job.pe >= options.job.npes) usage("bad --pe or --npes");
    if (values.count("seed")) options.job.seed = strtoull(values["seed"].c_str(), nullptr, 0);
    if (values.count("scale")) options.job.scale = atof(values["scale"].c_str());
    if (values.count("max-bytes")) options.job.max_bytes = strtoull(values["max-bytes"].c_str(), nullptr, 0);
    if (values.count("cycles")) options.cycles = atoi(values["cycles"].c_str());
    std::string rest = values["cases"];
    while (!rest.empty()) {
        const size_t comma = rest.find(',');
        options.cases.push_back(rest.substr(0, comma));
        rest = comma == std::string::npos ? "" : rest.substr(comma + 1);
    }
    const char* amo = getenv("NVSHMEM_EFA_AMO");
    options.job.amo_gpu = amo && strcmp(amo, "gpu") == 0;
    return options;
}

uint64_t name_seed(uint64_t seed, const char* name) {
    for (; *name; ++name) seed = mix2(seed, static_cast<unsigned char>(*name));
    return seed;
}

// Runs one case and prints its event. False when it failed.
bool run_case(const Job& job, const CaseInfo& info) {
    Run run(job, info.name, name_seed(job.seed, info.name));
    event("begin", "\"case\":" + quoted(info.name) + ",\"timeout_s\":" + std::to_string(info.timeout_s));
    watchdog(info.timeout_s, info.name);
    stage("%s: begin", info.name);
    bool skipped = false;
    std::string why;
    try {
        info.run(run);
    } catch (const Skip& skip) {  // thrown before anything collective, for a reason that every PE shares
        skipped = true;
        why = skip.why;
    }
    watchdog(0, "");
    const bool good = run.differences.empty();
    if (!good) run.print("fail", run.differences);
    else run.print(skipped ? "skip" : "pass", skipped ? why : run.notes);
    return good;
}

}  // namespace
}  // namespace gpu_ops

int main(int argc, char** argv) {
    using namespace gpu_ops;
    Options options = parse(argc, argv);
    std::stable_sort(all_cases().begin(), all_cases().end(),
                     [](const CaseInfo& a, const CaseInfo& b) { return a.rank < b.rank; });
    if (options.list) {
        for (const CaseInfo& info : all_cases()) printf("%s %s %d\n", info.name, info.group, info.timeout_s);
        return 0;
    }
    std::vector<CaseInfo> chosen;
    for (const std::string& name : options.cases) {
        auto found = std::find_if(all_cases().begin(), all_cases().end(),
                                  [&](const CaseInfo& info) { return name == info.name; });
        if (found == all_cases().end()) usage(("no case named " + name + "; --list shows them").c_str());
        chosen.push_back(*found);
    }
    bool good = true;
    for (int cycle = 0; cycle < options.cycles; ++cycle) {
        watchdog(90, "start");
        start_pe(options.job);
        watchdog(0, "");
        for (const CaseInfo& info : chosen) good = run_case(options.job, info) && good;
        watchdog(60, "finish");
        finish_pe(options.job);
        event("finished", "\"cycle\":" + std::to_string(cycle));
        watchdog(0, "");
    }
    fflush(stdout);
    return good ? kExitGood : kExitCaseFailed;
}
