// SPDX-License-Identifier: Apache-2.0
// Kernels in the shape of DeepEP V1's on deep_ep_patched/compat/ibgda_device.cuh, on GPUs: rings of chunks with tails and
// credits, and low latency with counts and flags on two halves. The same patterns run on the CPU: test_ibgda_compat*.cpp.
//   ibgda_compat --pe P --npes N --dir DIR [--seed S] [--calls C] [--channels B] [--tokens T]
// Start it with device_api.sh. Exit 0: every byte and word was right.
#include "ibgda_device.cuh"
#include "image.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <unistd.h>

namespace gpu_ops {

namespace {

using namespace deep_ep;

constexpr int kToken = 1536;  // bytes

template <class T>
__device__ T look(const T* word) {
    const T value = *reinterpret_cast<const volatile T*>(word);
    __threadfence_system();  // acquire: pairs with the order "data placed, then word changed" of whoever changed it
    return value;
}
// Polls as DeepEP does, with loads of its own. False, with a report, when it did not come within kWaitNs.
template <class T, class Test>
__device__ bool poll(const T* word, Trouble* trouble, T* seen, Test is_there) {
    const uint64_t deadline = now_ns() + kWaitNs;
    while (!is_there(*seen = look(word))) {
        if (now_ns() < deadline) continue;
        report(trouble, kWaitTimedOut, reinterpret_cast<uint64_t>(word), 0, static_cast<uint64_t>(*seen));
        return false;
    }
    return true;
}
__device__ void fill_token(char* at, uint64_t key, int lane) {
    for (int i = lane; i < kToken; i += 32) at[i] = static_cast<char>(pattern_at(key, static_cast<uint64_t>(i)));
}
__device__ void check_token(const char* at, uint64_t key, uint64_t where, int lane, Trouble* trouble) {
    for (int i = lane; i < kToken; i += 32) {
        const auto got = static_cast<unsigned char>(reinterpret_cast<const volatile char*>(at)[i]);
        const unsigned char wanted = pattern_at(key, static_cast<uint64_t>(i));
        if (got != wanted) report(trouble, kByteWrong, where << 16 | static_cast<uint64_t>(i), wanted, got);
    }
}

// ---- chunks, tails and credits: a block is a channel, with a sending and a receiving warp for each PE ----

struct Rings {
    static constexpr uint64_t kSlots = 16, kChunkMax = 6;
    char *send, *recv;      // [(channel * npes + pe) * kSlots + slot]
    uint64_t *head, *tail;  // [channel * npes + pe]
    uint64_t seed, tokens;
    int me, npes;
    Trouble* trouble;

