# SPDX-License-Identifier: Apache-2.0
"""The command line of one guest's QEMU: software emulation, so that neither KVM nor a privilege is needed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from .relocate import loader

FIRMWARE = ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")
KERNEL_LINE = "console=ttyS0 loglevel=5 panic=-1 oops=panic mitigations=off random.trust_cpu=on tsc=reliable"


@dataclass(frozen=True)
class Machine:
    """One guest, of `guests` that share a network. Sockets and files lie in `folder`."""

    index: int
    guests: int
    folder: Path
    memory_mb: int
    cpus: int
    device_sockets: tuple[Path, ...]

    def path(self, name: str) -> Path:
        return self.folder / f"guest{self.index}.{name}"

    def _network(self) -> list[str]:
        """Guest 0 is the hub: one stream socket to each of the others."""
        if self.guests == 1:
            return []
        card = ["-device", f"virtio-net-pci,netdev=card,romfile=,mac=52:54:00:ef:a0:{self.index:02x}"]
        if self.index > 0:
            path = self.folder / f"net{self.index}"
            return ["-netdev", f"stream,id=card,server=off,reconnect-ms=200,addr.type=unix,addr.path={path}", *card]
        words = ["-netdev", "hubport,id=card,hubid=0", *card]
        for other in range(1, self.guests):
            path = self.folder / f"net{other}"
            words += ["-netdev", f"stream,id=wire{other},server=on,addr.type=unix,addr.path={path}"]
            words += ["-netdev", f"hubport,id=port{other},hubid=0,netdev=wire{other}"]
        return words

    def _devices(self) -> list[str]:
        words = []
        for socket in self.device_sockets:
            device = {"driver": "vfio-user-pci", "socket": {"type": "unix", "path": str(socket)}}
            words += ["-device", json.dumps(device)]
        return words

    def command(self, qemu_root: Path, kernel: Path, initramfs: Path) -> list[str]:
        firmware = [word for name in FIRMWARE for word in ("-L", str(qemu_root / name))]
        memory = f"memory-backend-memfd,id=ram0,size={self.memory_mb}M,share=on"
        job = f"if=none,id=job,file={self.path('job')},format=raw,readonly=on"
        ports = []
        for name in ("verdict", "results"):
            ports += ["-chardev", f"file,id={name},path={self.path(name)}"]
            ports += ["-device", f"virtserialport,chardev={name},name={name}"]
        return [
            *loader(qemu_root),
            str(qemu_root / "usr/bin/qemu-system-x86_64"),
            *("-accel", "tcg,thread=multi", "-M", "q35,memory-backend=ram0", "-m", str(self.memory_mb)),
            *("-object", memory, "-smp", str(self.cpus), "-cpu", "max"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot", *firmware),
            *("-kernel", str(kernel), "-initrd", str(initramfs), "-append", KERNEL_LINE),
            *("-drive", job, "-device", "virtio-blk-pci,drive=job", "-device", "virtio-serial-pci", *ports),
            *self._network(),
            *self._devices(),
        ]
