// SPDX-License-Identifier: Apache-2.0
#include "control.h"

#include "clock.h"
#include "ep_lanes.h"

namespace nvshmem_efa::ep {

namespace {

constexpr uint32_t kLookForGoneEvery = 64;  // turns of a wait
constexpr uint32_t kSpinningTurns = 1u << 15;  // of a wait that spins, some hundred microseconds

}  // namespace

const char* call_name(CallKind kind) {
    switch (kind) {
        case CallKind::kOpen: return "ep_open";
        case CallKind::kNotify: return "ep_notify";
        case CallKind::kNotifyCached: return "ep_notify with cached counts";
        case CallKind::kDispatch: return "ep_dispatch";
        case CallKind::kCombine: return "ep_combine";
    }
    return "another call";
}

Status Control::create() {
    EFA_TRY(SharedSlab::create(control_bytes(domain_.n_ranks), "control words", &own_));
    return own_.commit(own_.bytes());
}

Status Control::map_peers(const std::vector<SlabName>& names) {
    const size_t n = static_cast<size_t>(domain_.n_ranks);
    peers_.resize(n);
    blocks_.resize(n);
    arenas_.resize(n);
    for (int i = 0; i < domain_.n_ranks; ++i) {
        const size_t at = static_cast<size_t>(i);
        if (i != domain_.index)
            EFA_TRY(SharedSlab::open(names[at], control_bytes(domain_.n_ranks), "control words", &peers_[at])
                        .with_context("rank " + std::to_string(domain_.rank_of(i))));
        blocks_[at] = reinterpret_cast<ControlBlock*>(i == domain_.index ? own_.base() : peers_[at].base());
    }
    return Status();
}

Status Control::wait(int source, const uint64_t* word, uint64_t value, const char* what) {
    Deadline deadline(real_clock(), domain_.timeout_ms);
    for (uint32_t turn = 0; flag_load(word) < value; ++turn) {
        // A rank that leaves does so after its last store, so a look at the word after that is the last word.
        // flag_load() pairs with the release in leave().
        if (turn % kLookForGoneEvery == kLookForGoneEvery - 1 && flag_load(&block(source)->gone.value) != 0 && flag_load(word) < value)
            return Status::error(Code::kPeer, "look at that rank's first error", "rank %d waits for %s of rank %d, which has left the group",
                                 domain_.rank_of(domain_.index), what, domain_.rank_of(source));
        if (deadline.passed())
            return Status::error(Code::kTimeout, "is its process alive, and did it make the same calls? (timeout_ms)",
                                 "rank %d waited %llu ms for %s of rank %d", domain_.rank_of(domain_.index),
                                 static_cast<unsigned long long>(domain_.timeout_ms), what, domain_.rank_of(source));
        if (domain_.is_spinning && turn < kSpinningTurns) order::pause();
        else deadline.relax();
    }
    return Status();
}

Status Control::exchange(CallKind kind, Arena& arena, const std::function<void(int, uint8_t*)>& fill) {
    ++epoch_;
    // The table's entries are told by the records' release below.
    const uint32_t n_slabs = arena.n_slabs();
    for (uint32_t i = told_slabs_; i < n_slabs; ++i) block(domain_.index)->slabs[i] = arena.entry(i);
    const uint32_t mapped_by_all = told_slabs_;
    told_slabs_ = n_slabs;
    for (int i = 1; i <= domain_.n_ranks; ++i) {  // from the next rank on, so that not all write to one first
        const int dest = (domain_.index + i) % domain_.n_ranks;
        ControlRecord* const record = control_record(block(dest), domain_.n_ranks, epoch_, domain_.index);
        record->kind = static_cast<uint32_t>(kind);
        record->n_slabs = n_slabs;
        fill(dest, record->body);
        flag_store(OneLane{}, &record->epoch, epoch_);  // pairs with wait() of this exchange at `dest`
    }
    const uint64_t begin_ns = clock_ns();
    for (int i = 1; i <= domain_.n_ranks; ++i) {
        const int source = (domain_.index + i) % domain_.n_ranks;
        const ControlRecord* const record = control_record(block(domain_.index), domain_.n_ranks, epoch_, source);
        EFA_TRY(wait(source, &record->epoch, epoch_, call_name(kind)));
        if (record->kind != static_cast<uint32_t>(kind))
            return Status::error(Code::kMismatch, "all ranks make the same calls in the same order",
                                 "rank %d called %s while rank %d called %s", domain_.rank_of(source),
                                 call_name(static_cast<CallKind>(record->kind)), domain_.rank_of(domain_.index), call_name(kind));
        EFA_TRY(map_slabs(source, record->n_slabs, arena.gpu()));
    }
    waited_ns_ += clock_ns() - begin_ns;
    // Who sent this epoch has ended the last one, and with it mapped what was told there.
    arena.unlink(mapped_by_all);
    return Status();
}

const uint8_t* Control::received(int source) const {
    return control_record(block(domain_.index), domain_.n_ranks, epoch_, source)->body;
}

Status Control::map_slabs(int source, uint32_t n_slabs, GpuRuntime* gpu) {
    if (source == domain_.index) return Status();
    auto& mapped = arenas_[static_cast<size_t>(source)];
    if (n_slabs > kSlabsMax || n_slabs < mapped.size())
        return Status::error(Code::kProtocol, "run one version of this library on all ranks", "rank %d tells of %u slabs of memory",
                             domain_.rank_of(source), n_slabs);
    while (mapped.size() < n_slabs) {
        const SlabEntry& entry = block(source)->slabs[mapped.size()];
        ArenaMemory memory;
        EFA_TRY(ArenaMemory::open(gpu, entry, &memory).with_context("rank " + std::to_string(domain_.rank_of(source))));
        mapped.push_back(std::move(memory));
    }
    return Status();
}

void Control::tell_done(int dest) {
    flag_store(OneLane{}, &block(dest)->done[domain_.index].value, epoch_);  // pairs with wait_done() at `dest`
}

Status Control::wait_done(CallKind kind, Arena& arena) {
    const std::string what = std::string("the rows of ") + call_name(kind);
    for (int i = 1; i < domain_.n_ranks; ++i) {
        const int source = (domain_.index + i) % domain_.n_ranks;
        EFA_TRY(wait(source, &block(domain_.index)->done[source].value, epoch_, what.c_str()));
    }
    arena.unlink(told_slabs_);  // who has written rows has mapped what it was told of before
    return Status();
}

Status Control::barrier(const std::function<bool(int)>& skip, const Late& late) {
    ++barriers_;
    for (int i = 0; i < domain_.n_ranks; ++i)
        if (i != domain_.index && !skip(i))
            flag_store(OneLane{}, &block(i)->barrier[domain_.index].value, barriers_);  // pairs with wait() below, there
    for (int i = 0; i < domain_.n_ranks; ++i) {
        if (i == domain_.index || skip(i)) continue;
        Status came = wait(i, &block(domain_.index)->barrier[i].value, barriers_, "the barrier");
        if (!came.ok()) EFA_TRY(late(i, std::move(came)));
    }
    return Status();
}

void Control::leave() {
    if (!own_.base()) return;
    ControlBlock* const own = reinterpret_cast<ControlBlock*>(own_.base());
    flag_store(OneLane{}, &own->gone.value, 1);  // pairs with the look at `gone` in wait()
}

Status Control::locate(int peer, const Place& place, uint64_t bytes, Arena& own_arena, uint8_t** at) const {
    if (peer == domain_.index) {
        *at = own_arena.at(place);
        return Status();
    }
    const auto& slabs = arenas_[static_cast<size_t>(peer)];
    if (place.slab >= slabs.size() || place.offset > slabs[place.slab].bytes() || bytes > slabs[place.slab].bytes() - place.offset)
        return Status::error(Code::kProtocol, "run one version of this library on all ranks",
                             "rank %d names %llu bytes outside its memory", domain_.rank_of(peer), static_cast<unsigned long long>(bytes));
    *at = slabs[place.slab].base() + place.offset;
    return Status();
}

}  // namespace nvshmem_efa::ep
