// SPDX-License-Identifier: Apache-2.0
// Real transports, three PEs, several posting threads each: random mixes of all operations of the device API, over
// devices that reorder and duplicate, with tiny rings and windows, against an oracle.
#include <sched.h>

namespace gpu_mix {
// Waits must leave the processor to those waited for: there are more threads than cores.
inline void step() {
    static thread_local unsigned n = 0;
    if (++n % 32 == 0) sched_yield();
}
}  // namespace gpu_mix
#define NVSHMEM_EFA_STEP_HOOK ::gpu_mix::step

#include <algorithm>
#include <set>

#include "gpu_lane_rig.h"
#include "nvshmem_efa/amo.cuh"
#include "nvshmem_efa/put.cuh"
#include "nvshmem_efa/signal.cuh"
#include "nvshmem_efa/wait.cuh"
#include "soft_efa/prng.h"

using namespace gpu_lane_rig;

namespace {

constexpr int kPes = 3, kThreads = 3;
// ThreadSanitizer takes a payload that is placed twice, the second time beside its reader, for the race that it is; up to
// 128 bytes the software device writes word by word, as a device does.
#if defined(__SANITIZE_THREAD__)
constexpr size_t kCellBytes = 128;
#else
constexpr size_t kCellBytes = 1024;
#endif
constexpr size_t kCells = 4, kBoxes = 2, kBoxSources = 8, kWords = 16, kFixedBytes = 4096;

// What the thread `t` of a PE has at every PE, and for itself.
struct Corner {
    uint8_t cells[kPes][kCells][kCellBytes];   // written by thread t of PE i
    uint8_t boxes[kPes][kBoxes][kCellBytes];   // messages of thread t of PE i
    uint64_t arrived[kPes];                    // number of the last message of PE i, by signal
    uint64_t credits[kPes];                    // how many of ours PE i has read, by added signals
    uint64_t small[kPes][4];                   // p() and g() of PE i
    uint64_t exclusive[kPes];                  // compare-and-swap by PE i alone
    uint64_t words[kPes][kWords];              // single words of thread t of PE i
    uint8_t sources[kCells][kCellBytes];
    uint8_t box_sources[kPes][kBoxSources][kCellBytes];
    uint64_t word_sources[kPes][kWords];
    uint8_t gets[kCellBytes];
};
struct Heap {
    Corner corners[kThreads];
    uint8_t fixed[kFixedBytes];  // never written after the start
    uint64_t sum, tickets, any;
    float real_sum;
};

uint8_t pattern(uint64_t a, uint64_t b, size_t at) { return static_cast<uint8_t>(soft::mix64(a * 1000003 + b * 7919 + at / 8) >> (at % 8 * 8)); }
void fill(uint8_t* to, size_t bytes, uint64_t a, uint64_t b) {
    for (size_t i = 0; i < bytes; ++i) to[i] = pattern(a, b, i);
}
bool holds(const uint8_t* at, size_t bytes, uint64_t a, uint64_t b) {
    for (size_t i = 0; i < bytes; ++i)
        if (__atomic_load_n(at + i, __ATOMIC_RELAXED) != pattern(a, b, i)) return false;
    return true;
}

// What all posters together did to the words of each PE that they share.
struct Shared {
    std::atomic<uint64_t> sum{0}, drawn{0}, any{0}, reals{0};
    std::mutex lock;
    std::set<uint64_t> tickets;
};

struct Mix {
    Job& job;
    uint64_t seed;
    int operations;
    Shared shared[kPes];
    std::atomic<uint64_t> done{0};
    Heap& heap(int pe) { return *reinterpret_cast<Heap*>(job.pes[static_cast<size_t>(pe)].at(0)); }
};

// One posting thread.
class Poster {
   public:
    Poster(Mix& mix, int pe, int t)
        : mix_(mix), pe_(pe), t_(t), key_(static_cast<uint64_t>(pe * kThreads + t) + 1),
          state_(*mix.job.pes[static_cast<size_t>(pe)].state), random_(mix.seed * 100 + key_), heap_(mix.heap(pe)),
          corner_(heap_.corners[t]) {}

    void run() {
        device::cpu_poster = static_cast<uint32_t>(t_);
        for (int i = 0; i < mix_.operations; ++i) {
            operate();
            if (i % 4 == 0) read_messages();
            mix_.done.fetch_add(1, std::memory_order_relaxed);
        }
        settle();
        finish_messages();
    }

   private:
    void must(bool is_good, const char* what) {
        if (is_good) return;
        const Status status = mix_.job.pes[static_cast<size_t>(pe_)].transport->progress(Lane::kHost);
        check::fail(__FILE__, __LINE__, std::string(what) + " failed, seed " + std::to_string(mix_.seed) + ": " + status.message());
    }
    int any_pe() { return static_cast<int>(random_.below(kPes)); }

