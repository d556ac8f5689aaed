#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the NVSHMEM test and measurement programs: tests/gpu/build.sh OUT_DIR [nvshmem_ops] [nvshmem_perf] [device_api] [ibgda_compat]
# Needs nvcc and NVSHMEM (the nvidia-nvshmem-cuXX wheel, or NVSHMEM_HOME). CUDA_ARCH=sm_90 by default, JOBS=all cores.
set -euo pipefail

usage="usage: tests/gpu/build.sh OUT_DIR [nvshmem_ops] [nvshmem_perf] [device_api] [ibgda_compat]"
out=${1:?$usage}
shift
programs=("$@")
[ ${#programs[@]} -gt 0 ] || programs=(nvshmem_ops nvshmem_perf)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
perf=$(cd "$here/../../perf/gpu" && pwd)

nvcc=${NVCC:-$(command -v nvcc || true)}
[ -n "$nvcc" ] || nvcc=$(ls /usr/local/cuda/bin/nvcc 2>/dev/null || true)
[ -n "$nvcc" ] || { echo "build.sh: no nvcc; hint: install CUDA 12 or 13, or set NVCC=/path/to/nvcc" >&2; exit 2; }

home=${NVSHMEM_HOME:-}
if [ -z "$home" ]; then
  home=$(python3 - <<'PY' || true
import importlib.util, os
try:
    spec = importlib.util.find_spec("nvidia.nvshmem")
except ModuleNotFoundError:
    spec = None
for folder in (spec.submodule_search_locations if spec else []):
    if os.path.exists(os.path.join(folder, "include", "nvshmem.h")):
        print(folder)
        break
PY
)
fi
[ -f "$home/include/nvshmem.h" ] || {
  echo "build.sh: NVSHMEM not found; hint: pip install nvidia-nvshmem-cu13==3.4.5, or set NVSHMEM_HOME" >&2; exit 2; }
# The wheel carries no unversioned host library: name the file that is there.
host_lib=$(basename "$(ls "$home"/lib/libnvshmem_host.so* | head -1)")

mkdir -p "$out"
out=$(cd "$out" && pwd)
arch=${CUDA_ARCH:-sm_90}
flags=(-std=c++17 -O2 -lineinfo -rdc=true "-arch=$arch" "-I$home/include" "-I$here" "-I$here/../../transport_efa/include" "-I$here/../../deep_ep_patched/compat" -Xcompiler "-Wall,-Wno-unused-function")
sources=("$here"/pe_job.cu "$here"/image.cu)
for program in "${programs[@]}"; do
  case $program in
    nvshmem_ops) sources+=("$here"/nvshmem_ops*.cu) ;;
    nvshmem_perf) sources+=("$perf"/nvshmem_perf*.cu) ;;
    ibgda_compat) sources+=("$here"/ibgda_compat.cu) ;;
    device_api) sources+=("$here"/device_api.cu "$here"/device_api_perf.cu) ;;
    *) echo "$usage" >&2; exit 2 ;;
  esac
done

export NVCC_PATH=$nvcc OUT_DIR=$out HEADERS=$here
printf '%s\n' "${sources[@]}" | xargs -P "${JOBS:-$(nproc)}" -I{} bash -c '
  source=$1; shift
  object=$OUT_DIR/$(basename "${source%.cu}").o
  newest=$(ls -t "$object" "$source" "$HEADERS"/*.h "$HEADERS"/../../transport_efa/include/nvshmem_efa/* "$HEADERS"/../../deep_ep_patched/compat/* 2>/dev/null | head -1)
  [ "$newest" = "$object" ] && exit 0
  "$NVCC_PATH" "$@" -c "$source" -o "$object"' _ {} "${flags[@]}"

for program in "${programs[@]}"; do
  objects=()
  for source in "${sources[@]}"; do
    case $(basename "$source") in pe_job.cu | image.cu | "$program"*) objects+=("$out/$(basename "${source%.cu}").o") ;; esac
  done
  "$nvcc" -rdc=true "-arch=$arch" "${objects[@]}" -o "$out/$program" "-L$home/lib" "-l:$host_lib" -lnvshmem_device \
    -Xlinker "-rpath=$home/lib" -lpthread -ldl
  echo "built $out/$program ($("$nvcc" --version | sed -n 's/.*release \([^,]*\).*/CUDA \1/p'), $host_lib of $home)"
done
