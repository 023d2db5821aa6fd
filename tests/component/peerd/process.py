"""A peer that is a process, for clients that say whatever they like and for those that measure how the others fare."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import blake3
import pytest

from fsdecloud.cli import client as control
from fsdecloud.config import Paths, find_paths
from fsdecloud.crypto import sign
from fsdecloud.errors import BlobMissing
from fsdecloud.net.address import Address, parse_url
from fsdecloud.net.pool import open_pool
from fsdecloud.peerd import setup
from fsdecloud.types import ShardId
from fsdecloud.wire.agentapi import Empty
from fsdecloud.wire.peerapi import PeerdStatus

NETWORK: Final = b"n" * 32
DEAL_SEED: Final = b"d" * 32
QUOTA: Final = 1 << 30


def shard(i: int, size: int = 1000) -> tuple[ShardId, bytes]:
    """Return a shard that is like no other with its number."""
    data = (b"%08d" % i).ljust(size, b"s")
    return ShardId(blake3.blake3(data).digest()), data


class Peer:
    """A peer process and what is known of it."""

    def __init__(self, process: subprocess.Popen[bytes], address: Address, socket: Path, log: Path) -> None:
        self.process = process
        self.address = address
        self._socket = socket
        self._log = log

    def resident(self) -> int:
        """Return its memory in bytes."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * resource.getpagesize()

    def status(self) -> PeerdStatus:
        """Return what it says of itself."""
        return control.call(self._socket, "status", Empty(), PeerdStatus)

    def log(self) -> str:
        """Return its log."""
        return self._log.read_text()

    async def check(self, number: int = 0) -> None:
        """Store and read as an honest client does."""
        item = shard(number)
        async with open_pool(network=NETWORK, deal_seed=lambda _peer: DEAL_SEED) as pool:
            await pool.put(self.address, [item])
            assert await pool.get(self.address, item[0]) == item[1]
            with pytest.raises(BlobMissing):
                await pool.get(self.address, ShardId(bytes(32)))


@contextmanager
def peer_process(directory: Path) -> Iterator[Peer]:
    """Run a peer that admits DEAL_SEED's deal; at the end it must still be there, and end in peace."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("FSDECLOUD_HOME", str(directory / "home"))
        paths = find_paths()
        setup.init_peer(paths, "a", QUOTA, "127.0.0.1:0", NETWORK)
        setup.save_config(paths, "a", setup.PeerConfig(QUOTA, setup.load_config(paths, "a").listen, NETWORK, reserve=0))
        (paths.peer_state("a") / "policy.toml").write_text(f'admit = ["{sign.public_key(DEAL_SEED).hex()}"]\n')
        with _started(paths, directory / "log") as peer:
            yield peer
            assert peer.process.poll() is None
            peer.process.send_signal(signal.SIGTERM)
            assert peer.process.wait(20) == 0


@contextmanager
def _started(paths: Paths, log: Path) -> Iterator[Peer]:
    ours, theirs = os.pipe()
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "fsdecloud.peerd", "run", "--name", "a", "--ready-fd", str(theirs)],
            pass_fds=[theirs],
            stderr=stderr,
        )
    os.close(theirs)
    try:
        with os.fdopen(ours) as pipe:
            ready = json.loads(pipe.readline())
        yield Peer(process, parse_url(ready["url"]), paths.socket("peer-a"), log)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
