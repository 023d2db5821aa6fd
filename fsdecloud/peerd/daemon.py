"""How the storage peer starts, runs and ends."""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import signal
from contextlib import ExitStack
from dataclasses import replace
from typing import Final

import trio

from fsdecloud.config import Paths
from fsdecloud.crypto import sign
from fsdecloud.net import websocket
from fsdecloud.net.address import format_endpoint, parse_endpoint
from fsdecloud.net.nursery import open_background
from fsdecloud.net.unix import Methods, serve_unix
from fsdecloud.peerd import setup
from fsdecloud.peerd.registration import Registrar
from fsdecloud.peerd.server import PeerService
from fsdecloud.peerd.writer import ShardWriter
from fsdecloud.readiness import notify, report_ready
from fsdecloud.store.lockfile import acquire_lock
from fsdecloud.store.shards import ShardStore
from fsdecloud.types import PeerId
from fsdecloud.wire import peer as wire
from fsdecloud.wire.agentapi import Empty
from fsdecloud.wire.peerapi import PeerdStatus

log = logging.getLogger(__name__)

PR_SET_DUMPABLE: Final = 4
"""prctl(2)."""

FILES_WANTED: Final = 4096
"""Descriptors: connections, handshakes and segments with room to spare."""


def run(paths: Paths, name: str, *, listen: str = "", ready_fd: int | None = None) -> None:
    """Serve the peer `name` until SIGTERM or SIGINT.

    Raises StoreLocked when it runs already, UsageError when it is not set up or cannot listen, StoreError.
    """
    _protect_memory()
    _raise_file_limit()
    with ExitStack() as stack:
        config = setup.load_config(paths, name)
        stack.enter_context(acquire_lock(paths.lock_file(f"peer-{name}")))
        if listen:
            parse_endpoint(listen)
            config = replace(config, listen=listen)
        seed = setup.load_seed(paths, name)
        store = stack.enter_context(ShardStore(paths.peer_state(name), config.quota, reserve=config.reserve))
        trio.run(_main, paths, name, config, seed, store, ready_fd)


async def _main(
    paths: Paths, name: str, config: setup.PeerConfig, seed: bytes, store: ShardStore, ready_fd: int | None
) -> None:
    peer = PeerId(sign.public_key(seed))
    writer = ShardWriter(store)
    service = PeerService(
        seed=seed,
        peer=peer,
        network=config.network,
        store=store,
        writer=writer,
        policy=setup.Policy(paths.peer_state(name) / "policy.toml"),
        grace=config.grace,
    )
    async with open_background() as nursery:
        nursery.start_soon(_stop_on_signal, nursery.cancel_scope)
        nursery.start_soon(writer.run)
        nursery.start_soon(service.deleter.run)
        host, port = parse_endpoint(config.listen)
        bound: int = await nursery.start(
            lambda task_status: websocket.serve(
                host, port, seed, wire.SUBPROTOCOL, service.serve, task_status=task_status
            )
        )
        if bound != port:  # the next start listens there again, so that the registered address stays true
            setup.save_config(paths, name, replace(config, listen=format_endpoint(host, bound)))
        address = setup.announced_address(config, peer, bound)
        url = "" if address is None else str(address)
        registrar = Registrar(
            socket=paths.socket("ledger"),
            network_file=paths.ledger_state / "network",
            seed=seed,
            peer=peer,
            network=config.network,
            url=url,
            capacity=config.quota,
        )
        if url:
            nursery.start_soon(registrar.run)
        else:
            log.warning("not registered: it listens on %s; set announce in peer.toml", config.listen)

        async def status(_params: Empty) -> PeerdStatus:
            return _status(name, url, config, store, service, registrar, peer, writer)

        def methods(_connection: object) -> Methods:
            return {"status": (Empty, status)}, {}

        await nursery.start(
            lambda task_status: serve_unix(paths.socket(f"peer-{name}"), methods, task_status=task_status)
        )
        log.info("peer %s serves at %s", peer.hex(), url or config.listen)
        report_ready(ready_fd, {"id": peer.hex(), "url": url, "port": bound})
        await trio.sleep_forever()


def _status(
    name: str,
    url: str,
    config: setup.PeerConfig,
    store: ShardStore,
    service: PeerService,
    registrar: Registrar,
    peer: PeerId,
    writer: ShardWriter,
) -> PeerdStatus:
    counters = service.counters
    shards, _ = store.counts()
    return PeerdStatus(
        pid=os.getpid(),
        name=name,
        id=peer,
        url=url,
        network=config.network,
        quota=config.quota,
        used=store.used_bytes,
        free=store.free_bytes(),
        shards=shards,
        connections=counters.connections,
        registered_height=registrar.height,
        stored_shards=counters.stored_shards,
        stored_bytes=counters.stored_bytes,
        served_shards=counters.served_shards,
        served_bytes=counters.served_bytes,
        refused_shards=counters.refused_shards,
        doomed_shards=store.doomed_count(),
        dropped_shards=service.deleter.dropped_shards,
        removed_shards=service.deleter.removed_shards,
        refused_grants=service.deleter.refused_grants,
        last_error=writer.last_error or registrar.error,
    )


async def _stop_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for number in signals:
            if number == signal.SIGHUP:
                log.info("SIGHUP: there is nothing to read again; a changed policy holds from the next start")
                continue
            log.info("%s: ending", signal.Signals(number).name)
            notify("STOPPING=1")
            scope.cancel()
            return


def _protect_memory() -> None:
    """Keep the key out of core dumps and other processes' reach (fault 128)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_WANTED if hard == resource.RLIM_INFINITY else min(FILES_WANTED, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
