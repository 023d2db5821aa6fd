"""Asking full daemons for what must come with a proof: one after another, until one proves it.

The one that proved something last is asked first. A false proof ends its connection and shuts its address out (`conduct`); no
answer, or none at hand, costs points and the place at the front. Nothing is believed because many say it. Everything here runs
in the trio thread. Not here: what a proof shows (`ledger.proofs`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

import trio

from fsdecloud.errors import LedgerUnavailable, PeerUnavailable, RemoteTimeout
from fsdecloud.ledger.proofs import Dropped, FalseProof, NotProven
from fsdecloud.ledgerd.conduct import Misbehaviour
from fsdecloud.ledgerd.light import LightKeeper
from fsdecloud.ledgerd.session import Session
from fsdecloud.wire import gossip

log = logging.getLogger(__name__)

A = TypeVar("A", bound="gossip.StateProof | gossip.Nodes | gossip.Anchors | gossip.TxProofs | gossip.Blocks")
T = TypeVar("T")

PATIENCE: Final = 4.0
"""Seconds for one answer: after three that are silent the fourth still answers before a local caller gives up."""

ASKED_MAX: Final = 4
"""Daemons that are asked one question."""

FIRST_WAIT: Final = 5.0
"""Seconds that a question waits for a connection when there is none: just after the start, most often."""

ABSENT: Final = 10.0
SILENT: Final = 20.0
"""Points for a proof that is not at hand, which may be of a block that has not arrived there, and for no answer."""


class Asker:
    """Asks the sessions of one hub."""

    def __init__(
        self, keeper: LightKeeper, sessions: Callable[[], Iterator[Session]], changed: Callable[[], trio.Event]
    ) -> None:
        """`sessions` yields the greeted ones, `changed` returns the event of the next one that comes or goes."""
        self._keeper = keeper
        self._sessions = sessions
        self._changed = changed
        self._preferred: Session | None = None
        self.asked = 0
        """Questions sent."""
        self.lies = 0
        """False proofs received."""

    def full(self) -> list[Session]:
        """Return the sessions with full daemons, in the order to ask them."""
        found = [session for session in self._sessions() if session.is_full and not session.is_ending]
        return sorted(found, key=lambda session: (session is self._preferred, session.claim), reverse=True)

    async def ask(self, question: gossip.Message, kind: type[A], check: Callable[[A], T], *, is_owed: bool = True) -> T:
        """Return what `check` makes of the first answer that it accepts: it raises FalseProof or NotProven for others.

        `is_owed` is whether a full daemon that has our tip should have it: if not, having none costs nothing. Raises
        LedgerUnavailable when no daemon proves it, NotProven when those that answer do not have what is not owed.
        """
        await self._wait_for_some()
        tried = 0
        is_denied = False
        last = "no full daemon is connected"
        for session in self.full()[:ASKED_MAX]:
            tried += 1
            self.asked += 1
            try:
                found = check(await session.ask(question, kind, PATIENCE))
            except FalseProof as exc:
                self.lies += 1
                last = f"{session.remote} sent a false proof: {exc}"
                session.fail(Misbehaviour(f"it sent a false proof: {exc}"))
            except NotProven as exc:
                last = f"{session.remote}: {exc}"
                is_denied = True
                has_all = session.first == 1  # who began with a snapshot may not have what is before it yet
                if is_owed and has_all and not isinstance(exc, Dropped) and session.claim >= self._keeper.claim:
                    session.misbehave(ABSENT, f"it does not prove what it should have: {exc}")
            except (RemoteTimeout, PeerUnavailable) as exc:
                last = str(exc)
                session.misbehave(SILENT, "it does not answer")
            else:
                self._preferred = session
                return found
            if self._preferred is session:
                self._preferred = None
            log.log(logging.INFO if is_owed else logging.DEBUG, "asking another daemon: %s", last)
        if is_denied and not is_owed:
            raise NotProven(last)
        raise LedgerUnavailable(f"none of {tried} full ledger daemons proves it: {last}; try again")

    async def _wait_for_some(self) -> None:
        with trio.move_on_after(FIRST_WAIT):
            while not self.full():
                await self._changed().wait()
