"""Traces of programs, one for each module of tests, and a place in memory for the states made of them."""

from __future__ import annotations

import shutil
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
