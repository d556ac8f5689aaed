// SPDX-License-Identifier: Apache-2.0
// A libcuda.so.1 for tests without a GPU. "Device" memory lies in memfds: its device address faults when the CPU touches
// it, tests reach it through fake_cuda_cpu(). Each stream runs in order on a thread of its own, late by seeded times, so
// that a missing wait shows. Calls can be counted, made to fail by name, and allocations forbidden.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

// Forgets plans and counts, and sets the seed of all delays. Memory and streams stay.
void fake_cuda_reset(uint64_t seed);
// Makes a fake context of `device` (0..3) the current one of this thread, and new memory that device's; -1: none.
void fake_cuda_use_device(int device);

// From now on, after `skip` good calls, `count` calls of `name` (without version suffix) return `code`.
void fake_cuda_fail(const char* name, int code, uint32_t skip, uint32_t count);
uint64_t fake_cuda_calls(const char* name);
// Calls that allocate, map, load or create fail and count as violations while this is set.
void fake_cuda_forbid_allocation(int forbid);
uint64_t fake_cuda_violations();
void fake_cuda_delay_us(uint32_t longest);  // before each stream operation; default 20
void fake_cuda_stall(int stall);            // streams stand still
void fake_cuda_gpu_full(int full);          // kernels stay queued
void fake_cuda_capture(int capture);         // streams are being captured, if asked; work runs all the same
void fake_cuda_old_driver(int old);         // pointer attributes from 18 on are unknown
uint64_t fake_cuda_same_device_copies();    // device-to-device copies that a driver may have run on an SM
int fake_cuda_open_mappings();              // IPC mappings, VMM mappings and handles, host registrations
// The GPU's address of registered host memory is the CPU's plus this; nothing of ours may touch it then. 0 after a reset.
void fake_cuda_map_host_at(uint64_t distance);
int fake_cuda_host_flags(const void* memory);  // of the registration that holds this byte; -1: none does

// What a launched kernel does, on its stream's thread; parameters as passed to cuLaunchKernel (one pointer).
void fake_cuda_kernel(void (*run)(void* parameter));
// The same for kernels whose one parameter is a struct of `bytes`: a copy of it, of the launch.
void fake_cuda_kernel_of(size_t bytes, void (*run)(void* parameter));

// `module` has a global variable of that name and place.
void fake_cuda_module_global(void* module, const char* name, uint64_t addr, size_t bytes);

// The CPU's view of a device address, null for any other address.
void* fake_cuda_cpu(uint64_t addr);
uint64_t fake_cuda_alloc(size_t bytes);  // as cudaMalloc: 512-byte aligned in a 2 MiB block of its own
void fake_cuda_free(uint64_t addr);
void fake_cuda_renew(uint64_t addr);  // as if freed and given out again at the same address
// As cuMemCreate + cuMemMap: `pieces` allocations of `piece_bytes`, back to back. `is_exportable`: with a POSIX handle.
uint64_t fake_cuda_alloc_vmm(size_t piece_bytes, uint32_t pieces, int is_exportable);
}
