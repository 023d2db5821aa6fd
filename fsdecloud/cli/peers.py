"""The storage peers of this home: which there are, who they are, whether they run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from fsdecloud.cli import client, parts
from fsdecloud.config import Paths
from fsdecloud.errors import FsdecloudError, PeerUnavailable
from fsdecloud.types import PeerId
from fsdecloud.wire.agentapi import Empty
from fsdecloud.wire.peerapi import Announce, Departing, PeerdStatus

UP_QUOTA: Final = 64 << 30
"""Quota of the peers that `decloud up` makes; the disk's free space bounds them as well."""

UP_LISTEN: Final = "127.0.0.1:0"

PATIENCE: Final = 2.0
"""Seconds for a peer on this machine to say how it is, in a list of all."""

ASKED_AT_ONCE: Final = 32


@dataclass(frozen=True, slots=True)
class LocalPeer:
    """One peer of this home."""

    name: str
    id: str
    """In hexadecimal, as everywhere outside the programs."""
    url: str
    pid: int | None


def peer_status(paths: Paths, name: str, timeout: float = 5.0) -> PeerdStatus:
    """Ask a running peer. Raises PeerUnavailable when it does not run, or answer within so many seconds."""
    if parts.running_pid(paths, f"peer-{name}") is None:
        raise PeerUnavailable(f"peer {name} is not running: decloud peer run {name}, or decloud up")
    return client.call(
        paths.socket(f"peer-{name}"), "status", Empty(), PeerdStatus, timeout=timeout, error=PeerUnavailable
    )


def announce(paths: Paths, name: str, announcement: Announce) -> Departing:
    """Tell a running peer what it is about to do; return what it still holds. Raises PeerUnavailable, UsageError."""
    if parts.running_pid(paths, f"peer-{name}") is None:
        raise PeerUnavailable(f"peer {name} is not running: decloud peer run {name}, or decloud up")
    return client.call(paths.socket(f"peer-{name}"), "announce", announcement, Departing, error=PeerUnavailable)


def local_peers(paths: Paths) -> list[LocalPeer]:
    """Return the peers of this home, running or not; asks all at once, so that those that hang cost PATIENCE together."""

    def look(name: str) -> LocalPeer:
        try:
            status = peer_status(paths, name, PATIENCE)
        except FsdecloudError:
            pid = parts.running_pid(paths, f"peer-{name}")
            return LocalPeer(name, peer_id(paths, name).hex(), "", pid or None)
        return LocalPeer(name, status.id.hex(), status.url, status.pid)

    names = parts.local_peers(paths)
    if not names:
        return []
    with ThreadPoolExecutor(min(len(names), ASKED_AT_ONCE)) as threads:
        return list(threads.map(look, names))


def peer_id(paths: Paths, name: str) -> PeerId:
    """Return a peer's id from its key. Raises UsageError when the key is missing or damaged."""
    from fsdecloud.crypto import sign
    from fsdecloud.peerd.setup import load_seed

    return PeerId(sign.public_key(load_seed(paths, name)))


def ensure_peer(paths: Paths, name: str, network_id: bytes, *, price: int | None = None) -> None:
    """Set up a peer of an embedded network unless it is there; one that stores for nothing asks for `price` from now on."""
    from fsdecloud.peerd.setup import init_peer, load_config

    if name not in parts.local_peers(paths):
        init_peer(paths, name, UP_QUOTA, UP_LISTEN, network_id, price=price)
    elif price is not None and not (present := load_config(paths, name)).price:
        init_peer(paths, name, present.quota, present.listen, network_id, price=price)
