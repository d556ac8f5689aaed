// SPDX-License-Identifier: Apache-2.0
#include "program.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "clock.h"

namespace nvshmem_efa::pe {
namespace {

struct Outcome {
    Status status;  // what failed, other than data
    std::string describe, stats = "null", checked = "null", operations;
    std::vector<std::pair<std::string, double>> phase_ms;
    uint64_t mismatches = 0;
    double elapsed_ms = 0;
};

void drive(const ProgramOptions& options, Outcome* outcome) {
    std::unique_ptr<Pe> pe;
    outcome->status = Pe::create(options.pe, &pe);
    if (!outcome->status.ok()) return;
    outcome->describe = pe->port().describe();
    Run run(*pe, options.run);
    Status status = options.action == ProgramOptions::Action::kDemo ? run_demo(run) : run_conformance(run);
    if (status.ok()) {
        status = pe->finalize();
        outcome->stats = pe->stats_json();
    } else {
        pe->fail(status);
        outcome->stats = pe->stats_json();
        // The job's first failure is the cause; ours may only follow from it.
        status = pe->check();
    }
    outcome->checked = run.checker.json();
    outcome->mismatches = run.checker.mismatches();
    const std::string host = run.host.meter().json(), proxy = run.proxy.meter().json();
    outcome->operations = host + (host.empty() || proxy.empty() ? "" : ", ") + proxy;
    outcome->phase_ms = run.phase_ms;
    outcome->status = std::move(status);
}

std::string error_json(const Status& status) {
    if (status.ok()) return "null";
    std::string message = status.message(), hint;
    if (const size_t at = message.find("; hint: "); at != std::string::npos) {
        hint = message.substr(at + 8);
        message.resize(at);
    }
    return std::string("{\"code\": \"") + code_name(status.code()) + "\", \"message\": " + json_text(message) +
           ", \"hint\": " + (hint.empty() ? "null" : json_text(hint)) + "}";
}

std::string number(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.3f", value);
    return text;
}

std::string record_of(const ProgramOptions& options, const Outcome& outcome, int exit_code) {
    const DemoOptions& demo = options.run.demo;
    const bool is_demo = options.action == ProgramOptions::Action::kDemo;
    const char* mode = std::getenv("NVSHMEM_EFA_MODE");
    std::string text =
        std::string("{\"schema\": \"nvshmem-efa-pe/1\", \"program\": \"") + (is_demo ? "demo" : "check") +
        "\", \"version\": \"" NVSHMEM_EFA_VERSION "\", \"pe\": " + std::to_string(options.pe.pe) +
        ", \"n_pes\": " + std::to_string(options.pe.n_pes) + ", \"pid\": " + std::to_string(getpid()) +
        ", \"abi\": " + std::to_string(options.pe.abi) +
        ", \"api_version\": " + std::to_string(options.pe.abi * 10000) +
        ", \"plugin\": " + json_text(options.pe.plugin_path) + ", \"mode\": " + json_text(mode ? mode : "") +
        ", \"describe\": " + json_text(outcome.describe) + ", \"seed\": " + std::to_string(demo.seed) +
        ", \"params\": {\"tokens\": " + std::to_string(demo.tokens) +
        ", \"hidden\": " + std::to_string(demo.hidden_bytes) + ", \"topk\": " + std::to_string(demo.topk) +
        ", \"experts\": " + std::to_string(demo.experts) + ", \"rounds\": " + std::to_string(demo.rounds) + "}";
    text += std::string(", \"result\": \"") +
            (!outcome.status.ok() ? "error"
             : outcome.mismatches ? "failed"
                                  : "ok") +
            "\", \"exit_code\": " + std::to_string(exit_code) + ", \"error\": " + error_json(outcome.status) +
            ", \"elapsed_ms\": " + number(outcome.elapsed_ms) + ", \"phases\": [";
    for (size_t i = 0; i < outcome.phase_ms.size(); ++i)
        text += (i ? ", {\"name\": \"" : "{\"name\": \"") + outcome.phase_ms[i].first +
                "\", \"ms\": " + number(outcome.phase_ms[i].second) + "}";
    return text + "], \"checked\": " + outcome.checked + ", \"operations\": [" + outcome.operations +
           "], \"stats\": " + outcome.stats + "}\n";
}

bool write_whole(int fd, const std::string& text) {
    size_t done = 0;
    while (done < text.size()) {
        const ssize_t n = write(fd, text.data() + done, text.size() - done);
        if (n <= 0) return false;
        done += static_cast<size_t>(n);
    }
    return true;
}

// The environment of the plugin; set before any thread exists.
void set_defaults(const ProgramOptions& options) {
    setenv("NVSHMEM_EFA_MODE", "soft", 0);
    setenv("NVSHMEM_EFA_TIMEOUT_MS", std::to_string(options.pe.timeout_ms).c_str(), 0);
}

}  // namespace

int exit_code_of(const Status& status) {
    switch (status.code()) {
        case Code::kOk: return 0;
        case Code::kInvalidArgument:
        case Code::kConfig: return 2;
        case Code::kMissing:
        case Code::kTooOld:
        case Code::kUnsupported:
        case Code::kResource: return 3;
        case Code::kTimeout:
        case Code::kPeer: return 4;
        default: return 5;
    }
}

int run_pe(const ProgramOptions& options) {
    set_defaults(options);
    Outcome outcome;
    const uint64_t start = real_clock().now_ns();
    drive(options, &outcome);
    outcome.elapsed_ms = static_cast<double>(real_clock().now_ns() - start) / 1e6;
    const int exit_code = !outcome.status.ok() ? exit_code_of(outcome.status) : outcome.mismatches ? 1 : 0;
    if (!outcome.status.ok())
        std::fprintf(stderr, "PE %d: %s: %s\n", options.pe.pe, code_name(outcome.status.code()),
                     outcome.status.message());
    else if (outcome.mismatches)
        std::fprintf(stderr, "PE %d: wrong data: %s\n", options.pe.pe, outcome.checked.c_str());
    if (!write_whole(options.record_fd, record_of(options, outcome, exit_code))) {
        std::fprintf(stderr,
                     "PE %d: cannot write the record to file descriptor %d; hint: pass an open one with --record-fd\n",
                     options.pe.pe, options.record_fd);
        return exit_code ? exit_code : 5;
    }
    return exit_code;
}

}  // namespace nvshmem_efa::pe
