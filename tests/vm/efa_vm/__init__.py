# SPDX-License-Identifier: Apache-2.0
"""A guest with the kernel's own EFA driver and the real rdma-core, made of Debian packages."""
