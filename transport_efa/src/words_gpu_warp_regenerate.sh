#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Writes words_gpu_warp_ptx.h from words_gpu_warp.cu and tests/gpu/agent_words_kernels_ptx.h from its .cu. Needs nvcc and
# ptxas (any CUDA 12 or 13) on the PATH.
# nvcc stamps its own PTX version, which older drivers refuse; the text uses nothing newer than PTX 7.0 and sm_70, and
# ptxas checks just that after the stamp is changed.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

write_header() {  # source, header, constant
    nvcc -std=c++17 -ptx -arch=compute_75 -o "$work/new.ptx" "$1"
    sed -e '/^\/\//d' -e '/^$/d' -e 's/^\.version .*/.version 7.0/' -e 's/^\.target .*/.target sm_70/' \
        "$work/new.ptx" > "$work/old.ptx"
    for arch in sm_75 sm_80 sm_90 sm_100; do
        ptxas -arch=$arch -o "$work/check.cubin" "$work/old.ptx" || echo "note: not checked for $arch" >&2
    done
    {
        echo '// SPDX-License-Identifier: Apache-2.0'
        echo "// Written by words_gpu_warp_regenerate.sh from $(basename "$1"); do not edit."
        echo '#pragma once'
        echo
        echo 'namespace nvshmem_efa {'
        echo
        echo "inline constexpr char $3[] = R\"PTX("
        cat "$work/old.ptx"
        echo ')PTX";'
        echo
        echo '}  // namespace nvshmem_efa'
    } > "$2"
}

write_header words_gpu_warp.cu words_gpu_warp_ptx.h kGpuWarpPtx
write_header ../../tests/gpu/agent_words_kernels.cu ../../tests/gpu/agent_words_kernels_ptx.h kAgentKernelsPtx
