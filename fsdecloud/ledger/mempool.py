"""Which transactions wait for a block, and which of them the next block takes.

Pure, called from one thread. Every waiting transaction is valid on top of the tip's state and what came before it of the same
owner (a volume's anchors may queue for several blocks). Each claims a *slot*: a sender's nonce, a peer's registration, a
volume's sequence number, a peer's vote. A newcomer takes an occupied slot only if it outranks the occupant: by a fee that is
higher by the least fee or more; at equal fees an anchor by the later lease expiry (who signs a sequence number again makes it
later), a registration by its sequence, a vote by its target. When the pool is full, a newcomer drives out what pays less for
its size, or is refused.

Transactions of different owners (senders, volumes, peers) do not depend on each other here: what a transfer brings may be spent
once it is in a block, or if it was in one that is no longer in the chain. So a replacement or an eviction applies again what
waits of one owner, SENDER_MAX at most, and nothing else: what a newcomer costs does not grow with the pool, and one that is
refused has changed nothing.

An input to a contract is asked of the contract as it is after the tip, whatever waits of others: when a block has changed that,
`rebase` asks again. What waits of one sender about one contract behind its first is not asked before the first is in a block: a
deposit, and the choice after it, may wait together.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from sortedcontainers import SortedSet

from fsdecloud.errors import InvalidTransaction
from fsdecloud.ledger.blocks import TRANSACTION_MIN
from fsdecloud.ledger.network import NetworkDocument, network_id
from fsdecloud.ledger.reasons import AmountOutOfRange, Conflict, MisplacedCoinbase, PoolFull
from fsdecloud.ledger.staking import VOTES_MAX
from fsdecloud.ledger.state import State, apply_transaction, credit, keys_of
from fsdecloud.ledger.transactions import (
    Anchor,
    Bond,
    Coinbase,
    Deploy,
    Evidence,
    Input,
    Operate,
    Register,
    Transaction,
    Transfer,
    Unbond,
    Vote,
    check_fee,
    check_signatures,
    decode_tx,
    fee_of,
    tx_id,
    votes_of,
)
from fsdecloud.limits import MEMPOOL_MAX
from fsdecloud.types import TxId

_NUMBERED: Final = Transfer | Bond | Unbond | Deploy | Input
"""What takes an account's next nonce."""

_PRICELESS: Final = 1 << 82
"""Above what the largest fee is for the smallest transaction."""

SENDER_MAX: Final = 64
"""Transactions of one sender that may wait: nobody fills the pool alone."""

COUNT_MAX: Final = 32768
"""Transactions that may wait in all: each takes about a kilobyte of memory beside its bytes."""

BLOCK_OVERHEAD: Final = 1024
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
    place: int
    """In the order of arrival; who replaces another takes its place."""
    was_in_block: bool = False
    """It comes from a block that is no longer in the best chain."""

    @property
    def sender(self) -> bytes:
        """Whose limit it counts against."""
        return slot_of(self.tx)[1]

    @property
    def price(self) -> int:
        """What it pays for a million bytes, rounded down."""
        return price_of(self.tx, len(self.data))


