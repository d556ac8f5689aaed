// SPDX-License-Identifier: Apache-2.0
// Device API, atomics on words of 4 or 8 bytes of another PE. See put.cuh for what all calls share.
//
// The target's agent applies them, one after the other: they are atomic among each other and with signals, p() and g()
// of all PEs, and not with local atomics of the target's GPU (docs/agent.md). Those that return a value wait for it.
#pragma once

#include "nvshmem_efa/device_records.h"
#include "nvshmem_efa/device_scope.h"

namespace nvshmem_efa {

namespace device {

template <class T>
struct IsReal {
    static constexpr bool value = false;
};
template <>
struct IsReal<float> {
    static constexpr bool value = true;
};
template <>
struct IsReal<double> {
    static constexpr bool value = true;
};

template <class T>
NVSHMEM_EFA_HD inline WordCall word_call(WordOp op, T operand, T compare = T{}) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "atomics take words of 4 or 8 bytes");
    return {op, IsReal<T>::value ? WordType::kFloat : WordType::kInteger, sizeof(T), bits_of(operand), bits_of(compare)};
}

template <class T>
NVSHMEM_EFA_HD inline bool send_amo(const DeviceState& state, T* word, const WordCall& call, int pe) {
    AgentRecord record;
    return make_record(state, address(word), call, pe, false, &record) &&
           post_record(state, record, static_cast<uint32_t>(pe), poster_number());
}

template <class T>
NVSHMEM_EFA_HD inline bool fetch_amo(const DeviceState& state, const T* word, const WordCall& call, int pe, T* old) {
    uint64_t bits = 0;
    if (!fetch_word(state, address(word), call, pe, &bits)) return false;
    *old = from_bits<T>(bits);
    return true;
}

}  // namespace device

// ---- without a value ----

// Adds; for float and double too.
template <class T>
NVSHMEM_EFA_HD inline bool atomic_add(const DeviceState& state, T* word, T value, int pe) {
    return device::send_amo(state, word, device::word_call(WordOp::kAdd, value), pe);
}
template <class T>
NVSHMEM_EFA_HD inline bool atomic_inc(const DeviceState& state, T* word, int pe) {
    return atomic_add(state, word, T{1}, pe);
}
template <class T>
NVSHMEM_EFA_HD inline bool atomic_set(const DeviceState& state, T* word, T value, int pe) {
    return device::send_amo(state, word, device::word_call(WordOp::kSet, value), pe);
}
template <class T>
NVSHMEM_EFA_HD inline bool atomic_and(const DeviceState& state, T* word, T value, int pe) {
    static_assert(!device::IsReal<T>::value, "bitwise atomics take integers");
    return device::send_amo(state, word, device::word_call(WordOp::kAnd, value), pe);
}
template <class T>
NVSHMEM_EFA_HD inline bool atomic_or(const DeviceState& state, T* word, T value, int pe) {
    static_assert(!device::IsReal<T>::value, "bitwise atomics take integers");
    return device::send_amo(state, word, device::word_call(WordOp::kOr, value), pe);
}
template <class T>
NVSHMEM_EFA_HD inline bool atomic_xor(const DeviceState& state, T* word, T value, int pe) {
    static_assert(!device::IsReal<T>::value, "bitwise atomics take integers");
    return device::send_amo(state, word, device::word_call(WordOp::kXor, value), pe);
}

// ---- with the value before ----

template <class T>
NVSHMEM_EFA_HD inline bool atomic_fetch(const DeviceState& state, const T* word, int pe, T* old) {
    return device::fetch_amo(state, word, device::word_call(WordOp::kFetch, T{}), pe, old);
}
template <class T>
NVSHMEM_EFA_HD inline bool atomic_fetch_add(const DeviceState& state, T* word, T value, int pe, T* old) {
    return device::fetch_amo(state, word, device::word_call(WordOp::kAdd, value), pe, old);
}
template <class T>
NVSHMEM_EFA_HD inline bool atomic_fetch_inc(const DeviceState& state, T* word, int pe, T* old) {
    return atomic_fetch_add(state, word, T{1}, pe, old);
}
template <class T>
NVSHMEM_EFA_HD inline bool atomic_fetch_and(const DeviceState& state, T* word, T value, int pe, T* old) {
    static_assert(!device::IsReal<T>::value, "bitwise atomics take integers");
    return device::fetch_amo(state, word, device::word_call(WordOp::kAnd, value), pe, old);
}
template <class T>
NVSHMEM_EFA_HD inline bool atomic_fetch_or(const DeviceState& state, T* word, T value, int pe, T* old) {
    static_assert(!device::IsReal<T>::value, "bitwise atomics take integers");
    return device::fetch_amo(state, word, device::word_call(WordOp::kOr, value), pe, old);
}
template <class T>
NVSHMEM_EFA_HD inline bool atomic_fetch_xor(const DeviceState& state, T* word, T value, int pe, T* old) {
    static_assert(!device::IsReal<T>::value, "bitwise atomics take integers");
    return device::fetch_amo(state, word, device::word_call(WordOp::kXor, value), pe, old);
}
template <class T>
NVSHMEM_EFA_HD inline bool atomic_swap(const DeviceState& state, T* word, T value, int pe, T* old) {
    return device::fetch_amo(state, word, device::word_call(WordOp::kSwap, value), pe, old);
}
// Stores `value` where the word is `compare`, bit for bit.
template <class T>
NVSHMEM_EFA_HD inline bool atomic_compare_swap(const DeviceState& state, T* word, T compare, T value, int pe, T* old) {
    return device::fetch_amo(state, word, device::word_call(WordOp::kCompareSwap, value, compare), pe, old);
}

}  // namespace nvshmem_efa
