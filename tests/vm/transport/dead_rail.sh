# SPDX-License-Identifier: Apache-2.0
# The second device falls silent in the middle (--fault of the device program): a named error that says which rail.
. transport/common.sh
export NVSHMEM_EFA_TIMEOUT_MS=8000
pe 6 demo --spawn 2 --rounds 500 > /tmp/dead 2>&1
code=$?
grep -v '^{' /tmp/dead
[ "$code" = 4 ] || fail "exit code $code, not 4"
grep -q "efa_1" /tmp/dead || fail "the rail is not named"
