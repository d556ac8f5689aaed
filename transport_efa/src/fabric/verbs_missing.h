// SPDX-License-Identifier: Apache-2.0
// Everything that keeps EFA from starting, gathered before anything is reported: the user sees the whole list at once,
// each entry with its own hint.
#pragma once

#include <string>
#include <vector>

#include "status.h"

namespace nvshmem_efa::verbs {

class MissingList {
   public:
    void add(Code code, std::string what, std::string hint);
    void append(const MissingList& other);
    bool empty() const { return items_.empty(); }
    // One error: "EFA cannot start, 2 things are missing: (1) what [hint: ...] (2) ...".
    // kTooOld when everything on the list is too old, else the first code which is not.
    Status status() const;

   private:
    struct Item {
        Code code;
        std::string what;
        std::string hint;
    };
    std::vector<Item> items_;
};

}  // namespace nvshmem_efa::verbs
