// SPDX-License-Identifier: Apache-2.0
// A module as a user writes it: it includes the header, and that is all.
#include "modules/module.h"
#include "nvshmem_efa/module.cuh"

unsigned long module_first() { return reinterpret_cast<unsigned long>(__atomic_load_n(&nvshmem_efa_state, __ATOMIC_ACQUIRE)); }
