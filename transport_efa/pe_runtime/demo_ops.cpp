// SPDX-License-Identifier: Apache-2.0
// Demo, first phase: p, g, put and get between all pairs, on both lanes at once.
#include "run.h"

namespace nvshmem_efa::pe {
namespace {

constexpr size_t kAreaBytes = 96 * 1024;  // one (writer, lane) pair's place on a PE
constexpr size_t kBulkOffset = 4096;
constexpr uint32_t kBulkOps = 12;

struct Areas {
    char* base;     // n_pes * 2 areas
    char* scratch;  // one area a lane
    char* area(int writer, const Lane& lane) const {
        return base + (static_cast<size_t>(writer) * 2 + lane.is_proxy()) * kAreaBytes;
    }
    char* mine(const Lane& lane) const { return scratch + lane.is_proxy() * kAreaBytes; }
};

uint64_t key_of(const Run& run, int writer, int target, const Lane& lane) {
    return mix(run.options.demo.seed ^
               mix(static_cast<uint64_t>(writer) << 40 | static_cast<uint64_t>(target) << 8 | lane.is_proxy()));
}

// p of every width, read back with g of every width.
Status words(Run& run, Lane& lane, const Areas& areas, int target) {
    char* place = areas.area(run.pe.id(), lane);
    Sequence sequence(key_of(run, run.pe.id(), target, lane));
    uint64_t values[4];
    for (int i = 0; i < 4; ++i) {
        values[i] = sequence.next();
        EFA_TRY(lane.p(target, place + 8 * i, values[i], 1 << i));
    }
    EFA_TRY(lane.quiet());
    for (int i = 0; i < 4; ++i) {
        uint64_t seen = 0;
        EFA_TRY(lane.g(target, place + 8 * i, 1 << i, &seen));
        const uint64_t mask = i == 3 ? ~uint64_t{0} : (uint64_t{1} << (8 << i)) - 1;
        run.checker.word("p, then g", seen, values[i] & mask);
    }
    return Status();
}

// Puts of random sizes to random places that do not touch, then quiet, then gets of all of it.
Status bulk(Run& run, Lane& lane, const Areas& areas, int target) {
    char* place = areas.area(run.pe.id(), lane) + kBulkOffset;
    char* mine = areas.mine(lane) + kBulkOffset;
    const size_t bytes = kAreaBytes - kBulkOffset;
    fill_bytes(key_of(run, run.pe.id(), target, lane), mine, bytes);
    Sequence sequence(key_of(run, run.pe.id(), target, lane) ^ 1);
    const size_t stride = bytes / kBulkOps;
    for (uint32_t i = 0; i < kBulkOps; ++i) {
        // Pieces meet at odd addresses: each starts where the last one ended.
        const size_t cut = 1 + sequence.below(stride - 2);
        const size_t start = i * stride;
        EFA_TRY(i % 3 == 0 ? lane.put(target, place + start, mine + start, cut)
                           : lane.put_nbi(target, place + start, mine + start, cut));
        EFA_TRY(lane.put_nbi(target, place + start + cut, mine + start + cut, stride - cut));
    }
    EFA_TRY(lane.quiet());
    std::vector<char> expected(mine, mine + kBulkOps * stride);
    std::memset(mine, 0, bytes);
    for (uint32_t i = 0; i < kBulkOps; ++i) {
        const size_t start = i * stride;
        EFA_TRY(i % 4 == 0 ? lane.get(target, place + start, mine + start, stride)
                           : lane.get_nbi(target, place + start, mine + start, stride));
    }
    EFA_TRY(lane.quiet());
    run.checker.bytes("put, then get", mine, expected.data(), expected.size());
    return Status();
}

}  // namespace

Status demo_ops(Run& run) {
    Areas areas{};
    const auto n_pes = static_cast<size_t>(run.pe.n_pes());
    EFA_TRY(run.allocate(n_pes * 2 * kAreaBytes, &areas.base));
    EFA_TRY(run.allocate(2 * kAreaBytes, &areas.scratch));
    EFA_TRY(run.on_both_lanes([&](Lane& lane) {
        for (int i = 0; i < run.pe.n_pes(); ++i) {
            const int target = (run.pe.id() + i) % run.pe.n_pes();  // itself too
            EFA_TRY(words(run, lane, areas, target));
            EFA_TRY(bulk(run, lane, areas, target));
        }
        return Status();
    }));
    EFA_TRY(run.pe.barrier_all());
    // What the others put here, seen with our own eyes.
    std::vector<char> expected(kAreaBytes);
    for (int writer = 0; writer < run.pe.n_pes(); ++writer) {
        for (const Lane* lane : {&run.host, &run.proxy}) {
            const size_t bytes = (kAreaBytes - kBulkOffset) / kBulkOps * kBulkOps;
            fill_bytes(key_of(run, writer, run.pe.id(), *lane), expected.data(), kAreaBytes - kBulkOffset);
            run.checker.bytes("what another PE put here", areas.area(writer, *lane) + kBulkOffset, expected.data(),
                              bytes);
        }
    }
    EFA_TRY(run.pe.free(areas.scratch));
    return run.pe.free(areas.base);
}

}  // namespace nvshmem_efa::pe
