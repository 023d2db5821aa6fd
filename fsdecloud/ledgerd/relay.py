"""Which transactions are asked of whom, and which wait for others: each is asked for once at a time, whoever offers it.

No clock and no network: times are monotonic seconds given by the caller, who sends the questions. A transaction that does not
come within ASK_AGAIN is asked of the next who offered it. One that was refused is not asked for again before the tip changes.
One whose predecessor is missing (they may come in any order, from different daemons) waits among the *orphans*, few and the
oldest gives way. Called only from the trio thread. Not here: the mempool's rules (`ledger.mempool`).
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from fsdecloud.types import TxId

S = TypeVar("S")

ASK_AGAIN: Final = 10.0
"""Seconds after which a transaction is asked of somebody else."""

OFFERED_MAX: Final = 5000
"""Offers of one session that are remembered; more are left out: a transaction comes by other ways."""

OFFERERS_MAX: Final = 8
"""Sessions remembered for one transaction."""

REFUSED_MAX: Final = 10_000
ORPHANS_MAX: Final = 100
ORPHAN_BYTES: Final = 1 << 20
"""Refused ids, orphans and bytes of orphans that are remembered at once."""


@dataclass(slots=True)
class _Wanted(Generic[S]):
    """One transaction that is not here yet."""

    asked: S
    until: float
    offerers: OrderedDict[S, None] = field(default_factory=OrderedDict)
    """Who else offers it."""


class Requests(Generic[S]):
    """What is asked of which session (any hashable)."""

    def __init__(self) -> None:
        self._wanted: dict[TxId, _Wanted[S]] = {}
        self._counts: dict[S, int] = {}
        self._refused: OrderedDict[TxId, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._wanted)

    def offered(self, session: S, ids: Iterable[TxId], now: float) -> list[TxId]:
        """Take an offer of transactions that are not here; return those to ask the session for now."""
        ask = []
        for identity in ids:
            if identity in self._refused or self._counts.get(session, 0) >= OFFERED_MAX:
                continue
            wanted = self._wanted.get(identity)
            if wanted is None:
                self._wanted[identity] = _Wanted(session, now + ASK_AGAIN)
                self._count(session, 1)
                ask.append(identity)
            elif wanted.asked != session and session not in wanted.offerers and len(wanted.offerers) < OFFERERS_MAX:
                wanted.offerers[session] = None
                self._count(session, 1)
        return ask

    def arrived(self, identity: TxId) -> None:
        """Note that a transaction is here, from wherever."""
        wanted = self._wanted.pop(identity, None)
        if wanted is not None:
            for session in (wanted.asked, *wanted.offerers):
                self._count(session, -1)

    def refuse(self, identity: TxId) -> None:
        """Do not ask for a transaction again, until `forgive`."""
        self._refused[identity] = None
        if len(self._refused) > REFUSED_MAX:
            self._refused.popitem(last=False)

    def forgive(self) -> None:
        """Forget what was refused: the tip has changed."""
        self._refused.clear()

    def gone(self, session: S, now: float) -> dict[S, list[TxId]]:
        """Forget a session; return what to ask of whom instead."""
        for wanted in self._wanted.values():
            wanted.offerers.pop(session, None)
        self._counts.pop(session, None)
        return self._pass_on([i for i, wanted in self._wanted.items() if wanted.asked == session], now)

    def overdue(self, now: float) -> dict[S, list[TxId]]:
        """Return what did not come in time, and whom to ask for it now."""
        return self._pass_on([i for i, wanted in self._wanted.items() if wanted.until <= now], now)

    def next_due(self) -> float:
        """Return when something is overdue; infinity when nothing is asked."""
        return min((wanted.until for wanted in self._wanted.values()), default=float("inf"))

    def _pass_on(self, ids: list[TxId], now: float) -> dict[S, list[TxId]]:
        found: dict[S, list[TxId]] = {}
        for identity in ids:
            wanted = self._wanted[identity]
            self._count(wanted.asked, -1)
            if not wanted.offerers:
                del self._wanted[identity]
                continue
            wanted.asked, _ = wanted.offerers.popitem(last=False)
            wanted.until = now + ASK_AGAIN
            found.setdefault(wanted.asked, []).append(identity)
        return found

    def _count(self, session: S, change: int) -> None:
        count = self._counts.get(session, 0) + change
        if count > 0:
            self._counts[session] = count
        else:
            self._counts.pop(session, None)


class Orphans:
    """Transactions that may become valid when others of the same sender are here."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[TxId, tuple[bytes, bytes]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, identity: TxId) -> bool:
        return identity in self._waiting

    def add(self, identity: TxId, sender: bytes, data: bytes) -> None:
        """Keep an encoded transaction; the oldest ones give way."""
        if identity in self._waiting:
            return
        self._waiting[identity] = (sender, data)
        self._bytes += len(data)
        while len(self._waiting) > ORPHANS_MAX or self._bytes > ORPHAN_BYTES:
            _, (_, dropped) = self._waiting.popitem(last=False)
            self._bytes -= len(dropped)

    def take(self, sender: bytes | None = None) -> Iterator[bytes]:
        """Return, and forget, the transactions of one sender, or all; oldest first."""
        ids = [i for i, (who, _) in self._waiting.items() if sender is None or who == sender]
        found = []
        for identity in ids:
            _, data = self._waiting.pop(identity)
            self._bytes -= len(data)
            found.append(data)
        return iter(found)


class Pacer:
    """When offers are sent: at random moments, so that who is told first does not show where a transaction began.

    A Poisson process with this mean time (seconds) between two moments; all callers of one pacer share the moments, so that
    somebody with many connections learns no more than with one.
    """

    def __init__(self, mean: float) -> None:
        self._mean = mean
        self._next = 0.0

    def next_after(self, now: float) -> float:
        """Return the first moment after `now`."""
        while self._next <= now:
            self._next = max(self._next, now) + random.expovariate(1 / self._mean)
        return self._next
