# SPDX-License-Identifier: Apache-2.0
. transport/common.sh
pe 6 demo --spawn 2 --tokens 16 --rounds 1
