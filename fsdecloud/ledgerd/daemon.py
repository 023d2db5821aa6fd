"""The ledger daemon's life: lock, network, store, then all tasks until a signal. One per machine.

Everything here runs in the trio thread. Not here: any of what the tasks do.
"""

from __future__ import annotations

import logging
import secrets
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import trio

from fsdecloud.config import Paths, write_private_file
from fsdecloud.crypto import sign
from fsdecloud.errors import FsdecloudError, UsageError
from fsdecloud.ledger.network import NetworkDocument, network_id
from fsdecloud.ledgerd.api import LocalApi
from fsdecloud.ledgerd.asking import Asker
from fsdecloud.ledgerd.clock import SteadyClock
from fsdecloud.ledgerd.conduct import Bans
from fsdecloud.ledgerd.hub import INBOUND_MAX, SPARE, Hub, fetch_network
from fsdecloud.ledgerd.keeper import Keeper
from fsdecloud.ledgerd.light import LightKeeper
from fsdecloud.ledgerd.lightanswers import LightAnswers
from fsdecloud.ledgerd.lightapi import LightApi
from fsdecloud.ledgerd.rebuild import finish_rebuild
from fsdecloud.ledgerd.services import Services
from fsdecloud.ledgerd.settings import NO_WISHES, Settings, Wishes, load_settings
from fsdecloud.ledgerd.setup import (
    NodeConfig,
    book_path,
    chain_path,
    init_ledger,
    light_path,
    load_config,
    load_network,
    load_node_seed,
    read_network_file,
    save_config,
)
from fsdecloud.ledgerd.snapshot import prepare_snapshot
from fsdecloud.net.address import Address, format_endpoint, parse_endpoint, parse_url
from fsdecloud.net.discovery import load_book
from fsdecloud.net.unix import serve_unix
from fsdecloud.net.websocket import serve
from fsdecloud.readiness import notify, report_ready
from fsdecloud.store.chain import ChainStore, open_chain
from fsdecloud.store.lockfile import acquire_lock
from fsdecloud.types import PeerId
from fsdecloud.wire import gossip

log = logging.getLogger(__name__)

DEFAULT_LISTEN = "127.0.0.1:0"

