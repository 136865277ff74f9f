"""A small file system that can be filled to the last byte; needs root, and names the reason where it is not possible."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path


class SmallDisk:
    """`with SmallDisk(folder, mib) as disk:` mounted at `folder` until the end of the block."""

    def __init__(self, folder: Path, mib: float) -> None:
        self.folder = folder
        self._size = int(mib * 2**20)

    def fill(self) -> None:
        """Fill the disk to the last byte."""
        with open(self.folder / "filling", "wb", buffering=0) as file:
            for size in (65_536, 4096, 1):
                try:
                    while True:
                        file.write(b"x" * size)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def empty(self) -> None:
        """Free the space again."""
        (self.folder / "filling").unlink()

    def __enter__(self) -> SmallDisk:
        self.folder.mkdir(exist_ok=True)
        options = ["mount", "-t", "tmpfs", "-o", f"size={self._size}", "tmpfs", str(self.folder)]
        subprocess.run(options, check=True, capture_output=True)
        return self

    def __exit__(self, *exc: object) -> None:
        # Lazily: files that a failed test holds open must not leave the mount behind.
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


def why_none() -> str:
    """Reason why a small disk is not possible here; empty where it is. Only root tries a mount."""
    return "" if os.geteuid() == 0 and _may_mount() else "no tmpfs can be mounted here: needs root"


def _may_mount() -> bool:
    status = Path("/proc/self/status").read_text()
    capabilities = int(status.partition("CapEff:\t")[2].split()[0], 16)
    return bool(capabilities & 1 << 21)  # CAP_SYS_ADMIN