    void operate() {
        switch (random_.below(16)) {
            case 0: case 1: case 2: case 3: put(any_pe()); break;
            case 4: get(any_pe()); break;
            case 5: strew(any_pe()); break;
            case 6: case 7: send(any_pe()); break;
            case 8: case 9: add(any_pe()); break;
            case 10: draw(any_pe()); break;
            case 11: swap(any_pe()); break;
            case 12: small(any_pe()); break;
            case 13: bits(any_pe()); break;
            case 14: if (random_.below(4) == 0) settle(); break;
            default: real(any_pe());
        }
    }

    // A cell is written again only behind a quiet: rule 1, which is the program's where it learned nothing.
    void put(int to) {
        const size_t cell = random_.below(kCells);
        if (cell_busy_[to][cell] || source_busy_[cell]) settle();
        const size_t bytes = 1 + random_.below(kCellBytes);
        const uint64_t version = ++versions_;
        fill(corner_.sources[cell], bytes, key_, version);
        must(put_nbi(state_, corner_.cells[pe_][cell], corner_.sources[cell], bytes, to), "put_nbi");
        cell_busy_[to][cell] = {version, bytes};
        source_busy_[cell] = true;
    }

    // Many small ones at once: what fills a ring.
    void strew(int to) {
        if (words_busy_[to]) settle();
        words_busy_[to] = ++versions_;
        for (size_t i = 0; i < kWords; ++i) {
            corner_.word_sources[to][i] = soft::mix64(versions_ + i);
            must(put_nbi(state_, &corner_.words[pe_][i], &corner_.word_sources[to][i], 8, to), "put_nbi of a word");
        }
    }

    void get(int from) {
        const size_t at = random_.below(kFixedBytes - kCellBytes), bytes = 1 + random_.below(kCellBytes);
        settle();
        must(get_nbi(state_, corner_.gets, heap_.fixed + at, bytes, from), "get_nbi");
        settle();
        for (size_t i = 0; i < bytes; ++i)
            if (corner_.gets[i] != pattern(77, static_cast<uint64_t>(from), at + i)) must(false, "what a get brought");
    }

    // All that this thread put is at its targets.
    void settle() {
        must(quiet(state_), "quiet");
        for (int to = 0; to < kPes; ++to)
            for (size_t cell = 0; cell < kCells; ++cell) {
                if (!cell_busy_[to][cell]) continue;
                const Corner& there = mix_.heap(to).corners[t_];
                if (!holds(there.cells[pe_][cell], cell_busy_[to][cell].bytes, key_, cell_busy_[to][cell].version)) must(false, "a put behind quiet");
                cell_busy_[to][cell] = {};
            }
        std::fill(std::begin(source_busy_), std::end(source_busy_), false);
        for (int to = 0; to < kPes; ++to) {
            const Corner& there = mix_.heap(to).corners[t_];
            for (size_t i = 0; words_busy_[to] && i < kWords; ++i)
                if (__atomic_load_n(&there.words[pe_][i], __ATOMIC_RELAXED) != soft::mix64(words_busy_[to] + i)) must(false, "a word behind quiet");
            words_busy_[to] = 0;
        }
    }

    // A message: data, and its number as a signal. Its box was read by then: the credit says so.
    void send(int to) {
        if (sent_[to] >= kBoxes && !test(state_, &corner_.credits[to], Cmp::kGe, sent_[to] - kBoxes + 1)) return;
        const uint64_t number = ++sent_[to];
        const size_t box = number % kBoxes;
        const size_t bytes = message_bytes(key_, number);
        // The box is free because its reader said so, without a quiet of ours. A source is free after a quiet alone.
        uint8_t* const source = corner_.box_sources[to][number % kBoxSources];
        if (number % kBoxSources == 0) must(quiet(state_), "quiet");
        fill(source, bytes, key_, number << 8 | static_cast<uint64_t>(to));
        must(put_signal_nbi(state_, corner_.boxes[pe_][box], source, bytes, &corner_.arrived[pe_], number, SignalOp::kSet, to), "put_signal_nbi");
    }

    static size_t message_bytes(uint64_t key, uint64_t number) { return 1 + soft::mix64(key * 31 + number) % kCellBytes; }

