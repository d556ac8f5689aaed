# SPDX-License-Identifier: Apache-2.0
# For the scripts beside it: sourced in the guest, in the folder that holds `nvshmem_efa` (the package) and `transport`.
export NVSHMEM_EFA_MODE=proxy
pe_program=nvshmem_efa/bin/nvshmem-efa-pe

plugin() { echo "nvshmem_efa/lib/nvshmem_transport_efa_abi$1.so"; }

# pe ABI ACTION [OPTION...]
pe() {
    abi=$1 action=$2
    shift 2
    "$pe_program" "$action" --abi "$abi" --plugin "$(plugin "$abi")" "$@"
}

fail() {
    echo "FAILED: $*"
    exit 1
}

# refused TEXT COMMAND...: the command must end with exit code 3 and say TEXT.
refused() {
    text=$1
    shift
    "$@" > /tmp/refused 2>&1
    code=$?
    grep -v '^{' /tmp/refused
    [ "$code" = 3 ] || fail "exit code $code, not 3"
    grep -q "$text" /tmp/refused || fail "\"$text\" is not said"
}
