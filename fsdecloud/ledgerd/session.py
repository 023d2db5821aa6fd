"""One connection to another ledger daemon: what it asks is answered, what it says is taken (`wire.gossip`).

Two tasks: the reader answers and takes; the writer sends answers and, coalesced, announcements, so that a slow reader on the
other side costs bounded memory. Others ask through `ask`: answers come in the order of the questions. Everything here runs in
the trio thread. Not here: who is connected to whom (`hub`), and what is asked when (`sync`).
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import trio

from fsdecloud.errors import (
    FsdecloudError,
    InvalidBlock,
    InvalidTransaction,
    PeerUnavailable,
    RemoteProtocolError,
    RemoteTimeout,
)
from fsdecloud.ledger.blocks import block_id, decode_block, decode_header
from fsdecloud.ledger.finality import NO_CLAIM, claim_of
from fsdecloud.ledger.network import encode_network
from fsdecloud.ledger.reasons import BadSignature, MalformedTransaction
from fsdecloud.ledger.transactions import decode_tx, tx_id
from fsdecloud.ledgerd import proving
from fsdecloud.ledgerd.conduct import Misbehaviour, Points
from fsdecloud.ledgerd.relay import Pacer
from fsdecloud.limits import REQUEST_TIMEOUT
from fsdecloud.net.address import Address
from fsdecloud.net.websocket import Channel
from fsdecloud.swarm.bucket import TokenBucket
from fsdecloud.types import BlockId, TxId
from fsdecloud.wire import gossip

if TYPE_CHECKING:
    from fsdecloud.ledgerd.hub import Hub

log = logging.getLogger(__name__)

M = TypeVar("M")

ANSWERS_MAX: Final = 8
"""Unsent answers past which no further question is read."""

OFFERS_MAX: Final = 20_000
"""Unsent offers kept for one session, ids remembered of what it was told and told; more are left out."""

OFFER_RATE: Final = 1000.0
OFFER_BURST: Final = 20_000.0
OFFER_DEBT: Final = 10.0
"""Offered transactions a second, at once after a silence, and seconds of debt from which on offers are spam."""

TX_RATE: Final = 200.0
TX_BURST: Final = 2000.0
"""Transactions a second that one session may give, and at once after a silence: each costs a signature's check. More wait."""

PEERS_RATE: Final = 1 / 60
PEERS_BURST: Final = 3.0
"""Questions for addresses that are answered."""

URL_RATE: Final = 0.1
URL_BURST: Final = 300.0
"""Addresses a second that one session may tell; more are left out."""

SPAM: Final = 20.0
UNASKED: Final = 10.0
"""Points for offers over the rate, and for a transaction that nobody asked for."""

_NOTHING: Final = object()

PROOF_RATE: Final = 200.0
PROOF_BURST: Final = 2000.0
"""Cost of proofs a second (`proving.cost_of`) that one session may ask for, and at once after a silence. More wait."""

HEADROOM: Final = 64 << 10
"""Bytes of a message that are not transactions, at most."""

ANSWERS: Final = (
    gossip.Headers,
    gossip.Blocks,
    gossip.Compact,
    gossip.BlockTxs,
    gossip.StateProof,
    gossip.Nodes,
    gossip.Anchors,
    gossip.TxProofs,
)

SEND_TIMEOUT: Final = 60.0
"""The other side must take a message within this time."""


