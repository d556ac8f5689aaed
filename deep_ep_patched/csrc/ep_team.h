// SPDX-License-Identifier: Apache-2.0
// Several groups of lanes that work on one thing: the warps of a team, or one CPU thread. Protocol code takes it as `team`:
//   all()            all members as one group (rank, size, sync, any)
//   lanes()          the caller's own group: a warp
//   warp(), warps()  its number, and how many there are
//   sync()           what every member stored before is seen by every member after
#pragma once

#include "ep_lanes.h"

namespace nvshmem_efa::ep {

struct OneTeam {
    NVSHMEM_EFA_HD OneLane all() const { return {}; }
    NVSHMEM_EFA_HD OneLane lanes() const { return {}; }
    NVSHMEM_EFA_HD uint32_t warp() const { return 0; }
    NVSHMEM_EFA_HD uint32_t warps() const { return 1; }
    NVSHMEM_EFA_HD void sync() const {}
};

#if defined(__CUDACC__)
inline constexpr uint32_t kTeamWarps = 8;
inline constexpr uint32_t kTeamThreads = 32 * kTeamWarps;
static_assert(kTeamThreads == 256, "in the barriers below");

// A block has two teams, which have barriers of their own, 1 and 2; 0 is the block's (PTX ISA 8.0, "bar"). The numbers are
// constants, or a kernel would take all sixteen.
struct TeamLanes {
    __device__ uint32_t rank() const { return threadIdx.x % kTeamThreads; }
    __device__ uint32_t size() const { return kTeamThreads; }
    __device__ void sync() const {
        if (threadIdx.x < kTeamThreads) asm volatile("bar.sync 1, 256;" ::: "memory");
        else asm volatile("bar.sync 2, 256;" ::: "memory");
    }
    __device__ bool any(bool value) const {
        uint32_t is_one;
        if (threadIdx.x < kTeamThreads)
            asm volatile("{ .reg .pred p, q;\n\tsetp.ne.u32 p, %1, 0;\n\tbar.red.or.pred q, 1, 256, p;\n\tselp.u32 %0, 1, 0, q; }"
                         : "=r"(is_one) : "r"(value ? 1u : 0u) : "memory");
        else
            asm volatile("{ .reg .pred p, q;\n\tsetp.ne.u32 p, %1, 0;\n\tbar.red.or.pred q, 2, 256, p;\n\tselp.u32 %0, 1, 0, q; }"
                         : "=r"(is_one) : "r"(value ? 1u : 0u) : "memory");
        return is_one != 0;
    }
};
struct WarpTeam {
    __device__ TeamLanes all() const { return {}; }
    __device__ WarpLanes lanes() const { return {threadIdx.x % 32}; }
    __device__ uint32_t warp() const { return threadIdx.x / 32 % kTeamWarps; }
    __device__ uint32_t warps() const { return kTeamWarps; }
    __device__ void sync() const { all().sync(); }
};
#endif

}  // namespace nvshmem_efa::ep
