// SPDX-License-Identifier: Apache-2.0
// Memory: heap chunks that arrive while traffic runs, transfers across a chunk border, user buffers, a PE that dies.
#include <csignal>

#include <chrono>
#include <thread>

#include "message_stream.h"
#include "nvshmem_ops.h"

namespace gpu_ops {
namespace {

// Puts `bytes` at odd offsets around every multiple of `step` of the new allocation to the next PE, gets them back.
void check_borders(Run& run, char* fresh, size_t size, size_t step, Symmetric<char>& source) {
    const Job& job = run.job;
    const size_t kBytes = 3 << 20;
    DeviceTrouble trouble;
    Device<char> expected(kBytes + 256);
    std::vector<size_t> places;
    for (size_t border = step; border + kBytes < size; border += step) places.push_back(border - kBytes / 2 - 7);
    places.push_back(1);
    places.push_back(size - kBytes - 300);
    for (size_t place : places) {
        const uint64_t seed = mix2(run.seed, place);
        fill(job, source.get(), kBytes + 8, pattern_key(seed, job.pe));
        fill(job, fresh + place, kBytes + 256, pattern_key(seed, kPoisonPe));
        fill(job, expected.get(), kBytes + 256, pattern_key(seed, kPoisonPe));
        fill(job, expected.get() + 100, kBytes, pattern_key(seed, run.peer(-1)), 3);
        meet(job, "growth: put at a border");
        nvshmemx_putmem_on_stream(fresh + place + 100, source.get() + 3, kBytes, run.peer(1), job.stream);
        meet(job, "growth: put at a border");
        compare(job, fresh + place, expected.get(), kBytes + 256, trouble.get());
        run.check(trouble, "put into the new chunk");
        // And back: what the next PE now holds came from us.
        fill(job, source.get(), kBytes + 8, pattern_key(seed, kPoisonPe));
        fill(job, expected.get(), kBytes, pattern_key(seed, job.pe), 3);
        CUDA_CHECK(cudaStreamSynchronize(job.stream));
        nvshmem_getmem(source.get() + 1, fresh + place + 100, kBytes, run.peer(1));
        compare(job, source.get() + 1, expected.get(), kBytes, trouble.get());
        run.check(trouble, "get from the new chunk");
        meet(job, "growth: border done");
    }
}

GPU_CASE(heap_growth, "heap", 48, 120) {
    const Job& job = run.job;
    const char* no_vmm = getenv("NVSHMEM_DISABLE_CUDA_VMM");
    if (no_vmm && atoi(no_vmm)) throw Skip{"the static heap does not grow"};
    const size_t source_bytes = 4 << 20, slot_bytes = 4096, slot_count = 64;
    Symmetric<char> slots(slot_count * slot_bytes), source(source_bytes), staging(4 << 20);
    Symmetric<uint64_t> flags(slot_count), acks(1);
    DeviceTrouble trouble;
    Stream s{slots.get(), source.get(), flags.get(), acks.get(), run.seed, source_bytes,
             uint32_t(run.scaled(40000, 640) / 64 * 64), uint32_t(slot_count), uint32_t(slot_bytes), job.pe, run.peer(1),
             run.peer(-1), 8};
    fill(job, source.get(), source_bytes, pattern_key(run.seed, job.pe));
    meet(job, run.name);
    cudaEvent_t done;
    CUDA_CHECK(cudaEventCreateWithFlags(&done, cudaEventDisableTiming));
    Trouble* device_trouble = trouble.get();
    void* arguments[] = {&s, &device_trouble};
    launch_together(job, reinterpret_cast<const void*>(stream_kernel<Flag::kPutSignalNbi>), dim3(2), dim3(128), arguments);
    CUDA_CHECK(cudaEventRecord(done, job.stream));
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    stage("growth: nvshmem_malloc of 700 MiB and 600 MiB while messages flow");
    const bool running = cudaEventQuery(done) == cudaErrorNotReady;
    const size_t first_size = size_t(700) << 20, second_size = size_t(600) << 20;
    char* first = static_cast<char*>(nvshmem_malloc(first_size));
    char* second = static_cast<char*>(nvshmem_malloc(second_size));
    const bool still_running = cudaEventQuery(done) == cudaErrorNotReady;
    cudaGetLastError();  // cudaErrorNotReady is an answer, not an error
    if (!first || !second) die(kExitUsage, "nvshmem_malloc beyond the first chunk gave null");
    run.note("traffic %s when the heap grew, %s after", running ? "ran" : "had ended", still_running ? "ran on" : "had ended");
    run.check(trouble, "messages during growth (place = message << 32 | byte)");
    meet(job, run.name);
    check_borders(run, first, first_size, size_t(512) << 20, staging);
    check_borders(run, second, second_size, size_t(512) << 20, staging);
    run.add_digest(digest(job, slots.get(), slots.bytes()));
    CUDA_CHECK(cudaEventDestroy(done));
    nvshmem_free(second);
    nvshmem_free(first);
    meet(job, run.name);
}

__global__ void put_from_buffer(char* dest, const char* source, size_t bytes, int pe) {
    nvshmemx_putmem_nbi_block(dest, source, bytes, pe);
    nvshmem_quiet();
}
__global__ void get_to_buffer(char* dest, const char* source, size_t bytes, int pe) {
    nvshmemx_getmem_nbi_block(dest, source, bytes, pe);
    nvshmem_quiet();
}

// `buffer` is not symmetric: it is registered as a local source and destination.
void check_user_buffer(Run& run, char* buffer, size_t bytes, const char* kind) {
    const Job& job = run.job;
    Symmetric<char> room(bytes);
    Device<char> expected(bytes);
    DeviceTrouble trouble;
    stage("nvshmemx_buffer_register: %s", kind);
    if (int status = nvshmemx_buffer_register(buffer, bytes)) {
        run.fail("nvshmemx_buffer_register(%s) gave %d", kind, status);
        return;
    }
    const size_t used = bytes - 4096;
    fill(job, buffer, bytes, pattern_key(run.seed, job.pe));
    fill(job, room.get(), bytes, pattern_key(run.seed, kPoisonPe));
    fill(job, expected.get(), bytes, pattern_key(run.seed, kPoisonPe));
    fill(job, expected.get() + 11, used, pattern_key(run.seed, run.peer(-1)), 7);
    meet(job, kind);
    put_from_buffer<<<1, 128, 0, job.stream>>>(room.get() + 11, buffer + 7, used, run.peer(1));
    LAUNCH_CHECK();
    meet(job, kind);
    compare(job, room.get(), expected.get(), bytes, trouble.get());
    run.check(trouble, kind);
    run.add_digest(digest(job, room.get(), bytes));
    fill(job, buffer, bytes, pattern_key(run.seed, kPoisonPe));
    fill(job, expected.get(), bytes, pattern_key(run.seed, kPoisonPe));
    fill(job, expected.get() + 13, used, pattern_key(run.seed, job.pe), 7);
    meet(job, kind);
    get_to_buffer<<<1, 128, 0, job.stream>>>(buffer + 13, room.get() + 11, used, run.peer(1));
    LAUNCH_CHECK();
    compare(job, buffer, expected.get(), bytes, trouble.get());
    run.check(trouble, kind);
    meet(job, kind);
    // The host API takes it too.
    fill(job, buffer, bytes, pattern_key(run.seed, kPoisonPe));
    CUDA_CHECK(cudaStreamSynchronize(job.stream));
    nvshmem_getmem(buffer + 13, room.get() + 11, used, run.peer(1));
    compare(job, buffer, expected.get(), bytes, trouble.get());
    run.check(trouble, kind);
    meet(job, kind);
    if (int status = nvshmemx_buffer_unregister(buffer)) run.fail("nvshmemx_buffer_unregister(%s) gave %d", kind, status);
    meet(job, kind);
}

GPU_CASE(user_buffer, "heap", 49, 60) {
    Device<char> buffer(8 << 20);
    check_user_buffer(run, buffer.get(), 8 << 20, "cudaMalloc");
}
GPU_CASE(user_buffer_pinned, "heap", 93, 60) {
    char* buffer = nullptr;
    CUDA_CHECK(cudaMallocHost(reinterpret_cast<void**>(&buffer), 8 << 20));
    check_user_buffer(run, buffer, 8 << 20, "cudaMallocHost");
    CUDA_CHECK(cudaFreeHost(buffer));
}

__global__ void put_to_others(char* dest, const char* source, size_t bytes, int me, int npes) {
    for (int pe = 0; pe < npes; ++pe)
        if (pe != me) nvshmem_putmem_nbi(dest + me * bytes, source, bytes, pe);
    nvshmem_quiet();
}

// Only with launch.py --expect-death: the last PE kills itself amid traffic, the others must end with a named error.
GPU_CASE(dead_peer, "death", 99, 90) {
    const Job& job = run.job;
    if (!getenv("NVSHMEM_GPU_TEST_DEATH")) throw Skip{"only with launch.py --expect-death"};
    const size_t bytes = 4096;
    Symmetric<char> dest(bytes * job.npes), source(bytes);
    meet(job, run.name);
    for (int round = 0;; ++round) {
        if (round == 200 && job.pe == job.npes - 1) {
            event("suicide", "\"pe\":" + std::to_string(job.pe));
            raise(SIGKILL);
        }
        stage("dead_peer: round %d", round);
        put_to_others<<<1, 1, 0, job.stream>>>(dest.get(), source.get(), bytes, job.pe, job.npes);
        LAUNCH_CHECK();
        CUDA_CHECK(cudaStreamSynchronize(job.stream));
        if (round == 1000000) run.fail("a million rounds, and nobody noticed");
        if (round == 1000000) return;
    }
}

}  // namespace
}  // namespace gpu_ops
