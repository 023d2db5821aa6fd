"""When to mine and on what: keeps the worker process (`ledgerd.miner`) busy with the right block, or at rest.

A network that mines only when there is something to record leaves the worker asleep, and not even started before the first
transaction: an idle machine is idle. Everything here runs in the trio thread. Not here: the search itself.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from typing import Final

import msgspec
import trio

from fsdecloud.errors import InvalidBlock, StoreError
from fsdecloud.ledger.blocks import Block, encode_block, header_prefix
from fsdecloud.ledgerd.keeper import Keeper
from fsdecloud.ledgerd.miner import RESULT, encode_job

log = logging.getLogger(__name__)

REFRESH: Final = 15.0
"""A block under work takes in new transactions after this many seconds; before, the search is not disturbed."""

RESTART_DELAY: Final = 5.0
"""After the worker died unexpectedly."""

_STOP_TIMEOUT: Final = 2.0


class Mining:
    """Mines for `recipient`. `run` is the only task."""

    def __init__(self, keeper: Keeper, recipient: bytes) -> None:
        self._keeper = keeper
        self._recipient = recipient
        self._job = 0
        self.hash_rate = 0.0
        """Hashes per second while it last searched."""
        self.is_busy = False
        """True while there is a block to find."""

    async def run(self) -> None:
        """Mine until cancelled; a worker that dies is started again."""
        while True:
            await self._wait_for_work()
            try:
                await self._with_worker()
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, _WorkerDied) as exc:
                log.warning("the mining process ended (%s); starting another", exc)
            self.is_busy = False
            await trio.sleep(RESTART_DELAY)

    async def _wait_for_work(self) -> None:
        changed = self._keeper.change_event()
        while await self._keeper.build(self._recipient) is None:
            await changed.wait()
            changed = self._keeper.change_event()

    async def _with_worker(self) -> None:
        command = [sys.executable, "-m", "fsdecloud.ledgerd.miner"]
        process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        assert process.stdout is not None
        log.info("mining process %d started", process.pid)
        try:
            while True:
                await self._mine_one(process.stdin, process.stdout)
        finally:
            self.is_busy = False
            with trio.CancelScope(shield=True):
                await process.stdin.aclose()
                with trio.move_on_after(_STOP_TIMEOUT):
                    await process.wait()
                if process.returncode is None:
                    process.kill()
                    await process.wait()

    async def _mine_one(self, stdin: trio.abc.SendStream, stdout: trio.abc.ReceiveStream) -> None:
        """Find one block, or give up because the tip changed or the block is out of date."""
        changed, tip_changed = self._keeper.change_event(), self._keeper.tip_event()
        block = await self._keeper.build(self._recipient)
        if block is None:
            if self.is_busy:
                self.is_busy = False
                await stdin.send_all(encode_job(0, 0, bytes(32), b""))
            # What waits may become valid with time (a lease that ends), which is no event.
            with trio.move_on_after(REFRESH if len(self._keeper.pool) else float("inf")):
                await changed.wait()
            return
        self.is_busy = True
        self._job += 1
        start = int.from_bytes(os.urandom(6)) << 8
        await stdin.send_all(encode_job(self._job, start, block.header.target, header_prefix(block.header)))
        nonce = await self._wait_for_nonce(stdout, tip_changed)
        if nonce is not None:
            await self._publish(block, nonce)

    async def _wait_for_nonce(self, stdout: trio.abc.ReceiveStream, tip_changed: trio.Event) -> bytes | None:
        found: bytes | None = None
        begun = trio.current_time()

        async def watch_tip(scope: trio.CancelScope) -> None:
            await tip_changed.wait()
            scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_tip, nursery.cancel_scope)
            with trio.move_on_after(REFRESH):
                found = await self._read_results(stdout, begun)
            nursery.cancel_scope.cancel()
        return found

    async def _read_results(self, stdout: trio.abc.ReceiveStream, begun: float) -> bytes:
        while True:
            number, tries, is_found, nonce = RESULT.unpack(await _read_exactly(stdout, RESULT.size))
            if number == self._job:
                self.hash_rate = tries / max(trio.current_time() - begun, 1e-3)
                if is_found:
                    return bytes(nonce)

    async def _publish(self, block: Block, nonce: bytes) -> None:
        found = msgspec.structs.replace(block, header=msgspec.structs.replace(block.header, nonce=nonce))
        try:
            accepted = await self._keeper.accept(encode_block(found))
        except InvalidBlock as exc:  # a bug here, or a clock that went back; mining goes on with a new block
            log.error("a block mined here is not valid: %s: %s", type(exc).__name__, exc)
            await trio.sleep(RESTART_DELAY)
        except StoreError as exc:  # a full disk, most often: it may have room again
            log.error("a block mined here cannot be stored: %s", exc)
            await trio.sleep(RESTART_DELAY)
        else:
            log.info("mined block %d with %d transactions", accepted.point.height, len(found.transactions) - 1)


class _WorkerDied(Exception):
    """The worker closed its output."""


async def _read_exactly(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    """Read one result. Cancelled in the middle of one (a result is written at once, so only between two), nothing is lost."""
    data = await stream.receive_some(size)
    while len(data) < size:
        more = await stream.receive_some(size - len(data))
        if not more:
            raise _WorkerDied("its output ended")
        data = bytes(data) + bytes(more)
    return bytes(data)
