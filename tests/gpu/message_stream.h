// SPDX-License-Identifier: Apache-2.0
// A stream of messages from each PE to the next: slots with a signal word each, payload that is a function of the
// message number, acknowledgements by signal ADD. A signal seen before its data, a lost or doubled one, or data of an
// older message in the slot shows as a wrong byte or a wait that times out.
#pragma once

#include "image.h"

namespace gpu_ops {

enum class Flag { kPutSignal, kPutSignalNbi, kFenceThenP, kFenceThenAtomicSet, kFenceThenSignalOp };

struct Stream {
    char* slots;         // symmetric: slot_count * slot_bytes
    const char* source;  // pattern of `me`, source_bytes long
    uint64_t* flags;     // symmetric: one a slot; message m sets flags[m % slot_count] to m + 1
    uint64_t* acks;      // symmetric: messages that the receiver has checked
    uint64_t seed;
    uint64_t source_bytes;
    uint32_t messages, slot_count, slot_bytes;
    int me, to, from;
    uint32_t ack_every;  // divides slot_count
};

struct Message {
    uint64_t slot, dest, source, bytes;
};

__host__ __device__ inline Message message_at(const Stream& s, int sender, uint32_t m) {
    const uint64_t r = mix2(s.seed ^ static_cast<uint64_t>(sender), m);
    // Mostly small, some of a whole slot: a length is drawn below a random power of two.
    uint64_t limit = s.slot_bytes >> ((r >> 56) & 7);
    if (limit == 0) limit = 1;
    Message message;
    message.bytes = 1 + (r & 0xffffffff) % limit;
    message.slot = m % s.slot_count;
    message.dest = message.slot * s.slot_bytes + mix(r + 1) % (s.slot_bytes - message.bytes + 1);
    message.source = mix(r + 2) % (s.source_bytes - message.bytes);
    return message;
}

template <Flag kFlag>
__device__ inline void send_message(const Stream& s, uint32_t m) {
    const Message message = message_at(s, s.me, m);
    char* dest = s.slots + message.dest;
    const char* source = s.source + message.source;
    uint64_t* flag = s.flags + message.slot;
    const uint64_t value = uint64_t(m) + 1;
    if constexpr (kFlag == Flag::kPutSignal) {
        nvshmem_putmem_signal(dest, source, message.bytes, flag, value, NVSHMEM_SIGNAL_SET, s.to);
    } else if constexpr (kFlag == Flag::kPutSignalNbi) {
        nvshmem_putmem_signal_nbi(dest, source, message.bytes, flag, value, NVSHMEM_SIGNAL_SET, s.to);
    } else {
        nvshmem_putmem_nbi(dest, source, message.bytes, s.to);
        nvshmem_fence();
        if constexpr (kFlag == Flag::kFenceThenP) nvshmem_uint64_p(flag, value, s.to);
        if constexpr (kFlag == Flag::kFenceThenAtomicSet) nvshmem_uint64_atomic_set(flag, value, s.to);
        if constexpr (kFlag == Flag::kFenceThenSignalOp) nvshmemx_signal_op(flag, value, NVSHMEM_SIGNAL_SET, s.to);
    }
}

template <Flag kFlag>
__device__ inline void send_all(const Stream& s, Trouble* trouble) {
    if (threadIdx.x != 0) return;
    for (uint32_t m = 0; m < s.messages; ++m) {
        // The slot is free when its previous message was checked; acknowledgements come in steps.
        if (m >= s.slot_count) {
            const uint64_t needed = uint64_t(m - s.slot_count + 1);
            const uint64_t step = (needed + s.ack_every - 1) / s.ack_every * s.ack_every;
            if (nvshmem_signal_fetch(s.acks) < step && !wait_at_least(s.acks, step, trouble)) return;
        }
        send_message<kFlag>(s, m);
    }
    nvshmem_quiet();
}

__device__ inline void receive_all(const Stream& s, Trouble* trouble) {
    __shared__ int good;
    const uint64_t key = pattern_key(s.seed, s.from);
    for (uint32_t m = 0; m < s.messages; ++m) {
        const Message message = message_at(s, s.from, m);
        if (threadIdx.x == 0) {
            good = wait_at_least(s.flags + message.slot, uint64_t(m) + 1, trouble);
            const uint64_t seen = nvshmem_signal_fetch(s.flags + message.slot);
            if (good && seen != uint64_t(m) + 1) report(trouble, kValueWrong, m, uint64_t(m) + 1, seen);
        }
        __syncthreads();
        if (!good) return;
        const volatile unsigned char* at = reinterpret_cast<const unsigned char*>(s.slots + message.dest);
        for (uint64_t b = threadIdx.x; b < message.bytes; b += blockDim.x) {
            const unsigned char wanted = pattern_at(key, message.source + b), found = at[b];
            if (found != wanted) report(trouble, kByteWrong, uint64_t(m) << 32 | b, wanted, found);
        }
        __syncthreads();
        if (threadIdx.x == 0 && (m + 1) % s.ack_every == 0)
            nvshmemx_signal_op(s.acks, s.ack_every, NVSHMEM_SIGNAL_ADD, s.from);
    }
    if (threadIdx.x == 0) nvshmem_quiet();
}

// Block 0 sends, block 1 receives.
template <Flag kFlag>
__global__ void stream_kernel(Stream s, Trouble* trouble) {
    if (blockIdx.x == 0) send_all<kFlag>(s, trouble);
    else receive_all(s, trouble);
}

}  // namespace gpu_ops
