"""One connection to another ledger daemon: what it asks is answered, what it knows more is fetched (`wire.gossip`).

Three tasks: the reader answers and takes; the writer sends answers and, coalesced, announcements, so that a slow reader on
the other side costs bounded memory; the syncer fetches headers, then blocks, whenever the other claims more work. One
session syncs at a time. Headers are checked before a single block is asked for, and only a branch with more work than ours
is fetched. Everything here runs in the trio thread. Not here: who is connected to whom (`dialer`).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from fsdecloud.errors import InvalidBlock, InvalidTransaction, RemoteProtocolError, RemoteTimeout
from fsdecloud.ledger.blocks import Header, block_id, decode_header
from fsdecloud.ledger.chain import Point, check_header, locator
from fsdecloud.ledger.network import encode_network
from fsdecloud.ledger.reasons import BadSignature, MalformedTransaction, ReorgTooDeep, TimeTooNew
from fsdecloud.limits import REQUEST_TIMEOUT
from fsdecloud.net.websocket import Channel
from fsdecloud.types import BlockId, TxId
from fsdecloud.wire import gossip

if TYPE_CHECKING:
    from fsdecloud.ledgerd.hub import Hub

log = logging.getLogger(__name__)

M = TypeVar("M")

ANSWERS_MAX: Final = 8
"""Unsent answers past which no further question is read."""

OFFERS_MAX: Final = 20_000
"""Unsent offers kept for one session; more are left out: a transaction comes by other ways."""

FETCH_BATCH: Final = 32
"""Blocks asked for at once."""

SEND_TIMEOUT: Final = 60.0
"""The other side must take a message within this time."""


class Session:
    """One connected daemon. `run` ends, or raises, when the connection does."""

    def __init__(self, hub: Hub, channel: Channel, *, inbound: bool, url: str = "") -> None:
        self._hub = hub
        self._keeper = hub.keeper
        self._channel = channel
        self.inbound = inbound
        self.url = url
        """Where the other is reached, as dialled or as it says."""
        self.id = None if inbound else channel.server_key
        """The other's key if it proved it."""
        self.height = 0
        self.work = bytes(32)
        """What it claims."""
        self._announced: bytes | None = None
        self._answers: deque[bytes] = deque()
        self._offers: dict[TxId, None] = {}
        self._tip_pending = False
        self._wake_writer = trio.Event()
        self._room = trio.Event()
        self._sync_wanted = trio.Event()
        self._expected: type | None = None
        self._answered = trio.Event()
        self._answer: gossip.Message | None = None
        self._asked_txs: dict[TxId, None] = {}
        self._greeted = False

    @property
    def remote(self) -> str:
        """The other end's address, for logs."""
        return self._channel.remote

    # ---- called by the hub -----------------------------------------------------------------------------------------
    def announce_tip(self) -> None:
        """Tell the other of our tip soon, unless it knows as good a one."""
        if self.work < self._keeper.tip.work:
            self._tip_pending = True
            self._wake_writer.set()

    def offer(self, identity: TxId) -> None:
        """Tell the other of a transaction soon, unless it came from there."""
        if identity not in self._asked_txs and len(self._offers) < OFFERS_MAX:
            self._offers[identity] = None
            self._wake_writer.set()

    async def run(self) -> None:
        """Serve the connection until it ends. Raises PeerUnavailable, RemoteProtocolError or RemoteTimeout."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                self._send(self._hub.hello())
                await self._greet()
                self._hub.add(self)
                self._send(gossip.GetPeers())
                for identity in self._keeper.pool.ids():
                    self.offer(identity)
                nursery.start_soon(self._sync_when_wanted)
                await self._read()
        except BaseExceptionGroup as group:
            rest = group.split(trio.Cancelled)[1]
            if rest is not None and len(rest.exceptions) == 1:
                raise rest.exceptions[0] from None  # the one reason; the rest was cancelled by it
            raise
        finally:
            self._hub.remove(self)

    # ---- sending ---------------------------------------------------------------------------------------------------
    def _send(self, message: gossip.Message) -> None:
        self._answers.append(gossip.encode_message(message))
        self._wake_writer.set()

    async def _write(self) -> None:
        while True:
            await self._wake_writer.wait()
            self._wake_writer = trio.Event()
            while (data := self._next_message()) is not None:
                with trio.move_on_after(SEND_TIMEOUT) as scope:
                    await self._channel.send(data)
                if scope.cancelled_caught:
                    raise RemoteTimeout(f"{self.remote} does not read what it is sent")
                self._room.set()
                self._room = trio.Event()

    def _next_message(self) -> bytes | None:
        if self._answers:
            return self._answers.popleft()
        if self._tip_pending:
            self._tip_pending = False
            tip = self._keeper.tip
            header = self._keeper.store.header(tip.id)
            if header is not None and self.work < tip.work:
                return gossip.encode_message(gossip.NewTip(header, tip.work))
        if self._offers:
            ids = tuple(self._offers)[: gossip.IDS_MAX]
            for identity in ids:
                del self._offers[identity]
            return gossip.encode_message(gossip.Offer(ids))
        return None

    # ---- reading ---------------------------------------------------------------------------------------------------
    async def _receive(self) -> gossip.Message:
        return gossip.decode_message(await self._channel.receive())

    async def _greet(self) -> None:
        with trio.move_on_after(REQUEST_TIMEOUT) as scope:
            while not self._greeted:
                message = await self._receive()
                if isinstance(message, gossip.GetNetwork):
                    self._send(gossip.Network(encode_network(self._keeper.document)))
                elif isinstance(message, gossip.Hello):
                    self._take_hello(message)
                else:
                    raise RemoteProtocolError(f"{type(message).__name__} before Hello")
        if scope.cancelled_caught:
            raise RemoteTimeout(f"{self.remote} did not say hello")

    def _take_hello(self, hello: gossip.Hello) -> None:
        if hello.version != gossip.VERSION:
            raise RemoteProtocolError(f"it speaks version {hello.version}, we speak {gossip.VERSION}")
        if hello.network != self._keeper.network:
            raise RemoteProtocolError(f"it is in network {hello.network.hex()}, we are in {self._keeper.network.hex()}")
        if hello.nonce == self._hub.nonce:
            self._hub.is_myself(self)
            raise RemoteProtocolError("we called ourselves")
        self._greeted = self._channel.is_greeted = True
        self.url = self.url or hello.url
        self.height = hello.height
        self._claim(hello.work, None)
        if hello.url:
            self._hub.learn((hello.url,))

    async def _read(self) -> None:
        while True:
            while len(self._answers) > ANSWERS_MAX:
                await self._room.wait()
            message = await self._receive()
            await self._take(message)

    async def _take(self, message: gossip.Message) -> None:
        store = self._keeper.store
        match message:
            case gossip.GetHeaders():
                self._send(gossip.Headers(store.headers_after(message.locator, gossip.HEADERS_MAX)))
            case gossip.GetBlocks():
                asked = store.point(BlockId(message.ids[-1]))
                self.height = max(self.height, 0 if asked is None else asked.height)
                self._send(gossip.Blocks(tuple(_fill(store.block(BlockId(i)) for i in message.ids))))
            case gossip.GetTxs():
                self._send(gossip.Txs(tuple(_fill(self._keeper.pool.get(TxId(i)) for i in message.ids))))
            case gossip.GetPeers():
                self._send(gossip.Peers(self._hub.known_urls()[: gossip.PEERS_MAX]))
            case gossip.GetNetwork():
                self._send(gossip.Network(encode_network(self._keeper.document)))
            case gossip.NewTip():
                self._claim(message.work, message.header)
            case gossip.Offer():
                self._take_offer(message)
            case gossip.Txs():
                await self._take_txs(message)
            case gossip.Peers():
                self._hub.learn(message.urls)
            case gossip.Headers() | gossip.Blocks():
                if self._expected is not type(message):
                    raise RemoteProtocolError(f"{type(message).__name__} that nobody asked for")
                self._expected, self._answer = None, message
                self._answered.set()
            case _:
                raise RemoteProtocolError(f"{type(message).__name__} out of place")

    def _claim(self, work: bytes, header: bytes | None) -> None:
        self.work, self._announced = work, header
        if work > self._keeper.tip.work:
            self._sync_wanted.set()

    def _take_offer(self, offer: gossip.Offer) -> None:
        unknown = [
            TxId(i)
            for i in offer.ids
            if TxId(i) not in self._keeper.pool and self._keeper.store.find_tx(TxId(i)) is None
        ]
        for start in range(0, len(unknown), gossip.TXS_MAX):
            ids = unknown[start : start + gossip.TXS_MAX]
            self._asked_txs.update(dict.fromkeys(ids))
            self._send(gossip.GetTxs(tuple(ids)))
        while len(self._asked_txs) > OFFERS_MAX:
            del self._asked_txs[next(iter(self._asked_txs))]

    async def _take_txs(self, message: gossip.Txs) -> None:
        for data in message.txs:
            try:
                self._keeper.submit(data)
            except (MalformedTransaction, BadSignature) as exc:
                raise RemoteProtocolError(f"it relays an invalid transaction: {exc}") from exc
            except InvalidTransaction as exc:
                log.debug("%s: transaction refused: %s", self.remote, exc)  # valid there, perhaps: another tip
            await trio.lowlevel.checkpoint()

    # ---- syncing ---------------------------------------------------------------------------------------------------
    async def _sync_when_wanted(self) -> None:
        while True:
            await self._sync_wanted.wait()
            self._sync_wanted = trio.Event()
            async with self._hub.sync_lock:
                await self._sync()

    async def _sync(self) -> None:
        """Fetch what the other has beyond us, branch by branch."""
        while self.work > self._keeper.tip.work:
            try:
                branch = await self._collect_headers()
            except ReorgTooDeep as exc:
                self._keeper.raise_alarm(str(exc))
                branch = []
            if not branch or not await self._fetch_blocks(branch):
                # Its claim is not backed, or not yet: until it says something new there is nothing to fetch.
                self.work, self._announced = min(self.work, self._keeper.tip.work), None
                return
            self.height = max(self.height, self._keeper.tip.height)

    async def _collect_headers(self) -> list[Point]:
        """Return the points of a branch of the other's chain that has more work than ours; empty if it has none.

        Raises RemoteProtocolError on an invalid header, ReorgTooDeep when the branch begins below our final blocks.
        """
        headers, more = await self._first_headers()
        branch: list[Point] = []
        last: Point | None = None
        while headers:
            last, is_complete = self._extend(branch, headers, last)
            if branch and branch[-1].work > self._keeper.tip.work:
                return branch
            if not more or not is_complete or len(branch) > self._branch_max():
                break
            answer = await self._ask(gossip.GetHeaders((last.id,)), gossip.Headers)
            headers, more = answer.headers, len(answer.headers) == gossip.HEADERS_MAX
        return []

    async def _first_headers(self) -> tuple[tuple[bytes, ...], bool]:
        """Return the first headers to look at and whether the other may have more."""
        announced = self._announced
        if announced is not None:
            header = self._decode_header(announced)
            if self._keeper.store.point(BlockId(header.parent)) is not None:
                return (announced,), False
        ids = locator(self._keeper.tip, self._keeper.store.best_at)
        answer = await self._ask(gossip.GetHeaders(ids[: gossip.LOCATOR_MAX]), gossip.Headers)
        return answer.headers, len(answer.headers) == gossip.HEADERS_MAX

    def _extend(self, branch: list[Point], headers: tuple[bytes, ...], last: Point | None) -> tuple[Point, bool]:
        """Check headers that follow `last` (None: a stored block) and append those of blocks not stored yet.

        Returns the last point, and False when a header's time says that the rest must wait.
        """
        store, document = self._keeper.store, self._keeper.document
        for data in headers:
            header = self._decode_header(data)
            parent = last if last is not None else store.point(BlockId(header.parent))
            if parent is None:
                raise RemoteProtocolError("it sent headers that do not follow a block we named")
            last = parent
            identity = block_id(header)
            reason = store.invalid_reason(identity)
            if reason is not None:
                raise RemoteProtocolError(f"its chain holds a block that is invalid: {reason}")
            stored = None if branch else store.point(identity)
            if stored is not None and stored.parent == parent.id:
                last = stored
                continue
            if not branch and parent.height < self._keeper.tip.height - document.finality_depth:
                raise ReorgTooDeep(
                    f"{self.remote} has a chain with more work that leaves ours at block {parent.height}"
                )
            try:
                last = check_header(document, parent, header, self._keeper.now())
            except TimeTooNew as exc:
                log.info("%s: %s", self.remote, exc)
                return last, False
            except InvalidBlock as exc:
                raise RemoteProtocolError(f"it sent an invalid header: {type(exc).__name__}: {exc}") from exc
            branch.append(last)
        assert last is not None
        return last, True

    async def _fetch_blocks(self, branch: list[Point]) -> bool:
        """Fetch and accept the branch's blocks; False when the other cannot give them."""
        wanted = [point for point in branch if self._keeper.store.point(point.id) is None]
        while wanted:
            ids = tuple(point.id for point in wanted[:FETCH_BATCH])
            answer = await self._ask(gossip.GetBlocks(ids), gossip.Blocks)
            if not answer.blocks:
                return False
            if len(answer.blocks) > len(ids):
                raise RemoteProtocolError("more blocks than were asked for")
            for point, data in zip(wanted, answer.blocks, strict=False):
                try:
                    accepted = await self._keeper.accept(data)
                except ReorgTooDeep:
                    raise
                except InvalidBlock as exc:
                    raise RemoteProtocolError(
                        f"it sent an invalid block {point.height}: {type(exc).__name__}: {exc}"
                    ) from exc
                if accepted.point.id != point.id:
                    raise RemoteProtocolError("another block than was asked for")
            wanted = wanted[len(answer.blocks) :]
        return True

    async def _ask(self, question: gossip.Message, kind: type[M]) -> M:
        """Ask, and return the answer. Raises RemoteTimeout."""
        self._expected, self._answered, self._answer = kind, trio.Event(), None
        self._send(question)
        with trio.move_on_after(REQUEST_TIMEOUT) as scope:
            await self._answered.wait()
        if scope.cancelled_caught:
            raise RemoteTimeout(f"{self.remote} did not answer {type(question).__name__}")
        answer = self._answer
        assert isinstance(answer, kind)
        return answer

    def _branch_max(self) -> int:
        """Headers kept in memory for one branch: it may begin no deeper than the final depth."""
        return 4 * self._keeper.document.finality_depth + 2 * gossip.HEADERS_MAX

    @staticmethod
    def _decode_header(data: bytes) -> Header:
        try:
            return decode_header(data)
        except InvalidBlock as exc:
            raise RemoteProtocolError(f"it sent a malformed header: {exc}") from exc


def _fill(items: Iterable[bytes | None]) -> list[bytes]:
    """Return the leading items that fit one answer, leaving out what is not at hand; one always fits."""
    found: list[bytes] = []
    size = 0
    for item in items:
        if item is None:
            continue
        size += len(item)
        if found and size > gossip.BATCH_BYTES:
            break
        found.append(item)
    return found
