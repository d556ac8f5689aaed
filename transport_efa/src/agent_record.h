// SPDX-License-Identifier: Apache-2.0
// What PEs and agents say to each other. It is public, because GPUs say it too.
#pragma once

#include "nvshmem_efa/records.h"
