// SPDX-License-Identifier: Apache-2.0
// The agent's engines and the software device's memory port on a real GPU. Host C++ only; needs a driver, no toolkit.
//   agent_words [gpu]     checks, timings, one JSON object on stdout; exit code 0 good, 1 failed, 2 cannot run
#include "agent_words_gpu.h"

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <random>

#include "words_cuda.h"

using namespace nvshmem_efa;
using namespace nvshmem_efa::agent_words;

extern char** environ;

namespace {

constexpr int64_t kTimeoutMs = 10000;
constexpr const char* kEngines[] = {"stream", "gdrcopy", "gpu-warp"};

Status make(const std::string& name, std::unique_ptr<WordEngine>* engine, int64_t timeout_ms = kTimeoutMs) {
    if (name == "stream") return make_stream_words(timeout_ms, engine);
    if (name == "gdrcopy") return make_gdrcopy_words(nullptr, engine);
    return make_gpu_warp_words(timeout_ms, engine);
}

WordRequest request_of(uint64_t addr, WordOp op, uint64_t operand, uint8_t bytes) {
    WordRequest request;
    request.addr = addr, request.op = op, request.operand = operand, request.bytes = bytes;
    request.needs_fetch = op != WordOp::kSet;
    return request;
}

// Small whole numbers as floats: a GPU's single-precision atomics flush subnormals, and NaNs have many bit patterns.
uint64_t small_float(uint8_t bytes, uint64_t whole) {
    static constexpr uint16_t kHalves[] = {0, 0x3c00, 0x4000, 0x4200, 0xbc00};
    static constexpr float kSingles[] = {0, 1, 2, 3, -1};
    uint64_t value = 0;
    const float single = kSingles[whole % 5];
    const double wide = single;
    if (bytes == 2) value = kHalves[whole % 5];
    if (bytes == 4) std::memcpy(&value, &single, 4);
    if (bytes == 8) std::memcpy(&value, &wide, 8);
    return value;
}

bool agrees_with_oracle(Gpu& gpu, WordEngine& engine, uint64_t base, std::string* why) {
    constexpr size_t kWords = 24;  // 8-byte places, one word each: floats stay floats
    struct Place {
        uint64_t value = 0;
        uint8_t bytes;
        WordType type;
    };
    std::vector<Place> places(kWords);
    for (size_t i = 0; i < kWords; ++i)
        places[i] = {0, static_cast<uint8_t>(2u << (i % 3)), i % 6 < 3 ? WordType::kInteger : WordType::kFloat};
    gpu.fill(base, 0, kWords * 8);
    std::mt19937_64 random(1);
    for (int turn = 0; turn < 150; ++turn) {
        std::vector<WordRequest> requests(1 + random() % (turn % 10 == 0 ? 300 : 8));
        for (auto& request : requests) {
            const size_t at = random() % kWords;
            const Place& place = places[at];
            const bool is_float = place.type == WordType::kFloat;
            const auto op = is_float ? WordOp::kAdd : static_cast<WordOp>(random() % 8);
            request = request_of(base + at * 8, op, is_float ? small_float(place.bytes, random()) : random(), place.bytes);
            request.compare = random() % 2 ? place.value : random();
            request.type = place.type;
        }
        if (Status status = engine.apply(requests.data(), requests.size()); !status.ok()) {
            *why = status.message();
            return false;
        }
        for (const auto& request : requests) {
            Place& place = places[(request.addr - base) / 8];
            if (request.needs_fetch && request.fetched != place.value) {
                *why = "a fetched value differs in turn " + std::to_string(turn);
                return false;
            }
            place.value = word_apply(request, place.value);
        }
        uint64_t now[kWords];
        gpu.read(now, base, sizeof now);
        for (size_t i = 0; i < kWords; ++i)
            if (now[i] != places[i].value) {
                *why = "word " + std::to_string(i) + " differs in turn " + std::to_string(turn);
                return false;
            }
    }
    return true;
}

// SET and ADD in turn, each answered by the kernel that fills the GPU.
bool changes_a_watched_word(Gpu& gpu, WordEngine& engine, uint64_t word, uint8_t bytes, const std::string& name,
                            Report& report) {
    const bool has_warp = std::string(engine.name()) == "gpu-warp";
    const unsigned blocks = static_cast<unsigned>(2 * gpu.sms() - (has_warp ? 1 : 0));  // the warp holds a place
    Filler filler(gpu, word, bytes, blocks);
    if (!filler.is_everywhere(kTimeoutMs)) {
        report.check(name, false, "the kernel does not fill the GPU");
        return false;
    }
    std::vector<double> set_call, set_seen, add_call;
    for (uint64_t value = 1; value <= 1000; ++value) {
        const bool is_add = value % 2 == 0;
        WordRequest request = request_of(word, is_add ? WordOp::kAdd : WordOp::kSet, is_add ? 1 : value, bytes);
        const double start = now_us();
        Status status = engine.apply(&request, 1);
        const double applied = now_us();
        if (!status.ok() || !filler.saw(value, 2000)) {
            report.check(name, false, status.ok() ? "the kernel never saw value " + std::to_string(value) : status.message());
            return false;
        }
        (is_add ? add_call : set_call).push_back(applied - start);
        if (!is_add) set_seen.push_back(now_us() - start);
    }
    report.check(name, true);
    report.time(name + ", apply of one SET", set_call);
    report.time(name + ", SET until the kernel's answer is seen", set_seen);
    report.time(name + ", apply of one fetching ADD", add_call);
    return true;
}

void time_batches(WordEngine& engine, uint64_t base, const std::string& name, Report& report) {
    for (size_t count : {1, 8, 32, 128}) {
        for (const bool is_add : {false, true}) {
            std::vector<double> samples;
            for (int turn = 0; turn < 300; ++turn) {
                std::vector<WordRequest> requests;
                for (size_t i = 0; i < count; ++i)
                    requests.push_back(request_of(base + 8 * (i % 64), is_add ? WordOp::kAdd : WordOp::kSet, i, 8));
                const double start = now_us();
                must(engine.apply(requests.data(), count), name.c_str());
                samples.push_back(now_us() - start);
            }
            report.time(name + ", " + std::to_string(count) + (is_add ? " fetching ADDs" : " SETs") + ", GPU idle", samples);
        }
    }
}

void check_engine(Gpu& gpu, const std::string& name, uint64_t plain, uint64_t vmm, Report& report) {
    std::unique_ptr<WordEngine> engine;
    if (Status status = make(name, &engine); !status.ok()) {
        if (name == "gdrcopy") return report.skip(name, status.message());
        return report.check(name, false, status.message());
    }
    for (const auto& [kind, base] : {std::pair{"cudaMalloc", plain}, std::pair{"VMM", vmm}}) {
        std::string why;
        const bool agrees = agrees_with_oracle(gpu, *engine, base, &why);
        report.check(name + ", " + kind + ", agrees with the oracle", agrees, why);
        for (uint8_t bytes : {uint8_t{8}, uint8_t{4}, uint8_t{2}})
            changes_a_watched_word(gpu, *engine, base + 4096, bytes,
                                   name + ", " + kind + ", full GPU, " + std::to_string(bytes) + " bytes", report);
    }
    time_batches(*engine, plain, name, report);
}

// The warp's additions and a kernel's own, on one word: none may be lost.
void check_local_atomics(Gpu& gpu, uint64_t word, Report& report) {
    std::unique_ptr<WordEngine> engine;
    must(make_gpu_warp_words(kTimeoutMs, &engine), "gpu-warp");
    gpu.fill(word, 0, 8);
    constexpr unsigned kBlocks = 4, kThreads = 256;
    uint64_t turns = 20000;
    void* parameters[] = {&word, &turns};
    cuda::Stream stream = gpu.make_stream();
    gpu.launch("add_locally", kBlocks, kThreads, stream, parameters);
    uint64_t batches = 0;
    while (batches < 50 || (!gpu.is_idle(stream) && batches < 100000)) {
        std::vector<WordRequest> requests(32, request_of(word, WordOp::kAdd, 1ull << 40, 8));
        must(engine->apply(requests.data(), requests.size()), "gpu-warp");
        ++batches;
    }
    gpu.wait_idle(stream, 60000, "the kernel that adds");
    uint64_t sum = 0;
    gpu.read(&sum, word, 8);
    report.check("gpu-warp, no update lost beside the GPU's own atomics",
                 sum == kBlocks * kThreads * turns + ((batches * 32) << 40), std::to_string(batches) + " batches");
}

void check_full_gpu_refuses_the_warp(Gpu& gpu, uint64_t word, Report& report) {
    Filler filler(gpu, word, 8, static_cast<unsigned>(2 * gpu.sms()));
    std::unique_ptr<WordEngine> engine;
    if (!filler.is_everywhere(kTimeoutMs)) return report.check("gpu-warp on a full GPU", false, "the GPU is not full");
    Status status = make_gpu_warp_words(500, &engine);
    report.check("gpu-warp on a full GPU fails by name", status.code() == Code::kTimeout, status.message());
}

// Streams share the GPU's hardware queues: work of ours must not stand behind another stream's waiting kernel.
void check_beside_many_streams(Gpu& gpu, uint64_t word, Report& report) {
    constexpr int kStreams = 24;
    std::unique_ptr<WordEngine> early, late;
    must(make_stream_words(3000, &early), "stream");
    gpu.fill(word, 0, 8);
    gpu.fill(gpu.filler_halt(), 0, 4);
    std::vector<cuda::Stream> streams;
    for (int i = 0; i < kStreams; ++i) {
        streams.push_back(gpu.make_stream());
        for (int depth = 0; depth < 2; ++depth) gpu.launch_filler(word, 8, 1, streams.back());
    }
    must(make_stream_words(3000, &late), "stream");
    for (auto* engine : {early.get(), late.get()}) {
        WordRequest request = request_of(word + 64, WordOp::kAdd, 1, 8);
        Status status = engine->apply(&request, 1);
        report.check(std::string("stream, made ") + (engine == early.get() ? "before" : "after") +
                         " 24 streams with a running and a queued kernel each", status.ok(), status.message());
    }
    const uint64_t all = ~uint64_t{0};
    gpu.write(word, &all, 8);
    for (cuda::Stream stream : streams) gpu.wait_idle(stream, 70000, "a queued kernel");
}

// A program that ends without destroying the engine must end all the same.
void check_exit_without_stop(const char* program, const char* ordinal, Report& report) {
    char mode[] = "--exit-without-stop";
    char* arguments[] = {const_cast<char*>(program), mode, const_cast<char*>(ordinal), nullptr};
    pid_t child = 0;
    if (posix_spawn(&child, "/proc/self/exe", nullptr, nullptr, arguments, environ) != 0) give_up("cannot start a child");
    int status = 0;
    const bool has_ended = poll(30000, [&] { return usleep(1000), waitpid(child, &status, WNOHANG) == child; });
    if (!has_ended) {
        kill(child, SIGKILL);
        waitpid(child, &status, 0);
    }
    report.check("gpu-warp, a process that exits without stopping it ends", has_ended,
                 has_ended ? "wait status " + std::to_string(status) : "killed after 30 s");
}

}  // namespace

