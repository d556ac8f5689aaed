// SPDX-License-Identifier: Apache-2.0
// What a lane does: one operation at a time, drawn from its own random numbers.
#include <cstring>

#include "history_job.h"

namespace history {

namespace {

PeState& own(LaneState& lane) { return lane.job->pes[static_cast<size_t>(lane.pe)]; }
PeState& peer(LaneState& lane, int pe) { return lane.job->pes[static_cast<size_t>(pe)]; }

uint64_t below(LaneState& lane, uint64_t limit) { return lane.random.below(limit); }
int draw_pe(LaneState& lane) { return static_cast<int>(below(lane, static_cast<uint64_t>(lane.job->shape.n_pes))); }

std::string label(const LaneState& lane, const char* what, int pe) {
    return std::string(what) + " of PE " + std::to_string(lane.pe) + " lane " + std::to_string(lane.lane) + " to PE " + std::to_string(pe);
}

// `at` is the place in our own heap; the target has the same layout.
abi::RmaMemdesc remote_of(LaneState& lane, int pe, const void* at) {
    const auto offset = static_cast<uint64_t>(static_cast<const uint8_t*>(at) - reinterpret_cast<const uint8_t*>(own(lane).heap.get()));
    auto* base = reinterpret_cast<uint8_t*>(peer(lane, pe).heap.get());
    return {base + offset, offset, &own(lane).handles[static_cast<size_t>(pe * pe::kTransportStride + pe::kTransportIndex)]};
}
abi::RmaMemdesc local_of(LaneState& lane, void* at) {
    return {at, 0, &own(lane).handles[static_cast<size_t>(lane.pe * pe::kTransportStride + pe::kTransportIndex)]};
}

void quiet(LaneState& lane, int pe) {
    lane.job->must(own(lane).port->quiet(lane.caller(), pe), label(lane, "quiet", pe));
    check_quiet(*lane.job, lane, pe);
    for (Source& source : lane.sources)
        if (source.busy_for == pe) source.busy_for = -1;
}

size_t take_source(LaneState& lane, int pe) {
    for (;;) {
        const size_t start = below(lane, kSources);
        for (size_t i = 0; i < kSources; ++i) {
            const size_t index = (start + i) % kSources;
            if (lane.sources[index].busy_for >= 0) continue;
            lane.sources[index].busy_for = pe;
            return index;
        }
        quiet(lane, lane.sources[start].busy_for);
    }
}

pe::RmaCall make_rma(LaneState& lane, abi::RmaOpcode opcode, int pe, void* remote, void* local, size_t bytes, bool is_nbi) {
    pe::RmaCall call;
    call.opcode = opcode;
    call.is_nbi = is_nbi;
    call.pe = pe;
    call.remote = remote_of(lane, pe, remote);
    call.local = local_of(lane, local);
    call.n_elements = bytes;
    return call;
}

void put(LaneState& lane) {
    const int pe = draw_pe(lane);
    const size_t cell = below(lane, kCells), source = take_source(lane, pe);
    const bool is_small = below(lane, 2);
    const size_t bytes = 1 + below(lane, is_small ? 64 : kCellPayload), at = kCellGuard + below(lane, kCellPayload - bytes + 1);
    uint8_t* from = own(lane).heap->sources[lane.lane][source] + below(lane, kCellBytes - bytes);
    fill(*lane.job, from, bytes, lane.random.next(), 0);
    memcpy(peer(lane, pe).wanted->cells[lane.pe][lane.lane][cell] + at, from, bytes);
    const bool is_nbi = below(lane, 4) != 0;
    pe::RmaCall call = make_rma(lane, abi::kOpPut, pe, own(lane).heap->cells[lane.pe][lane.lane][cell] + at, from, bytes, is_nbi);
    lane.job->must(own(lane).port->rma(lane.caller(), call), label(lane, "put", pe));
    if (is_nbi) return;
    lane.sources[source].busy_for = -1;  // blocking: complete, so the source is free and the bytes are there
    if (memcmp(peer(lane, pe).heap->cells[lane.pe][lane.lane][cell] + at, from, bytes) != 0)
        lane.job->fail(label(lane, "blocking put", pe) + " returned before its data was placed");
    memset(from, 0xee, bytes);
}

void p_word(LaneState& lane, int pe, uint64_t* word, uint64_t value, int bytes) {
    pe::RmaCall call = make_rma(lane, abi::kOpP, pe, word, &value, 1, false);
    call.local = {&value, 0, nullptr};
    call.element_bytes = bytes;
    lane.job->must(own(lane).port->rma(lane.caller(), call), label(lane, "p", pe));
    value = ~value;  // the plugin must have copied it
    asm volatile("" : : "r"(&value) : "memory");
}

void p(LaneState& lane) {
    const int pe = draw_pe(lane);
    const size_t which = below(lane, 2);
    const int bytes = 1 << below(lane, 4);
    const uint64_t value = lane.random.next();
    memcpy(&peer(lane, pe).wanted->words[lane.pe][lane.lane].small[which], &value, static_cast<size_t>(bytes));
    p_word(lane, pe, &own(lane).heap->words[lane.pe][lane.lane].small[which], value, bytes);
}

void get(LaneState& lane) {
    const int pe = draw_pe(lane);
    const size_t bytes = 1 + below(lane, kCellBytes), at = below(lane, kStaticBytes - bytes + 1);
    uint8_t* to = own(lane).heap->gets[lane.lane];
    memset(to, 0x77, bytes);
    const bool is_nbi = below(lane, 2), is_g = below(lane, 3) == 0 && at % 8 == 0;
    pe::RmaCall call = make_rma(lane, is_g ? abi::kOpG : abi::kOpGet, pe, own(lane).heap->fixed + at, to, is_g ? 1 : bytes, is_nbi && !is_g);
    if (is_g) call.element_bytes = 8;
    const size_t length = is_g ? 8 : bytes;
    if (is_g && at + 8 > kStaticBytes) return;
    lane.job->must(own(lane).port->rma(lane.caller(), call), label(lane, "get", pe));
    if (is_nbi || is_g) quiet(lane, pe);
    if (memcmp(to, peer(lane, pe).heap->fixed + at, length) != 0) lane.job->fail(label(lane, "get", pe) + " brought other bytes");
}

pe::AmoCall make_amo(LaneState& lane, abi::AmoOpcode opcode, int pe, const void* word, uint64_t value, int bytes = 8) {
    pe::AmoCall call;
    call.opcode = opcode;
    call.pe = pe;
    call.bytes = bytes;
    call.target.remote = remote_of(lane, pe, word);
    call.target.value = value;
    return call;
}

void amo(LaneState& lane, pe::AmoCall& call) {
    lane.job->must(own(lane).port->amo(lane.caller(), call), label(lane, "atomic", call.pe));
}

uint64_t fetch(LaneState& lane, pe::AmoCall& call) {
    Heap::Fetch& slot = own(lane).heap->fetch[lane.lane][0];
    const uint64_t tag = ++lane.fetches;
    call.target.ret_ptr = &slot;
    call.target.ret_flag = tag;
    amo(lane, call);
    lane.job->wait(lane.pe, "a fetched value", [&] { return __atomic_load_n(&slot.flag, __ATOMIC_ACQUIRE) == tag; });
    return slot.value;
}

// Many fetches at once, as threads of a kernel issue them, before the first reply is looked at.
void fetch_burst(LaneState& lane) {
    const int pe = draw_pe(lane);
    SharedWanted& want = lane.job->shared[static_cast<size_t>(pe)];
    const size_t count = 1 + below(lane, kFetches);
    const uint64_t first_tag = lane.fetches + 1;
    for (size_t i = 0; i < count; ++i) {
        ++want.tickets;
        pe::AmoCall call = make_amo(lane, abi::kAmoFetchInc, pe, &own(lane).heap->shared.tickets, 0);
        call.target.ret_ptr = &own(lane).heap->fetch[lane.lane][i];
        call.target.ret_flag = ++lane.fetches;
        amo(lane, call);
    }
    for (size_t i = 0; i < count; ++i) {
        Heap::Fetch& slot = own(lane).heap->fetch[lane.lane][i];
        lane.job->wait(lane.pe, "one of many fetched values", [&] { return __atomic_load_n(&slot.flag, __ATOMIC_ACQUIRE) == first_tag + i; });
        if (!want.drawn.insert(slot.value).second) lane.job->fail(label(lane, "fetch_inc", pe) + " gave one ticket twice");
    }
}

void atomic(LaneState& lane) {
    const int pe = draw_pe(lane);
    SharedWords& words = own(lane).heap->shared;
    SharedWanted& want = lane.job->shared[static_cast<size_t>(pe)];
    const uint64_t value = lane.random.next();
    const uint64_t choice = below(lane, lane.job->shape.abi >= 6 ? 10 : 9);
    pe::AmoCall call;
    switch (choice) {
        case 0:
            want.sum += value;
            call = make_amo(lane, abi::kAmoAdd, pe, &words.sum, value);
            return amo(lane, call);
        case 1:
            want.sum += value;
            call = make_amo(lane, abi::kAmoFetchAdd, pe, &words.sum, value);
            return (void)fetch(lane, call);
        case 2:
            ++want.tickets;
            call = make_amo(lane, abi::kAmoFetchInc, pe, &words.tickets, 0);
            if (!want.drawn.insert(fetch(lane, call)).second) lane.job->fail(label(lane, "fetch_inc", pe) + " gave one ticket twice");
            return;
        case 3:
            want.exclusive ^= value;
            call = make_amo(lane, below(lane, 2) ? abi::kAmoXor : abi::kAmoXor, pe, &words.exclusive, value);
            return amo(lane, call);
        case 4:
            want.any |= uint64_t{1} << (value % 64);
            call = make_amo(lane, abi::kAmoOr, pe, &words.any, uint64_t{1} << (value % 64));
            return amo(lane, call);
        case 5:
            want.all &= ~(uint64_t{1} << (value % 64));
            call = make_amo(lane, abi::kAmoFetchAnd, pe, &words.all, ~(uint64_t{1} << (value % 64)));
            return (void)fetch(lane, call);
        case 6:  // a chain: everything that was put in came out again, or is what is left
            want.swaps ^= value;
            call = make_amo(lane, abi::kAmoSwap, pe, &words.swap, value);
            want.swaps ^= fetch(lane, call);
            return;
        case 7: {
            call = make_amo(lane, abi::kAmoFetch, pe, &words.compare, 0);
            const uint64_t before = fetch(lane, call);
            call = make_amo(lane, abi::kAmoCompareSwap, pe, &words.compare, before + 1);
            call.target.compare = before;
            if (fetch(lane, call) == before) ++want.compares;
            return;
        }
        case 8:
            want.half_sum += static_cast<uint32_t>(value);
            call = make_amo(lane, abi::kAmoAdd, pe, &words.half_sum, static_cast<uint32_t>(value), 4);
            return amo(lane, call);
        default: {
            want.real_sum += 1.0f;
            const float one = 1.0f;
            uint32_t bits;
            memcpy(&bits, &one, sizeof bits);
            call = make_amo(lane, abi::kAmoAdd, pe, &words.real_sum, bits, 4);
            call.is_float = true;
            return amo(lane, call);
        }
    }
}

// Puts of one message and its signal, into a mailbox whose last message was read. Not its acknowledgement: the reader
// answers (here by the checker's own variable), as programs do, and the sender's device may not know yet.
void message(LaneState& lane) {
    const int pe = draw_pe(lane);
    uint64_t& sent = lane.messages[static_cast<size_t>(pe)];
    const uint64_t& seen = peer(lane, pe).seen[lane.pe][lane.lane];
    lane.job->wait(lane.pe, "a mailbox", [&] { return sent - seen < kMailboxes; });
    const uint64_t number = sent + 1, key = message_key(lane.pe, lane.lane, pe, 1);
    const size_t bytes = message_bytes(*lane.job, key, number), source = take_source(lane, pe);
    uint8_t* from = own(lane).heap->sources[lane.lane][source];
    fill(*lane.job, from, bytes, key, number);
    uint8_t* to = own(lane).heap->mailboxes[lane.pe][lane.lane][number % kMailboxes];
    uint64_t* word = &own(lane).heap->words[lane.pe][lane.lane].signal;
    ++sent;
    const bool is_set = below(lane, 2);
    pe::AmoCall signal = make_amo(lane, is_set ? abi::kAmoSignalSet : abi::kAmoSignalAdd, pe, word, is_set ? number : 1);
    std::vector<pe::RmaCall> puts;
    const size_t cut = below(lane, 3) == 0 && bytes > 1 ? 1 + below(lane, bytes - 1) : bytes;
    puts.push_back(make_rma(lane, abi::kOpPutSignal, pe, to, from, cut, true));
    if (cut < bytes) puts.push_back(make_rma(lane, abi::kOpPutSignal, pe, to + cut, from + cut, bytes - cut, true));
    pe::PluginPort& port = *own(lane).port;
    if (port.has_put_signal()) return lane.job->must(port.put_signal(lane.caller(), puts, signal), label(lane, "put_signal", pe));
    for (pe::RmaCall& call : puts) {
        call.opcode = abi::kOpPut;
        lane.job->must(port.rma(lane.caller(), call), label(lane, "put of a put_signal", pe));
    }
    // NVSHMEM 3.4.5 leaves the fence out between an on-stream put_signal's put and its signal.
    if (lane.lane == 0 || below(lane, 2)) lane.job->must(port.fence(lane.caller(), pe), label(lane, "fence", pe));
    amo(lane, signal);
}

// put, fence, atomic: the flag says that the data is there. Overwritten without more: only the newest is looked at.
void flagged(LaneState& lane) {
    const int pe = draw_pe(lane);
    uint64_t& sent = lane.flags[static_cast<size_t>(pe)];
    const uint64_t& seen = peer(lane, pe).seen_flags[lane.pe][lane.lane];
    lane.job->wait(lane.pe, "a flag to be seen", [&] { return sent == seen; });
    const uint64_t number = sent + 1, key = message_key(lane.pe, lane.lane, pe, 2);
    const size_t bytes = message_bytes(*lane.job, key, number), source = take_source(lane, pe);
    uint8_t* from = own(lane).heap->sources[lane.lane][source];
    fill(*lane.job, from, bytes, key, number);
    ++sent;
    pe::RmaCall call = make_rma(lane, abi::kOpPut, pe, own(lane).heap->flagged[lane.pe][lane.lane], from, bytes, true);
    lane.job->must(own(lane).port->rma(lane.caller(), call), label(lane, "put", pe));
    lane.job->must(own(lane).port->fence(lane.caller(), pe), label(lane, "fence", pe));
    pe::AmoCall flag = make_amo(lane, abi::kAmoSet, pe, &own(lane).heap->words[lane.pe][lane.lane].flag, number);
    amo(lane, flag);
}

void pair(LaneState& lane) {
    const int pe = draw_pe(lane);
    const uint64_t number = ++lane.pairs[static_cast<size_t>(pe)];
    LaneWords& words = own(lane).heap->words[lane.pe][lane.lane];
    p_word(lane, pe, &words.first, number, 8);
    lane.job->must(own(lane).port->fence(lane.caller(), pe), label(lane, "fence", pe));
    p_word(lane, pe, &words.second, number, 8);
}

// The other way round: what was put behind a fence must not be seen before the atomic in front of it.
void counted(LaneState& lane) {
    const int pe = draw_pe(lane);
    const uint64_t number = ++lane.counts[static_cast<size_t>(pe)];
    LaneWords& words = own(lane).heap->words[lane.pe][lane.lane];
    pe::AmoCall call = make_amo(lane, abi::kAmoInc, pe, &words.counted, 0);
    amo(lane, call);
    lane.job->must(own(lane).port->fence(lane.caller(), pe), label(lane, "fence", pe));
    p_word(lane, pe, &words.behind, number, 8);
}

// After quiet the target owns the bytes: it changes one itself, and no late copy may undo that.
void touch_at_target(LaneState& lane) {
    const int pe = draw_pe(lane);
    quiet(lane, pe);
    const size_t cell = below(lane, kCells), at = below(lane, kCellBytes);
    const auto value = static_cast<uint8_t>(lane.random.next());
    peer(lane, pe).heap->cells[lane.pe][lane.lane][cell][at] = value;
    peer(lane, pe).wanted->cells[lane.pe][lane.lane][cell][at] = value;
}

}  // namespace

void run_operation(LaneState& lane) {
    ++lane.job->operations;
    switch (below(lane, 18)) {
        case 0:
        case 1:
        case 2:
        case 3: return put(lane);
        case 4:
        case 5: return p(lane);
        case 6: return get(lane);
        case 7:
        case 8:
        case 9: return message(lane);
        case 10:
        case 11: return atomic(lane);
        case 12: return flagged(lane);
        case 13: return pair(lane);
        case 14: return touch_at_target(lane);
        case 15: return fetch_burst(lane);
        case 16: return counted(lane);
        default: return quiet(lane, draw_pe(lane));
    }
}

void finish_lane(LaneState& lane) {
    for (int pe = 0; pe < lane.job->shape.n_pes; ++pe) quiet(lane, pe);
}

}  // namespace history