    void read_messages() {
        for (int from = 0; from < kPes; ++from) {
            const uint64_t arrived = device::load_word(&corner_.arrived[from]);
            const uint64_t key = static_cast<uint64_t>(from * kThreads + t_) + 1;
            uint64_t fresh = 0;
            for (; read_[from] < arrived; ++fresh) {
                const uint64_t number = ++read_[from];
                if (!holds(corner_.boxes[from][number % kBoxes], message_bytes(key, number), key, number << 8 | static_cast<uint64_t>(pe_)))
                    must(false, "data before its signal");
            }
            if (fresh) must(signal_op(state_, &corner_.credits[pe_], fresh, SignalOp::kAdd, from), "signal_op");
        }
    }

    void finish_messages() {
        // What others send while they still run is read, until all have ended.
        ++ended();
        while (ended() < kPes * kThreads) {
            read_messages();
            sched_yield();
        }
        must(quiet(state_), "quiet");
    }
    std::atomic<int>& ended() { return ended_; }

    void add(int to) {
        const uint64_t value = random_.below(1000);
        must(atomic_add(state_, &heap_.sum, value, to), "atomic_add");
        mix_.shared[to].sum += value;
    }
    void real(int to) {
        must(atomic_add(state_, &heap_.real_sum, 1.0f, to), "atomic_add of floats");
        ++mix_.shared[to].reals;
    }
    void bits(int to) {
        const uint64_t bit = uint64_t{1} << random_.below(64);
        must(atomic_or(state_, &heap_.any, bit, to), "atomic_or");
        mix_.shared[to].any |= bit;
    }
    void draw(int to) {
        uint64_t ticket = 0;
        must(atomic_fetch_inc(state_, &heap_.tickets, to, &ticket), "atomic_fetch_inc");
        ++mix_.shared[to].drawn;
        const std::lock_guard lock(mix_.shared[to].lock);
        if (!mix_.shared[to].tickets.insert(ticket).second) must(false, "a ticket of its own");
    }
    void swap(int to) {
        uint64_t old = 0;
        const uint64_t next = soft::mix64(exclusive_[to] + key_);
        must(atomic_compare_swap(state_, &corner_.exclusive[pe_], exclusive_[to], next, to, &old), "atomic_compare_swap");
        if (old != exclusive_[to]) must(false, "the old value of a compare-and-swap");
        exclusive_[to] = next;
    }
    void small(int to) {
        uint64_t* word = &corner_.small[pe_][random_.below(4)];
        const uint64_t value = random_.next();
        must(p(state_, word, value, to), "p");
        uint64_t back = 0;  // records are applied in order
        must(g(state_, &back, word, to), "g");
        if (back != value) must(false, "the value behind p()");
    }

    struct Busy {
        uint64_t version = 0;
        size_t bytes = 0;
        explicit operator bool() const { return version != 0; }
    };
    Mix& mix_;
    const int pe_, t_;
    const uint64_t key_;
    const DeviceState& state_;
    soft::Prng random_;
    Heap& heap_;
    Corner& corner_;
    uint64_t versions_ = 0, sent_[kPes] = {}, read_[kPes] = {}, exclusive_[kPes] = {};
    Busy cell_busy_[kPes][kCells];
    bool source_busy_[kCells] = {};
    uint64_t words_busy_[kPes] = {};

   public:
    static inline std::atomic<int> ended_{0};
};

template <class T>
T now(const T* at) {
    T value;
    __atomic_load(at, &value, __ATOMIC_ACQUIRE);
    return value;
}

void run_mix(const Knobs& knobs, uint64_t seed, int operations, uint64_t requests_min) {
    if (check::kIsSanitized) operations /= 4, requests_min /= 4;
    // Longer runs by hand, and other seeds.
    if (const char* times = getenv("MIX_TIMES")) operations *= atoi(times);
    if (const char* more = getenv("MIX_SEED")) seed += strtoull(more, nullptr, 10);
    Job job(kPes, knobs, sizeof(Heap));
    Mix mix{job, seed, operations, {}, {}};
    for (int pe = 0; pe < kPes; ++pe)
        for (size_t i = 0; i < kFixedBytes; ++i) mix.heap(pe).fixed[i] = pattern(77, static_cast<uint64_t>(pe), i);
    job.on_all([&](int pe) { job.add_chunk(pe, 0, sizeof(Heap)); });
    Poster::ended_ = 0;
    std::vector<std::thread> threads;
    std::atomic<int> failed{0};
    for (int pe = 0; pe < kPes; ++pe)
        for (int t = 0; t < kThreads; ++t)
            threads.emplace_back([&, pe, t] {
                try {
                    Poster(mix, pe, t).run();
                } catch (const check::Failed&) {
                    ++failed;
                    ++Poster::ended_;
                }
            });
    for (std::thread& thread : threads) thread.join();
    CHECK_EQ(failed.load(), 0);
    uint64_t requests = 0;
    for (int pe = 0; pe < kPes; ++pe) {
        for (int other = 0; other < kPes; ++other) CHECK_OK(job.pes[static_cast<size_t>(pe)].transport->quiet(Lane::kHost, other));
        requests += job.pes[static_cast<size_t>(pe)].transport->stats().gpu_work_requests;
    }
    for (int pe = 0; pe < kPes; ++pe) {
        const Heap& heap = mix.heap(pe);
        CHECK_EQ(now(&heap.sum), mix.shared[pe].sum.load());
        CHECK_EQ(now(&heap.any), mix.shared[pe].any.load());
        CHECK_EQ(now(&heap.tickets), mix.shared[pe].drawn.load());
        CHECK_EQ(static_cast<uint64_t>(now(&heap.real_sum)), mix.shared[pe].reals.load());
        if (!mix.shared[pe].tickets.empty()) CHECK_EQ(*mix.shared[pe].tickets.rbegin() + 1, now(&heap.tickets));
    }
    std::printf("  seed %llu: %llu operations, %llu work requests\n", static_cast<unsigned long long>(seed),
                static_cast<unsigned long long>(mix.done.load()), static_cast<unsigned long long>(requests));
    CHECK(requests >= requests_min);
}

Knobs mix_knobs() {
    Knobs knobs = default_knobs();
    knobs.timeout_ms = 20'000;
    knobs.sq_depth = 8;
    knobs.rq_depth = 64;
    knobs.soft_reorder_ns = 20'000;
    knobs.soft_duplicate_ppm = 100'000;
    return knobs;
}

}  // namespace

