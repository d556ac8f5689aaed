// SPDX-License-Identifier: Apache-2.0
// The device API on a GPU, against an oracle:
//   device_api --pe P --npes N --dir DIR [--seed S] [--rounds R] [--blocks B] [--no-perf]
// One PE talks to itself, through its devices and its agent. Start it with device_api.sh, which sets what it needs.
// Blocks put, get, add, fetch and signal at random; each knows what every byte and word must be. Exit 0: all was right.
#include "device_api.h"

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace gpu_ops {

namespace {

constexpr uint32_t kCell = 4096;          // what a block writes at each PE
constexpr uint32_t kLanesEnd = 2048;      // [0, here): small puts of 32 lanes, 64 bytes each
constexpr uint32_t kWarpEnd = 3072;       // [kLanesEnd, here): a put of a warp; the rest: of the block
constexpr uint32_t kMail = 4096;          // bytes of a mailbox
constexpr uint32_t kSources = 4;          // a source is filled again only behind a quiet
constexpr int kThreads = 128;

struct Plan {
    const DeviceState* state;
    Trouble* trouble;
    uint64_t seed;
    uint32_t rounds;
    uint32_t blocks;   // of a PE
    // Symmetric: [pe * blocks + block] of who writes, or [block] of our own.
    char* cells;       // kCell each, by writer
    char* mail;        // kMail each, by writer
    uint64_t* arrived;  // signals of writers
    uint64_t* answers;  // [block]: how many of the block's messages were read
    uint64_t* single;   // p() and g(), by writer
    uint64_t* sums;     // one word: atomic_add of all
    float* real_sum;
    uint64_t* tickets;  // used at PE 0
    uint32_t* drawn;    // [ticket], counts of this PE
    uint32_t drawn_max;
    uint64_t* wanted;   // [pe]: what this PE has added to that PE's `sums`
    uint32_t* wanted_real;  // [pe]: adds to `real_sum`
    char* sources;      // kCell each, [block * kSources + i]
    char* landing;      // kCell each, [block]
    // This PE's alone.
    char* shadows;      // kCell each, [block * npes + pe]: what our cell there holds
};

struct Piece {
    uint32_t at, bytes;
};
__device__ Piece lane_piece(uint64_t key, uint32_t lane) {
    const uint64_t r = mix2(key, lane);
    return {lane * 64 + static_cast<uint32_t>(r % 16), 1 + static_cast<uint32_t>((r >> 8) % 48)};
}
__device__ Piece long_piece(uint64_t key, uint32_t begin, uint32_t end) {
    const uint32_t at = begin + static_cast<uint32_t>(mix2(key, begin) % 64);
    return {at, 1 + static_cast<uint32_t>(mix2(key, begin + 1) % (end - at))};
}

// Lanes 0..7 add, 8 draws a ticket, 9 puts and gets a single value.
__device__ void change_words(const Plan& plan, uint32_t writer, uint64_t key, uint32_t lane, int to) {
    const DeviceState& s = *plan.state;
    if (lane < 8) {
        const uint64_t value = mix2(key, 100 + lane);
        if (lane < 6) {
            if (EXPECT(nvshmem_efa::atomic_add(s, plan.sums, value, to)))
                atomicAdd(reinterpret_cast<unsigned long long*>(plan.wanted + to), static_cast<unsigned long long>(value));
        } else if (EXPECT(nvshmem_efa::atomic_add(s, plan.real_sum, 1.0f, to))) {
            atomicAdd(plan.wanted_real + to, 1u);
        }
    } else if (lane == 8) {
        uint64_t ticket = 0;
        if (!EXPECT(nvshmem_efa::atomic_fetch_inc(s, plan.tickets, 0, &ticket))) return;
        if (ticket >= plan.drawn_max) report(plan.trouble, kTicketWrong, writer, plan.drawn_max, ticket);
        else atomicAdd(plan.drawn + ticket, 1u);
    } else if (lane == 9) {
        const uint64_t value = mix2(key, 200);
        uint64_t got = 0;
        if (!EXPECT(nvshmem_efa::p(s, plan.single + writer, value, to)) || !EXPECT(nvshmem_efa::quiet(s, to))) return;
        if (EXPECT(nvshmem_efa::g(s, &got, plan.single + writer, to)) && got != value) report(plan.trouble, kValueWrong, writer, value, got);
    }
}

__device__ void copy_piece(char* to, const char* from, Piece piece, uint32_t thread, uint32_t threads) {
    for (uint32_t i = thread; i < piece.bytes; i += threads) to[piece.at + i] = from[piece.at + i];
}

__global__ void mix_kernel(Plan plan) {
    const DeviceState& s = *plan.state;
    const uint32_t writer = static_cast<uint32_t>(s.pe) * plan.blocks + blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    char* cell = plan.cells + static_cast<size_t>(writer) * kCell;
    char* source = plan.sources + static_cast<size_t>(blockIdx.x) * kSources * kCell;
    char* landing = plan.landing + static_cast<size_t>(blockIdx.x) * kCell;
    for (uint32_t round = 0; round < plan.rounds; ++round) {
        const uint64_t key = mix2(plan.seed, static_cast<uint64_t>(writer) << 32 | round);
        const int to = static_cast<int>(key % static_cast<uint64_t>(s.n_pes));
        char* shadow = plan.shadows + (static_cast<size_t>(blockIdx.x) * s.n_pes + to) * kCell;
        for (uint32_t i = threadIdx.x; i < kCell; i += blockDim.x) source[i] = static_cast<char>(pattern_at(key, i));
        __syncthreads();
        const Piece of_lane = lane_piece(key, lane), of_warp = long_piece(key, kLanesEnd, kWarpEnd), of_block = long_piece(key, kWarpEnd, kCell);
        if (warp == 0) {
            EXPECT(nvshmem_efa::put_nbi(s, cell + of_lane.at, source + of_lane.at, of_lane.bytes, to));
            copy_piece(shadow, source, of_lane, 0, 1);
        } else if (warp == 1) {
            EXPECT(nvshmem_efa::put_nbi_warp(s, cell + of_warp.at, source + of_warp.at, of_warp.bytes, to));
            copy_piece(shadow, source, of_warp, lane, 32);
        } else if (warp == 2) {
            change_words(plan, writer, key, lane, to);
        }
        EXPECT(nvshmem_efa::put_nbi_block(s, cell + of_block.at, source + of_block.at, of_block.bytes, to));
        copy_piece(shadow, source, of_block, threadIdx.x, blockDim.x);
        EXPECT(nvshmem_efa::quiet_block(s));
        EXPECT(nvshmem_efa::get_nbi_block(s, landing, cell, kCell, to));
        if (!EXPECT(nvshmem_efa::quiet_block(s))) return;  // the same for the whole block
        for (uint32_t i = threadIdx.x; i < kCell; i += blockDim.x) {
            const char got = *reinterpret_cast<volatile char*>(landing + i);
            if (got == shadow[i]) continue;
            report(plan.trouble, kByteWrong, static_cast<uint64_t>(round) << 32 | i, static_cast<unsigned char>(shadow[i]),
                   static_cast<unsigned char>(got));
        }
        __syncthreads();
    }
}

// Each block sends to the same block of the next PE, always to one mailbox: a message goes out as soon as the one before
// was read. Whoever sees the signal looks at all bytes.
__global__ void message_kernel(Plan plan) {
    const DeviceState& s = *plan.state;
    const int to = (s.pe + 1) % s.n_pes, from = (s.pe + s.n_pes - 1) % s.n_pes;
    const uint32_t mine = static_cast<uint32_t>(s.pe) * plan.blocks + blockIdx.x, theirs = static_cast<uint32_t>(from) * plan.blocks + blockIdx.x;
    __shared__ bool is_good;
    for (uint32_t k = 1; k <= plan.rounds; ++k) {
        if (k % kSources == 0 && !EXPECT(nvshmem_efa::quiet_block(s))) return;
        const uint64_t key = mix2(plan.seed + 1, static_cast<uint64_t>(mine) << 32 | k);
        const uint64_t their_key = mix2(plan.seed + 1, static_cast<uint64_t>(theirs) << 32 | k);
        const uint32_t bytes = static_cast<uint32_t>(mix(key) % (kMail + 1)), their_bytes = static_cast<uint32_t>(mix(their_key) % (kMail + 1));
        char* source = plan.sources + (static_cast<size_t>(blockIdx.x) * kSources + k % kSources) * kCell;
        for (uint32_t i = threadIdx.x; i < bytes; i += blockDim.x) source[i] = static_cast<char>(pattern_at(key, i));
        if (threadIdx.x == 0) is_good = EXPECT(nvshmem_efa::wait_until(s, plan.answers + blockIdx.x, nvshmem_efa::Cmp::kGe, uint64_t{k - 1}));
        EXPECT(nvshmem_efa::put_signal_nbi_block(s, plan.mail + static_cast<size_t>(mine) * kMail, source, bytes,
                                                 plan.arrived + mine, 1, nvshmem_efa::SignalOp::kAdd, to));
        if (threadIdx.x == 0) is_good = EXPECT(nvshmem_efa::wait_until(s, plan.arrived + theirs, nvshmem_efa::Cmp::kGe, uint64_t{k})) && is_good;
        __syncthreads();
        if (!is_good) return;
        const volatile char* mail = plan.mail + static_cast<size_t>(theirs) * kMail;
        for (uint32_t i = threadIdx.x; i < their_bytes; i += blockDim.x) {
            const auto got = static_cast<unsigned char>(mail[i]);
            if (got != pattern_at(their_key, i)) report(plan.trouble, kByteWrong, static_cast<uint64_t>(k) << 32 | i, pattern_at(their_key, i), got);
        }
        __syncthreads();
        if (threadIdx.x == 0) EXPECT(nvshmem_efa::signal_op(s, plan.answers + blockIdx.x, k, nvshmem_efa::SignalOp::kSet, from));
    }
    EXPECT(nvshmem_efa::quiet_block(s));
}

struct Options {
    Job job;
    uint32_t rounds = 200, blocks = 128;
    bool is_timed = true;
};

Options parse(int argc, char** argv) {
    Options options;
    for (int i = 1; i < argc; ++i) {
        const std::string name = argv[i];
        const char* value = i + 1 < argc ? argv[i + 1] : "";
        if (name == "--no-perf") { options.is_timed = false; continue; }
        if (name == "--pe") options.job.pe = atoi(value);
        else if (name == "--npes") options.job.npes = atoi(value);
        else if (name == "--dir") options.job.dir = value;
        else if (name == "--seed") options.job.seed = strtoull(value, nullptr, 0);
        else if (name == "--rounds") options.rounds = static_cast<uint32_t>(atoi(value));
        else if (name == "--blocks") options.blocks = static_cast<uint32_t>(atoi(value));
        else die(kExitUsage, "device_api: unknown argument %s", argv[i]);
        ++i;
    }
    if (options.job.npes < 1 || options.job.pe < 0 || options.job.pe >= options.job.npes || options.job.dir.empty())
        die(kExitUsage, "device_api: bad --pe, --npes or --dir");
    return options;
}

}  // namespace

Plugin find_plugin() {
    Plugin plugin;
    void* library = dlopen("libnvshmem_efa.so", RTLD_LAZY | RTLD_NOLOAD);
    if (!library) die(kExitUsage, "libnvshmem_efa.so is not loaded; hint: NVSHMEM_REMOTE_TRANSPORT=efa and LD_PRELOAD=libnvshmem_efa_shim.so");
    plugin.device_state = reinterpret_cast<decltype(plugin.device_state)>(dlsym(library, "nvshmem_efa_device_state"));
    plugin.last_error = reinterpret_cast<decltype(plugin.last_error)>(dlsym(library, "nvshmem_efa_last_error"));
    plugin.stats_json = reinterpret_cast<decltype(plugin.stats_json)>(dlsym(library, "nvshmem_efa_stats_json"));
    if (!plugin.device_state || !plugin.last_error || !plugin.stats_json) die(kExitUsage, "this libnvshmem_efa.so has no device state");
    return plugin;
}

namespace {

// Ends the process when something was wrong, after saying what.
void check(const Job& job, const Plugin& plugin, const Device<Trouble>& trouble, const char* where) {
    stage("%s", where);
    CUDA_CHECK(cudaStreamSynchronize(job.stream));
    const Trouble found = trouble.read()[0];
    if (found.count == 0) {
        event("case", "\"case\":" + quoted(where) + ",\"status\":\"pass\"");
        return;
    }
    nvshmem_quiet();  // the host turns error records into a named error
    static const char* const kWhat[] = {"nothing", "byte", "wait", "value", "ticket", "call failed in line"};
    char text[512];
    snprintf(text, sizeof text, "%u wrong; first: %s 0x%llx: expected 0x%llx, got 0x%llx; plugin: %s", found.count, kWhat[found.what % 6],
             found.where, found.wanted, found.found, plugin.last_error(nullptr));
    event("case", "\"case\":" + quoted(where) + ",\"status\":\"fail\",\"detail\":" + quoted(text));
    fflush(stdout);
    _exit(kExitCaseFailed);  // others may wait for us in vain: the launcher ends them
}

__global__ void get_kernel(const DeviceState* state, char* to, const char* from, size_t bytes, int pe, Trouble* trouble) {
    expect(nvshmem_efa::get(*state, to, from, bytes, pe), trouble, __LINE__);
}

// What a PE holds at a symmetric address, through the device API.
struct Reader {
    const Job& job;
    const Plugin& plugin;
    const DeviceState* state;
    const Symmetric<char>& room;
    const Device<Trouble>& trouble;

    template <class T>
    std::vector<T> read(const Symmetric<T>& of, int pe) const {
        std::vector<T> got(of.count());
        get_kernel<<<1, 1, 0, job.stream>>>(state, room.get(), reinterpret_cast<const char*>(of.get()), of.bytes(), pe, trouble.get());
        LAUNCH_CHECK();
        check(job, plugin, trouble, "reading counts");
        CUDA_CHECK(cudaMemcpy(got.data(), room.get(), of.bytes(), cudaMemcpyDeviceToHost));
        return got;
    }
};

// Words that all PEs changed, against what each remembers to have done.
std::string check_words(const Reader& reader, const Symmetric<uint64_t>& words, const Symmetric<uint64_t>& wanted,
                        const Symmetric<float>& real, const Symmetric<uint32_t>& wanted_real, const Symmetric<uint32_t>& drawn) {
    const Job& job = reader.job;
    uint64_t sum = 0, tickets = 0;
    uint32_t reals = 0;
    std::vector<uint32_t> counts(drawn.count());
    for (int pe = 0; pe < job.npes; ++pe) {
        sum += reader.read(wanted, pe)[static_cast<size_t>(job.pe)];
        reals += reader.read(wanted_real, pe)[static_cast<size_t>(job.pe)];
        const std::vector<uint32_t> theirs = reader.read(drawn, pe);
        for (size_t i = 0; i < counts.size(); ++i) counts[i] += theirs[i], tickets += theirs[i];
    }
    const std::vector<uint64_t> seen = words.read();
    if (seen[0] != sum) return "the sum is " + std::to_string(seen[0]) + ", not " + std::to_string(sum);
    if (real.read()[0] != static_cast<float>(reals)) return "the float sum is " + std::to_string(real.read()[0]) + ", not " + std::to_string(reals);
    for (size_t i = 0; i < tickets; ++i)
        if (counts[i] != 1) return "ticket " + std::to_string(i) + " was drawn " + std::to_string(counts[i]) + " times";
    if (job.pe == 0 && seen[1] != tickets) return "the ticket word is " + std::to_string(seen[1]) + ", not " + std::to_string(tickets);
    return "";
}

// All blocks of a PE at once, as they may wait for each other. Not NVSHMEM's launch: these kernels use none of its collectives,
// and several PEs may share a GPU.
void launch(const Job& job, void (*kernel)(Plan), uint32_t blocks, void** arguments) {
    CUDA_CHECK(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), dim3(blocks), dim3(kThreads), arguments, 0, job.stream));
}

