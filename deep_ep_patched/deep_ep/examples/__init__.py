# SPDX-License-Identifier: Apache-2.0
"""Examples that are also run: the demo of nvshmem-efa is made of them."""
