"""A mount while no peer is there: with what this machine knows, and without anything."""

import shutil
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from gcworld import content, make_world, run

from fsdecloud.driver import anchors
from fsdecloud.errors import RemoteError


def test_fault_045_a_mount_needs_peers_only_where_nothing_is_known(tmp_path, monkeypatch):
    """A machine that has the volume's state mounts it and goes on; a new one says in time that it cannot, and can later."""
    world = make_world(tmp_path / "w", monkeypatch)
    monkeypatch.setattr(anchors, "PEERS_TIMEOUT", 1.0)

    async def work():
        async with world.open():
            await world.write("a", content(1))
            await world.anchor()
        peers = list(world.transport.peers.values())
        for peer in peers:
            peer.is_down = True
        async with world.open():
            assert await world.names() == {"a"}
            assert await world.read("a") == content(1)
            await world.write("b", content(2))
        shutil.rmtree(world.base / "state")
        world.drop_cache()
        start = time.monotonic()
        with pytest.raises(ExceptionGroup) as caught:
            async with world.open():
                pass
        assert caught.group_contains(RemoteError)
        assert time.monotonic() - start < 20
        for peer in peers:
            peer.is_down = False
        async with world.open():  # the same new machine
            assert await world.read("a") == content(1)
            assert await world.names() == {"a"}

    run(work)
