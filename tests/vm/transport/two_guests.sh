# SPDX-License-Identifier: Apache-2.0
# Four PEs, two in each of two guests, whose devices reach each other through the model's wire.
. transport/common.sh
job=two-guests-of-the-vm
python3 transport/bridge.py "$job" &
bridge=$!
trap 'kill $bridge' EXIT
for i in 0 1; do
    number=$((EFA_VM_GUEST * 2 + i))
    pe 6 demo --job "$job" --pes 4 --pe "$number" --rounds 2 --timeout-ms 60000 > "/results/pe$number.json" &
    eval "pid$i=\$!"
done
code=0
wait "$pid0" || code=$?
wait "$pid1" || code=$?
grep -o '"result": "[a-z]*"\|"checked": {[^}]*}\|"error": {[^}]*}' /results/pe*.json
exit "$code"
