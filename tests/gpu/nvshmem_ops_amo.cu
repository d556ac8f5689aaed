// SPDX-License-Identifier: Apache-2.0
// Every atomic of every type, contended by all PEs on one word of each PE, with results that are exact whatever the order:
// sums, tickets drawn exactly once, bits that only their owner touches, chains of swaps.
#include "nvshmem_ops_amo.h"

#include <type_traits>

#include "nvshmem_ops.h"

namespace gpu_ops {
namespace {

constexpr int kThreads = 16;   // of each PE, on each word
constexpr int kTimes = 6;      // operations of a thread on a word
constexpr int kWords = 32;     // a row of words of one type; the ones that no operation names must stay as they were
constexpr int kStep = 3;       // of fetch_add
constexpr int kFirst = 4;      // operations use words kFirst.., spaced by one, between untouched ones

template <class T>
T base_value(int word) {
    // Sums cross the 32-bit border (64-bit words) or the sign (32-bit words).
    return static_cast<T>(sizeof(T) == 8 ? 0xfffffff0ull + word : 0x7ffffff0ull + word);
}
template <class T>
T untouched(int word) {
    return static_cast<T>(0x51 + word);
}

__host__ __device__ inline int addend(int pe, int thread, int time) { return (pe * 31 + thread * 7 + time * 3) % 23 - 9; }

// A row of symmetric words with known content, and what every PE must find in its row afterwards.
template <class T>
class Row {
   public:
    explicit Row(Run& run) : run_(run), words_(kWords), start(kWords) {
        for (int i = 0; i < kWords; ++i) start[i] = untouched<T>(i);
    }
    void begin() {
        words_.write(start);
        meet(run_.job, run_.name);
    }
    void expect(const std::vector<T>& wanted, const char* type, uint64_t skip_mask = 0) {
        meet(run_.job, run_.name);
        const std::vector<T> got = words_.read();
        for (int i = 0; i < kWords; ++i)
            if (!(skip_mask >> i & 1)) {
                if (got[i] != wanted[i])
                    run_.fail("%s: word %d is %.17g, expected %.17g", type, i, double(got[i]), double(wanted[i]));
                run_.add_digest(static_cast<uint64_t>(static_cast<int64_t>(got[i])));
            }
        meet(run_.job, run_.name);
    }
    T* get() const { return words_.get(); }
    std::vector<T> read() const { return words_.read(); }

   private:
    Run& run_;
    Symmetric<T> words_;

