# SPDX-License-Identifier: Apache-2.0
# many_runs.sh N: programs that open, use and close the device, N times; every tenth is killed in the middle.
for i in $(seq "$1"); do
    if [ $((i % 10)) = 0 ]; then
        timeout -s KILL 0.3 ./efa-device-tests objects_are_made_and_destroyed_a_hundred_times > /dev/null 2>&1
    else
        ./efa-device-tests a_send_arrives_with_its_length_immediate_and_sender > /tmp/many || { cat /tmp/many; exit 1; }
    fi
done
rdma resource show
