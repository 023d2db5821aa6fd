"""What is done with blobs that lack nothing, in the background: coding them anew, moving them, and giving up old tables.

Called only from the trio thread. A pass looks at all rows of the location map, a page at a time, and does what each needs
(`recoding`, `settling`), a few blobs at once. It begins again when the redundancy or the peers change, and later when
something waits. Repair goes first: nothing is begun while it looks at blobs or repairs some.
"""

from __future__ import annotations

import logging
from typing import Final

import trio

from fsdecloud.agent.copies import Copies
from fsdecloud.agent.moving import Mover, Stale
from fsdecloud.agent.recoding import Recoder
from fsdecloud.agent.repair import Repairer
from fsdecloud.agent.rows import BLOB_PREFIX, BlobRow, decode_blob_row
from fsdecloud.agent.settling import Settler
from fsdecloud.agent.upkeep import Parts, Upkeep
from fsdecloud.errors import FsdecloudError, NotEnoughPeers, ProtocolError, RemoteError
from fsdecloud.fs.keys import prefix_end
from fsdecloud.swarm.policy import Redundancy
from fsdecloud.types import BlobId
from fsdecloud.wire.agentapi import RecodingStatus

log = logging.getLogger(__name__)

PAGE: Final = 512
"""Rows looked at in one step."""

STEP: Final = 32
"""Rows between two checkpoints: their rankings take some milliseconds."""

GATHER: Final = 1.0
"""Seconds after a change in which others may come."""

PASS_SHARE: Final = 10
"""A pass that had nothing to do is not repeated before ten times its own length has passed."""

RETRY: Final = 60.0
"""Seconds until what waits or failed is tried again, if no peer comes back before."""

INTERVAL: Final = 3600.0
"""Seconds between two passes if nothing changes."""

REPAIR_PAUSE: Final = 0.5
"""Seconds between two looks whether repair has ended."""

ROOM_PAUSE: Final = 10.0
"""Seconds between two looks whether what was left behind has been deleted."""

REPORT_INTERVAL: Final = 60.0
"""Seconds after which the driver is told of what has changed while there is more to do: each time is an anchor."""


