// SPDX-License-Identifier: Apache-2.0
#include "fabric/verbs_missing.h"

#include <utility>

namespace nvshmem_efa::verbs {

void MissingList::add(Code code, std::string what, std::string hint) {
    items_.push_back({code, std::move(what), std::move(hint)});
}

void MissingList::append(const MissingList& other) {
    items_.insert(items_.end(), other.items_.begin(), other.items_.end());
}

Status MissingList::status() const {
    if (items_.empty()) return Status();
    // The list goes in as context, because that has no limit of length.
    if (items_.size() == 1) {
        return Status::error(items_[0].code, items_[0].hint.c_str(), "nothing was opened")
            .with_context("EFA cannot start: " + items_[0].what);
    }
    Code code = Code::kTooOld;
    std::string list = "EFA cannot start, " + std::to_string(items_.size()) + " things are missing:";
    for (size_t i = 0; i < items_.size(); ++i) {
        if (code == Code::kTooOld) code = items_[i].code;
        list += " (" + std::to_string(i + 1) + ") " + items_[i].what + " [hint: " + items_[i].hint + "]";
    }
    return Status::error(code, "docs/verbs.md goes through the start; NVSHMEM_EFA_MODE=soft runs without EFA",
                         "nothing was opened")
        .with_context(list);
}

}  // namespace nvshmem_efa::verbs
