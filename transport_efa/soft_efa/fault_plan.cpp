// SPDX-License-Identifier: Apache-2.0
#include "fault_plan.h"

#include <charconv>
#include <string_view>

namespace nvshmem_efa::soft {
namespace {

bool parse_number(std::string_view text, uint64_t* value) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
    return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

bool parse_fault(std::string_view text, PlannedFault* fault) {
    const size_t equals = text.find('='), at = text.find('@');
    if (equals == text.npos || at == text.npos || at < equals) return false;
    const std::string_view kind = text.substr(0, equals);
    if (kind == "dead_peer") {
        fault->kind = PlannedFault::Kind::kDeadPeer;
    } else if (kind == "dead_rail") {
        fault->kind = PlannedFault::Kind::kDeadRail;
    } else {
        return false;
    }
    uint64_t which = 0;
    if (!parse_number(text.substr(equals + 1, at - equals - 1), &which) || which > 1u << 20) return false;
    fault->which = static_cast<int>(which);
    return parse_number(text.substr(at + 1), &fault->after_packets);
}

}  // namespace

Status parse_fault_plan(const std::string& text, std::vector<PlannedFault>* plan) {
    plan->clear();
    for (size_t begin = 0; begin < text.size();) {
        const size_t end = std::min(text.find(',', begin), text.size());
        PlannedFault fault;
        const std::string item = text.substr(begin, end - begin);
        if (!parse_fault(item, &fault))
            return Status::error(Code::kConfig, "for instance dead_peer=1@500,dead_rail=0@20",
                                 "NVSHMEM_EFA_SOFT_FAULT has \"%s\"; dead_peer=PE@messages or dead_rail=RAIL@messages "
                                 "is expected",
                                 item.c_str());
        plan->push_back(fault);
        begin = end + 1;
    }
    return Status();
}

}  // namespace nvshmem_efa::soft
