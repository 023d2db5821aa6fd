"""How the storage peer starts, runs and ends."""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Final

import trio

from fsdecloud.config import Paths
from fsdecloud.crypto import sign
from fsdecloud.errors import UsageError
from fsdecloud.net import websocket
from fsdecloud.net.address import format_endpoint, parse_endpoint
from fsdecloud.net.lan import Lan
from fsdecloud.net.nursery import open_background
from fsdecloud.net.pool import PeerPool, open_pool
from fsdecloud.net.unix import Methods, serve_unix
from fsdecloud.peerd import operators, setup
from fsdecloud.peerd.dealing import Dealer, DealsState, Offer
from fsdecloud.peerd.departure import Departure
from fsdecloud.peerd.directory import Directory
from fsdecloud.peerd.exchange import Exchange
from fsdecloud.peerd.forwarding import Forwarding
from fsdecloud.peerd.proving import Prover
from fsdecloud.peerd.registration import Registrar
from fsdecloud.peerd.server import PeerService
from fsdecloud.peerd.votejournal import FILE_NAME as VOTES
from fsdecloud.peerd.voting import Voter
from fsdecloud.peerd.writer import ShardWriter
from fsdecloud.readiness import notify, report_ready
from fsdecloud.store.lockfile import acquire_lock
from fsdecloud.store.shards import ShardStore
from fsdecloud.store.shardsets import ShardSets
from fsdecloud.types import PeerId, ShardId
from fsdecloud.wire import peer as wire
from fsdecloud.wire.agentapi import Empty
from fsdecloud.wire.peerapi import HOLDERS_MAX, Announce, DealsStatus, Departing, Holder, PeerdStatus

log = logging.getLogger(__name__)

PR_SET_DUMPABLE: Final = 4
"""prctl(2)."""

SETS: Final = "sets"
DEALS: Final = "deals"
"""Directories of the shard sets of deals (`store.shardsets`), and of the deals (`peerd.dealbook`)."""

DAY: Final = 24 * 3600.0

MAINTENANCE_LOOK: Final = 60.0
"""Seconds between two looks at whether a maintenance has ended."""

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
        if config.price:
            setup.require_contracts(paths, config.network)
        store = stack.enter_context(ShardStore(paths.peer_state(name), config.quota, reserve=config.reserve))
        store.deal_max = config.quota * config.deal_share // 100 if config.deal_share < 100 else 0
        trio.run(_main, paths, name, config, seed, store, ready_fd)


async def _main(
    paths: Paths, name: str, config: setup.PeerConfig, seed: bytes, store: ShardStore, ready_fd: int | None
) -> None:
    with ExitStack() as stack:
        async with open_pool(network=config.network) as pool:
            await _serve(paths, name, config, seed, store, pool, stack, ready_fd)


async def _serve(
    paths: Paths,
    name: str,
    config: setup.PeerConfig,
    seed: bytes,
    store: ShardStore,
    pool: PeerPool,
    stack: ExitStack,
    ready_fd: int | None,
) -> None:
    peer = PeerId(sign.public_key(seed))
    writer = ShardWriter(store)
    departure = Departure(paths.peer_state(name) / "departure.toml")
    directory = Directory(socket=paths.socket("ledger"), network=config.network, peer=peer)
    exchange = Exchange(
        pool=pool,
        directory=directory,
        path=paths.peer_state(name) / "known",
        network=config.network,
        peer=peer,
        bootstrap=setup.parse_bootstrap(config.bootstrap),
    )
    dealer, prover = _open_dealer(stack, paths, name, config, seed, store, lambda s: service.scrubber.suspect(s))
    service = PeerService(
        seed=seed,
        peer=peer,
        network=config.network,
        store=store,
        writer=writer,
        policy=setup.Policy(paths.peer_state(name) / "policy.toml"),
        grace=config.grace,
        limits=config.limits,
        departure=departure,
        scrub_period=config.scrub_days * DAY,
        forwarding=Forwarding(peer=peer, network=config.network, pool=pool, directory=directory),
        exchange=exchange,
        lease=config.lease,
        lease_grace=config.lease_grace,
        deals=dealer,
    )
    async with open_background() as nursery:
        nursery.start_soon(_stop_on_signal, nursery.cancel_scope)
        nursery.start_soon(writer.run)
        nursery.start_soon(service.deleter.run)
        nursery.start_soon(service.scrubber.run)
        nursery.start_soon(service.leaser.run)
        if prover is not None and dealer is not None:
            nursery.start_soon(prover.run)
            nursery.start_soon(dealer.run)
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
            capacity=_capacity(config, departure),
            price=config.price,
            declaration=operators.load_declaration(paths, name),
        )
        voter = Voter(
            socket=paths.socket("ledger"),
            journal=paths.peer_state(name) / VOTES,
            seed=seed,
            peer=peer,
            network=config.network,
        )
        nursery.start_soon(voter.run)
        if url:
            exchange.announce(seed, url)
        nursery.start_soon(exchange.run)
        if config.lan:
            lan = Lan(network=config.network, hint=exchange.seeker.hint, peer=peer, host=host, port=bound)
            nursery.start_soon(lan.run)
        if url:
            nursery.start_soon(registrar.run)
            nursery.start_soon(_end_maintenance, config, departure, registrar)
        else:
            log.warning("not registered: it listens on %s; set announce in peer.toml", config.listen)

        async def status(_params: Empty) -> PeerdStatus:
            # Many leases take a tenth of a second to count, in which nobody else would be served.
            leases = await trio.to_thread.run_sync(service.leaser.counts)
            return _status(name, url, config, store, service, registrar, voter, peer, writer, departure, leases, dealer)

        async def announce(params: Announce) -> Departing:
            if params.what:
                log.info("asked to %s", params.what)
                _announce(params, departure, store)
                registrar.announce(_capacity(config, departure))
            return await trio.to_thread.run_sync(_departing, config, departure, registrar, store)

        def methods(_connection: object) -> Methods:
            return {"status": (Empty, status), "announce": (Announce, announce)}, {}

        await nursery.start(
            lambda task_status: serve_unix(paths.socket(f"peer-{name}"), methods, task_status=task_status)
        )
        log.info("peer %s serves at %s", peer.hex(), url or config.listen)
        report_ready(ready_fd, {"id": peer.hex(), "url": url, "port": bound})
        await trio.sleep_forever()


