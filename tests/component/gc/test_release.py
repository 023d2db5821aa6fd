"""Segments that are stored leave the staging area, at the end of a mount too."""

from __future__ import annotations

import sys
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parent))

from gcworld import World


def test_two_that_let_go_of_the_same_segments(tmp_path, monkeypatch):
    """The task that does it now and then, and the end of the mount: neither finds what the other took."""
    world = World(tmp_path, monkeypatch)

    async def main():
        with trio.fail_after(60):
            async with world.open():
                for number in range(3):
                    await world.write(f"file-{number}", bytes([number]) * 3_000_000)
                    await world.anchor()
                    world.volume.uploads.roll_when_stored()
                    async with trio.open_nursery() as nursery:
                        for _ in range(3):
                            nursery.start_soon(world.volume.uploads.release)
                    assert not world.volume.entries.staged
                assert await world.read("file-1") == b"\1" * 3_000_000

    trio.run(main)
