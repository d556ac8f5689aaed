// SPDX-License-Identifier: Apache-2.0
// One rank's side of a Buffer: what is behind ep_group. Its parts are opened together and end together; calls are
// collective where said, made by one thread, and wait no longer than the deadline.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "arena.h"
#include "control.h"
#include "ep_api.h"
#include "gpu_normal.h"
#include "gpu_runtime.h"
#include "network.h"
#include "workers.h"

namespace nvshmem_efa::ep {

// State that a mode keeps in a group; owned by it, ended before the parts below.
class ModeState {
 public:
    virtual ~ModeState() = default;
    virtual std::string stats_json() const { return ""; }  // members of an object, without braces
    virtual std::string describe() const { return ""; }    // "arrivals by counters"
    virtual Status before_barrier() { return Status(); }   // masks are those of now
};

class Group {
 public:
    // Collective. A rank on which it fails tells the others, so that it fails on all.
    static Status open(const ep_options& options, ep_allgather allgather, void* context, std::unique_ptr<Group>* group);
    ~Group();  // waits for nobody; peers that wait for this rank are told

    int rank() const { return options_.rank; }
    int n_ranks() const { return options_.n_ranks; }
    const ep_options& options() const { return options_; }
    const Domain& domain() const { return domain_; }
    bool is_in_domain(int rank) const { return rank >= domain_.first && rank < domain_.first + domain_.n_ranks; }

    // Reached by stores in low-latency mode, where it has memory that is mapped here.
    bool is_near(int rank) const {
        return rank == options_.rank ? options_.nvlink_for_ll >= 0 : options_.nvlink_for_ll > 0 && is_in_domain(rank);
    }

    Arena& arena() { return arena_; }
    Control& control() { return control_; }
    Workers& workers() { return *workers_; }
    Network* network() { return network_.get(); }  // null when the group has none
    GpuRuntime* gpu() { return gpu_.get(); }       // null: CPU threads do the work
    bool is_on_gpu() const { return gpu_ != nullptr; }
    GpuNormal* gpu_normal() { return gpu_normal_.get(); }  // null without a gpu()
    // The symmetric buffer of a rank of this domain, mapped here; null for other ranks, and without a network.
    uint8_t* peer_buffer(int rank) const;
    std::unique_ptr<ModeState>& low_latency() { return low_latency_; }

    Status barrier();  // collective
    // Any thread. A masked rank is skipped by the barrier and by the low-latency mode, in both directions.
    bool is_masked(int rank) const { return masks_[static_cast<size_t>(rank)].load(std::memory_order_relaxed) != 0; }
    void set_masked(int rank, bool is_masked) {
        masks_[static_cast<size_t>(rank)].store(is_masked ? 1 : 0, std::memory_order_relaxed);
    }
    int32_t* mask_words() {  // [n_ranks], as the protocol code reads and sets them
        static_assert(sizeof(masks_[0]) == sizeof(int32_t));
        return reinterpret_cast<int32_t*>(masks_.data());
    }
    // What to do about a rank that is late: masks it and says OK where the group may shrink, else hands `late` back.
    Status forgive(int rank, Status late);

    // After a collective call failed half-way the ranks no longer agree on what comes next: the rest fail at once.
    Status check_usable() const;
    Status breaks(Status status);  // remembers it, when it is an error, and hands it back

    std::string describe() const;
    std::string stats_json() const;

 private:
    explicit Group(const ep_options& options);
    Status open_parts();
    Status fill_card(struct Card* card) const;
    Status map_parts(const std::vector<struct Card>& cards);
    Status connect(const Bootstrap& bootstrap);

    const ep_options options_;
    const Domain domain_;
    std::unique_ptr<GpuRuntime> gpu_;  // outlives all GPU memory
    Arena arena_;
    Control control_;
    std::unique_ptr<Workers> workers_;
    std::unique_ptr<GpuNormal> gpu_normal_;
    std::vector<SharedSlab> peer_buffers_;  // [rank of the domain]; outlive the low-latency state
    std::vector<GpuBlock> peer_blocks_;     // the same, of peers' GPUs
    std::unique_ptr<Network> network_;
    std::vector<std::atomic<int32_t>> masks_;
    std::string broken_;  // the first error of a collective call
    std::unique_ptr<ModeState> low_latency_;
};

// What is wrong with the options, named; for one rank alone. Pure.
Status check_options(const ep_options& options);

}  // namespace nvshmem_efa::ep
