#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything that needs GPUs, in one command of less than nine minutes: build, look, smoke, cases, baseline, perf.
#   STEPS="build words smoke cases" PES=2 tests/gpu/run_all.sh
# Steps (all by default, in this order): build words smoke cases twice death static amo perf. Logs: $OUT (default /tmp/out).
# Knobs: PES (2), SEED (fresh), SCALE (1), CASES (all), LIMIT (530 s for everything), BUILD (build folder), JOBS,
# NVSHMEM_HOME, PREBUILT (a folder with nvshmem_ops and nvshmem_perf built elsewhere: saves the minute that nvcc takes).
# Every step prints one line into the table that ends the output.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
out=${OUT:-/tmp/out}
mkdir -p "$out"
steps=${STEPS:-build words smoke cases twice death static amo perf}
pes=${PES:-2}
scale=${SCALE:-1}
limit=${LIMIT:-530}
build=${BUILD:-/tmp/nvshmem-efa-build}
gpu=$build/gpu
jobs=${JOBS:-$(nproc)}
seed=${SEED:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}
started=$(date +%s)
home=${NVSHMEM_HOME:-$(python3 -c '
import importlib.util
print(list(importlib.util.find_spec("nvidia.nvshmem").submodule_search_locations)[0])' 2>/dev/null)}
# A program built elsewhere has another path to NVSHMEM in it.
export LD_LIBRARY_PATH=$home/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} NVSHMEM_HOME=$home
export PYTHONUNBUFFERED=1 NVSHMEM_EFA_SHIM=$build/nvshmem_efa/lib/libnvshmem_efa_shim.so

table=$out/table.txt
: > "$table"
left() { echo $((limit - ($(date +%s) - started))); }
wanted() { [[ " $steps " == *" $1 "* ]]; }

# run STEP SECONDS COMMAND...: with a deadline, its log in $out/STEP.log, its verdict in the table.
run() {
  local step=$1 most=$2 seconds begun code
  shift 2
  wanted "$step" || return 0
  seconds=$(left)
  if [ "$seconds" -lt 15 ]; then
    printf '%-8s NOT RUN  no time left\n' "$step" >> "$table"
    return 1
  fi
  [ "$seconds" -lt "$most" ] && most=$seconds
  begun=$(date +%s)
  echo "=== $step (at most $most s)"
  STEP_SECONDS=$((most - 8)) timeout -k 5 "$most" "$@" 2>&1 | tee "$out/$step.log"
  code=${PIPESTATUS[0]}
  printf '%-8s %-8s %4s s  %s\n' "$step" "$([ $code -eq 0 ] && echo PASS || echo "FAIL $code")" $(($(date +%s) - begun)) \
    "$(grep -E 'total:|same bytes|device model:|built |a dead PE|written:' "$out/$step.log" | tail -3 | tr '\n' ' ' | cut -c1-260)" >> "$table"
  return $code
}

build_all() {
  nvidia-smi --query-gpu=index,name,driver_version,memory.total --format=csv,noheader || true
  nvidia-smi topo -m 2>/dev/null | head -12
  g++ --version | head -1
  cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release || return 1
  # The two builds have nothing to wait for in each other.
  if [ -n "${PREBUILT:-}" ] && [ -x "$PREBUILT/nvshmem_ops" ]; then
    mkdir -p "$gpu" && cp -p "$PREBUILT"/nvshmem_* "$gpu/" && echo "built elsewhere: $PREBUILT" > "$out/build.gpu.log" &
  else
    JOBS=$jobs bash tests/gpu/build.sh "$gpu" > "$out/build.gpu.log" 2>&1 &
  fi
  local programs=$!
  ninja -C "$build" -j "$jobs" || { wait $programs; return 1; }
  wait $programs || { tail -40 "$out/build.gpu.log"; return 1; }
  cat "$out/build.gpu.log"
  ls -la "$build/nvshmem_efa/lib"
}

# The agent's words against real GPU memory, when its test program is in the tree.
words() {
  [ -f tests/gpu/agent_words.cpp ] || { echo "no tests/gpu/agent_words.cpp"; return 0; }
  if [ -x "$gpu/agent_words" ]; then
    "$gpu/agent_words"
    return
  fi
  mkdir -p "$gpu"
  g++ -std=c++20 -O2 -I transport_efa/include -I transport_efa/src -I transport_efa \
    tests/gpu/agent_words*.cpp "$build"/transport_efa/libnvshmem_efa_core.a -ldl -pthread -o "$gpu/agent_words" &&
    "$gpu/agent_words"
}

launch() { # TRANSPORT-NAME arguments of launch.py
  local name=$1
  shift
  python3 tests/gpu/launch.py --program "$gpu/nvshmem_ops" --pes "$pes" --seed "$seed" --scale "$scale" \
    --deadline "$STEP_SECONDS" --out "$out/$name" "$@"
}

smoke() {
  launch smoke --cases smoke --debug --soft-seed 1 && return 0
  local code=$?
  for log in "$out"/smoke/*/pe0.log; do
    echo "--- $log"
    tail -80 "$log"
  done
  for stacks in "$out"/smoke/*/{stacks,backtrace}.pe*.txt; do
    [ -f "$stacks" ] && { echo "--- $stacks"; head -60 "$stacks"; }
  done
  return $code
}
twice() { launch twice --cases smoke,put_nbi_thread,signal_add,reduce_int_stream --cycles 2 --scale 0.2; }
death() { launch death --expect-death; }
static() { launch static --heap static --cases all,-amo,-strided,-heap --scale 0.2 --max-bytes $((64 << 20)) --quiet; }
amo() { launch amo --amo gpu --cases smoke,amo,amo_gpu,signal_order,signal_add --scale 0.3; }
perf() { python3 perf/gpu/run.py --program "$gpu/nvshmem_perf" --pes 2 --deadline "$STEP_SECONDS" --out "$out/perf"; }
cases() { launch cases --cases "${CASES:-all}" --compare; }

export -f build_all words launch smoke twice death static amo perf cases
export root out pes scale build gpu jobs seed CASES=${CASES:-all}
echo "seed $seed, $pes PEs, steps: $steps, limit $limit s, build folder $build"

run build 300 bash -c build_all
if ! wanted build || [ -f "$NVSHMEM_EFA_SHIM" ]; then
  run words 40 bash -c words
  if run smoke 90 bash -c smoke; then
    run cases 330 bash -c cases
    run twice 60 bash -c twice
    run death 60 bash -c death
    run static 120 bash -c static
    run amo 90 bash -c amo
    run perf 150 bash -c perf
  else
    echo "smoke failed: the other steps are not run" >> "$table"
  fi
fi

echo "=== table (seed $seed, $pes PEs, $(($(date +%s) - started)) s, logs in $out)"
cat "$table"
! grep -qE 'FAIL|NOT RUN|not run' "$table"