class Mempool:
    """The waiting transactions of one daemon. Call `rebase` before anything else and after each change of the tip."""

    def __init__(self, document: NetworkDocument, limit: int = MEMPOOL_MAX, count_limit: int = COUNT_MAX) -> None:
        self._document = document
        self._network = network_id(document)
        self._limit = limit
        self._count_limit = count_limit
        self._open_state: Callable[[], State] | None = None
        self._height = 0
        self._clear()

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
        return tuple(waiting.id for waiting in self._in_order())

    def get(self, identity: TxId) -> bytes | None:
        """Return an encoded waiting transaction."""
        found = self._waiting.get(identity)
        return None if found is None else found.data

    def next_nonce(self, key: bytes) -> int:
        """Return the nonce of a key's next transfer, after those that wait."""
        return self._need_view().account(key).nonce

    def naming(self, keys: Collection[bytes]) -> tuple[bytes, ...]:
        """Return the encoded transactions that wait of these keys, or pay to one of them, in the order of arrival."""
        found = [
            waiting
            for waiting in self._waiting.values()
            if waiting.sender in keys or (isinstance(waiting.tx, Transfer) and waiting.tx.recipient in keys)
        ]
        return tuple(waiting.data for waiting in sorted(found, key=lambda waiting: waiting.place))

    def prices(self) -> list[tuple[int, int]]:
        """Return (price for a million bytes, bytes) of all that waits."""
        return [(waiting.price, len(waiting.data)) for waiting in self._waiting.values()]

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
        slot = slot_of(tx)
        holder = self._slots.get(slot)
        occupant = None if holder is None else self._waiting[holder]
        if occupant is not None and not self._outranks(tx, identity, occupant):
            raise Conflict(f"transaction {occupant.id.hex()} has its place, and this one does not outrank it")
        if occupant is None and len(self._of_sender.get(slot[1], ())) >= SENDER_MAX:
            raise PoolFull(f"{SENDER_MAX} transactions of {slot[1].hex()} are waiting already")
        check_fee(self._document, tx)
        newcomer = Waiting(identity, tx, data, self._next_place if occupant is None else occupant.place)
        victims = self._plan_room(newcomer, occupant)
        check_signatures(self._network, tx)
        if occupant is None:
            apply_transaction(self._document, self._need_view(), tx, now, self._height, stacked=True)
            self._insert(newcomer)
        else:
            self._replace(occupant, newcomer, now)
        if victims:
            self._evict(victims, now)
        return identity

    def rebase(
        self, open_state: Callable[[], State], height: int, now: int, returned: Iterable[bytes] = ()
    ) -> tuple[tuple[Waiting, InvalidTransaction], ...]:
        """Continue on another tip: `open_state` gives the state for the next block (`chain.open_next`), `height` is that
        block's, `returned` are encoded transactions of blocks that are no longer in the best chain, oldest first. Returns what
        fell out, and why."""
        self._open_state, self._height = open_state, height
        left = self._in_order()
        self._clear()
        candidates: dict[TxId, Waiting] = {}
        for data in returned:
            tx = decode_tx(data, self._document.transaction_max)
            if not isinstance(tx, Coinbase):
                identity = tx_id(tx)
                candidates[identity] = Waiting(identity, tx, data, len(candidates), was_in_block=True)
        for waiting in left:
            if waiting.id not in candidates:
                candidates[waiting.id] = replace(waiting, place=len(candidates))
        dropped: list[tuple[Waiting, InvalidTransaction]] = []
        for candidate in candidates.values():
            try:
                apply_transaction(self._document, self._need_view(), candidate.tx, now, height, stacked=True)
            except InvalidTransaction as exc:
                dropped.append((candidate, exc))
                continue
            self._insert(candidate)
            self._bring(candidate)
        return (*dropped, *self._shrink(now))

    def select(self, time: int) -> tuple[Transaction, ...]:
        """Return what the next block should hold, in a valid order: best paid for their size first, then by arrival; one that
        needs another comes after it."""
        assert self._open_state is not None, "rebase comes first"
        state = self._open_state()
        room = self._document.block_max - BLOCK_OVERHEAD
        ready = [
            _by_worth(waiting) for waiting in self._waiting.values() if _predecessor(waiting.tx) not in self._slots
        ]
        heapq.heapify(ready)
        parked: dict[bytes, list[Waiting]] = {}
        chosen: list[Transaction] = []
        votes = 0
        while ready and room >= TRANSACTION_MIN:
            waiting = self._waiting[heapq.heappop(ready)[2]]
            size = len(waiting.data) + _PER_TX_OVERHEAD
            if size > room or (isinstance(waiting.tx, Vote) and votes == VOTES_MAX):
                continue
            try:
                apply_transaction(self._document, state, waiting.tx, time, self._height)
            except InvalidTransaction:
                # Until something of its owner's is in, or money comes.
                parked.setdefault(waiting.sender, []).append(waiting)
                continue
            chosen.append(waiting.tx)
            room -= size
            votes += isinstance(waiting.tx, Vote)
            again = parked.pop(waiting.sender, [])
            if isinstance(waiting.tx, Transfer):
                again += parked.pop(waiting.tx.recipient, [])
            if isinstance(waiting.tx, _NUMBERED):
                successor = self._slots.get(("transfer", waiting.sender, waiting.tx.nonce + 1))
                again += [] if successor is None else [self._waiting[successor]]
            for one in again:
                heapq.heappush(ready, _by_worth(one))
        return tuple(chosen)

    # ---- inner -----------------------------------------------------------------------------------------------------
    def _clear(self) -> None:
        self._view: State | None = None
        self._waiting: dict[TxId, Waiting] = {}
        self._slots: dict[Slot, TxId] = {}
        self._of_sender: dict[bytes, set[TxId]] = {}
        self._brought: dict[bytes, set[TxId]] = {}
        """Transfers to a key that were in a block: their money may be spent."""
        self._by_price = SortedSet()
        """(price, minus place, id): what is driven out first comes first."""
        self._bytes = 0
        self._next_place = 0

    def _need_view(self) -> State:
        assert self._open_state is not None, "rebase comes first"
        if self._view is None:
            self._view = self._open_state()
        return self._view

    def _in_order(self) -> list[Waiting]:
        return sorted(self._waiting.values(), key=lambda waiting: waiting.place)

    def _outranks(self, tx: Transaction, identity: TxId, occupant: Waiting) -> bool:
        fee, before = fee_of(tx), fee_of(occupant.tx)
        if fee == before:
            return _rank(tx, identity) > _rank(occupant.tx, occupant.id)
        return fee >= before + self._document.minimum_fee and fee > before

    def _insert(self, waiting: Waiting) -> None:
        self._waiting[waiting.id] = waiting
        self._slots[slot_of(waiting.tx)] = waiting.id
        self._of_sender.setdefault(waiting.sender, set()).add(waiting.id)
        self._by_price.add(_cheapness(waiting))
        self._bytes += len(waiting.data)
        self._next_place = max(self._next_place, waiting.place + 1)
        if waiting.was_in_block and isinstance(waiting.tx, Transfer):
            self._brought.setdefault(waiting.tx.recipient, set()).add(waiting.id)

    def _remove(self, waiting: Waiting) -> None:
        del self._waiting[waiting.id]
        slot = slot_of(waiting.tx)
        if self._slots.get(slot) == waiting.id:
            del self._slots[slot]
        _discard(self._of_sender, waiting.sender, waiting.id)
        if isinstance(waiting.tx, Transfer):
            _discard(self._brought, waiting.tx.recipient, waiting.id)
        self._by_price.remove(_cheapness(waiting))
        self._bytes -= len(waiting.data)

    def _apply_again(
        self, sender: bytes, waiting: Iterable[Waiting], now: int
    ) -> list[tuple[Waiting, InvalidTransaction]]:
        """Set what belongs to `sender` back to the tip's state, apply `waiting`, all his, and return what is not valid."""
        view = self._need_view()
        for key in keys_of(sender):
            view.changes.pop(key, None)
        for identity in self._brought.get(sender, ()):
            self._bring(self._waiting[identity])
        dropped: list[tuple[Waiting, InvalidTransaction]] = []
        for one in waiting:
            try:
                apply_transaction(self._document, view, one.tx, now, self._height, stacked=True)
            except InvalidTransaction as exc:
                dropped.append((one, exc))
        return dropped

    def _bring(self, waiting: Waiting) -> None:
        """Give a transfer's recipient its money if it had that in a branch that was left: who spent it there comes back too."""
        if waiting.was_in_block and isinstance(waiting.tx, Transfer):
            with suppress(AmountOutOfRange):
                credit(self._need_view(), waiting.tx.recipient, waiting.tx.amount)

    def _of(self, sender: bytes) -> list[Waiting]:
        found = [self._waiting[identity] for identity in self._of_sender.get(sender, ())]
        return sorted(found, key=lambda waiting: waiting.place)

    def _replace(self, occupant: Waiting, newcomer: Waiting, now: int) -> None:
        view = self._need_view()
        before = {key: view.changes[key] for key in keys_of(newcomer.sender) if key in view.changes}
        after = [newcomer if waiting.id == occupant.id else waiting for waiting in self._of(newcomer.sender)]
        dropped = self._apply_again(newcomer.sender, after, now)
        for waiting, reason in dropped:
            if waiting.id == newcomer.id:
                for key in keys_of(newcomer.sender):
                    view.changes.pop(key, None)
                view.changes.update(before)
                raise reason
        self._remove(occupant)
        for waiting, _ in dropped:
            self._remove(waiting)
        self._insert(newcomer)

    def _evict(self, victims: Iterable[Waiting], now: int) -> None:
        """Drop `victims`, and what is not valid without them."""
        gone = list(victims)
        for waiting in gone:
            self._remove(waiting)
        for sender in dict.fromkeys(waiting.sender for waiting in gone):
            for waiting, _ in self._apply_again(sender, self._of(sender), now):
                self._remove(waiting)

    def _plan_room(self, newcomer: Waiting, occupant: Waiting | None) -> list[Waiting]:
        """Return what gives way to the newcomer: the worst paid of other owners. Raises PoolFull when too little pays less."""
        excess = self._bytes + len(newcomer.data) - (0 if occupant is None else len(occupant.data)) - self._limit
        surplus = len(self._waiting) + (occupant is None) - self._count_limit
        if excess <= 0 and surplus <= 0:
            return []
        victims: list[Waiting] = []
        for price, _, identity in self._by_price:
            if price >= newcomer.price:
                break
            victim = self._waiting[identity]
            if victim.sender == newcomer.sender:
                continue
            victims.append(victim)
            excess -= len(victim.data)
            surplus -= 1
            if excess <= 0 and surplus <= 0:
                return victims
        raise PoolFull("the pool is full of transactions that pay as much")

    def _shrink(self, now: int) -> list[tuple[Waiting, InvalidTransaction]]:
        """Drop the worst paid until the pool is within its limits."""
        before = dict(self._waiting)
        excess, surplus = self._bytes - self._limit, len(self._waiting) - self._count_limit
        victims: list[Waiting] = []
        for _, _, identity in self._by_price:
            if excess <= 0 and surplus <= 0:
                break
            victims.append(self._waiting[identity])
            excess -= len(victims[-1].data)
            surplus -= 1
        if not victims:
            return []
        self._evict(victims, now)
        return [(w, PoolFull("the pool is full")) for identity, w in before.items() if identity not in self._waiting]


