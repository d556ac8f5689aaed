// SPDX-License-Identifier: Apache-2.0
// `nvshmem-efa-pe check`: every operation at sizes and alignments that hurt, with guards, and the ordering rules.
#include "run.h"

namespace nvshmem_efa::pe {
namespace {

constexpr size_t kGuard = 64;
constexpr unsigned char kGuardByte = 0xa5;
constexpr uint32_t kOrderRounds = 200;

std::vector<size_t> sizes_of(bool is_quick) {
    if (is_quick) return {1, 7, 64, 4095, 70001};
    return {1,       2,  3,   4,   7,    8,    15,   16,   31,    32,     63,
            64,      65, 127, 255, 1023, 4096, 4097, 8191, 65535, 262145, (1u << 20) - 1,
            1u << 20};
}

// A target with guards on both sides, one for each (writer, lane).
struct Arena {
    char* base = nullptr;     // targets
    char* scratch = nullptr;  // local sides
    size_t bytes = 0;         // of one place
    char* place(int writer, const Lane& lane) const {
        return base + (static_cast<size_t>(writer) * 2 + lane.is_proxy()) * bytes;
    }
    char* local(const Lane& lane) const { return scratch + lane.is_proxy() * bytes; }
};

uint64_t key_of(const Run& run, const Lane& lane, uint64_t what) {
    return mix(run.options.demo.seed ^ mix(static_cast<uint64_t>(run.pe.id()) << 32 | what << 1 | lane.is_proxy()));
}

// Writes guards, puts between them, reads everything back by get: the bytes are there, and nothing beside them.
Status put_get(Run& run, Lane& lane, const Arena& arena, int target, size_t bytes, size_t remote_shift,
               size_t local_shift, bool is_nbi) {
    char* place = arena.place(run.pe.id(), lane);
    char* local = arena.local(lane);
    const size_t whole = remote_shift + bytes + 2 * kGuard;
    std::memset(local, kGuardByte, whole);
    EFA_TRY(lane.put(target, place, local, whole));
    std::vector<unsigned char> expected(whole, kGuardByte);
    fill_bytes(key_of(run, lane, bytes * 64 + remote_shift), expected.data() + kGuard + remote_shift, bytes);
    std::memcpy(local + local_shift, expected.data() + kGuard + remote_shift, bytes);
    char* to = place + kGuard + remote_shift;
    if (is_nbi) {
        EFA_TRY(lane.put_nbi(target, to, local + local_shift, bytes));
        EFA_TRY(lane.quiet());
        std::memset(local, 0, arena.bytes);
        EFA_TRY(lane.get_nbi(target, place, local + local_shift, whole));
        EFA_TRY(lane.quiet());
    } else {
        EFA_TRY(lane.put(target, to, local + local_shift, bytes));
        std::memset(local, 0, arena.bytes);
        EFA_TRY(lane.get(target, place, local + local_shift, whole));
    }
    char what[96];
    std::snprintf(what, sizeof what, "put and get of %zu bytes, shifts %zu and %zu%s", bytes, remote_shift, local_shift,
                  is_nbi ? ", nbi" : "");
    run.checker.bytes(what, local + local_shift, expected.data(), whole);
    return Status();
}

Status sizes_and_alignments(Run& run, Lane& lane, const Arena& arena) {
    const int n_pes = run.pe.n_pes();
    uint32_t n = 0;
    for (const size_t bytes : sizes_of(run.options.is_quick))
        for (const size_t remote_shift : {size_t{0}, size_t{1}, size_t{7}})
            for (const size_t local_shift : {size_t{0}, size_t{3}}) {
                const int target = (run.pe.id() + static_cast<int>(n++)) % n_pes;
                EFA_TRY(put_get(run, lane, arena, target, bytes, remote_shift, local_shift, n & 1));
            }
    return Status();
}

// Every second word, by one p for each (proxy) or by strided puts (host); then the gaps must be untouched.
Status strided(Run& run, Lane& lane, const Arena& arena) {
    const int target = (run.pe.id() + 1) % run.pe.n_pes();
    constexpr size_t kElements = 128;
    for (const int bytes : {1, 2, 4, 8}) {
        const auto width = static_cast<size_t>(bytes);
        const size_t whole = 2 * kElements * width;
        char* place = arena.place(run.pe.id(), lane);
        char* local = arena.local(lane);
        std::memset(local, 0x5a, whole);
        EFA_TRY(lane.put(target, place, local, whole));
        std::vector<unsigned char> expected(whole, 0x5a);
        fill_bytes(key_of(run, lane, 900 + width), local, kElements * width);
        for (size_t i = 0; i < kElements; ++i) std::memcpy(&expected[2 * i * width], local + i * width, width);
        const bool by_element = lane.is_proxy() || bytes == 1;
        if (!by_element) EFA_TRY(run.pe.iput(target, place, local, bytes, kElements, 2, 1));
        for (size_t i = 0; by_element && i < kElements; ++i) {
            uint64_t value = 0;
            std::memcpy(&value, local + i * width, width);
            EFA_TRY(lane.p(target, place + 2 * i * width, value, bytes));
        }
        EFA_TRY(lane.quiet());
        EFA_TRY(lane.get(target, place, local, whole));
        run.checker.bytes("strided words", local, expected.data(), whole);
        if (by_element) continue;
        EFA_TRY(run.pe.iget(target, place, local + whole, bytes, kElements, 2, 1));
        for (size_t i = 0; i < kElements; ++i) std::memcpy(local + i * width, &expected[2 * i * width], width);
        run.checker.bytes("words fetched from strided places", local + whole, local, kElements * width);
    }
    return Status();
}

// Two puts to the same bytes with a fence between: the second one stays.
Status fenced_puts(Run& run, Lane& lane, const Arena& arena) {
    const int target = (run.pe.id() + 1) % run.pe.n_pes();
    char* place = arena.place(run.pe.id(), lane);
    char* local = arena.local(lane);
    constexpr size_t kBytes = 3001;
    for (uint32_t i = 0; i < kOrderRounds / 4; ++i) {
        char* first = local + (i & 1) * 4 * kBytes;
        char* second = first + kBytes;
        fill_bytes(key_of(run, lane, 2000 + i), first, kBytes);
        fill_bytes(key_of(run, lane, 4000 + i), second, kBytes);
        EFA_TRY(lane.put_nbi(target, place, first, kBytes));
        EFA_TRY(lane.fence());
        EFA_TRY(lane.put_nbi(target, place, second, kBytes));
        EFA_TRY(lane.quiet());
        char* seen = first + 2 * kBytes;
        EFA_TRY(lane.get(target, place, seen, kBytes));
        run.checker.bytes("put, fence, put", seen, second, kBytes);
    }
    return Status();
}

enum class Order { kPutSignal, kFence, kQuiet };

// Sends data, then its flag by one of three ways; the receiver checks the data as soon as it sees the flag. The
// receiver's answer (a signal) lets the sender use the place again.
Status flag_after_data(Run& run, Lane& lane, const Arena& arena, uint64_t* words, Order order) {
    const int n_pes = run.pe.n_pes();
    const int to = (run.pe.id() + 1) % n_pes, from = (run.pe.id() + n_pes - 1) % n_pes;
    uint64_t* flag = words + static_cast<size_t>(lane.is_proxy()) * 2;
    uint64_t* answer = flag + 1;
    char* place = arena.place(run.pe.id(), lane);
    const char* incoming = arena.place(from, lane);
    std::vector<char> expected(9000);
    const uint64_t base = static_cast<uint64_t>(order) * kOrderRounds;
    for (uint64_t i = base + 1; i <= base + kOrderRounds; ++i) {
        const size_t bytes = 1 + mix(run.options.demo.seed + i) % 9000;  // the same on both sides
        const auto key = [&](int writer) {
            return mix(run.options.demo.seed ^ mix(static_cast<uint64_t>(writer) << 40 | i << 1 | lane.is_proxy()));
        };
        char* source = arena.local(lane) + (i & 1) * 16384;
        fill_bytes(key(run.pe.id()), source, bytes);
        if (order == Order::kPutSignal) {
            EFA_TRY(lane.put_signal(to, place, source, bytes, flag, abi::kAmoSignalSet, i));
        } else {
            EFA_TRY(lane.put_nbi(to, place, source, bytes));
            EFA_TRY(order == Order::kFence ? lane.fence() : lane.quiet());
            EFA_TRY(order == Order::kFence ? lane.signal(to, flag, abi::kAmoSignalSet, i) : lane.p(to, flag, i, 8));
        }
        EFA_TRY(run.pe.wait_until(flag, Compare::kAtLeast, i, from).with_context("flag after data"));
        fill_bytes(key(from), expected.data(), bytes);
        run.checker.bytes(order == Order::kPutSignal ? "data under put_signal"
                          : order == Order::kFence   ? "data before fence and signal"
                                                     : "data before quiet and p",
                          incoming, expected.data(), bytes);
        EFA_TRY(lane.signal(from, answer, abi::kAmoSignalSet, i));
        EFA_TRY(run.pe.wait_until(answer, Compare::kAtLeast, i, to).with_context("answer"));
        EFA_TRY(lane.quiet());
    }
    return Status();
}

// A transfer that covers the border between two registered chunks of the heap.
Status across_chunks(Run& run) {
    SymmetricHeap& heap = run.pe.heap();
    const size_t border = heap.committed_bytes();
    const size_t bytes = 40001;
    char* low = nullptr;
    // Whatever is free, a block larger than that comes to lie across the old end.
    EFA_TRY(run.allocate(border, &low));
    char* place = heap.base() + border - bytes / 2;
    std::vector<char> source(bytes), seen(bytes);
    EFA_TRY(run.pe.register_buffer(source.data(), bytes));
    EFA_TRY(run.pe.register_buffer(seen.data(), bytes));
    fill_bytes(key_of(run, run.host, 7000), source.data(), bytes);
    const int target = (run.pe.id() + 1) % run.pe.n_pes();
    if (run.checker.holds("the block lies across the border", place >= low && place + bytes <= low + border)) {
        for (Lane* lane : {&run.host, &run.proxy}) {
            EFA_TRY(lane->put(target, place, source.data(), bytes));
            EFA_TRY(lane->get(target, place, seen.data(), bytes));
            run.checker.bytes("across a chunk border", seen.data(), source.data(), bytes);
            std::fill(seen.begin(), seen.end(), 0);
        }
    }
    EFA_TRY(run.pe.unregister_buffer(source.data()));
    EFA_TRY(run.pe.unregister_buffer(seen.data()));
    EFA_TRY(run.pe.barrier_all());
    return run.pe.free(low);
}

}  // namespace

Status run_conformance(Run& run) {
    run.phases_total = 8;
    Arena arena;
    arena.bytes = (size_t{1} << 20) + 4 * kGuard;
    uint64_t* words = nullptr;
    EFA_TRY(run.allocate(static_cast<size_t>(run.pe.n_pes()) * 2 * arena.bytes, &arena.base));
    EFA_TRY(run.allocate(2 * arena.bytes, &arena.scratch));
    EFA_TRY(run.allocate(4, &words));
    std::memset(words, 0, 4 * sizeof *words);
    EFA_TRY(run.pe.barrier_all());
    const auto both = [&](const auto& work) { return [&run, work] { return run.on_both_lanes(work); }; };
    EFA_TRY(run.phase("sizes", both([&](Lane& lane) { return sizes_and_alignments(run, lane, arena); })));
    EFA_TRY(run.phase("strides", both([&](Lane& lane) { return strided(run, lane, arena); })));
    EFA_TRY(run.phase("fence", both([&](Lane& lane) { return fenced_puts(run, lane, arena); })));
    EFA_TRY(run.phase("put_signal",
                      both([&](Lane& lane) { return flag_after_data(run, lane, arena, words, Order::kPutSignal); })));
    EFA_TRY(run.phase("fence_signal",
                      both([&](Lane& lane) { return flag_after_data(run, lane, arena, words, Order::kFence); })));
    EFA_TRY(run.phase("quiet_p",
                      both([&](Lane& lane) { return flag_after_data(run, lane, arena, words, Order::kQuiet); })));
    EFA_TRY(run.phase("chunks", [&] { return across_chunks(run); }));
    return run.phase("amos", [&] { return demo_amos(run); });
}

}  // namespace nvshmem_efa::pe