def _open_dealer(
    stack: ExitStack,
    paths: Paths,
    name: str,
    config: setup.PeerConfig,
    seed: bytes,
    store: ShardStore,
    suspect: Callable[[ShardId], object],
) -> tuple[Dealer, Prover] | tuple[None, None]:
    """Open what a peer with a price needs, or one whose deals of an earlier price still run. Raises StoreError."""
    directory = paths.peer_state(name)
    if not config.price and not (directory / DEALS).is_dir():
        return None, None
    sets = stack.enter_context(ShardSets(directory / SETS))
    prover = Prover(sets=sets, store=store, suspect=suspect)
    dealer = stack.enter_context(
        Dealer(
            seed=seed,
            peer=PeerId(sign.public_key(seed)),
            network=config.network,
            offer=Offer(config.price, config.collateral, config.deal_days, config.deal_credit),
            sets=sets,
            store=store,
            prover=prover,
            path=directory / DEALS,
            socket=paths.socket("ledger"),
            network_file=paths.ledger_state / "network",
        )
    )
    if not config.price and not dealer.status().running:
        return None, None
    return dealer, prover


def _capacity(config: setup.PeerConfig, departure: Departure) -> int:
    """Return what is registered: nothing while nothing new is taken."""
    return 0 if departure.reason else config.quota


def _announce(params: Announce, departure: Departure, store: ShardStore) -> None:
    if params.what == "leave":
        departure.leave(max(store.counts()[0] - store.doomed_count(), 0))
    elif params.what == "maintenance":
        departure.pause(params.seconds)
    elif params.what == "stay":
        departure.stay()
    else:
        raise UsageError(f"a peer does not {params.what!r}")


async def _end_maintenance(config: setup.PeerConfig, departure: Departure, registrar: Registrar) -> None:
    """Register the capacity again when a maintenance has ended."""
    while True:
        await trio.sleep(MAINTENANCE_LOOK)
        registrar.announce(_capacity(config, departure))


def _departing(config: setup.PeerConfig, departure: Departure, registrar: Registrar, store: ShardStore) -> Departing:
    shards, size = store.counts()
    doomed = store.doomed_count()
    return Departing(
        reason=departure.reason,
        since=departure.since,
        is_registered=registrar.announced == _capacity(config, departure),
        shards=max(shards - doomed, 0),
        size=size,
        doomed_shards=doomed,
        holders=tuple(Holder(*holder) for holder in store.holders(HOLDERS_MAX)),
    )


def _status(
    name: str,
    url: str,
    config: setup.PeerConfig,
    store: ShardStore,
    service: PeerService,
    registrar: Registrar,
    voter: Voter,
    peer: PeerId,
    writer: ShardWriter,
    departure: Departure,
    leases: tuple[int, int],
    dealer: Dealer | None,
) -> PeerdStatus:
    counters = service.counters
    scrub = service.scrubber.progress
    shards, _ = store.counts()
    expiring, expired = leases
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
        last_error=writer.last_error or service.scrubber.last_error or registrar.error or voter.error,
        reserve=config.reserve,
        requests=counters.requests,
        received_bytes=counters.received_bytes,
        sent_bytes=counters.sent_bytes,
        delays=service.clients.delays,
        refusals=tuple(sorted(counters.refusals.items())),
        departure=departure.reason,
        damaged_shards=store.damaged_count(),
        damaged_found=scrub.found,
        scrub_started=scrub.started,
        scrub_finished=scrub.finished,
        scrub_shards=scrub.shards,
        scrub_bytes=scrub.size,
        scrub_errors=service.scrubber.errors,
        price=config.price,
        forwarded_requests=service.forwarding.forwarded_requests if service.forwarding else 0,
        forwarded_bytes=service.forwarding.forwarded_bytes if service.forwarding else 0,
        known_peers=len(service.exchange.book) if service.exchange else 0,
        tested_peers=service.exchange.book.tried_count if service.exchange else 0,
        lease=config.lease,
        renewed_shards=service.leaser.renewed_shards,
        expiring_shards=expiring,
        expired_shards=expired,
        removed_expired=service.leaser.expired_shards,
        departure_since=departure.since,
        departure_shards=departure.shards,
        operator=registrar.operator,
        is_operator_registered=registrar.is_operator_registered,
        stake=voter.stake.amount if voter.stake is not None else 0,
        stake_weight=voter.stake.weight if voter.stake is not None else 0,
        stake_release=voter.stake.release if voter.stake is not None else 0,
        is_stake_burned=voter.stake is not None and voter.stake.is_burned,
        last_vote=voter.last_vote,
        deals=_deals(dealer.status()) if dealer is not None else None,
    )


def _deals(state: DealsState) -> DealsStatus:
    return DealsStatus(
        running=state.running,
        ended=state.ended,
        size=state.bytes,
        earned=state.earned,
        paid=state.paid,
        collateral=state.collateral,
        next_proof=state.next_proof,
        trouble=state.trouble,
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
