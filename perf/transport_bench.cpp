// SPDX-License-Identifier: Apache-2.0
// nvshmem-efa-bench-transport: one PE of `nvshmem-efa bench transport` on a machine without GPUs. CPU threads post by the
// device API, and ask the PE runtime's proxy for the same, through the real plugin. Started by
// python/nvshmem_efa/bench_transport.py. Its times are of the software device, not of EFA.
#include <dlfcn.h>
#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "nvshmem_efa/api.h"
#include "pe_runtime/program.h"
#include "pe_runtime/record.h"
#include "transport_steps.h"

namespace nvshmem_efa::perf {
namespace {

constexpr const char* kHelp = "nvshmem-efa bench transport starts this program";

struct Arguments {
    pe::PeOptions pe;
    std::vector<Step> steps;
    int record_fd = 1, progress_fd = -1;
};

Status parse(int argc, char** argv, Arguments* arguments) {
    const auto wrong = [](const char* name) { return Status::error(Code::kInvalidArgument, kHelp, "%s: not understood", name); };
    bool has_job = false;
    for (int i = 1; i < argc; i += 2) {
        const std::string name = argv[i];
        if (i + 1 == argc) return wrong(argv[i]);
        const char* value = argv[i + 1];
        const int number = std::atoi(value);
        if (name == "--steps") EFA_TRY(parse_steps(value, &arguments->steps));
        else if (name == "--plugin") arguments->pe.plugin_path = value;
        else if (name == "--job") arguments->pe.job = value, has_job = true;
        else if (name == "--abi") arguments->pe.abi = number;
        else if (name == "--pe") arguments->pe.pe = number;
        else if (name == "--pes") arguments->pe.n_pes = number;
        else if (name == "--timeout-ms") arguments->pe.timeout_ms = static_cast<uint64_t>(number);
        else if (name == "--record-fd") arguments->record_fd = number;
        else if (name == "--progress-fd") arguments->progress_fd = number;
        else return wrong(argv[i]);
    }
    if (arguments->steps.empty() || !has_job || arguments->pe.plugin_path.empty()) return wrong("--steps, --job, --plugin");
    if (arguments->pe.pe < 0 || arguments->pe.pe >= arguments->pe.n_pes) return wrong("--pe, --pes");
    return Status();
}

// By the C API of the library that the plugin itself uses: it lies beside the plugin.
Status find_state(const std::string& plugin, const DeviceState** state) {
    const std::string path = plugin.substr(0, plugin.rfind('/') + 1) + "libnvshmem_efa.so";
    void* library = dlopen(path.c_str(), RTLD_NOW);
    void* found = library ? dlsym(library, "nvshmem_efa_device_state") : nullptr;
    if (!found) return Status::error(Code::kMissing, "reinstall the package", "%s has no nvshmem_efa_device_state", path.c_str());
    void* at = nullptr;
    uint32_t version = 0;
    size_t bytes = 0;
    const int code = reinterpret_cast<decltype(&nvshmem_efa_device_state)>(found)(&at, &version, &bytes);
    if (code != 0) {
        auto* last = reinterpret_cast<decltype(&nvshmem_efa_last_error)>(dlsym(library, "nvshmem_efa_last_error"));
        return Status::error(static_cast<Code>(code), nullptr, "%s", last ? last(nullptr) : "no device state");
    }
    if (!device_state_fits(version, bytes))
        return Status::error(Code::kMismatch, "reinstall the package", "the device state has version %u, not %u", version, kDeviceStateVersion);
    *state = static_cast<const DeviceState*>(at);
    return Status();
}

struct Run {
    Status status;
    std::string results, describe, stats = "null", wrong;
    uint64_t checked = 0, mismatches = 0;
};

std::string number_list(const std::vector<double>& values) {
    std::string text;
    char one[32];
    for (const double value : values) {
        snprintf(one, sizeof one, "%s%.0f", text.empty() ? "" : ", ", value);
        text += one;
    }
    return "[" + text + "]";
}

void report(const Arguments& arguments, const Step& step, size_t done) {
    if (arguments.progress_fd < 0) return;
    char line[160];
    const int n = snprintf(line, sizeof line, "{\"pe\": %d, \"phase\": \"%s\", \"done\": %zu, \"total\": %zu}\n", arguments.pe.pe,
                           step.call.c_str(), done, arguments.steps.size());
    // Nobody may be reading; that is no reason to fail.
    if (write(arguments.progress_fd, line, static_cast<size_t>(n)) < 0) return;
}

Status run_steps(const Arguments& arguments, pe::Pe& pe, Run* run) {
    const DeviceState* state = nullptr;
    EFA_TRY(pe.barrier_all());  // the state is valid from the first one on
    EFA_TRY(find_state(arguments.pe.plugin_path, &state));
    StepRunner runner(pe, *state);
    EFA_TRY(runner.open(arguments.steps));
    for (size_t i = 0; i < arguments.steps.size(); ++i) {
        report(arguments, arguments.steps[i], i);
        for (const bool is_posted : {true, false}) {
            Outcome outcome;
            EFA_TRY(runner.run(arguments.steps[i], is_posted, &outcome));
            run->checked += outcome.checked;
            if (!outcome.wrong.empty() && run->mismatches++ == 0) run->wrong = outcome.wrong + (is_posted ? ", posted" : ", by the proxy");
            if (outcome.samples_ns.empty() && outcome.missing.empty()) continue;  // another PE's
            const std::string found = outcome.missing.empty() ? "\"samples_ns\": " + number_list(outcome.samples_ns)
                                                              : "\"missing\": " + pe::json_text(outcome.missing);
            run->results += std::string(run->results.empty() ? "" : ", ") + "{\"step\": " + std::to_string(i) + ", \"path\": \"" +
                            (is_posted ? "posted" : "proxy") + "\", " + found + "}";
        }
    }
    return Status();
}

void drive(const Arguments& arguments, Run* run) {
    std::unique_ptr<pe::Pe> pe;
    run->status = pe::Pe::create(arguments.pe, &pe);
    if (!run->status.ok()) return;
    run->describe = pe->port().describe();
    Status status = run_steps(arguments, *pe, run);
    run->stats = pe->stats_json();
    if (status.ok()) status = pe->finalize();
    if (!status.ok()) {
        pe->fail(status);
        // The job's first failure is the cause; ours may only follow from it.
        status = pe->check();
    }
    run->status = std::move(status);
}

std::string record_of(const Arguments& arguments, const Run& run) {
    const bool is_good = run.status.ok();
    const std::string error = is_good ? "null" : std::string("{\"code\": \"") + code_name(run.status.code()) + "\", \"message\": " +
                                                 pe::json_text(run.status.message()) + ", \"hint\": null}";
    return "{\"schema\": \"nvshmem-efa-bench-pe/1\", \"pe\": " + std::to_string(arguments.pe.pe) + ", \"describe\": " +
           pe::json_text(run.describe) + ", \"result\": \"" + (!is_good ? "error" : run.mismatches ? "failed" : "ok") +
           "\", \"error\": " + error + ", \"checked\": {\"bytes\": " + std::to_string(run.checked) + ", \"mismatches\": " +
           std::to_string(run.mismatches) + ", \"first_mismatch\": " + (run.wrong.empty() ? "null" : pe::json_text(run.wrong)) +
           "}, \"stats\": " + run.stats + ", \"results\": [" + run.results + "]}\n";
}

int run_program(const Arguments& arguments) {
    // The environment of the plugin; set before any thread exists.
    setenv("NVSHMEM_EFA_MODE", "soft", 0);
    setenv("NVSHMEM_EFA_TIMEOUT_MS", std::to_string(arguments.pe.timeout_ms).c_str(), 0);
    Run run;
    drive(arguments, &run);
    if (!run.status.ok()) fprintf(stderr, "PE %d: %s\n", arguments.pe.pe, run.status.message());
    const std::string text = record_of(arguments, run);
    for (size_t done = 0; done < text.size();) {
        const ssize_t n = write(arguments.record_fd, text.data() + done, text.size() - done);
        if (n <= 0) return 5;
        done += static_cast<size_t>(n);
    }
    return !run.status.ok() ? pe::exit_code_of(run.status) : run.mismatches ? 1 : 0;
}

}  // namespace
}  // namespace nvshmem_efa::perf

int main(int argc, char** argv) {
    using namespace nvshmem_efa::perf;
    signal(SIGPIPE, SIG_IGN);  // a reader that went away is an error code, not the end
    Arguments arguments;
    if (const auto status = parse(argc, argv, &arguments); !status.ok()) {
        fprintf(stderr, "%s\n", status.message());
        return 2;
    }
    return run_program(arguments);
}
