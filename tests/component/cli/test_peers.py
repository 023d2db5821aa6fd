"""The peers of a home, as commands see them."""

from __future__ import annotations

import select
import socket
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from fsdecloud.cli import parts, peers
from fsdecloud.config import HOME_VARIABLE, find_paths


def test_peers_that_hang_are_waited_for_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are asked before the first is given up: nothing closes a connection before each peer has one."""
    monkeypatch.setattr(parts, "running_pid", lambda _paths, _daemon: 4711)
    monkeypatch.setattr(peers, "PATIENCE", 60.0)
    paths = find_paths({HOME_VARIABLE: str(tmp_path)})
    names = [f"peer-{number}" for number in range(8)]
    paths.runtime.mkdir(parents=True, mode=0o700)
    found: list[peers.LocalPeer] = []
    with ExitStack() as stack:
        listeners = []
        for name in names:
            peers.ensure_peer(paths, name, bytes(32))
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(paths.socket(f"peer-{name}")))
            listener.listen()
            listener.settimeout(30)
            listeners.append(listener)
        asking = threading.Thread(target=lambda: found.extend(peers.local_peers(paths)))
        asking.start()
        accepted = [stack.enter_context(listener.accept()[0]) for listener in listeners]
        poller = select.poll()
        for connection in accepted:
            poller.register(connection, select.POLLRDHUP)
        assert poller.poll(0) == []
        for connection in accepted:
            connection.shutdown(socket.SHUT_RDWR)
        asking.join()
    assert [(peer.name, peer.url, peer.pid) for peer in found] == [(name, "", 4711) for name in names]
    assert len({peer.id for peer in found}) == len(names)
