"""Which transactions wait for a block, and which of them the next block takes.

Pure, called from one thread. Every waiting transaction is valid on top of the tip's state and all that came before it
here (a volume's anchors may queue for several blocks). Each claims a *slot*: a sender's nonce, a peer's registration,
a volume's sequence number. A newcomer takes an occupied slot only if it outranks the occupant: by fee; then an anchor
by the later lease expiry (who signs a sequence number again makes it later), a registration by its sequence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from fsdecloud.errors import InvalidTransaction
from fsdecloud.ledger.network import NetworkDocument, network_id
from fsdecloud.ledger.reasons import Conflict, MisplacedCoinbase, PoolFull
from fsdecloud.ledger.state import State, apply_transaction
from fsdecloud.ledger.transactions import (
    Anchor,
    Coinbase,
    Operate,
    Register,
    Transaction,
    check_fee,
    check_signatures,
    decode_tx,
    fee_of,
    tx_id,
)
from fsdecloud.limits import MEMPOOL_MAX
from fsdecloud.types import TxId

SENDER_MAX: Final = 64
"""Transactions of one sender that may wait: nobody fills the pool alone."""

_BLOCK_OVERHEAD: Final = 1024
"""Bytes of a block besides the chosen transactions: header, coinbase, array headers."""

_PER_TX_OVERHEAD: Final = 5
"""Bytes that MessagePack puts before each byte string, at most."""

Slot = tuple[str, bytes, int]


@dataclass(frozen=True, slots=True)
class Waiting:
    """One transaction of the pool."""

    id: TxId
    tx: Transaction
    data: bytes

    @property
    def sender(self) -> bytes:
        """Whose limit it counts against."""
        return slot_of(self.tx)[1]


class Mempool:
    """The waiting transactions of one daemon. Call `rebase` before anything else and after each change of the tip."""

    def __init__(self, document: NetworkDocument, limit: int = MEMPOOL_MAX) -> None:
        self._document = document
        self._network = network_id(document)
        self._limit = limit
        self._open_state: Callable[[], State] | None = None
        self._height = 0
        self._view: State | None = None
        self._waiting: dict[TxId, Waiting] = {}
        self._slots: dict[Slot, TxId] = {}
        self._senders: Counter[bytes] = Counter()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, identity: TxId) -> bool:
        return identity in self._waiting

    @property
    def size(self) -> int:
        """Bytes of all waiting transactions."""
        return self._bytes

    def ids(self) -> tuple[TxId, ...]:
        """Return the ids in the order of arrival."""
        return tuple(self._waiting)

    def get(self, identity: TxId) -> bytes | None:
        """Return an encoded waiting transaction."""
        found = self._waiting.get(identity)
        return None if found is None else found.data

    def next_nonce(self, key: bytes) -> int:
        """Return the nonce of a key's next transfer, after those that wait."""
        return self._need_view().account(key).nonce

    def verified(self) -> frozenset[bytes]:
        """Return the encoded transactions whose signatures need no second look in a block."""
        return frozenset(waiting.data for waiting in self._waiting.values())

    def add(self, data: bytes, now: int) -> TxId:
        """Take an encoded transaction and return its id; one that waits already is no error.

        Raises an InvalidTransaction leaf, and the pool is as before.
        """
        tx = decode_tx(data, self._document.transaction_max)
        if isinstance(tx, Coinbase):
            raise MisplacedCoinbase("a coinbase comes with its block only")
        identity = tx_id(tx)
        if identity in self._waiting:
            return identity
        occupant = self._slots.get(slot_of(tx))
        if occupant is not None and _rank(tx, identity) <= _rank(self._waiting[occupant].tx, occupant):
            raise Conflict(f"transaction {occupant.hex()} has its place, and this one does not outrank it")
        sender = slot_of(tx)[1]
        if occupant is None and self._senders[sender] >= SENDER_MAX:
            raise PoolFull(f"{SENDER_MAX} transactions of {sender.hex()} are waiting already")
        check_fee(self._document, tx)
        check_signatures(self._network, tx)
        self._make_room(tx, len(data), now)
        newcomer = Waiting(identity, tx, data)
        if occupant is None:
            apply_transaction(self._need_view(), tx, now, self._height, stacked=True)
            self._insert(newcomer)
        else:
            self._replace(occupant, newcomer, now)
        return identity

    def rebase(
        self, open_state: Callable[[], State], height: int, now: int, returned: Iterable[bytes] = ()
    ) -> tuple[tuple[Waiting, InvalidTransaction], ...]:
        """Continue on another tip: `open_state` gives its state, `height` is the next block's, `returned` are encoded
        transactions of blocks that are no longer in the best chain, oldest first. Returns what fell out, and why."""
        self._open_state, self._height = open_state, height
        waiting: dict[TxId, Waiting] = {}
        for data in returned:
            tx = decode_tx(data, self._document.transaction_max)
            if not isinstance(tx, Coinbase):
                identity = tx_id(tx)
                waiting[identity] = Waiting(identity, tx, data)
        waiting.update(self._waiting)
        return self._rebuild(waiting.values(), now)

    def select(self, time: int) -> tuple[Transaction, ...]:
        """Return what the next block should hold, in a valid order: best paid for their size first, then by arrival."""
        assert self._open_state is not None, "rebase comes first"
        state = self._open_state()
        room = self._document.block_max - _BLOCK_OVERHEAD
        left = sorted(self._waiting.values(), key=lambda w: -fee_of(w.tx) * 1000 // len(w.data))
        chosen: list[Transaction] = []
        while left:  # one pass more for each transaction that waits for another in the list
            later: list[Waiting] = []
            for waiting in left:
                size = len(waiting.data) + _PER_TX_OVERHEAD
                if size > room:
                    continue
                try:
                    apply_transaction(state, waiting.tx, time, self._height)
                except InvalidTransaction:
                    later.append(waiting)
                else:
                    chosen.append(waiting.tx)
                    room -= size
            if len(later) == len(left):
                break
            left = later
        return tuple(chosen)

    # ---- inner -----------------------------------------------------------------------------------------------------
    def _need_view(self) -> State:
        assert self._open_state is not None, "rebase comes first"
        if self._view is None:
            self._view = self._open_state()
        return self._view

    def _insert(self, waiting: Waiting) -> None:
        self._waiting[waiting.id] = waiting
        self._slots[slot_of(waiting.tx)] = waiting.id
        self._senders[waiting.sender] += 1
        self._bytes += len(waiting.data)

    def _rebuild(self, waiting: Iterable[Waiting], now: int) -> tuple[tuple[Waiting, InvalidTransaction], ...]:
        candidates = list(waiting)
        self._view = None
        self._waiting, self._slots, self._senders, self._bytes = {}, {}, Counter(), 0
        dropped: list[tuple[Waiting, InvalidTransaction]] = []
        for candidate in candidates:
            try:
                apply_transaction(self._need_view(), candidate.tx, now, self._height, stacked=True)
            except InvalidTransaction as exc:
                dropped.append((candidate, exc))
            else:
                self._insert(candidate)
        return tuple(dropped)

    def _replace(self, occupant: TxId, newcomer: Waiting, now: int) -> None:
        before = list(self._waiting.values())
        after = [newcomer if waiting.id == occupant else waiting for waiting in before]
        for waiting, reason in self._rebuild(after, now):
            if waiting.id == newcomer.id:
                self._rebuild(before, now)
                raise reason

    def _make_room(self, tx: Transaction, size: int, now: int) -> None:
        """Drop the worst paid when the pool is full and the newcomer pays better for its size; else raise PoolFull."""
        if self._bytes + size <= self._limit:
            return
        by_price = sorted(self._waiting.values(), key=lambda w: fee_of(w.tx) / len(w.data))
        victims: set[TxId] = set()
        freed = 0
        for waiting in by_price:
            if fee_of(waiting.tx) * size >= fee_of(tx) * len(waiting.data):
                raise PoolFull("the pool is full of transactions that pay as much")
            victims.add(waiting.id)
            freed += len(waiting.data)
            if self._bytes - freed + size <= self._limit:
                break
        self._rebuild([w for w in self._waiting.values() if w.id not in victims], now)


def slot_of(tx: Transaction) -> Slot:
    """Return what at most one waiting transaction may claim: kind, sender, number."""
    if isinstance(tx, Anchor):
        return "anchor", tx.volume, tx.sequence
    if isinstance(tx, Register):
        return "register", tx.peer, 0
    if isinstance(tx, Operate):
        return "operate", tx.peer, 0
    if isinstance(tx, Coinbase):
        return "coinbase", tx.recipient, tx.height
    return "transfer", tx.sender, tx.nonce


def _rank(tx: Transaction, identity: TxId) -> tuple[int, int, bytes]:
    if isinstance(tx, Anchor):
        return tx.fee, tx.lease_expiry, identity
    if isinstance(tx, Register | Operate):
        return tx.fee, tx.sequence, identity
    return fee_of(tx), 0, b""