class Arranger(Upkeep):
    """Keeps all blobs of one volume coded, and placed, as they should be."""

    def __init__(
        self, parts: Parts, *, recoder: Recoder, settler: Settler, repairer: Repairer, mover: Mover, copies: Copies
    ) -> None:
        super().__init__(parts)
        self._recoder = recoder
        self._settler = settler
        self._repairer = repairer
        self._mover = mover
        self._copies = copies
        self._wake = trio.Event()
        self._next_pass = 0.0
        self._counted: Redundancy | None = None
        self._blobs = 0
        self._bytes = 0
        self._waiting = 0
        self._has_failed = False
        self._has_left = False
        self._is_working = False
        self._last_error = ""
        self._told_at = trio.current_time()
        self._told = 0
        """Blobs coded anew of which the driver knows."""
        self._has_moved = False
        """It does not know yet of some that were moved."""
        self._hosts.on_change.append(self.poke)
        self._hosts.on_wanted.append(self.poke)
        self._book.on_usable.append(lambda _peer: self._retry())

    def poke(self) -> None:
        """The redundancy or the hosts changed: look at everything soon."""
        self._wake.set()

    def _retry(self) -> None:
        if self._blobs or self._has_failed:
            self._wake.set()

    def status(self) -> RecodingStatus:
        """Return what `status` shows."""
        target = self._recoder.target or Redundancy(0, 0)
        done = self._recoder.blobs, self._recoder.bytes
        left = self._blobs, self._bytes, self._waiting
        is_counted = self._counted == self._recoder.target
        return RecodingStatus(target.k, target.n, *left, *done, self._last_error, is_counted)

    @property
    def wants_collection(self) -> bool:
        """True when what was left behind at peers should go now: nothing more comes, or there is no room for more of it."""
        return self._has_left and (not self._is_working or not self._garbage.has_room())

    # ---- the loop --------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Work until cancelled."""
        await self._hosts.wait_known()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._recoder.watch, self.poke)
            await self._work()

    async def _work(self) -> None:
        while True:
            await trio.sleep(GATHER)
            await trio.sleep_until(self._next_pass)
            self._wake = trio.Event()
            self._has_failed = False
            try:
                await self._wait_repair()
                await self._recoder.recover()
                if self._recoder.target is not None:
                    await self._copies.bring_manifests(self._recoder.target.copies)
                if await self._look():
                    self._is_working = True
                    await self._pass()
                if not self._wake.is_set() and not await self._settler.retire():
                    self._has_failed = True  # an anchor has to come before
            except FsdecloudError as exc:
                self._note_error(exc)
            finally:
                self._is_working = False
                self._tell()
            with trio.move_on_after(self._pause()):
                await self._wake.wait()

    def _pause(self) -> float:
        if self._has_failed or self._blobs:  # some wait for peers, or are being stored
            return RETRY
        return min(self._settler.due_in or INTERVAL, INTERVAL)

    def _note_error(self, error: FsdecloudError) -> None:
        self._has_failed = True
        self._last_error = str(error)
        log.info("what is stored is not coded anew or moved now: %s", error)

    async def _wait_repair(self) -> None:
        while self._repairer.is_working:  # noqa: ASYNC110 - many things end it
            await trio.sleep(REPAIR_PAUSE)

    def _tell(self) -> None:
        done = self._recoder.blobs
        if done > self._told:
            self._mover.moved(done - self._told, str(self._recoder.target or ""))
        elif self._has_moved:
            self._mover.moved(0, "")
        self._told, self._told_at, self._has_moved = done, trio.current_time(), False

    # ---- looking ---------------------------------------------------------------------------------------------------
    async def _look(self) -> bool:
        """Count what is to be coded anew; returns whether there is something to do. Raises RemoteError."""
        started = trio.current_time()
        target = self._recoder.target
        blobs = size = moving = 0
        after, stop = BLOB_PREFIX, prefix_end(BLOB_PREFIX)
        while self._recoder.target is not None or self._settler.is_due:
            rows = await self._locations.rows_after(after, stop, PAGE)
            for number, (key, value) in enumerate(rows, 1):
                blob, row = BlobId(key[1:]), decode_blob_row(value)
                if number % STEP == 0:
                    await trio.lowlevel.checkpoint()
                if self._recoder.coding(row) is not None:
                    if self._garbage.get(blob) is None:
                        blobs += 1
                        size += row.length
                elif self._settler.is_due:
                    moving += bool(self._settler.moves(blob, row))
            await trio.lowlevel.checkpoint()
            if len(rows) < PAGE:
                break
            after = rows[-1][0]
        self._blobs, self._bytes, self._waiting, self._counted = blobs, size, 0, target
        self._next_pass = trio.current_time() + PASS_SHARE * (trio.current_time() - started)
        if not blobs:
            self._last_error = ""
        if blobs or moving:
            log.info("%d blobs are coded anew, %d are moved", blobs, moving)
        elif self._settler.is_due:
            self._settler.note_settled(self._hosts.map.epoch)
        return bool(blobs or moving)

    # ---- doing -----------------------------------------------------------------------------------------------------
    async def _pass(self) -> None:
        """Do what is to be done, until everything was looked at or something changes. Raises RemoteError."""
        after, stop = BLOB_PREFIX, prefix_end(BLOB_PREFIX)
        epoch, is_settling = self._hosts.map.epoch, self._settler.is_due
        while not self._wake.is_set():
            rows = await self._locations.rows_after(after, stop, PAGE)
            blobs = [(BlobId(key[1:]), decode_blob_row(value)) for key, value in rows]
            todo = [(blob, row) for blob, row in reversed(blobs) if self._is_due(blob, row)]
            async with trio.open_nursery() as nursery:
                for _ in range(min(self._policy.blobs_at_once, len(todo))):
                    nursery.start_soon(self._work_at, todo)
            await trio.lowlevel.checkpoint()
            if len(rows) < PAGE:
                if is_settling and epoch == self._hosts.map.epoch and not self._has_failed:
                    self._settler.note_settled(epoch)
                return
            after = rows[-1][0]

    def _is_due(self, blob: BlobId, row: BlobRow) -> bool:
        if self._recoder.coding(row) is not None:
            return True
        return self._settler.is_due and bool(self._settler.moves(blob, row))

    async def _work_at(self, todo: list[tuple[BlobId, BlobRow]]) -> None:
        """Do one blob after the other, until there are none left or something changes."""
        while todo and not self._wake.is_set():
            await self._wait_repair()
            if not self._garbage.has_room():
                self._tell()
                with trio.move_on_after(ROOM_PAUSE):
                    await self._wake.wait()
                continue
            if not todo:
                return
            blob, row = todo.pop()
            try:
                if self._recoder.coding(row) is None:
                    self._has_moved |= await self._settler.settle(blob)
                    self._has_left |= self._has_moved
                elif await self._recoder.recode(blob):
                    self._repairer.note_whole(blob)
                    self._has_left = True
                    self._blobs -= 1
                    self._bytes -= row.length
            except NotEnoughPeers as exc:
                self._waiting += 1
                self._last_error = str(exc)
            except (RemoteError, ProtocolError, Stale) as exc:
                self._note_error(exc)
            if trio.current_time() >= self._told_at + REPORT_INTERVAL:
                self._tell()
