"""The data that the end-to-end tests copy, and the network that holds it."""

from __future__ import annotations

import os
import random
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.cluster.harness import Network, diff_trees

MIB: Final = 1 << 20
BIG_SIZE: Final = 128 * MIB
MARKER: Final = "xq7vzk-marker-mnpqw-83hd62"
"""Stands in the test data's contents and names and nowhere else in the world."""


def make_source(tree: Path) -> None:
    """Make `tree`: Python's own library, a random file of BIG_SIZE, a few awkward files with the marker."""
    tree.mkdir()
    shutil.copytree(
        sysconfig.get_path("stdlib"),
        tree / "python",
        symlinks=True,
        ignore=shutil.ignore_patterns("site-packages", "dist-packages", "__pycache__", "config-*", "*.a"),
    )
    with open(tree / "big.bin", "wb") as file:
        file.writelines(os.urandom(4 * MIB) for _ in range(BIG_SIZE // (4 * MIB)))
    make_marked_files(tree / "marked")


def make_marked_files(directory: Path) -> None:
    """Fill a directory with what copies get wrong: sparse, empty, linked, oddly named and marked files."""
    directory.mkdir()
    noise = random.Random(7)
    (directory / f"{MARKER}-name.txt").write_text(f"one line of {MARKER}\n" * 500)
    (directory / "inline").write_text(MARKER)
    (directory / "incompressible").write_bytes(noise.randbytes(100_000) + MARKER.encode() + noise.randbytes(200_000))
    (directory / "empty").touch()
    (directory / "mode").write_text("x")
    (directory / "mode").chmod(0o4751)
    (directory / "link").symlink_to(f"{MARKER}-target")
    os.link(directory / "inline", directory / "hard link")
    (directory / "ünïcode \n newline").write_text("name")
    (directory / ("long" * 63)).write_text("name of 252 bytes")
    with open(directory / "sparse", "wb") as file:
        file.truncate(40 * MIB)
        file.seek(17 * MIB + 3)
        file.write(b"island")
    deep = directory
    for level in range(30):
        deep = deep / f"level-{level}"
    deep.mkdir(parents=True)
    (deep / "bottom").write_text("deep")
    os.utime(directory / "mode", ns=(1_000_000_000_123_456_789, 981_173_106_987_654_321))
    os.setxattr(directory / "inline", "user.note", MARKER.encode())


@dataclass
class Loaded:
    """A network whose volume holds the test data, anchored."""

    network: Network
    source: Path

    @property
    def copy(self) -> Path:
        """The test data in the mount."""
        return self.network.mountpoint / "data"

    def heal(self) -> None:
        """Start again whatever has ended, and mount if it is not mounted."""
        self.network.up()

    def check(self, deadline: float = 240.0) -> None:
        """Fail unless the copy equals the source."""
        diff_trees(self.network, self.source, self.copy, deadline=deadline)
