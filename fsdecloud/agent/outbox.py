"""The anchors that the driver signed, until they are in blocks that stay.

Called only from the trio thread. An anchor is kept durably until it is buried, so that one that a reorganisation throws
out is sent again (design.md: data safety never depends on the ledger). Anchors of a volume form a chain: only the oldest
that is in no block is sent.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import trio

from fsdecloud import codec
from fsdecloud.agent.journal import OUTBOX, JournalWriter, Write
from fsdecloud.agent.ledgerlink import LedgerLink
from fsdecloud.errors import InvalidTransaction, LedgerError, LedgerUnavailable, RemoteError
from fsdecloud.ledger.transactions import decode_tx, tx_id
from fsdecloud.types import TxId
from fsdecloud.wire.agentapi import Anchored
from fsdecloud.wire.ledgerapi import SubmitTx, TxFound, TxQuery, TxResult

log = logging.getLogger(__name__)

BURIED: Final = 100
"""Confirmations after which an anchor is forgotten: the default finality depth."""

RETRY: Final = 5.0
"""Seconds until the next try after an answer that was neither yes nor no."""

SETTLED: Final = 4.0
"""Seconds, two intervals of such a network; see `Outbox._note_final`."""

KEPT_MAX: Final = 64
"""Anchors kept at most that are in blocks: a network that mines only when there is work buries nothing for days."""


class OutboxRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One anchor."""

    tx: bytes
    height: int
    """Of its block when last seen, -1 while it is in none."""
    generation: int = 0
    """Of the location map that its manifest names (`agent.garbage`), 0 if unknown."""


