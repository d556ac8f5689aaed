// SPDX-License-Identifier: Apache-2.0
// What every word engine asks of a request before it touches memory.
#pragma once

#include "words.h"

namespace nvshmem_efa {

uint64_t word_mask(uint8_t bytes);

// kInvalidArgument naming request `index` when its size, alignment or operation is not valid.
Status word_check(const WordRequest& request, size_t index);

}  // namespace nvshmem_efa
