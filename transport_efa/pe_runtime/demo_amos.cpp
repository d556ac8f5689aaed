// SPDX-License-Identifier: Apache-2.0
// Demo, second phase: every atomic, contended by both lanes of all PEs on the same words.

#include "run.h"

namespace nvshmem_efa::pe {
namespace {

constexpr uint32_t kRepeats = 4;  // of each atomic by each actor
constexpr uint32_t kToggles = 3;  // of XOR: odd, so that the bit ends up changed

struct Word {
    abi::AmoOpcode opcode;
    int bytes;
    bool is_float;
};

// An actor is one lane of one PE.
struct Actor {
    uint32_t index;
    uint32_t count;
    uint64_t bit(int bytes) const { return uint64_t{1} << (index % (8 * static_cast<uint32_t>(bytes))); }
};

std::vector<Word> words_of(int abi_number) {
    std::vector<Word> words;
    for (const int bytes : {4, 8})
        for (const auto opcode : {abi::kAmoInc, abi::kAmoSet, abi::kAmoAdd, abi::kAmoAnd, abi::kAmoOr, abi::kAmoXor,
                                  abi::kAmoFetch, abi::kAmoFetchInc, abi::kAmoFetchAdd, abi::kAmoFetchAnd,
                                  abi::kAmoFetchOr, abi::kAmoFetchXor, abi::kAmoSwap, abi::kAmoCompareSwap})
            words.push_back({opcode, bytes, false});
    for (const auto opcode : {abi::kAmoSignal, abi::kAmoSignalSet, abi::kAmoSignalAdd})
        words.push_back({opcode, 8, false});
    if (abi_number >= 6)
        for (const int bytes : {2, 4, 8})
            for (const auto opcode : {abi::kAmoAdd, abi::kAmoFetchAdd}) words.push_back({opcode, bytes, true});
    return words;
}

uint64_t mask_of(const Word& word) { return word.bytes == 8 ? ~uint64_t{0} : (uint64_t{1} << (8 * word.bytes)) - 1; }

uint64_t start_value(const Word& word) {
    return word.opcode == abi::kAmoAnd || word.opcode == abi::kAmoFetchAnd ? mask_of(word) : 0;
}

// IEEE half of a whole number up to 2048, which is exact.
uint64_t half_bits(uint64_t value) {
    if (value == 0) return 0;
    const auto exponent = static_cast<uint64_t>(std::bit_width(value) - 1);
    return (exponent + 15) << 10 | (((value << 10) >> exponent) & 0x3ff);
}

uint64_t float_bits(const Word& word, uint64_t value) {
    if (word.bytes == 2) return half_bits(value);
    uint64_t bits = 0;
    const auto single = static_cast<float>(value);
    const auto twice = static_cast<double>(value);
    if (word.bytes == 4) std::memcpy(&bits, &single, sizeof single);
    else std::memcpy(&bits, &twice, sizeof twice);
    return bits;
}

// What an actor's operations return, folded so that all actors' results can be compared in one exchange.
struct Folded {
    uint64_t sum = 0;      // of fetched values (SWAP: minus the values put in)
    uint64_t mix_sum = 0;  // of mix(fetched): two sets with the same sum rarely share it
};

// A half counts exactly to 2048 only, and there may be 128 actors.
uint64_t float_addend(const Word& word, uint32_t actor) { return word.bytes == 2 ? 1 : actor + 1; }

uint64_t operand_of(const Word& word, const Actor& actor, uint32_t repeat) {
    switch (word.opcode) {
        case abi::kAmoAnd:
        case abi::kAmoFetchAnd: return ~actor.bit(word.bytes) & mask_of(word);
        case abi::kAmoOr:
        case abi::kAmoXor:
        case abi::kAmoFetchOr:
        case abi::kAmoFetchXor: return actor.bit(word.bytes);
        case abi::kAmoSwap: return mix(actor.index * 64 + repeat) & mask_of(word);
        case abi::kAmoSet:
        case abi::kAmoSignal:
        case abi::kAmoSignalSet: return 0x1000 + actor.index;
        default: return word.is_float ? float_bits(word, float_addend(word, actor.index)) : actor.index + 1;
    }
}

uint32_t repeats_of(const Word& word) {
    return word.opcode == abi::kAmoXor || word.opcode == abi::kAmoFetchXor ? kToggles : kRepeats;
}

// Increments by comparing, until it has won as often as asked for.
Status compare_swap(Lane& lane, int home, uint64_t* word, const Word& kind) {
    uint64_t seen = 0;
    for (uint32_t won = 0; won < kRepeats;) {
        const Amo amo{abi::kAmoCompareSwap, (seen + 1) & mask_of(kind), seen, kind.bytes, false};
        uint64_t before = 0;
        EFA_TRY(lane.amo(home, word, amo, &before));
        won += before == seen;
        seen = before == seen ? seen + 1 : before;
    }
    return Status();
}

Status act(Run& run, Lane& lane, int home, uint64_t* word, const Word& kind, const Actor& actor, Folded* folded) {
    if (kind.opcode == abi::kAmoCompareSwap) return compare_swap(lane, home, word, kind);
    for (uint32_t repeat = 0; repeat < repeats_of(kind); ++repeat) {
        const uint64_t operand = operand_of(kind, actor, repeat);
        const Amo amo{kind.opcode, operand, 0, kind.bytes, kind.is_float};
        uint64_t before = 0;
        EFA_TRY(lane.amo(home, word, amo, &before));
        if (!amo.is_fetching()) continue;
        folded->sum += kind.opcode == abi::kAmoSwap ? before - operand : before;
        folded->mix_sum += mix(before);
        if (kind.opcode == abi::kAmoFetch) run.checker.word("FETCH of a word that nobody changes", before, 0);
        // From its second operation on an actor must see its own first one.
        if (repeat && kind.opcode == abi::kAmoFetchOr)
            run.checker.holds("FETCH_OR sees this PE's own bit", before & operand);
        if (repeat && kind.opcode == abi::kAmoFetchAnd)
            run.checker.holds("FETCH_AND sees this PE's own bit", (before & ~operand & mask_of(kind)) == 0);
    }
    return Status();
}

void check_final(Run& run, const Word& word, uint64_t seen, uint32_t actors, const Folded& all) {
    const uint64_t times = uint64_t{kRepeats} * actors;
    uint64_t sum = 0, bits = 0, toggled = 0;
    for (uint32_t i = 0; i < actors; ++i) {
        const Actor actor{i, actors};
        sum += kRepeats * (i + 1);
        bits |= actor.bit(word.bytes);
        toggled ^= actor.bit(word.bytes);
    }
    char what[64];
    std::snprintf(what, sizeof what, "atomic %d of %d bytes%s", word.opcode, word.bytes,
                  word.is_float ? ", float" : "");
    switch (word.opcode) {
        case abi::kAmoInc:
        case abi::kAmoCompareSwap: run.checker.word(what, seen, times); break;
        case abi::kAmoFetchInc: {
            run.checker.word(what, seen, times);
            Folded tickets;  // every value was handed out exactly once
            for (uint64_t i = 0; i < times; ++i) tickets.sum += i, tickets.mix_sum += mix(i);
            run.checker.word("tickets of FETCH_INC", all.sum ^ mix(all.mix_sum), tickets.sum ^ mix(tickets.mix_sum));
            break;
        }
        case abi::kAmoAdd:
        case abi::kAmoFetchAdd:
        case abi::kAmoSignalAdd:
            run.checker.word(what, seen, word.is_float ? float_bits(word, word.bytes == 2 ? times : sum) : sum);
            break;
        case abi::kAmoAnd:
        case abi::kAmoFetchAnd: run.checker.word(what, seen, ~bits & mask_of(word)); break;
        case abi::kAmoOr:
        case abi::kAmoFetchOr: run.checker.word(what, seen, bits); break;
        case abi::kAmoXor:
        case abi::kAmoFetchXor: run.checker.word(what, seen, toggled); break;
        // Whatever went in came out again, or is still there.
        case abi::kAmoSwap: run.checker.word(what, (all.sum + seen) & mask_of(word), 0); break;
        case abi::kAmoFetch: run.checker.word(what, seen, 0); break;
        default: run.checker.holds(what, seen >= 0x1000 && seen < 0x1000 + actors); break;
    }
}

}  // namespace

Status demo_amos(Run& run) {
    const int n_pes = run.pe.n_pes();
    const std::vector<Word> words = words_of(run.pe.port().api_version() / 10000);
    uint64_t* block = nullptr;
    EFA_TRY(run.allocate(words.size(), &block));
    for (size_t i = 0; i < words.size(); ++i) block[i] = start_value(words[i]);
    EFA_TRY(run.pe.barrier_all());

    std::vector<Folded> folded[2] = {std::vector<Folded>(words.size()), std::vector<Folded>(words.size())};
    EFA_TRY(run.on_both_lanes([&](Lane& lane) {
        const Actor actor{static_cast<uint32_t>(run.pe.id() * 2 + lane.is_proxy()), static_cast<uint32_t>(n_pes * 2)};
        for (size_t i = 0; i < words.size(); ++i)
            EFA_TRY(
                act(run, lane, static_cast<int>(i) % n_pes, block + i, words[i], actor, &folded[lane.is_proxy()][i]));
        return lane.quiet();
    }));
    EFA_TRY(run.pe.barrier_all());

    std::vector<Folded> mine = folded[0];
    for (size_t i = 0; i < mine.size(); ++i) mine[i].sum += folded[1][i].sum, mine[i].mix_sum += folded[1][i].mix_sum;
    std::vector<Folded> all(mine.size() * static_cast<size_t>(n_pes));
    EFA_TRY(run.pe.bootstrap().allgather(mine.data(), all.data(), mine.size() * sizeof(Folded)));
    for (size_t i = 0; i < words.size(); ++i) {
        Folded total;
        for (size_t pe = 0; pe < static_cast<size_t>(n_pes); ++pe) {
            total.sum += all[pe * words.size() + i].sum;
            total.mix_sum += all[pe * words.size() + i].mix_sum;
        }
        uint64_t seen = 0;  // by everybody, so that a wrong word is seen by more than its owner
        EFA_TRY(run.host.g(static_cast<int>(i) % n_pes, block + i, words[i].bytes, &seen));
        check_final(run, words[i], seen, static_cast<uint32_t>(n_pes) * 2, total);
    }
    EFA_TRY(run.pe.barrier_all());
    return run.pe.free(block);
}

}  // namespace nvshmem_efa::pe