   public:
    std::vector<T> start;
};

// --- sums and tickets ---

template <class Ops>
__global__ void add_kernel(typename Ops::Type* words, unsigned* marks, typename Ops::Type add_base, typename Ops::Type inc_base,
                           int me, int npes, int tickets, Trouble* trouble) {
    using T = typename Ops::Type;
    using Wrapping = std::make_unsigned_t<T>;  // the words run over the sign
    for (int time = 0; time < kTimes; ++time) {
        for (int shift = 0; shift < npes; ++shift) {
            const int pe = (me + shift + threadIdx.x) % npes;
            Ops::add(words + kFirst, static_cast<T>(addend(me, threadIdx.x, time)), pe);
            Ops::inc(words + kFirst + 2, pe);
            const Wrapping by_add = Wrapping(Ops::fetch_add(words + kFirst + 4, kStep, pe)) - Wrapping(add_base);
            const Wrapping by_inc = Wrapping(Ops::fetch_inc(words + kFirst + 6, pe)) - Wrapping(inc_base);
            unsigned* mine = marks + size_t(pe) * 2 * tickets;
            const uint64_t add_ticket = static_cast<uint64_t>(by_add) / kStep, inc_ticket = static_cast<uint64_t>(by_inc);
            if (by_add % kStep || add_ticket >= uint64_t(tickets)) report(trouble, kTicketWrong, pe, tickets, by_add);
            else atomicAdd(mine + add_ticket, 1u);
            if (inc_ticket >= uint64_t(tickets)) report(trouble, kTicketWrong, pe, tickets, by_inc);
            else atomicAdd(mine + tickets + inc_ticket, 1u);
        }
    }
    nvshmem_quiet();
}

template <class Ops>
void check_add(Run& run, const char* type) {
    using T = typename Ops::Type;
    const Job& job = run.job;
    int tickets = job.npes * kThreads * kTimes;
    Row<T> row(run);
    Symmetric<unsigned> marks(size_t(job.npes) * 2 * tickets);
    DeviceTrouble trouble;
    T add_base = base_value<T>(4), inc_base = base_value<T>(6);
    row.start[kFirst] = base_value<T>(0);
    row.start[kFirst + 2] = base_value<T>(2);
    row.start[kFirst + 4] = add_base;
    row.start[kFirst + 6] = inc_base;
    row.begin();
    add_kernel<Ops><<<1, kThreads, 0, job.stream>>>(row.get(), marks.get(), add_base, inc_base, job.pe, job.npes, tickets,
                                                   trouble.get());
    LAUNCH_CHECK();
    run.check(trouble, type);
    std::vector<T> wanted = row.start;
    uint64_t sum = 0;
    for (int pe = 0; pe < job.npes; ++pe)
        for (int thread = 0; thread < kThreads; ++thread)
            for (int time = 0; time < kTimes; ++time) sum += static_cast<uint64_t>(static_cast<int64_t>(addend(pe, thread, time)));
    wanted[kFirst] = static_cast<T>(static_cast<uint64_t>(wanted[kFirst]) + sum);
    wanted[kFirst + 2] = static_cast<T>(static_cast<uint64_t>(wanted[kFirst + 2]) + tickets);
    wanted[kFirst + 4] = static_cast<T>(static_cast<uint64_t>(add_base) + uint64_t(kStep) * tickets);
    wanted[kFirst + 6] = static_cast<T>(static_cast<uint64_t>(inc_base) + tickets);
    row.expect(wanted, type);
    // Who drew which ticket of my words is written down at the drawers: gather, then each ticket must be there once.
    std::vector<unsigned> drawn(2 * tickets);
    Symmetric<unsigned> gathered(2 * tickets);
    for (int pe = 0; pe < job.npes; ++pe) {
        nvshmem_getmem(gathered.get(), marks.get() + size_t(job.pe) * 2 * tickets, gathered.bytes(), pe);
        const std::vector<unsigned> part = gathered.read();
        for (size_t i = 0; i < drawn.size(); ++i) drawn[i] += part[i];
    }
    for (size_t i = 0; i < drawn.size(); ++i)
        if (drawn[i] != 1)
            run.fail("%s: %s ticket %zu drawn %u times", type, i < size_t(tickets) ? "fetch_add" : "fetch_inc", i % tickets, drawn[i]);
    meet(job, run.name);
}

GPU_CASE(amo_add, "amo", 25, 120) {
#define CHECK_ADD(NAME, TYPE) check_add<Add_##NAME>(run, #NAME);
    AMO_ADD_TYPES(CHECK_ADD)
}

// --- bits ---

template <class Ops>
__global__ void bit_kernel(typename Ops::Type* words, int me, int npes, int owners, Trouble* trouble) {
    using T = typename Ops::Type;
    const T bit = static_cast<T>(T(1) << (me * owners + threadIdx.x));
    for (int shift = 0; shift < npes; ++shift) {
        const int pe = (me + shift + threadIdx.x) % npes;
        Ops::do_or(words + kFirst, bit, pe);
        Ops::do_and(words + kFirst + 2, static_cast<T>(~bit), pe);
        for (int time = 0; time < 3; ++time) Ops::do_xor(words + kFirst + 4, bit, pe);
        // Nobody else touches this bit, so the value before the operation shows it as we left it.
        const T before_or = Ops::fetch_or(words + kFirst + 6, bit, pe);
        const T before_and = Ops::fetch_and(words + kFirst + 8, static_cast<T>(~bit), pe);
        if (before_or & bit) report(trouble, kValueWrong, kFirst + 6, 0, uint64_t(before_or));
        if (!(before_and & bit)) report(trouble, kValueWrong, kFirst + 8, uint64_t(bit), uint64_t(before_and));
        for (int time = 0; time < 3; ++time) {
            const T before = Ops::fetch_xor(words + kFirst + 10, bit, pe);
            if (((before & bit) != 0) != (time % 2 == 1)) report(trouble, kValueWrong, kFirst + 10, time % 2, uint64_t(before));
        }
    }
    nvshmem_quiet();
}

template <class Ops>
void check_bits(Run& run, const char* type) {
    using T = typename Ops::Type;
    const Job& job = run.job;
    const int owners = int(sizeof(T) * 8) / job.npes < kThreads ? int(sizeof(T) * 8) / job.npes : kThreads;
    if (owners == 0) throw Skip{"more PEs than bits"};
    Row<T> row(run);
    DeviceTrouble trouble;
    uint64_t owned = 0;
    for (int i = 0; i < owners * job.npes; ++i) owned |= 1ull << i;
    std::vector<T> wanted = row.start;
    for (int i : {0, 4, 6, 10}) {
        row.start[kFirst + i] = 0;
        wanted[kFirst + i] = static_cast<T>(owned);
    }
    for (int i : {2, 8}) {
        row.start[kFirst + i] = static_cast<T>(~0ull);
        wanted[kFirst + i] = static_cast<T>(~owned);
    }
    row.begin();
    bit_kernel<Ops><<<1, owners, 0, job.stream>>>(row.get(), job.pe, job.npes, owners, trouble.get());
    LAUNCH_CHECK();
    run.check(trouble, type);
    row.expect(wanted, type);
}

GPU_CASE(amo_bits, "amo", 26, 120) {
#define CHECK_BITS(NAME, TYPE) check_bits<Bits_##NAME>(run, #NAME);
    AMO_BIT_TYPES(CHECK_BITS)
}

// --- set, fetch, swap ---

__host__ __device__ inline int token(int me, int thread, int time) { return 1 + (me * kThreads + thread) * kTimes + time; }

template <class Ops>
__global__ void swap_kernel(typename Ops::Type* words, unsigned long long* returned, int me, int npes) {
    using T = typename Ops::Type;
    for (int time = 0; time < kTimes; ++time)
        for (int shift = 0; shift < npes; ++shift) {
            const int pe = (me + shift + threadIdx.x) % npes;
            const T before = Ops::swap(words + kFirst, static_cast<T>(token(me, threadIdx.x, time)), pe);
            atomicAdd(returned + pe, static_cast<unsigned long long>(mix(static_cast<uint64_t>(before))));
        }
    for (int pe = 0; threadIdx.x == 0 && pe < npes; ++pe) {
        Ops::set(words + kFirst + 2 + me, static_cast<T>(1000 + me) + static_cast<T>(0.25), pe);  // 0.25 only in reals
        Ops::set(words + kFirst + 16, static_cast<T>(500 + me), pe);                              // contended
    }
    nvshmem_quiet();
}

template <class Ops>
__global__ void fetch_kernel(typename Ops::Type* words, int npes, Trouble* trouble) {
    using T = typename Ops::Type;
    for (int pe = 0; pe < npes; ++pe) {
        const T seen = Ops::fetch(words + kFirst + 2 + threadIdx.x, pe);
        const T wanted = static_cast<T>(1000 + threadIdx.x) + static_cast<T>(0.25);
        if (seen != wanted) report(trouble, kValueWrong, kFirst + 2 + threadIdx.x, uint64_t(wanted), uint64_t(seen));
    }
}

template <class Ops>
void check_swap(Run& run, const char* type) {
    using T = typename Ops::Type;
    const Job& job = run.job;
    if (job.npes > 12) throw Skip{"more PEs than the row has words"};
    Row<T> row(run);
    Symmetric<unsigned long long> returned(job.npes), gathered(job.npes);
    DeviceTrouble trouble;
    row.start[kFirst] = 0;
    row.begin();
    swap_kernel<Ops><<<1, kThreads, 0, job.stream>>>(row.get(), returned.get(), job.pe, job.npes);
    LAUNCH_CHECK();
    meet(job, run.name);
    const std::vector<T> got = row.read();
    // The chain: what was returned, plus what is left, is what was put in, plus the start.
    uint64_t in = mix(0), out = mix(static_cast<uint64_t>(got[kFirst]));
    for (int pe = 0; pe < job.npes; ++pe) {
        for (int thread = 0; thread < kThreads; ++thread)
            for (int time = 0; time < kTimes; ++time) in += mix(token(pe, thread, time));
        nvshmem_getmem(gathered.get(), returned.get(), gathered.bytes(), pe);
        out += gathered.read()[job.pe];
    }
    if (in != out) run.fail("%s: swap lost or doubled a value (last %.17g)", type, double(got[kFirst]));
    const double contended = double(got[kFirst + 16]);
    if (contended < 500 || contended >= 500 + job.npes) run.fail("%s: contended set left %.17g", type, contended);
    fetch_kernel<Ops><<<1, job.npes, 0, job.stream>>>(row.get(), job.npes, trouble.get());
    LAUNCH_CHECK();
    run.check(trouble, type);
    std::vector<T> wanted = row.start;
    for (int pe = 0; pe < job.npes; ++pe) wanted[kFirst + 2 + pe] = static_cast<T>(1000 + pe) + static_cast<T>(0.25);
    row.expect(wanted, type, 1ull << kFirst | 1ull << (kFirst + 16));
}

GPU_CASE(amo_swap, "amo", 27, 120) {
#define CHECK_SWAP(NAME, TYPE) check_swap<Swap_##NAME>(run, #NAME);
    AMO_SWAP_TYPES(CHECK_SWAP)
}

// --- compare_swap: increments by a loop ---

template <class Ops>
__global__ void compare_kernel(typename Ops::Type* words, int me, int npes, int times, Trouble* trouble) {
    using T = typename Ops::Type;
    const uint64_t deadline = now_ns() + kWaitNs;
    for (int time = 0; time < times; ++time) {
        const int pe = (me + time) % npes;
        T seen = Ops::fetch(words + kFirst, pe);
        for (;;) {
            const T next = static_cast<T>(std::make_unsigned_t<T>(seen) + 1);  // runs over the sign
            const T before = Ops::compare_swap(words + kFirst, seen, next, pe);
            if (before == seen) break;
            seen = before;
            if (now_ns() > deadline) {
                report(trouble, kWaitTimedOut, reinterpret_cast<uint64_t>(words + kFirst), uint64_t(seen), uint64_t(before));
                return;
            }
        }
    }
    nvshmem_quiet();
}

template <class Ops>
void check_compare(Run& run, const char* type) {
    using T = typename Ops::Type;
    const Job& job = run.job;
    const int threads = 4, times = 4 * job.npes;
    Row<T> row(run);
    DeviceTrouble trouble;
    row.start[kFirst] = base_value<T>(0);
    row.begin();
    compare_kernel<Ops><<<1, threads, 0, job.stream>>>(row.get(), job.pe, job.npes, times, trouble.get());
    LAUNCH_CHECK();
    run.check(trouble, type);
    std::vector<T> wanted = row.start;
    wanted[kFirst] = static_cast<T>(static_cast<uint64_t>(wanted[kFirst]) + threads * times);
    row.expect(wanted, type);
}

GPU_CASE(amo_compare_swap, "amo", 28, 120) {
#define CHECK_COMPARE(NAME, TYPE) check_compare<Compare_##NAME>(run, #NAME);
    AMO_COMPARE_TYPES(CHECK_COMPARE)
}

// --- remote AMOs against atomics of the GPU that owns the word ---

template <class Ops>
__global__ void local_kernel(typename Ops::Type* words, int to, int times) {
    using T = typename Ops::Type;
    using Wide = typename std::conditional<sizeof(T) == 8, unsigned long long, unsigned int>::type;
    for (int time = 0; time < times; ++time) {
        if (blockIdx.x == 0) {
            Ops::add(words + kFirst, 1, to);
            Ops::fetch_inc(words + kFirst + 2, to);
        } else {
            for (int burst = 0; burst < 50; ++burst) {
                atomicAdd_system(reinterpret_cast<Wide*>(words + kFirst), Wide(3));
                atomicAdd_system(reinterpret_cast<Wide*>(words + kFirst + 2), Wide(5));
            }
        }
    }
    nvshmem_quiet();
}

template <class Ops>
void check_local(Run& run, const char* type) {
    using T = typename Ops::Type;
    const Job& job = run.job;
    const int threads = 32, times = run.scaled(50, 5);
    Row<T> row(run);
    row.start[kFirst] = row.start[kFirst + 2] = base_value<T>(0);
    row.begin();
    local_kernel<Ops><<<2, threads, 0, job.stream>>>(row.get(), run.peer(1), times);
    LAUNCH_CHECK();
    std::vector<T> wanted = row.start;
    const uint64_t each = uint64_t(threads) * times;
    wanted[kFirst] = static_cast<T>(static_cast<uint64_t>(wanted[kFirst]) + each + each * 50 * 3);
    wanted[kFirst + 2] = static_cast<T>(static_cast<uint64_t>(wanted[kFirst + 2]) + each + each * 50 * 5);
    row.expect(wanted, type);
}

GPU_CASE(amo_with_local, "amo_gpu", 29, 90) {
    if (!run.job.p2p && !run.job.amo_gpu)
        throw Skip{"the CPU agent is not atomic with local GPU atomics; NVSHMEM_EFA_AMO=gpu is"};
    check_local<Add_uint>(run, "uint");
    check_local<Add_int>(run, "int");
    check_local<Add_ulonglong>(run, "ulonglong");
}

}  // namespace
}  // namespace gpu_ops
