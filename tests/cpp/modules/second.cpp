// SPDX-License-Identifier: Apache-2.0
#include "modules/module.h"
#include "nvshmem_efa/module.cuh"

unsigned long module_second() { return reinterpret_cast<unsigned long>(__atomic_load_n(&nvshmem_efa_state, __ATOMIC_ACQUIRE)); }
