#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the test of modules on a GPU: tests/gpu/build_modules.sh OUT_DIR. Needs nvcc only. CUDA_ARCH=sm_90 by default. Run it with
#   cubin=$(nvshmem-efa warmup --json | python3 -c 'import json,sys; print([k["path"] for k in json.load(sys.stdin)["kernels"] if k["name"] == "module_probe"][0])')
#   NVSHMEM_DISABLE_P2P=1 NVSHMEM_DISABLE_NVLS=1 NVSHMEM_EFA_GPU_QUEUES=1 NVSHMEM_REMOTE_TRANSPORT=efa \
#     nvshmem-efa run --mode soft -- OUT_DIR/modules OUT_DIR .../libnvshmem_host.so.3 "$cubin"
set -euo pipefail
out=${1:?usage: tests/gpu/build_modules.sh OUT_DIR}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
nvcc=${NVCC:-$(command -v nvcc || true)}
[ -n "$nvcc" ] || { echo "build_modules.sh: no nvcc; hint: install CUDA 12 or 13, or set NVCC=/path/to/nvcc" >&2; exit 2; }
mkdir -p "$out"
flags=(-std=c++17 -O2 "-arch=${CUDA_ARCH:-sm_90}" "-I$here/../../transport_efa/include" -Werror all-warnings -Xcompiler -Wall,-fPIC,-fvisibility=hidden)
"$nvcc" "${flags[@]}" "$here/modules.cu" -o "$out/modules" -ldl
"$nvcc" "${flags[@]}" -shared "$here/modules_library.cu" "$here/modules_second.cu" -o "$out/libmodules_early.so" -ldl
cp "$out/libmodules_early.so" "$out/libmodules_late.so"
"$nvcc" "${flags[@]}" -rdc=true -shared "$here/modules_library.cu" "$here/modules_second.cu" -o "$out/libmodules_rdc.so" -ldl
echo "built $out/modules"
