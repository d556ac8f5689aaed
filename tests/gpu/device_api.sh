#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the device API's GPU program over the software device: tests/gpu/device_api.sh PROGRAM SHIM NPES [arguments...]
#   PROGRAM  what `tests/gpu/build.sh OUT device_api` built;  SHIM  libnvshmem_efa_shim.so
# PE i uses GPU i modulo the number of GPUs; the timings of several PEs on one GPU mean nothing (--no-perf leaves them
# out). Ends with the worst exit code. DEVICE_API_SECONDS (300) bounds it; settings in the environment come before ours.
set -uo pipefail

usage="usage: tests/gpu/device_api.sh PROGRAM SHIM NPES [--seed S] [--rounds R] [--blocks B] [--no-perf]"
program=${1:?$usage} shim=$(realpath "${2:?$usage}") npes=${3:?$usage}
shift 3
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

export NVSHMEM_REMOTE_TRANSPORT=efa NVSHMEM_DISABLE_P2P=1 NVSHMEM_DISABLE_NCCL=1 NVSHMEM_DISABLE_NVLS=1 NCCL_NVLS_ENABLE=0
export CUDA_MODULE_LOADING=EAGER  # a kernel that is loaded lazily while another one spins can wait for it for ever
export NVSHMEM_EFA_MODE=${NVSHMEM_EFA_MODE:-soft} NVSHMEM_EFA_GPU_QUEUES=${NVSHMEM_EFA_GPU_QUEUES:-4}
export NVSHMEM_EFA_SOFT_REORDER_NS=${NVSHMEM_EFA_SOFT_REORDER_NS:-20000}
export NVSHMEM_EFA_SOFT_DUPLICATE_PPM=${NVSHMEM_EFA_SOFT_DUPLICATE_PPM:-20000}
export NVSHMEM_EFA_TIMEOUT_MS=${NVSHMEM_EFA_TIMEOUT_MS:-10000} NVSHMEM_EFA_LOG_LEVEL=${NVSHMEM_EFA_LOG_LEVEL:-info}

pids=()
for ((pe = 0; pe < npes; ++pe)); do
  LD_PRELOAD=$shim timeout -k 5 "${DEVICE_API_SECONDS:-300}" "$program" --pe "$pe" --npes "$npes" --dir "$dir" "$@" &
  pids+=($!)
done
worst=0
for pid in "${pids[@]}"; do
  wait "$pid"
  code=$?
  [ "$code" -gt "$worst" ] && worst=$code
done
exit "$worst"
