# SPDX-License-Identifier: Apache-2.0
# One of two PEs is killed in the middle: the other ends soon, with a named error, and says who.
. transport/common.sh
start() {
    "$pe_program" demo --abi 6 --plugin "$(plugin 6)" --job killed-peer-of-the-vm --pes 2 --pe "$1" --rounds 500 \
        --timeout-ms 10000 > "/tmp/killed$1" 2>&1 &
}
start 0
survivor=$!
start 1
victim=$!
sleep 5
kill -KILL "$victim" || fail "PE 1 had ended before it was killed: $(cat /tmp/killed1)"
began=$(date +%s)
wait "$survivor"
code=$?
took=$(($(date +%s) - began))
grep -v '^{' /tmp/killed0
[ "$code" = 4 ] || fail "PE 0 ended with $code, not 4"
[ "$took" -le 15 ] || fail "PE 0 took $took s"
grep -q "PE 1" /tmp/killed0 || fail "PE 0 did not name PE 1"
