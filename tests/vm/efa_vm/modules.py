# SPDX-License-Identifier: Apache-2.0
"""The kernel modules that a guest needs: with what they depend on, unpacked, with the list that modprobe reads."""

from __future__ import annotations

import lzma
import re
from pathlib import Path

from .errors import VmError

# ib_umad, rdma_ucm: perftest and librdmacm ask for them. virtio_net joins guests. The rest is what efa.ko stands on.
WANTED = ("ib_uverbs", "ib_umad", "rdma_ucm", "virtio_net", "virtio_blk")


def _read(path: Path) -> bytes:
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def _depends(image: bytes) -> list[str]:
    match = re.search(rb"\0depends=([^\0]*)\0", image)
    return match.group(1).decode().split(",") if match and match.group(1) else []


def collect(kernel: Path, release: str, driver: Path) -> dict[str, bytes]:
    """File name -> content below /lib/modules/RELEASE: the modules and modules.dep."""
    base = kernel / "usr/lib/modules" / release
    known = {path.name.split(".")[0].replace("-", "_"): path for path in base.rglob("*.ko*")}
    known["efa"] = driver
    builtin = {Path(line).stem.replace("-", "_") for line in (base / "modules.builtin").read_text().split()}
    images: dict[str, bytes] = {}
    depends: dict[str, list[str]] = {}
    waiting = ["efa", *WANTED]
    while waiting:
        name = waiting.pop().replace("-", "_")
        if name in images or name in builtin:
            continue
        if name not in known:
            raise VmError(f"kernel module {name} is not in {base}", "is the kernel the one pinned?")
        images[name] = _read(known[name])
        depends[name] = [dependency.replace("-", "_") for dependency in _depends(images[name])]
        waiting += depends[name]

    def load_order(name: str, order: list[str]) -> list[str]:
        for dependency in depends[name]:
            if dependency in images and dependency not in order:
                load_order(dependency, order)
                order.append(dependency)
        return order

    # modprobe loads what a line lists from its end.
    before = {name: reversed(load_order(name, [])) for name in images}
    lines = [f"{name}.ko:{''.join(f' {other}.ko' for other in before[name])}\n" for name in sorted(images)]
    files = {f"{name}.ko": image for name, image in images.items()}
    return {**files, "modules.dep": "".join(lines).encode()}
