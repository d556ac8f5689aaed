// SPDX-License-Identifier: Apache-2.0
// efa-device-tests: the cases of this folder. --list names them; see tests/cpp/check.h.
#include "check.h"

TEST_MAIN()