    __device__ int pair(int channel, int pe) const { return channel * npes + pe; }
    __device__ char* slot(char* ring, int channel, int pe, uint64_t token) const {
        return ring + (static_cast<uint64_t>(pair(channel, pe)) * kSlots + token % kSlots) * kToken;
    }
    __device__ uint64_t key(int channel, int from, int to, uint64_t token) const {
        return mix2(seed + static_cast<uint64_t>(channel), static_cast<uint64_t>(from * 1024 + to) << 32 | token);
    }
};

__device__ void send_chunks(const Rings& r, int channel, int channels, int to, int lane) {
    for (uint64_t sent = 0; sent < r.tokens;) {
        uint64_t n = 1 + r.key(channel, r.me, to, sent) % Rings::kChunkMax;
        n = min(n, min(r.tokens - sent, Rings::kSlots - sent % Rings::kSlots));
        uint64_t head = 0;
        const bool is_good =
            poll(r.head + r.pair(channel, to), r.trouble, &head, [&](uint64_t is) { return Rings::kSlots - (sent - is) >= n; });
        if (__any_sync(0xffffffffu, !is_good)) return;
        for (uint64_t i = 0; i < n; ++i)
            fill_token(r.slot(to == r.me ? r.recv : r.send, channel, to, sent + i), r.key(channel, r.me, to, sent + i), lane);
        if (to == r.me) __threadfence_system();
        __syncwarp();
        if (to != r.me)
            nvshmemi_ibgda_put_nbi_warp<true>(reinterpret_cast<uint64_t>(r.slot(r.recv, channel, r.me, sent)),
                                              reinterpret_cast<uint64_t>(r.slot(r.send, channel, to, sent)), n * kToken, to,
                                              channel, lane, 0);
        sent += n;
        if (lane == 0)
            nvshmemi_ibgda_amo_nonfetch_add(r.tail + r.pair(channel, r.me), static_cast<int>(n), to, channel, to == r.me);
        __syncwarp();
    }
}

// Looks at each token when it is there, and once more before its slot is given back.
__device__ void receive_chunks(const Rings& r, int channel, int channels, int from, int lane) {
    uint64_t credited = 0;
    for (uint64_t taken = 0; taken < r.tokens;) {
        uint64_t tail = 0;
        const bool is_good = poll(r.tail + r.pair(channel, from), r.trouble, &tail, [&](uint64_t is) { return is > taken; });
        if (__any_sync(0xffffffffu, !is_good)) return;
        tail = __shfl_sync(0xffffffffu, static_cast<unsigned long long>(tail), 0);
        if (tail > r.tokens) {
            report(r.trouble, kValueWrong, reinterpret_cast<uint64_t>(r.tail), r.tokens, tail);
            return;
        }
        __threadfence_system();  // acquire of what lane 0 has seen, which may be more than ours
        for (; taken < tail; ++taken)
            check_token(r.slot(r.recv, channel, from, taken), r.key(channel, from, r.me, taken), taken, lane, r.trouble);
        if (taken - credited < Rings::kChunkMax && taken < r.tokens) continue;
        for (uint64_t i = credited; i < taken; ++i)
            check_token(r.slot(r.recv, channel, from, i), r.key(channel, from, r.me, i), 1ull << 40 | i, lane, r.trouble);
        __syncwarp();
        if (lane == 0)
            nvshmemi_ibgda_amo_nonfetch_add(r.head + r.pair(channel, r.me), static_cast<int>(taken - credited), from,
                                            channel + channels, from == r.me);
        credited = taken;
    }
}

__global__ void ring_kernel(Rings r) {
    const int channel = static_cast<int>(blockIdx.x), channels = static_cast<int>(gridDim.x),
              warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
    const auto state = ibgda_get_state();
    if (state->num_rc_per_pe < 2 * channels) {
        report(r.trouble, kValueWrong, 0, static_cast<uint64_t>(2 * channels), static_cast<uint64_t>(state->num_rc_per_pe));
        return;
    }
    if (warp < r.npes) send_chunks(r, channel, channels, (r.me + warp) % r.npes, lane);
    else receive_chunks(r, channel, channels, (r.me + warp) % r.npes, lane);
}

__global__ void quiet_kernel(int me, int npes) {
    const auto state = ibgda_get_state();
    const int qps = state->num_rc_per_pe * state->num_devices_initialized;
    for (int i = static_cast<int>(threadIdx.x); i < qps * (npes - 1); i += static_cast<int>(blockDim.x))
        nvshmemi_ibgda_quiet((i / qps + me + 1) % npes, i % qps);
}

// ---- low latency: tokens and counts (half 0), results and flags (half 1) ----

struct Exchange {
    static constexpr int kLocalExperts = 8, kTopk = 4, kMessage = 16 + kToken;
    char* out[2];     // half 0: [token]; half 1: [(local expert * npes + pe) * tokens + token]
    char* in[2];      // half 0: [(local expert * npes + source) * tokens + slot]; half 1: [expert * tokens + token]
    int* words[2];    // half 0: [local expert * npes + source]; half 1: [expert]
    unsigned* slots;  // [expert]: of this call; this GPU's, as the rest
    unsigned* issued;
    unsigned* cleaned;  // kernels of either kind that have cleaned
    uint64_t seed;
    int call, tokens, me, npes;
    Trouble* trouble;

