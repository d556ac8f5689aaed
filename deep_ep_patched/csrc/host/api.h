// SPDX-License-Identifier: Apache-2.0
// The edge of the C API: no exception crosses it, every error is remembered for ep_last_error().
#pragma once

#include <exception>
#include <memory>
#include <string>

#include "ep_api.h"
#include "group.h"
#include "status.h"

struct ep_group {
    std::unique_ptr<nvshmem_efa::ep::Group> group;
    std::string description, stats;  // what ep_describe() and ep_stats_json() handed out last
};

namespace nvshmem_efa::ep {

int report(const Status& status) noexcept;  // the number to return

// The body of an API function.
template <class Body>
int guarded(const char* call, const Body& body) noexcept {
    try {
        return report(body().with_context(call));
    } catch (const std::exception& error) {
        return report(Status::error(Code::kResource, nullptr, "%s: %s", call, error.what()));
    }
}

// The caller's struct is there, and of this version.
template <class Args>
Status check_args(const Args* args, const char* name) {
    if (!args) return Status::error(Code::kInvalidArgument, nullptr, "no %s were given", name);
    if (args->bytes != sizeof(Args))
        return Status::error(Code::kMismatch, "rebuild the caller with this version's ep_api.h", "%s has %u bytes; this version's has %zu", name,
                             args->bytes, sizeof(Args));
    return Status();
}

inline Status check_group(const ep_group* group) {
    if (group && group->group) return Status();
    return Status::error(Code::kInvalidArgument, "it comes from ep_open()", "no group was given");
}

}  // namespace nvshmem_efa::ep
