// SPDX-License-Identifier: Apache-2.0
// The checkers. They look at memory as a kernel at the target would: at any moment, with nothing to wait for.
#include <cstring>

#include "history_job.h"

namespace history {

namespace {

std::string who(int from, int lane, int to) {
    return "PE " + std::to_string(from) + " lane " + std::to_string(lane) + " -> PE " + std::to_string(to);
}

void check_bytes(Job& job, const uint8_t* have, size_t bytes, uint64_t key, uint64_t number, const std::string& what) {
    for (size_t at = 0; at < bytes; ++at) {
        if (have[at] == pattern(job.seed, key, number, at)) continue;
        job.fail(what + " " + std::to_string(number) + " is visible before its data (byte " + std::to_string(at) + " of " +
                 std::to_string(bytes) + ")");
    }
}

template <class T>
void check_equal(Job& job, T have, T want, const std::string& what) {
    if (have != want) job.fail(what + " is " + std::to_string(have) + ", must be " + std::to_string(want));
}

}  // namespace

uint8_t pattern(uint64_t seed, uint64_t a, uint64_t b, size_t at) {
    uint64_t x = seed * 0x9e3779b97f4a7c15u + a * 0xbf58476d1ce4e5b9u + b * 0x94d049bb133111ebu + (at >> 3);
    x ^= x >> 29;
    x *= 0xff51afd7ed558ccdu;
    x ^= x >> 32;
    return static_cast<uint8_t>(x >> ((at & 7) * 8));
}

void fill(Job& job, uint8_t* to, size_t bytes, uint64_t a, uint64_t b) {
    for (size_t at = 0; at < bytes; ++at) to[at] = pattern(job.seed, a, b, at);
}

uint64_t message_key(int from, int lane, int to, uint64_t kind) {
    return kind * 1000 + static_cast<uint64_t>((from * kLanes + lane) * kPesMax + to);
}

size_t message_bytes(const Job& job, uint64_t key, uint64_t number) {
    const size_t draw = pattern(job.seed, key ^ 0x5555, number, 0) * 256u + pattern(job.seed, key ^ 0x5555, number, 1);
    return 1 + (draw & 1 ? draw % 32 : draw % (kMailboxBytes - 1));
}

void check_arrivals(Job& job, int pe) {
    PeState& state = job.pes[static_cast<size_t>(pe)];
    for (int from = 0; from < job.shape.n_pes; ++from) {
        for (int lane = 0; lane < kLanes; ++lane) {
            const LaneWords& words = state.heap->words[from][lane];
            uint64_t& seen = state.seen[from][lane];
            const uint64_t sent = job.pes[static_cast<size_t>(from)].lanes[lane].messages[static_cast<size_t>(pe)];
            if (words.signal < seen || words.signal > sent)
                job.fail(who(from, lane, pe) + ": signal went from " + std::to_string(seen) + " to " + std::to_string(words.signal) +
                         " with " + std::to_string(sent) + " sent");
            while (seen < words.signal) {
                ++seen;
                const uint64_t key = message_key(from, lane, pe, 1);
                check_bytes(job, state.heap->mailboxes[from][lane][seen % kMailboxes], message_bytes(job, key, seen), key, seen,
                            who(from, lane, pe) + ": signal");
            }
            uint64_t& flagged = state.seen_flags[from][lane];
            if (words.flag != flagged) {
                flagged = words.flag;
                const uint64_t key = message_key(from, lane, pe, 2);
                check_bytes(job, state.heap->flagged[from][lane], message_bytes(job, key, flagged), key, flagged,
                            who(from, lane, pe) + ": flag behind a fence");
            }
            if (words.behind > words.counted)
                job.fail(who(from, lane, pe) + ": a put behind a fence overtook the atomic before it (" + std::to_string(words.behind) +
                         " > " + std::to_string(words.counted) + ")");
            if (words.second > words.first)
                job.fail(who(from, lane, pe) + ": a put behind a fence overtook the one before it (" + std::to_string(words.second) +
                         " > " + std::to_string(words.first) + ")");
        }
    }
}

void check_quiet(Job& job, const LaneState& lane, int pe) {
    const PeState& target = job.pes[static_cast<size_t>(pe)];
    for (size_t cell = 0; cell < kCells; ++cell) {
        const uint8_t* have = target.heap->cells[lane.pe][lane.lane][cell];
        const uint8_t* want = target.wanted->cells[lane.pe][lane.lane][cell];
        if (memcmp(have, want, kCellBytes) == 0) continue;
        size_t at = 0;
        while (have[at] == want[at]) ++at;
        job.fail(who(lane.pe, lane.lane, pe) + ": after quiet byte " + std::to_string(at) + " of cell " + std::to_string(cell) +
                 " is " + std::to_string(have[at]) + ", must be " + std::to_string(want[at]));
    }
    const LaneWords& words = target.heap->words[lane.pe][lane.lane];
    const auto index = static_cast<size_t>(pe);
    const std::string name = who(lane.pe, lane.lane, pe) + ": after quiet ";
    check_equal(job, words.signal, lane.messages[index], name + "the signal");
    check_equal(job, words.second, lane.pairs[index], name + "the second word of a pair");
    check_equal(job, words.counted, lane.counts[index], name + "the counted word");
    check_equal(job, words.behind, lane.counts[index], name + "the word behind it");
    check_equal(job, words.flag, lane.flags[index], name + "the flag");
    const LaneWords& want = target.wanted->words[lane.pe][lane.lane];
    for (int i = 0; i < 2; ++i) check_equal(job, words.small[i], want.small[i], name + "a small word");
    check_equal(job, words.guard0 | words.guard1 | words.guard2, uint64_t{0}, name + "a guard word");
}

void check_end(Job& job) {
    for (int pe = 0; pe < job.shape.n_pes; ++pe) {
        check_arrivals(job, pe);
        const auto index = static_cast<size_t>(pe);
        const SharedWords& have = job.pes[index].heap->shared;
        const SharedWanted& want = job.shared[index];
        const std::string name = "at the end PE " + std::to_string(pe) + "'s ";
        check_equal(job, have.sum, want.sum, name + "sum");
        check_equal(job, have.tickets, want.tickets, name + "ticket counter");
        check_equal(job, static_cast<uint64_t>(want.drawn.size()), want.tickets, name + "number of different tickets");
        check_equal(job, have.exclusive, want.exclusive, name + "xor");
        check_equal(job, have.any, want.any, name + "or");
        check_equal(job, have.all, want.all, name + "and");
        check_equal(job, have.swap, want.swaps, name + "chain of swaps");
        check_equal(job, have.compare, want.compares, name + "compare-and-swap counter");
        check_equal(job, have.half_sum, want.half_sum, name + "32-bit sum");
        check_equal(job, have.half_guard | have.real_guard, 0u, name + "neighbour of a 32-bit word");
        check_equal(job, have.real_sum, want.real_sum, name + "float sum");
        for (const LaneState& lane : job.pes[index].lanes)
            for (int to = 0; to < job.shape.n_pes; ++to) check_quiet(job, lane, to);
        for (size_t at = 0; at < kStaticBytes; ++at)
            if (job.pes[index].heap->fixed[at] != job.pes[index].wanted->fixed[at]) job.fail(name + "memory that nobody wrote changed");
    }
}

}  // namespace history
