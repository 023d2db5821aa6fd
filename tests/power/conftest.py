"""Traces of programs, one for each module of tests, and a place in memory for the states made of them."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def scratch():
    """A directory in memory where there is one: a thousand small file systems are made and removed in it."""
    base = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="fsdecloud-power-", dir=base if base.is_dir() else None))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 MiB."""
    path = tmp_path / "disk"
    path.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m,mode=700", "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", str(path)], check=True)
