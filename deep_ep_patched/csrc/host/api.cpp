// SPDX-License-Identifier: Apache-2.0
#include "api.h"

#include "log.h"

namespace nvshmem_efa::ep {

namespace {

// Each thread's own last error.
struct LastError {
    int code = 0;
    std::string text;
    std::string shown;
};
LastError& last_error() {
    thread_local LastError error;
    return error;
}

// Text that is the group's until the next call.
template <class Make>
const char* group_text(ep_group* group, std::string ep_group::*text, const Make& make) noexcept {
    if (!group || !group->group) return "";
    try {
        group->*text = make(*group->group);
        return (group->*text).c_str();
    } catch (...) {
        return "";
    }
}

Status gpu_of(const ep_group* group, GpuRuntime** gpu) {
    EFA_TRY(check_group(group));
    *gpu = group->group->gpu();
    if (*gpu) return Status();
    return Status::error(Code::kInvalidArgument, "open it with EP_EXECUTOR_GPU", "this group works on the CPU");
}

}  // namespace

int report(const Status& status) noexcept {
    if (status.ok()) return 0;
    try {
        LastError& error = last_error();
        error.code = static_cast<int>(status.code());
        error.text = status.message();
        EFA_LOG(kDebug, "ep", "%s: %s", code_name(status.code()), status.message());
    } catch (...) {
        // No memory for the copy; its number is all that the caller gets.
    }
    return static_cast<int>(status.code());
}

}  // namespace nvshmem_efa::ep

using namespace nvshmem_efa;
using namespace nvshmem_efa::ep;

const char* ep_last_error(int* code) {
    try {
        LastError& error = last_error();
        if (code) *code = error.code;
        error.shown = error.text;
        return error.shown.c_str();
    } catch (...) {
        return "out of memory";
    }
}

int ep_open(const ep_options* options, ep_allgather allgather, void* context, ep_group** group) {
    return guarded("ep_open", [&] {
        EFA_TRY(check_args(options, "ep_options"));
        if (!group) return Status::error(Code::kInvalidArgument, nullptr, "nowhere to put the group");
        *group = nullptr;
        auto made = std::make_unique<ep_group>();
        EFA_TRY(Group::open(*options, allgather, context, &made->group));
        *group = made.release();
        return Status();
    });
}

int ep_close(ep_group* group) {
    return guarded("ep_close", [&] {
        EFA_TRY(check_group(group));
        const std::unique_ptr<ep_group> ending(group);
        return ending->group->barrier();
    });
}

void ep_abandon(ep_group* group) { delete group; }

int ep_barrier(ep_group* group) {
    return guarded("ep_barrier", [&] {
        EFA_TRY(check_group(group));
        return group->group->barrier();
    });
}

int ep_load_kernels(ep_group* group, const void* image, int64_t bytes) {
    return guarded("ep_load_kernels", [&] {
        GpuRuntime* gpu = nullptr;
        EFA_TRY(gpu_of(group, &gpu));
        return gpu->load_kernels(image, static_cast<size_t>(bytes < 0 ? 0 : bytes));
    });
}

int ep_use_stream(ep_group* group, void* stream) {
    return guarded("ep_use_stream", [&] {
        GpuRuntime* gpu = nullptr;
        EFA_TRY(gpu_of(group, &gpu));
        gpu->use_stream(stream);
        return Status();
    });
}

int ep_wait(ep_group* group) {
    return guarded("ep_wait", [&] {
        GpuRuntime* gpu = nullptr;
        EFA_TRY(gpu_of(group, &gpu));
        if (ModeState* mode = group->group->low_latency().get()) return mode->before_barrier();
        return gpu->wait("the exchange");
    });
}

int ep_buffer(ep_group* group, int32_t is_rdma, void** base, int64_t* bytes) {
    return guarded("ep_buffer", [&] {
        EFA_TRY(check_group(group));
        if (!base || !bytes) return Status::error(Code::kInvalidArgument, nullptr, "nowhere to put the address or the size");
        if (!is_rdma) {
            size_t size = 0;
            EFA_TRY(group->group->arena().commit_first(base, &size));
            *bytes = static_cast<int64_t>(size);
            return Status();
        }
        Network* const network = group->group->network();
        *base = network ? network->base() : nullptr;
        *bytes = network ? network->bytes() : 0;
        return network ? network->commit(network->bytes()) : Status();
    });
}

const char* ep_describe(ep_group* group) {
    return group_text(group, &ep_group::description, [](Group& of) { return of.describe(); });
}

const char* ep_stats_json(ep_group* group) {
    return group_text(group, &ep_group::stats, [](Group& of) { return of.stats_json(); });
}

void* ep_place(ep_group* group, int64_t bytes) {
    void* block = nullptr;
    guarded("ep_place", [&] {
        EFA_TRY(check_group(group));
        if (bytes < 0) return Status::error(Code::kInvalidArgument, nullptr, "a block of %lld bytes", static_cast<long long>(bytes));
        return group->group->arena().place(static_cast<size_t>(bytes), &block);
    });
    return block;
}

void ep_unplace(ep_group* group, void* block) {
    if (!block) return;
    guarded("ep_unplace", [&] {
        EFA_TRY(check_group(group));
        return group->group->arena().unplace(block);
    });
}