void run_all(const Options& options, const Plugin& plugin, const DeviceState* state) {
    const Job& job = options.job;
    const size_t npes = static_cast<size_t>(job.npes), blocks = options.blocks, writers = npes * blocks;
    Symmetric<char> cells(writers * kCell), mail(writers * kMail), sources(blocks * kSources * kCell), landing(blocks * kCell);
    Symmetric<uint64_t> arrived(writers), answers(blocks), single(writers), words(2), wanted(npes);
    Symmetric<float> real(1);
    Symmetric<uint32_t> wanted_real(npes), drawn(writers * options.rounds);
    Symmetric<char> room(drawn.bytes() + wanted.bytes());
    Device<char> shadows(blocks * npes * kCell);
    Device<Trouble> trouble(1);
    Plan plan{state, trouble.get(), job.seed, options.rounds, options.blocks, cells.get(), mail.get(), arrived.get(), answers.get(), single.get(),
              words.get(), real.get(), words.get() + 1, drawn.get(), static_cast<uint32_t>(drawn.count()), wanted.get(), wanted_real.get(),
              sources.get(), landing.get(), shadows.get()};
    void* arguments[] = {&plan};
    meet(job, "mix: begin");
    launch(job, mix_kernel, options.blocks, arguments);
    check(job, plugin, trouble, "puts, gets, atomics and single values at random");
    meet(job, "mix: end");
    const std::string wrong = check_words({job, plugin, state, room, trouble}, words, wanted, real, wanted_real, drawn);
    event("case", "\"case\":\"words that all PEs changed\",\"status\":" + quoted(wrong.empty() ? "pass" : "fail") + ",\"detail\":" + quoted(wrong));
    if (!wrong.empty()) _exit(kExitCaseFailed);
    meet(job, "messages: begin");
    launch(job, message_kernel, options.blocks, arguments);
    check(job, plugin, trouble, "messages to one mailbox, read at their signal");
    meet(job, "messages: end");
    event("counts", std::string("\"counters\":") + plugin.stats_json());
}

}  // namespace
}  // namespace gpu_ops

int main(int argc, char** argv) {
    using namespace gpu_ops;
    Options options = parse(argc, argv);
    watchdog(90, "start");
    start_pe(options.job);
    meet(options.job, "start");  // the device state is there from the first barrier on
    const Plugin plugin = find_plugin();
    void* at = nullptr;
    uint32_t version = 0;
    size_t bytes = 0;
    if (const int code = plugin.device_state(&at, &version, &bytes))
        die(kExitUsage, "nvshmem_efa_device_state gave %d: %s", code, plugin.last_error(nullptr));
    if (!nvshmem_efa::device_state_fits(version, bytes))
        die(kExitUsage, "the plugin's device state has version %u and %zu bytes, this program knows %u and %zu", version, bytes,
            nvshmem_efa::kDeviceStateVersion, sizeof(DeviceState));
    watchdog(300, "mix");
    run_all(options, plugin, static_cast<const DeviceState*>(at));
    if (options.is_timed) measure_device_api(options.job, static_cast<const DeviceState*>(at));
    watchdog(60, "finish");
    finish_pe(options.job);
    event("finished", "");
    return kExitGood;
}