SAVE_PAUSE = 1.0
"""Seconds between two times that the address book is written; the first change is written at once: whoever is killed finds the
others again."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    wishes: Wishes = NO_WISHES
    """Mining, work for others, pages."""
    listen: str | None = None
    advertise: str | None = None
    bootstrap: tuple[str, ...] = ()
    network_file: Path | None = None
    mine: bool | None = None
    """None: mine unless the network mines idly."""
    minimum_work: int = 0
    """Hashes; a chain with less is not followed."""
    body_limit: int | None = None
    """Bytes of block bodies to keep; None for all."""
    ready_fd: int | None = None


async def run_daemon(paths: Paths, options: Options) -> None:
    """Run until SIGTERM or SIGINT. Raises UsageError, StoreError or a RemoteError when the daemon cannot start."""
    for url in options.bootstrap:
        parse_url(url)
    with acquire_lock(paths.lock_file("ledger")):
        document = await _find_network(paths, options)
        seed = load_node_seed(paths)
        config = load_config(paths)
        settings = load_settings(paths, options.wishes, mine=options.mine, was_light=config.light)
        if settings.light and options.body_limit is not None:
            raise UsageError("a light ledger daemon keeps no bodies at all: leave --prune or --light out")
        await trio.to_thread.run_sync(finish_rebuild, paths)
        path = light_path(paths) if settings.light else chain_path(paths)
        with await trio.to_thread.run_sync(open_chain, path, document) as store:
            await _Daemon(paths, options, settings, config, store, seed).run()


class _Daemon:
    """The running daemon's parts."""

    def __init__(
        self, paths: Paths, options: Options, settings: Settings, config: NodeConfig, store: ChainStore, seed: bytes
    ) -> None:
        self._paths = paths
        self._options = options
        self._seed = seed
        self._config = msgspec.structs.replace(config, light=settings.light)
        self._book_changed = trio.Event()
        self._node = PeerId(sign.public_key(seed))
        self._services: Services | None = None
        self._api: LocalApi | LightApi
        if settings.light:
            light = LightKeeper(store, SteadyClock())
            self._keeper: Keeper | LightKeeper = light
            self._hub = self._open_hub(light)
            answers = LightAnswers(light, Asker(light, self._hub.sync.sessions, self._hub.sync.changed))
            self._api = LightApi(light, self._hub, answers)
        else:
            prepare_snapshot(store, settings.snapshot)
            keeper = Keeper(store, SteadyClock(), options.body_limit)
            self._keeper = keeper
            self._hub = self._open_hub(keeper)
            self._services = Services(paths, settings, keeper, self._hub, seed)
            self._api = LocalApi(keeper, self._hub, self._services)

    def _open_hub(self, keeper: Keeper | LightKeeper) -> Hub:
        return Hub(
            keeper,
            self._node,
            secrets.token_bytes(32),
            changed=self._remember,
            book=load_book(book_path(self._paths), self._node),
            bans=Bans(self._config.bans),
            minimum_work=self._options.minimum_work,
        )

    async def run(self) -> None:
        """Serve until a signal comes."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with trio.open_nursery() as nursery:
                await self._open_port(nursery)
                self._hub.hear(self._config.addresses, "")
                self._config = msgspec.structs.replace(self._config, addresses=())
                self._remember(is_new=True)
                self._hub.give(self._options.bootstrap)
                await nursery.start(serve_unix, self._paths.socket("ledger"), self._api.methods_for)
                nursery.start_soon(self._hub.run)
                nursery.start_soon(self._save_book)
                if self._services is not None:
                    await self._services.start(nursery, self._options.advertise or socket.gethostname())
                tip = self._keeper.tip
                where = f"listening at {self._hub.url}" if self._hub.url else "light: headers only"
                log.info("network %s, height %d, %s", self._keeper.network.hex(), tip.height, where)
                facts = {"url": self._hub.url, "network": self._keeper.network.hex(), "height": tip.height}
                report_ready(self._options.ready_fd, facts)
                async for number in signals:
                    if number == signal.SIGHUP:
                        log.info(
                            "SIGHUP: there is nothing to read again; addresses come from the command line and from others"
                        )
                        continue
                    log.info("%s: stopping", signal.Signals(number).name)
                    notify("STOPPING=1")
                    nursery.cancel_scope.cancel()
                    break

    async def _open_port(self, nursery: trio.Nursery) -> None:
        """Let others call, unless this daemon has nothing for them."""
        if not self._hub.is_light:
            host, port = await self._listen(nursery)
            self._hub.url = str(Address(self._advertised(host), port, self._node, self._keeper.network))
            self._config = msgspec.structs.replace(self._config, listen=format_endpoint(host, port))

    async def _listen(self, nursery: trio.Nursery) -> tuple[str, int]:
        """Listen where the command line says, or else where the last run did; return host and port."""
        host, port = parse_endpoint(self._options.listen or self._config.listen or DEFAULT_LISTEN)
        candidates = [port]
        if self._config.listen:
            last_host, last_port = parse_endpoint(self._config.listen)
            if port == 0 and last_host == host:
                candidates = [last_port, 0]
            elif self._options.listen is None:
                candidates = [port, 0]
        for candidate in candidates:
            server = partial(
                serve,
                host,
                candidate,
                self._seed,
                gossip.SUBPROTOCOL,
                self._hub.serve,
                connections_max=INBOUND_MAX + SPARE,
            )
            try:
                return host, await nursery.start(server)
            except UsageError as exc:
                if candidate == candidates[-1]:
                    raise
                log.warning("%s; taking another port", exc)
        raise AssertionError("the last candidate returns or raises")

    def _advertised(self, host: str) -> str:
        if self._options.advertise is not None:
            return self._options.advertise
        return socket.gethostname() if host in ("0.0.0.0", "::") else host  # noqa: S104 - compared, not bound

    def _remember(self, *, is_new: bool = False) -> None:
        """Keep what the next run needs besides the chain; the address book follows within SAVE_PAUSE."""
        if not is_new:
            self._book_changed.set()
        bans = self._hub.bans.entries()
        if is_new or bans != self._config.bans:
            self._config = msgspec.structs.replace(self._config, bans=bans)
            save_config(self._paths, self._config)

    async def _save_book(self) -> None:
        """Write the address book when it has changed, and once more at the end."""
        try:
            while True:
                await self._book_changed.wait()
                self._book_changed = trio.Event()
                await trio.to_thread.run_sync(self._write_book, self._hub.addresses.book.encode())
                await trio.sleep(SAVE_PAUSE)
        finally:
            self._write_book(self._hub.addresses.book.encode())

    def _write_book(self, data: bytes) -> None:
        try:
            write_private_file(book_path(self._paths), data)
        except OSError as exc:
            log.warning("cannot write %s: %s", book_path(self._paths), exc)


async def _find_network(paths: Paths, options: Options) -> NetworkDocument:
    """Return the network this machine is in, joining it first if it is in none."""
    if options.network_file is not None:
        document = read_network_file(options.network_file)
        init_ledger(paths, document)
        return document
    present = load_network(paths)
    wanted = {a.network for a in map(parse_url, options.bootstrap) if a.network is not None}
    if present is not None:
        if wanted - {network_id(present)}:
            raise UsageError(
                f"this machine is in network {network_id(present).hex()}, a bootstrap address names another; "
                f"move {paths.ledger_state} away to join that one"
            )
        init_ledger(paths, present)
        return present
    if not options.bootstrap:
        raise UsageError("this machine is in no ledger network: give --bootstrap URL or --network FILE")
    document = await _ask_all([parse_url(url) for url in options.bootstrap])
    init_ledger(paths, document)
    return document


async def _ask_all(addresses: Sequence[Address]) -> NetworkDocument:
    """Return the first answer of the bootstrap addresses. Raises the last one's error when none answers."""
    for address in addresses[:-1]:
        try:
            return await fetch_network(address)
        except FsdecloudError as exc:
            log.warning("%s", exc)
    return await fetch_network(addresses[-1])