// A message a time through one box; the reader's answer is all that the writer knows. The first copy of a payload arrives
// long before its repeat.
TEST(a_box_written_again_on_its_readers_word_never_shows_old_bytes) {
    Knobs knobs = mix_knobs();
    knobs.soft_reorder_ns = 300'000;
    knobs.soft_duplicate_ppm = 500'000;
    Job job(2, knobs, sizeof(Heap));
    job.on_all([&](int pe) { job.add_chunk(pe, 0, sizeof(Heap)); });
    constexpr uint64_t kMessages = 300;
    constexpr size_t kBytes = 100, kSourceBytes = 128, kSources = sizeof(Corner::cells[1]) / kSourceBytes;
    job.on_all([&](int pe) {
        const DeviceState& state = *job.pes[static_cast<size_t>(pe)].state;
        Corner& corner = reinterpret_cast<Heap*>(job.pes[static_cast<size_t>(pe)].at(0))->corners[0];
        for (uint64_t number = 1; number <= kMessages; ++number) {
            if (pe == 0) {
                if (number % kSources == 0) CHECK(quiet(state));  // sources are free after quiet alone
                uint8_t* const source = corner.cells[1][0] + number % kSources * kSourceBytes;
                fill(source, kBytes, 5, number);
                CHECK(put_signal_nbi(state, corner.boxes[0][0], source, kBytes, &corner.arrived[0], number, SignalOp::kSet, 1));
                CHECK(wait_until(state, &corner.credits[1], Cmp::kGe, number));
                continue;
            }
            CHECK(wait_until(state, &corner.arrived[0], Cmp::kGe, number));
            CHECK(signal_op(state, &corner.credits[1], 1, SignalOp::kAdd, 0));
            // The next message may come from now on; what was there before this one may not come back.
            for (int look = 0; look < 8; ++look)
                for (size_t i = 0; i < kBytes; ++i) {
                    const uint8_t byte = __atomic_load_n(&corner.boxes[0][0][i], __ATOMIC_RELAXED);
                    if (byte != pattern(5, number, i) && byte != pattern(5, number + 1, i))
                        check::fail(__FILE__, __LINE__, "behind message " + std::to_string(number) + ", an older byte");
                }
        }
        CHECK(quiet(state));
    });
}

TEST(random_mixes_by_many_threads_keep_every_promise) {
    run_mix(mix_knobs(), 1, 3500, 60'000);
}

TEST(random_mixes_over_two_rails_keep_every_promise) {
    Knobs knobs = mix_knobs();
    knobs.soft_rails = 2;
    knobs.sq_depth = 16;
    knobs.segment_bytes = 600;  // a message is one piece or two
    run_mix(knobs, 2, 1500, 25'000);
}

TEST(random_mixes_through_relays_keep_every_promise) {
    Knobs knobs = mix_knobs();
    knobs.gpu_ring = "relay";
    run_mix(knobs, 4, 700, 10'000);
}

TEST(random_mixes_with_gated_signals_keep_every_promise) {
    Knobs knobs = mix_knobs();
    knobs.signal = "gated";
    knobs.soft_profile = "efa4";
    run_mix(knobs, 3, 700, 10'000);
}

TEST_MAIN()
