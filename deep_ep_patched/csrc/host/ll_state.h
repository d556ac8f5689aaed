// SPDX-License-Identifier: Apache-2.0
// What a group keeps for the low-latency mode: epochs, tables of the protocol code, and errors made of its faults.
#pragma once

#include <string>
#include <vector>

#include "ep_ll_view.cuh"
#include "group.h"

namespace nvshmem_efa::ep {

// The error of a fault that the protocol code left, and the end of the group.
Status ll_fault_error(Group& group, const LlFault& fault);

class LlState : public ModeState {
 public:
    // After the group is connected. kUnsupported when arrivals cannot be told in the way that was asked for.
    static Status open(Group& group, std::unique_ptr<ModeState>* state);
    std::string stats_json() const override;
    std::string describe() const override;

    // Makes tables and memory for a shape; the first is free, another needs clean(). `rows_out`: those are used, too.
    Status use_shape(const LlShape& shape, bool rows_out);
    const LlView& view() const { return view_; }

    // The epoch of a half operation. kInvalidArgument: more than two would be between send and receive, or none is.
    Status begin_send(LlPhase phase, uint64_t* epoch);
    Status begin_receive(LlPhase phase, uint64_t* epoch);
    uint64_t next_send(LlPhase phase) const { return epochs(phase).sent + 1; }

    // Collective: empties all places for a shape. Pre: nothing is between send and receive.
    Status clean(const LlShape& shape);

    // The error of the fault that the protocol code left, and the end of the group; OK when there is none.
    Status fault();
    // [R], zeroes: for one receive. Added up by end_waits(), also into the caller's, if there are any.
    int64_t* begin_waits();
    void end_waits(int64_t* users);

 private:
    struct Epochs {
        uint64_t sent = 0, received = 0;
    };
    explicit LlState(Group& group);
    const Epochs& epochs(LlPhase phase) const { return epochs_[static_cast<size_t>(phase)]; }
    Status check_arrivals();
    Status make_tables(const LlShape& shape, bool rows_out);
    Status empty_places();
    Status agree_on_epochs();

    Group& group_;
    LlView view_{};
    LlFault fault_{};
    Epochs epochs_[2];
    bool has_far_ranks_ = false;
    std::vector<uint8_t*> stores_;
    std::vector<uint64_t> sent_;
    std::vector<uint32_t> arrived_, counts_, marks_;
    std::vector<int64_t> waits_;
    int64_t waited_ns_ = 0;
};

}  // namespace nvshmem_efa::ep