def slot_of(tx: Transaction) -> Slot:
    """Return what at most one waiting transaction may claim: kind, sender, number."""
    if isinstance(tx, Anchor):
        return "anchor", tx.volume, tx.sequence
    if isinstance(tx, Register):
        return "register", tx.peer, 0
    if isinstance(tx, Operate):
        return "operate", tx.peer, 0
    if isinstance(tx, Vote):
        return "vote", tx.peer, 0
    if isinstance(tx, Evidence):
        return "evidence", votes_of(tx)[0].peer, 0
    if isinstance(tx, Bond | Unbond):
        return "transfer", tx.peer, tx.nonce
    if isinstance(tx, Coinbase):
        return "coinbase", tx.recipient, tx.height
    return "transfer", tx.sender, tx.nonce


def price_of(tx: Transaction, size: int) -> int:
    """Return what a transaction of `size` bytes pays for a million bytes, rounded down. Votes and evidence come before what
    anybody pays: each costs a stake, there are few, and what a fee could keep out would be what makes a chain final."""
    if isinstance(tx, Vote | Evidence):
        return _PRICELESS
    return fee_of(tx) * 1_000_000 // size


def _discard(sets: dict[bytes, set[TxId]], key: bytes, identity: TxId) -> None:
    """Take an id out of the set of a key, if it is there; no empty sets are kept."""
    found = sets.get(key)
    if found is not None:
        found.discard(identity)
        if not found:
            del sets[key]


def _predecessor(tx: Transaction) -> Slot | None:
    """Return the slot that has to be served before this transaction's, if it is waiting; None when there is none."""
    kind, sender, number = slot_of(tx)
    return (kind, sender, number - 1) if isinstance(tx, Anchor | _NUMBERED) else None


def _by_worth(waiting: Waiting) -> tuple[int, int, TxId]:
    return -waiting.price, waiting.place, waiting.id


def _cheapness(waiting: Waiting) -> tuple[int, int, TxId]:
    return waiting.price, -waiting.place, waiting.id


def _rank(tx: Transaction, identity: TxId) -> tuple[int, bytes]:
    if isinstance(tx, Anchor):
        return tx.lease_expiry, identity
    if isinstance(tx, Register | Operate):
        return tx.sequence, identity
    if isinstance(tx, Vote):
        return tx.target_height, identity
    return 0, b""
