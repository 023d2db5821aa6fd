"""The agent as the driver sees it: answers `wire.agentapi` over the socket pair.

Called only from the trio thread. The agent lives as long as its connection to the driver. Everything is built when the
driver says hello; before that, and after a hello that failed, every other call is refused.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

import trio

from fsdecloud.agent.peer import Transport
from fsdecloud.agent.stack import Notice, Stack, open_stack
from fsdecloud.errors import FsdecloudError, LocalProtocolError, MalformedError, RemoteError
from fsdecloud.net.nursery import open_background
from fsdecloud.net.pool import Owner
from fsdecloud.net.unix import Handler, RpcConnection, open_rpc
from fsdecloud.swarm.policy import parse_redundancy
from fsdecloud.types import PeerId
from fsdecloud.wire.agentapi import (
    KNOWN_MAX,
    AgentHello,
    AgentReady,
    AgentStatus,
    Bandwidth,
    Budget,
    Empty,
    EntryNames,
    FetchedEntry,
    FetchEntry,
    GcGranted,
    GcSweep,
    GcSwept,
    GrantKey,
    Holders,
    LedgerVolume,
    MapCommit,
    NotePayment,
    PeerName,
    ReachQuery,
    ReceiptPage,
    Registry,
    ShardPage,
    ShardQuery,
    SignedGrant,
    SignedPayment,
    SignGrant,
    SignPayment,
    StoreEntries,
    StoreManifest,
    SubmitAnchor,
    WantedRedundancy,
)

log = logging.getLogger(__name__)

OpenTransport = Callable[[AgentHello, Owner], AbstractAsyncContextManager[Transport]]
"""How the connections to peers are made: `net.pool`, or a test's stand-in."""

ASK_TIMEOUT: Final = 8.0
"""Seconds in which the driver must answer: less than a peer waits for a hello."""

NOTICE_RETRY: Final = 0.05
"""Seconds until the next try while the driver does not read its notices."""


