#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the issue-rate measurement: perf/gpu/build_issue_rate.sh OUT_DIR. Needs nvcc only. CUDA_ARCH=sm_90 by default.
set -euo pipefail
out=${1:?usage: perf/gpu/build_issue_rate.sh OUT_DIR}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
nvcc=${NVCC:-$(command -v nvcc || true)}
[ -n "$nvcc" ] || { echo "build_issue_rate.sh: no nvcc; hint: install CUDA 12 or 13, or set NVCC=/path/to/nvcc" >&2; exit 2; }
mkdir -p "$out"
"$nvcc" -std=c++20 -O3 -lineinfo "-arch=${CUDA_ARCH:-sm_90}" "-I$root/transport_efa/include" "-I$root/perf/gpu" "$root/perf/gpu/issue_rate.cu" \
  -o "$out/issue_rate" -Xcompiler -Wall,-pthread
echo "built $out/issue_rate"
