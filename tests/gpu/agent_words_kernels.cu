// SPDX-License-Identifier: Apache-2.0
// Kernels of agent_words: one fills the GPU and answers every change of a word, one adds to a word. Kept as PTX text in
// agent_words_kernels_ptx.h (transport_efa/src/words_gpu_warp_regenerate.sh writes it), so that no nvcc is needed.
#include <cstdint>

namespace {

__device__ uint64_t now_ns() {
    uint64_t now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}

__device__ uint64_t load_word(const void* word, uint32_t bytes) {
    if (bytes == 2) return *static_cast<const volatile uint16_t*>(word);
    if (bytes == 4) return *static_cast<const volatile uint32_t*>(word);
    return *static_cast<const volatile uint64_t*>(word);
}

}  // namespace

// Block 0 tells every new value of the word through `seen` (pinned host memory) and ends all blocks when the word has
// all bits set or `give_up_ns` is over. `started` (pinned) counts blocks that run, `halt` (device) ends the others.
extern "C" __global__ void __launch_bounds__(1024, 2)
    fill_and_answer(const void* word, uint64_t bytes, uint64_t* seen, uint32_t* started, uint32_t* halt, uint64_t give_up_ns) {
    if (threadIdx.x == 0) {
        atomicAdd_system(started, 1);
        const uint64_t end = now_ns() + give_up_ns;
        const uint64_t all = bytes == 8 ? ~uint64_t{0} : (uint64_t{1} << (8 * bytes)) - 1;
        uint64_t last = 0;
        while (blockIdx.x == 0) {
            const uint64_t value = load_word(word, static_cast<uint32_t>(bytes));
            if (value != last) {
                last = value;
                asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(seen), "l"(value) : "memory");
            }
            if (value == all || now_ns() > end) {
                *reinterpret_cast<volatile uint32_t*>(halt) = 1;
                break;
            }
        }
        while (*reinterpret_cast<volatile uint32_t*>(halt) == 0) __nanosleep(200);
    }
    __syncthreads();
}

extern "C" __global__ void add_locally(uint64_t* word, uint64_t turns) {
    for (uint64_t i = 0; i < turns; ++i) atomicAdd(reinterpret_cast<unsigned long long*>(word), 1ull);
}