    __device__ int experts() const { return kLocalExperts * npes; }
    __device__ int expert(int pe, int token, int k) const {
        const uint64_t draw =
            mix2(seed + static_cast<uint64_t>(call), static_cast<uint64_t>(pe) << 32 | static_cast<uint64_t>(token));
        if (draw % 16 == static_cast<uint64_t>(k)) return -1;
        return static_cast<int>(((draw >> 8) % static_cast<uint64_t>(experts()) + static_cast<uint64_t>(k)) %
                                static_cast<uint64_t>(experts()));
    }
    __device__ bool has(int pe, int token, int which) const {
        bool found = false;
        for (int k = 0; k < kTopk; ++k) found = found || expert(pe, token, k) == which;
        return found;
    }
    __device__ unsigned count(int pe, int which) const {
        unsigned n = 0;
        for (int token = 0; token < tokens; ++token) n += has(pe, token, which);
        return n;
    }
    __device__ uint64_t token_key(int pe, int token) const {
        return mix2(seed * 3 + static_cast<uint64_t>(call), static_cast<uint64_t>(pe * 65536 + token));
    }
    __device__ uint64_t result_key(int which, int pe, int token) const {
        return mix2(token_key(pe, token), static_cast<uint64_t>(which));
    }
};

__device__ void move(const Exchange& x, char* there, char* here, size_t bytes, int to, int qp, int lane, int ordinal) {
    const uint64_t near = nvshmemi_get_p2p_ptr(reinterpret_cast<uint64_t>(there), x.me, to);
    if (near == 0) {
        nvshmemi_ibgda_put_nbi_warp(reinterpret_cast<uint64_t>(there), reinterpret_cast<uint64_t>(here), bytes, to, qp, lane,
                                    ordinal);
    } else {
        for (size_t i = static_cast<size_t>(lane); i < bytes; i += 32) reinterpret_cast<char*>(near)[i] = here[i];
        __threadfence_system();
    }
    __syncwarp();
}
__device__ void flag(const Exchange& x, int* word, int value, int to, int qp) {
    const uint64_t near = nvshmemi_get_p2p_ptr(reinterpret_cast<uint64_t>(word), x.me, to);
    if (near == 0) {
        nvshmemi_ibgda_amo_nonfetch_add(word, value, to, qp);
    } else {
        __threadfence_system();
        *reinterpret_cast<volatile int*>(near) = value;
    }
}
// Block 0 zeroes the other half's words; no flag leaves before.
__device__ void clean(const Exchange& x, int half) {
    if (blockIdx.x != 0) return;
    for (int i = static_cast<int>(threadIdx.x); i < x.experts(); i += static_cast<int>(blockDim.x)) x.words[1 - half][i] = 0;
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(x.cleaned, 1u);
}
__device__ bool wait_for_clean(const Exchange& x, int half) {
    unsigned seen = 0;
    const auto wanted = static_cast<unsigned>(2 * x.call + half + 1);
    return poll(x.cleaned, x.trouble, &seen, [wanted](unsigned is) { return is >= wanted; });
}

__global__ void send_tokens(Exchange x) {
    const int lane = static_cast<int>(threadIdx.x % 32), warps = static_cast<int>(gridDim.x * blockDim.x / 32);
    const int warp = static_cast<int>((blockIdx.x * blockDim.x + threadIdx.x) / 32);
    clean(x, 0);
    for (int token = warp; token < x.tokens; token += warps) {
        char* message = x.out[0] + static_cast<size_t>(token) * Exchange::kMessage;
        if (lane == 0) *reinterpret_cast<int*>(message) = token;
        fill_token(message + 16, x.token_key(x.me, token), lane);
        __syncwarp();
        for (int k = 0; k < Exchange::kTopk; ++k) {
            const int expert = x.expert(x.me, token, k), local = expert % Exchange::kLocalExperts;
            if (expert < 0) continue;
            unsigned slot = lane == 0 ? atomicAdd(x.slots + expert, 1u) : 0;
            slot = __shfl_sync(0xffffffffu, slot, 0);
            char* there = x.in[0] + (static_cast<size_t>(local * x.npes + x.me) * x.tokens + slot) * Exchange::kMessage;
            move(x, there, message, Exchange::kMessage, expert / Exchange::kLocalExperts, local, lane, static_cast<int>(slot));
            __threadfence();
            if (lane == 0) atomicAdd(x.issued + expert, 1u);
        }
    }
    for (int expert = warp; lane == 0 && expert < x.experts(); expert += warps) {
        const unsigned n = x.count(x.me, expert);
        unsigned seen = 0;
        if (!poll(x.issued + expert, x.trouble, &seen, [n](unsigned is) { return is == n; }) || !wait_for_clean(x, 0)) return;
        flag(x, x.words[0] + expert % Exchange::kLocalExperts * x.npes + x.me, -static_cast<int>(n) - 1,
             expert / Exchange::kLocalExperts, expert % Exchange::kLocalExperts);
    }
}

__global__ void receive_tokens(Exchange x) {
    const int lane = static_cast<int>(threadIdx.x % 32), warps = static_cast<int>(gridDim.x * blockDim.x / 32);
    for (int group = static_cast<int>((blockIdx.x * blockDim.x + threadIdx.x) / 32); group < Exchange::kLocalExperts * x.npes;
         group += warps) {
        const int local = group / x.npes, from = group % x.npes, expert = x.me * Exchange::kLocalExperts + local;
        int word = 0;
        const bool is_good = poll(x.words[0] + group, x.trouble, &word, [](int is) { return is != 0; });
        if (__any_sync(0xffffffffu, !is_good)) return;
        const auto n = static_cast<unsigned>(-word - 1);
        if (n != x.count(from, expert)) {
            report(x.trouble, kValueWrong, static_cast<uint64_t>(group), x.count(from, expert), n);
            return;
        }
        for (unsigned slot = 0; slot < n; ++slot) {
            const char* message = x.in[0] + (static_cast<size_t>(group) * x.tokens + slot) * Exchange::kMessage;
            const int token = *reinterpret_cast<const volatile int*>(message);
            if (token < 0 || token >= x.tokens || !x.has(from, token, expert))
                report(x.trouble, kValueWrong, static_cast<uint64_t>(slot), 0, static_cast<uint64_t>(token));
            else check_token(message + 16, x.token_key(from, token), static_cast<uint64_t>(token), lane, x.trouble);
        }
    }
}

// A block takes a (destination, local expert): its results by all warps, then its flag.
__global__ void send_results(Exchange x) {
    const int lane = static_cast<int>(threadIdx.x % 32), warps = static_cast<int>(blockDim.x / 32);
    clean(x, 1);
    for (int group = static_cast<int>(blockIdx.x); group < Exchange::kLocalExperts * x.npes;
         group += static_cast<int>(gridDim.x)) {
        const int local = group / x.npes, to = group % x.npes, expert = x.me * Exchange::kLocalExperts + local;
        for (int token = static_cast<int>(threadIdx.x / 32); token < x.tokens; token += warps) {
            if (!x.has(to, token, expert)) continue;
            char* here = x.out[1] + (static_cast<size_t>(group) * x.tokens + token) * kToken;
            fill_token(here, x.result_key(expert, to, token), lane);
            __syncwarp();
            move(x, x.in[1] + (static_cast<size_t>(expert) * x.tokens + token) * kToken, here, kToken, to, local, lane, token);
        }
        __syncthreads();
        if (threadIdx.x == 0 && wait_for_clean(x, 1)) flag(x, x.words[1] + expert, 1, to, local);
    }
}

__global__ void receive_results(Exchange x) {
    const int lane = static_cast<int>(threadIdx.x % 32), warps = static_cast<int>(gridDim.x * blockDim.x / 32);
    for (int expert = static_cast<int>(threadIdx.x); expert < x.experts(); expert += static_cast<int>(blockDim.x)) {
        int word = 0;
        if (poll(x.words[1] + expert, x.trouble, &word, [](int is) { return is != 0; }) && word != 1)
            report(x.trouble, kValueWrong, static_cast<uint64_t>(expert), 1, static_cast<uint64_t>(word));
    }
    __syncthreads();
    for (int token = static_cast<int>((blockIdx.x * blockDim.x + threadIdx.x) / 32); token < x.tokens; token += warps)
        for (int k = 0; k < Exchange::kTopk; ++k) {
            const int expert = x.expert(x.me, token, k);
            if (expert >= 0)
                check_token(x.in[1] + (static_cast<size_t>(expert) * x.tokens + token) * kToken,
                            x.result_key(expert, x.me, token), static_cast<uint64_t>(token), lane, x.trouble);
        }
}

__global__ void clean_kernel(Exchange x) {
    deep_ep::nvshmemx_barrier_all_block();  // waits for these queues too
    for (int half = 0; half < 2; ++half)
        for (int i = static_cast<int>(threadIdx.x); i < x.experts(); i += static_cast<int>(blockDim.x)) x.words[half][i] = 0;
    __threadfence_system();
    deep_ep::nvshmemx_barrier_all_block();
}

// ---- the host ----

struct Options {
    Job job;
    int calls = 20, channels = 8, tokens = 128;
};

Options parse(int argc, char** argv) {
    Options options;
    for (int i = 1; i + 1 < argc; i += 2) {
        const std::string name = argv[i];
        if (name == "--pe") options.job.pe = atoi(argv[i + 1]);
        else if (name == "--npes") options.job.npes = atoi(argv[i + 1]);
        else if (name == "--dir") options.job.dir = argv[i + 1];
        else if (name == "--seed") options.job.seed = strtoull(argv[i + 1], nullptr, 0);
        else if (name == "--calls") options.calls = atoi(argv[i + 1]);
        else if (name == "--channels") options.channels = atoi(argv[i + 1]);
        else if (name == "--tokens") options.tokens = atoi(argv[i + 1]);
        else die(kExitUsage, "ibgda_compat: unknown argument %s", argv[i]);
    }
    const Job& job = options.job;
    if (job.npes < 1 || job.npes > 16 || job.pe < 0 || job.pe >= job.npes || job.dir.empty() || options.channels < 1 ||
        options.tokens < 1)
        die(kExitUsage, "ibgda_compat: bad --pe, --npes (1 to 16), --dir, --channels or --tokens");
    return options;
}

// Ends the process when something was wrong, after saying what.
void check(const Job& job, const Device<Trouble>& trouble, const std::string& where, bool is_last) {
    stage("%s", where.c_str());
    CUDA_CHECK(cudaStreamSynchronize(job.stream));
    const Trouble found = trouble.read()[0];
    if (found.count == 0) {
        if (is_last) event("case", "\"case\":" + quoted(where) + ",\"status\":\"pass\"");
        return;
    }
    nvshmem_quiet();  // the host names the error that a record holds
    char text[256];
    snprintf(text, sizeof text, "%u wrong, %u time-outs; first: kind %u at 0x%llx: expected 0x%llx, got 0x%llx", found.count,
             found.timeouts, found.what, found.where, found.wanted, found.found);
    event("case", "\"case\":" + quoted(where) + ",\"status\":\"fail\",\"detail\":" + quoted(text));
    fflush(stdout);
    _exit(kExitCaseFailed);  // others may wait for us in vain: the launcher ends them
}

void run_rings(const Options& options) {
    const Job& job = options.job;
    const size_t pairs = static_cast<size_t>(options.channels) * static_cast<size_t>(job.npes),
                 bytes = pairs * Rings::kSlots * kToken;
    Symmetric<char> send(bytes), recv(bytes);
    Symmetric<uint64_t> head(pairs), tail(pairs);
    Device<Trouble> trouble(1);
    for (int call = 0; call < options.calls; ++call) {
        Rings r{send.get(), recv.get(), head.get(), tail.get(),   job.seed * 1000 + static_cast<uint64_t>(call),
                200,        job.pe,     job.npes,   trouble.get()};
        void* arguments[] = {&r};
        launch_together(job, reinterpret_cast<const void*>(ring_kernel), dim3(static_cast<unsigned>(options.channels)),
                        dim3(static_cast<unsigned>(64 * job.npes)), arguments);
        quiet_kernel<<<1, 512, 0, job.stream>>>(job.pe, job.npes);
        LAUNCH_CHECK();
        check(job, trouble, "chunks, tails and credits", call + 1 == options.calls);
        meet(job, "rings: all quiet");
        for (const uint64_t word : head.read())
            if (word != r.tokens) die(kExitCaseFailed, "call %d: a head is %llu", call, static_cast<unsigned long long>(word));
        for (const uint64_t word : tail.read())
            if (word != r.tokens) die(kExitCaseFailed, "call %d: a tail is %llu", call, static_cast<unsigned long long>(word));
        CUDA_CHECK(cudaMemset(head.get(), 0, head.bytes()));
        CUDA_CHECK(cudaMemset(tail.get(), 0, tail.bytes()));
        CUDA_CHECK(cudaDeviceSynchronize());
        meet(job, "rings: all clean");
    }
}

void run_exchange(const Options& options) {
    const Job& job = options.job;
    const size_t tokens = static_cast<size_t>(options.tokens), experts = static_cast<size_t>(Exchange::kLocalExperts * job.npes);
    Symmetric<char> out0(tokens * Exchange::kMessage), in0(experts * tokens * Exchange::kMessage),
        out1(experts * tokens * kToken), in1(experts * tokens * kToken);
    Symmetric<int> words0(experts), words1(experts);
    Device<unsigned> slots(experts), issued(experts), cleaned(1);
    Device<Trouble> trouble(1);
    const dim3 grid(32), block(256);
    for (int call = 0; call < options.calls; ++call) {
        Exchange x{{out0.get(), out1.get()},
                   {in0.get(), in1.get()},
                   {words0.get(), words1.get()},
                   slots.get(),
                   issued.get(),
                   cleaned.get(),
                   job.seed,
                   call,
                   options.tokens,
                   job.pe,
                   job.npes,
                   trouble.get()};
        void* arguments[] = {&x};
        CUDA_CHECK(cudaMemsetAsync(slots.get(), 0, experts * sizeof(unsigned), job.stream));
        CUDA_CHECK(cudaMemsetAsync(issued.get(), 0, experts * sizeof(unsigned), job.stream));
        for (const void* kernel : {reinterpret_cast<const void*>(send_tokens), reinterpret_cast<const void*>(receive_tokens),
                                   reinterpret_cast<const void*>(send_results), reinterpret_cast<const void*>(receive_results)})
            launch_together(job, kernel, grid, block, arguments);
        check(job, trouble, "tokens and counts, results and flags", call + 1 == options.calls);
        if (call % 5 != 4) continue;  // as DeepEP after kernels of the other kind
        void* again[] = {&x};
        launch_together(job, reinterpret_cast<const void*>(clean_kernel), dim3(1), block, again);
        check(job, trouble, "clean", false);
    }
    meet(job, "exchange: end");
}

}  // namespace
}  // namespace gpu_ops

int main(int argc, char** argv) {
    using namespace gpu_ops;
    Options options = parse(argc, argv);
    watchdog(90, "start");
    start_pe(options.job);
    watchdog(120, "chunks, tails and credits");
    run_rings(options);
    watchdog(120, "tokens and counts, results and flags");
    run_exchange(options);
    print_stats();
    watchdog(60, "finish");
    finish_pe(options.job);
    event("finished", "");
    return kExitGood;
}