class Session:
    """One connected daemon. `run` ends, or raises, when the connection does."""

    def __init__(self, hub: Hub, channel: Channel, *, inbound: bool, address: Address | None = None) -> None:
        """`address` is what was dialled; None for someone who called."""
        self._hub = hub
        self._keeper = hub.keeper
        self._channel = channel
        self.inbound = inbound
        self.address = address
        self.id = None if inbound else channel.server_key
        """The other's key if it proved it."""
        self.url = ""
        """Where the other is reached, as dialled or as it says."""
        if address is not None:
            self.url = str(Address(address.host, address.port, self.id, address.network))
        self.since = trio.current_time()
        self.last_block = 0.0
        self.last_tx = 0.0
        """When it came, and when it last gave us a new block and a new transaction; on trio's clock."""
        self.height = 0
        self.claim = NO_CLAIM
        """What it claims of its chain (`finality.claim_of`); a justified height counts only where bodies can show it."""
        self.asked_height = 0
        """Of the last block that it asked for."""
        self.first = 1
        """Height of the first block that it can give."""
        self.claims = 0
        """How often it claimed something."""
        self.announced: bytes | None = None
        """The header of its tip, if it told that."""
        self._points = Points(trio.current_time())
        self._answers: deque[bytes] = deque()
        self._offers: dict[TxId, None] = {}
        self._offers_due = False
        self._offers_wanted = trio.Event()
        self._pacer = hub.inbound_pacer if inbound else Pacer(hub.offer_mean)
        self._told: OrderedDict[TxId, None] = OrderedDict()
        """What it was offered: nothing else of the mempool is shown."""
        self._knows: OrderedDict[TxId, None] = OrderedDict()
        """What it offered itself."""
        self._asked: OrderedDict[TxId, None] = OrderedDict()
        """What it was asked for, and may give once, however late."""
        now = trio.current_time()
        self._offer_rate = TokenBucket(OFFER_RATE, OFFER_BURST, now)
        self._tx_rate = TokenBucket(TX_RATE, TX_BURST, now)
        self._peers_rate = TokenBucket(PEERS_RATE, PEERS_BURST, now)
        self._url_rate = TokenBucket(URL_RATE, URL_BURST, now)
        self._proof_rate = TokenBucket(PROOF_RATE, PROOF_BURST, now)
        self._tip_pending = False
        self._wake_writer = trio.Event()
        self._room = trio.Event()
        self._questions: deque[_Question] = deque()
        self._greeted = False
        self._scope: trio.CancelScope | None = None
        self._failure: FsdecloudError | None = None
        self._is_over = False

    @property
    def is_full(self) -> bool:
        """Whether the other keeps blocks, or the last of them: it takes transactions, and can prove what the state holds."""
        return self.first < gossip.NO_BODIES

    @property
    def is_ending(self) -> bool:
        """Whether the session is over, or about to be."""
        return self._is_over or self._failure is not None

    @property
    def remote(self) -> str:
        """The other end's address, for logs."""
        return self._channel.remote

    # ---- called by the hub -----------------------------------------------------------------------------------------
    def announce_tip(self) -> None:
        """Tell the other of our tip soon, unless it knows as good a one, or we have no blocks to give."""
        if not self._hub.is_light and self.claim < self._keeper.claim:
            self._tip_pending = True
            self._wake_writer.set()

    def offer(self, identity: TxId) -> None:
        """Tell the other of a transaction soon, unless it told us of it."""
        if self.is_full and identity not in self._knows and len(self._offers) < OFFERS_MAX:
            self._offers[identity] = None
            self._offers_wanted.set()

    def ask_for(self, ids: Sequence[TxId]) -> None:
        """Ask the other for transactions that it offered."""
        _remember(self._asked, ids)
        for start in range(0, len(ids), gossip.TXS_MAX):
            self._send(gossip.GetTxs(tuple(ids[start : start + gossip.TXS_MAX])))

    def ask_peers(self) -> None:
        """Ask the other for addresses of daemons."""
        self._send(gossip.GetPeers())

    async def run(self) -> None:
        """Serve the connection until it ends. Raises PeerUnavailable, RemoteProtocolError or RemoteTimeout."""
        try:
            async with trio.open_nursery() as nursery:
                self._scope = nursery.cancel_scope
                nursery.start_soon(self._write)
                self._send(self._hub.hello())
                await self._greet()
                self._hub.add(self)
                self.ask_peers()
                nursery.start_soon(self._pace_offers)
                for identity in self._keeper.pool.ids():
                    self.offer(identity)
                await self._read()
        except* FsdecloudError as group:
            self.fail(_first_reason(group))  # reader and writer may notice the end at the same time
        finally:
            self._is_over = True
            for question in self._questions:
                question.done.set()
            self._hub.remove(self)
        if self._failure is not None:
            raise self._failure

    # ---- called by whoever asks ------------------------------------------------------------------------------------
    def fail(self, error: FsdecloudError) -> None:
        """End the session with this error; the first one counts."""
        if self._failure is None:
            self._failure = error
        if self._scope is not None:
            self._scope.cancel()

    def misbehave(self, points: float, why: str) -> None:
        """Count points for what may be an accident; too many end the session (`conduct`)."""
        log.debug("%s: %g points: %s", self.remote, points, why)
        if self._points.add(points, trio.current_time()):
            self.fail(Misbehaviour(f"it misbehaves too often, at last: {why}"))

    def disclaim(self, number: int) -> None:
        """Do as if the other claimed no more than we have, until it says something new: after claim `number`, that is."""
        if self.claims == number:
            self.claim, self.announced = min(self.claim, self._keeper.claim), None

    async def ask(self, question: gossip.Message, kind: type[M], timeout: float = REQUEST_TIMEOUT) -> M:
        """Ask, and return the answer. Raises RemoteTimeout, or PeerUnavailable when the session ends meanwhile."""
        waiting = _Question(kind)
        if not self._is_over:
            self._questions.append(waiting)
            self._send(question)
            with trio.move_on_after(timeout) as scope:
                await waiting.done.wait()
            if scope.cancelled_caught:
                raise RemoteTimeout(f"{self.remote} did not answer {type(question).__name__}")
        if waiting.answer is None:
            raise PeerUnavailable(f"{self.remote} is gone")
        return cast("M", waiting.answer)

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
            if header is not None and self.claim < self._keeper.claim:
                justified = int.from_bytes(self._keeper.claim[:8])
                return gossip.encode_message(gossip.NewTip(header, tip.work, justified))
        if self._offers_due and self._offers:
            ids = tuple(islice(self._offers, gossip.IDS_MAX))
            for identity in ids:
                del self._offers[identity]
            _remember(self._told, ids)
            return gossip.encode_message(gossip.Offer(ids))
        self._offers_due = False
        return None

    async def _pace_offers(self) -> None:
        """Let offers go at random moments (`relay.Pacer`)."""
        while True:
            await self._offers_wanted.wait()
            self._offers_wanted = trio.Event()
            await trio.sleep_until(self._pacer.next_after(trio.current_time()))
            self._offers_due = True
            self._wake_writer.set()

    # ---- reading ---------------------------------------------------------------------------------------------------
    async def _receive(self) -> gossip.Message:
        data = await self._channel.receive()
        try:
            return gossip.decode_message(data)
        except RemoteProtocolError as exc:
            raise Misbehaviour(str(exc)) from exc

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
        self.first = hello.first
        self._take_claim(hello.justified, hello.work, BlockId(hello.tip), hello.height, None)
        if not self.inbound:
            self._hub.compare_clocks(self, hello.time)
        if hello.url:
            self._hub.hear((hello.url,), self.remote)

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
                self.asked_height = max(self.asked_height, 0 if asked is None else asked.height)
                self._send(gossip.Blocks(tuple(_fill(store.block(BlockId(i)) for i in message.ids))))
            case gossip.GetTxs():
                told = (TxId(i) for i in message.ids if i in self._told)
                self._send(gossip.Txs(tuple(_fill(map(self._keeper.pool.get, told)))))
            case gossip.GetPeers():
                self._answer_peers()
            case gossip.GetNetwork():
                self._send(gossip.Network(encode_network(self._keeper.document)))
            case gossip.NewTip():
                self._take_tip(message)
            case gossip.Offer():
                self._take_offer(message)
            case gossip.Txs():
                await self._take_txs(message)
            case gossip.Peers():
                self._take_peers(message)
            case gossip.GetCompact():
                self._send(self._hub.compact(BlockId(message.id)))
            case gossip.GetBlockTxs():
                self._send(gossip.BlockTxs(self._block_txs(message)))
            case gossip.GetState() | gossip.GetNodes() | gossip.GetAnchors() | gossip.GetTxProofs():
                await self._prove(message)
            case _ if isinstance(message, ANSWERS):
                self._take_answer(message)
            case _:
                raise Misbehaviour(f"{type(message).__name__} out of place")

    async def _prove(self, question: proving.Question) -> None:
        """Answer in a worker thread, where a block may have to be hashed; over the rate, this session waits."""
        await trio.sleep(self._proof_rate.take(proving.cost_of(question), trio.current_time()))
        found = await trio.to_thread.run_sync(proving.answer, self._keeper.store, question, limiter=self._hub.proving)
        self._send(found)

    def _take_answer(self, message: gossip.Message) -> None:
        if not self._questions or self._questions[0].kind is not type(message):
            raise Misbehaviour(f"{type(message).__name__} that nobody asked for")
        question = self._questions.popleft()
        question.answer = message
        question.done.set()

    def _take_tip(self, message: gossip.NewTip) -> None:
        try:
            header = decode_header(message.header)
        except InvalidBlock as exc:
            raise Misbehaviour(f"it sent a malformed header: {exc}") from exc
        self._take_claim(message.justified, message.work, block_id(header), header.height, message.header)

    def _take_claim(self, justified: int, work: bytes, tip: BlockId, height: int, header: bytes | None) -> None:
        self.claim = claim_of(0 if self._hub.is_light else justified, work, tip)
        self.height, self.announced = height, header
        self.claims += 1
        self._hub.sync.wake()

    def _answer_peers(self) -> None:
        """Tell of others, but not as often as somebody likes to ask: who knows all we know can surround us."""
        now = trio.current_time()
        is_too_often = self._peers_rate.wait(now) > 0
        self._peers_rate.take(1, now)
        urls = () if is_too_often else self._hub.known_urls()[: gossip.PEERS_MAX]
        self._send(gossip.Peers(urls))

    def _take_peers(self, message: gossip.Peers) -> None:
        """Take addresses; those over the rate are left out (fault 107)."""
        now = trio.current_time()
        if self._url_rate.wait(now) == 0:
            self._url_rate.take(len(message.urls), now)
            self._hub.hear(message.urls, self.remote)

    def _block_txs(self, message: gossip.GetBlockTxs) -> tuple[bytes, ...]:
        data = self._keeper.store.block(BlockId(message.id))
        transactions = () if data is None else decode_block(data).transactions
        if message.places[-1] >= len(transactions) or max(message.places) >= len(transactions):
            return ()
        found = tuple(transactions[place] for place in sorted(set(message.places)))
        return found if sum(map(len, found)) <= 2 * gossip.BATCH_BYTES - HEADROOM else ()

    def _take_offer(self, offer: gossip.Offer) -> None:
        now = trio.current_time()
        if self._offer_rate.take(len(offer.ids), now) > OFFER_DEBT:
            self.misbehave(SPAM, "it offers transactions without end")
            return
        ids = tuple(TxId(i) for i in offer.ids)
        _remember(self._knows, ids)
        self.ask_for(self._hub.offered(self, ids))

    async def _take_txs(self, message: gossip.Txs) -> None:
        for data in message.txs:
            try:
                tx = decode_tx(data, self._keeper.document.transaction_max)
                if self._asked.pop(tx_id(tx), _NOTHING) is _NOTHING:
                    self.misbehave(UNASKED, "it sends transactions that nobody asked for")
                    continue
                self._hub.take(tx, data)
                self.last_tx = trio.current_time()
            except (MalformedTransaction, BadSignature) as exc:
                raise Misbehaviour(f"it relays an invalid transaction: {exc}") from exc
            except InvalidTransaction as exc:
                log.debug("%s: transaction refused: %s", self.remote, exc)  # valid there, perhaps: another tip
            await trio.sleep(self._tx_rate.take(1, trio.current_time()))  # over the rate, this session waits


class _Question:
    """One question on its way. An answer to one that nobody waits for any more is dropped."""

    def __init__(self, kind: type[Any]) -> None:
        self.kind = kind
        self.done = trio.Event()
        self.answer: gossip.Message | None = None


def _first_reason(group: BaseExceptionGroup[FsdecloudError]) -> FsdecloudError:
    """Return one error of a group: what the other did wrong before what it only caused."""
    found: list[FsdecloudError] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop()
        if isinstance(error, BaseExceptionGroup):
            pending.extend(error.exceptions)
        elif isinstance(error, FsdecloudError):
            found.append(error)
    return next((error for error in found if isinstance(error, RemoteProtocolError)), found[0])


def _remember(table: OrderedDict[TxId, None], ids: Iterable[TxId]) -> None:
    """Add ids; the oldest of more than OFFERS_MAX are forgotten."""
    for identity in ids:
        table[identity] = None
    while len(table) > OFFERS_MAX:
        table.popitem(last=False)


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
