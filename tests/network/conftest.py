"""One set of machines for all tests of this directory that do not use it up; starting a set costs some seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.network.lab import Lab

ONLY_V6 = 7
"""The peer that has no IPv4 address."""


@pytest.fixture(scope="session")
def session_lab() -> Iterator[Lab]:
    """Seven peers, one of them reached over IPv6 only, and a volume at 2/6."""
    with Lab(peers=7, only_v6=frozenset({ONLY_V6}), redundancy="2/6") as lab:
        lab.up()
        yield lab


@pytest.fixture
def lab(session_lab: Lab) -> Iterator[Lab]:
    """The machines, all running and connected, the volume mounted as usual; afterwards mended."""
    yield session_lab
    session_lab.mend()