class Service:
    """One driver's agent."""

    def __init__(self, open_transport: OpenTransport) -> None:
        self._open_transport = open_transport
        self._hello: AgentHello | None = None
        self._said_hello = trio.Event()
        self._answered = trio.Event()
        self._failure: FsdecloudError | None = None
        self._stack: Stack | None = None
        self._connection: RpcConnection | None = None
        self._owners: dict[PeerId, bytes] = {}
        self._notices: deque[tuple[str, Notice]] = deque()
        self._wake_notices = trio.Event()

    async def run(self, stream: trio.abc.Stream) -> None:
        """Serve the driver at the other end of `stream` until it closes it."""
        async with open_rpc(stream, self._handlers()) as connection, open_background() as nursery:
            self._connection = connection
            nursery.start_soon(self._work)
            nursery.start_soon(self._send_notices, connection)
            await connection.wait_closed()

    async def _work(self) -> None:
        """Build the agent when the driver has said hello, and keep it running."""
        await self._said_hello.wait()
        assert self._hello is not None
        try:
            transport = self._open_transport(self._hello, self._owner)
            async with open_stack(
                self._hello, transport, self._notify, self._sign, self._pay, self._note_refund
            ) as stack:
                self._stack = stack
                self._answered.set()
                stack.outbox.announce()
                stack.announce_garbage()
                await trio.sleep_forever()
        except FsdecloudError as exc:
            if self._stack is not None:
                raise  # it failed while it worked: end, so that the driver starts a new agent
            self._failure = exc
            self._answered.set()

    async def _owner(self, peer: PeerId) -> bytes:
        """Return the key that may delete at a peer, which the driver alone has the secret of."""
        if peer not in self._owners:
            assert self._connection is not None
            found = await self._connection.call("grant_key", PeerName(peer), GrantKey, timeout=ASK_TIMEOUT)
            self._owners[peer] = found.key
        return self._owners[peer]

    async def _sign(self, request: SignGrant) -> SignedGrant:
        assert self._connection is not None
        return await self._connection.call("sign_grant", request, SignedGrant, timeout=ASK_TIMEOUT)

    async def _pay(self, request: SignPayment) -> SignedPayment:
        assert self._connection is not None
        return await self._connection.call("sign_payment", request, SignedPayment, timeout=ASK_TIMEOUT)

    async def _note_refund(self, request: NotePayment) -> None:
        assert self._connection is not None
        await self._connection.call("note_payment", request, Empty, timeout=ASK_TIMEOUT)

    # ---- notices ---------------------------------------------------------------------------------------------------
    def _notify(self, method: str, params: Notice) -> None:
        self._notices.append((method, params))
        self._wake_notices.set()

    async def _send_notices(self, connection: RpcConnection) -> None:
        """Pass notices on; while the driver does not read, they wait here."""
        while not connection.is_closed:
            if not self._notices:
                self._wake_notices = trio.Event()
                await self._wake_notices.wait()
            try:
                while self._notices:
                    connection.notify_nowait(*self._notices[0])
                    self._notices.popleft()
            except RemoteError:
                await trio.sleep(NOTICE_RETRY)

    # ---- calls -----------------------------------------------------------------------------------------------------
    def _handlers(self) -> dict[str, Handler]:
        return {
            "hello": (AgentHello, self._take_hello),
            "store": (StoreEntries, self._store),
            "flush": (Empty, self._flush),
            "fetch": (FetchEntry, self._fetch),
            "commit_map": (Empty, self._commit_map),
            "store_manifest": (StoreManifest, self._store_manifest),
            "submit": (SubmitAnchor, self._submit),
            "ledger_volume": (Empty, self._ledger_volume),
            "registry": (Empty, self._registry),
            "redundancy": (WantedRedundancy, self._redundancy),
            "bandwidth": (Bandwidth, self._bandwidth),
            "budget": (Budget, self._budget),
            "gc_begin": (Empty, self._gc_begin),
            "gc_sweep": (GcSweep, self._gc_sweep),
            "gc_grant": (Empty, self._gc_grant),
            "gc_end": (Empty, self._gc_end),
            "known": (EntryNames, self._known),
            "unreachable": (ReachQuery, self._unreachable),
            "shards": (ShardQuery, self._shards),
            "receipts": (ShardQuery, self._receipts),
            "status": (Empty, self._status),
        }

    @property
    def _agent(self) -> Stack:
        if self._stack is None:
            raise LocalProtocolError("the first call is hello" if self._failure is None else str(self._failure))
        return self._stack

    async def _take_hello(self, hello: AgentHello) -> AgentReady:
        if self._hello is not None:
            raise LocalProtocolError("hello was said already")
        self._hello = hello
        self._said_hello.set()
        await self._answered.wait()
        if self._failure is not None:
            raise self._failure
        return AgentReady(os.getpid())

    async def _store(self, request: StoreEntries) -> Empty:
        self._agent.uploader.add(request.entries)
        return Empty()

    async def _flush(self, _request: Empty) -> Empty:
        self._agent.uploader.flush()
        return Empty()

    async def _fetch(self, request: FetchEntry) -> FetchedEntry:
        return await self._agent.fetcher.fetch(request.id, ahead=request.ahead, holders=request.holders)

    async def _commit_map(self, _request: Empty) -> MapCommit:
        return await self._agent.commit_map()

    async def _store_manifest(self, request: StoreManifest) -> Holders:
        return await self._agent.store_manifest(request.data)

    async def _submit(self, request: SubmitAnchor) -> Empty:
        await self._agent.submit(request.tx, request.sequence, request.map_root)
        return Empty()

    async def _ledger_volume(self, _request: Empty) -> LedgerVolume:
        return await self._agent.ledger_volume()

    async def _registry(self, _request: Empty) -> Registry:
        return Registry(self._agent.book.registry)

    async def _redundancy(self, request: WantedRedundancy) -> Empty:
        self._agent.hosts.set_wanted(parse_redundancy(request.redundancy))
        return Empty()

    async def _bandwidth(self, request: Bandwidth) -> Empty:
        self._agent.limit(request)
        return Empty()

    async def _budget(self, request: Budget) -> Empty:
        if self._agent.dealer is not None:
            self._agent.dealer.set_budget(request.amount)
        return Empty()

    async def _status(self, _request: Empty) -> AgentStatus:
        return self._agent.status()

    async def _gc_begin(self, _request: Empty) -> Empty:
        self._agent.sweeper.begin()
        return Empty()

    async def _gc_sweep(self, request: GcSweep) -> GcSwept:
        return await self._agent.sweep(request)

    async def _gc_grant(self, _request: Empty) -> GcGranted:
        return await self._agent.grant()

    async def _gc_end(self, _request: Empty) -> Empty:
        self._agent.sweeper.end()
        return Empty()

    async def _known(self, request: EntryNames) -> EntryNames:
        if len(request.entries) > KNOWN_MAX:
            raise MalformedError(f"at most {KNOWN_MAX} entries at a time")
        return EntryNames(tuple(await self._agent.audit.unknown(request.entries)))

    async def _unreachable(self, request: ReachQuery) -> EntryNames:
        if len(request.entries) > KNOWN_MAX:
            raise MalformedError(f"at most {KNOWN_MAX} entries at a time")
        if request.probe:
            await self._agent.reach.probe()
        return EntryNames(tuple(await self._agent.reach.unreachable(request.entries)))

    async def _receipts(self, request: ShardQuery) -> ReceiptPage:
        return await self._agent.audit.receipts(request.after)

    async def _shards(self, request: ShardQuery) -> ShardPage:
        return await self._agent.audit.shards(request.after)