class Outbox:
    """The anchors of one volume."""

    def __init__(
        self,
        writer: JournalWriter,
        link: LedgerLink,
        notify: Callable[[Anchored], object],
        on_final: Callable[[int], Awaitable[None]],
    ) -> None:
        """`on_final` is told the generation of the location map of an anchor that no reorganisation will take away."""
        self._writer = writer
        self._link = link
        self._notify = notify
        self._on_final = on_final
        self._final = 0
        """The newest anchor that is final, as far as was told."""
        self._seen: dict[int, tuple[int, float]] = {}
        """Height of each anchor in a block, and since when it has been there (trio's clock)."""
        self._anchors: dict[int, OutboxRecord] = {}
        self._errors: dict[int, str] = {}
        self._wake = trio.Event()
        for key, value in writer.journal.items(OUTBOX):
            self._anchors[int.from_bytes(key)] = codec.decode_loose(value, OutboxRecord)

    def __len__(self) -> int:
        """Return how many anchors are in no block yet."""
        return sum(record.height < 0 for record in self._anchors.values())

    async def submit(self, tx: bytes, sequence: int, generation: int = 0) -> None:
        """Take an anchor durably. It replaces one of the same sequence number, and drops later ones, which named that one.

        Raises InvalidTransaction when it is no transaction.
        """
        decode_tx(tx)
        stale = [number for number in self._anchors if number > sequence]
        for number in (*stale, sequence):
            self._anchors.pop(number, None)
            self._errors.pop(number, None)
        record = OutboxRecord(tx, -1, generation)
        self._anchors[sequence] = record
        writes: list[Write] = [(OUTBOX, number.to_bytes(8), None) for number in stale]
        await self._writer.write([*writes, (OUTBOX, sequence.to_bytes(8), codec.encode(record))])
        self.poke()

    def poke(self) -> None:
        """Look again: the daemon came back or has a new tip."""
        self._wake.set()

    async def run(self) -> None:
        """Advance whenever poked, until cancelled. A daemon that is gone pokes when it is back."""
        while True:
            with trio.move_on_after(self._until_settled()):
                await self._wake.wait()
            self._wake = trio.Event()
            try:
                await self._advance()
            except (LedgerError, RemoteError) as exc:
                log.debug("the outbox waits: %s", exc)
                if not isinstance(exc, LedgerUnavailable):
                    await trio.sleep(RETRY)
                    self.poke()

    def announce(self) -> None:
        """Tell the driver, which has just come, where the latest anchor in a block stands."""
        anchored = [number for number, record in self._anchors.items() if record.height >= 0]
        if anchored:
            self._tell(max(anchored), "")

    async def _advance(self) -> None:
        """Check the anchors in blocks against the chain and send the next one. Raises LedgerError, RemoteError.

        The chain serializes a volume's anchors, so as long as the latest is in its block the others are too.
        """
        numbers = sorted(self._anchors)
        settled = [number for number in numbers if self._anchors[number].height >= 0]
        while settled and not await self._is_settled(settled[-1]):
            settled.pop()
        for number in numbers:
            if number in self._anchors and self._anchors[number].height < 0 and not await self._send(number):
                break
        await self._note_final()

    # ---- finality --------------------------------------------------------------------------------------------------
    async def _note_final(self) -> None:
        """Tell of the newest anchor that stays. It is buried under as many blocks as the network says; or, where blocks come
        only when there is something to record, under one, or it has been there for SETTLED seconds: such a network
        belongs to one machine or household, and what peers delete can be read for their grace period still."""
        now = trio.current_time()
        final = 0
        for number, record in self._anchors.items():
            if record.height < 0:
                self._seen.pop(number, None)
                continue
            seen = self._seen.get(number)
            if seen is None or seen[0] != record.height:
                seen = self._seen[number] = record.height, now
            above = self._link.height - record.height
            on_demand = self._link.is_on_demand and (above >= 1 or now >= seen[1] + SETTLED)
            if on_demand or above >= self._link.finality_depth:
                final = max(final, number)
        self._seen = {number: seen for number, seen in self._seen.items() if number in self._anchors}
        await self._finalize(final)

    async def _finalize(self, number: int) -> None:
        if number > self._final:
            self._final = number
            await self._on_final(self._anchors[number].generation)

    def _until_settled(self) -> float:
        """Return in how many seconds an anchor may be settled without any new block."""
        if not self._link.is_on_demand:
            return math.inf
        waiting = [since for number, (_, since) in self._seen.items() if number > self._final]
        return max(0.1, min(waiting) + SETTLED - trio.current_time()) if waiting else math.inf

    # ---- sending ---------------------------------------------------------------------------------------------------

    async def _is_settled(self, number: int) -> bool:
        """Look one anchor up; returns whether it is still where it was."""
        record = self._anchors[number]
        found = await self._link.call("tx", TxQuery(self._id(record)), TxFound)
        height = -1 if found.height is None or not found.tx else found.height
        self._moved(number, record, height)
        if height == record.height and found.confirmations > max(BURIED, self._link.finality_depth):
            await self._finalize(number)
            self._drop([old for old in self._anchors if old <= number])
        return height == record.height

    async def _send(self, number: int) -> bool:
        """Submit one anchor; returns whether it is in a block already."""
        record = self._anchors[number]
        try:
            result = await self._link.call("submit", SubmitTx(record.tx), TxResult)
        except InvalidTransaction as exc:
            if self._errors.get(number) != str(exc):
                log.warning("the ledger refuses anchor %d: %s", number, exc)
                self._errors[number] = str(exc)
                self._tell(number, str(exc))
            return False
        self._errors.pop(number, None)
        if result.height is None:
            return False
        self._moved(number, record, result.height)
        return True

    def _moved(self, number: int, seen: OutboxRecord, height: int) -> None:
        """Note a new height, unless the anchor was replaced while the daemon was asked."""
        if height == seen.height or self._anchors.get(number) is not seen:
            return
        record = msgspec.structs.replace(seen, height=height)
        self._anchors[number] = record
        self._writer.write_nowait([(OUTBOX, number.to_bytes(8), codec.encode(record))])
        self._tell(number, "")
        in_blocks = sorted(old for old, record in self._anchors.items() if record.height >= 0)
        self._drop(in_blocks[:-KEPT_MAX])

    def _drop(self, numbers: list[int]) -> None:
        for number in numbers:
            del self._anchors[number]
        self._writer.write_nowait([(OUTBOX, number.to_bytes(8), None) for number in numbers])

    def _tell(self, number: int, error: str) -> None:
        record = self._anchors[number]
        self._notify(Anchored(number, self._id(record), record.height if record.height >= 0 else None, error))

    def _id(self, record: OutboxRecord) -> TxId:
        return tx_id(decode_tx(record.tx))
