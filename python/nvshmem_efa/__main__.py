# SPDX-License-Identifier: Apache-2.0
"""python -m nvshmem_efa is the command nvshmem-efa."""

from nvshmem_efa.cli import main

main()