int main(int argc, char** argv) {
    setenv("CUDA_MODULE_LOADING", "EAGER", 0);  // a lazy load may wait for the kernels that are meant to run
    if (argc == 4 && std::strcmp(argv[1], "--own") == 0) return own_for_peer(std::atoi(argv[2]), std::atoi(argv[3]));
    const char* ordinal = argc > 1 ? argv[argc - 1] : "0";
    Gpu gpu(std::atoi(ordinal));
    if (argc == 3 && std::strcmp(argv[1], "--exit-without-stop") == 0) {
        static std::unique_ptr<WordEngine> engine;
        must(make_gpu_warp_words(kTimeoutMs, &engine), "gpu-warp");
        (void)engine.release();
        return 0;
    }
    Report report;
    const uint64_t plain = gpu.alloc(1 << 20), vmm = gpu.alloc_vmm(gpu.granularity(), 1);
    report.note("granularity", std::to_string(gpu.granularity()));
    for (const char* name : kEngines) check_engine(gpu, name, plain, vmm, report);
    check_ports(gpu, report);
    check_local_atomics(gpu, plain, report);
    check_peers(report);
    check_beside_many_streams(gpu, plain, report);
    check_exit_without_stop(argv[0], ordinal, report);
    check_full_gpu_refuses_the_warp(gpu, plain, report);
    return report.finish(gpu);
}
