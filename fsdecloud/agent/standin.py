"""Checking and repairing a volume in its owner's place, with a repair key (`crypto.repairkey`).

Called only from the trio thread. The parts are those of a mount's agent (`agent.stack`): audits, repair, leases. What the
driver tells an agent comes from the ledger: the latest anchor has a part that the repair key opens, which names the location
map, the host map and the manifest (by its id alone). Nothing is ever written there: the owner alone signs anchors, so

* what is repaired is known to this journal only, until the owner's agent asks the peers for what it misses (`agent.repair`)
  and finds it where it was stored: a shard's id is its hash, and its holder signs for it under the same deal;
* a newer anchor's map replaces everything here, and what was repaired before is found again in the same way;
* nothing is deleted: what was left behind elsewhere ends with its lease.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec
import trio

from fsdecloud.agent.journal import META, JournalWriter, open_journal, open_writer
from fsdecloud.agent.peer import Transport
from fsdecloud.agent.stack import Stack, lock_agent
from fsdecloud.config import make_private_dir
from fsdecloud.crypto import seal
from fsdecloud.crypto.keys import RepairKeys
from fsdecloud.crypto.repairkey import RepairKey
from fsdecloud.errors import FsdecloudError, LedgerUnavailable, MalformedError, RemoteError, SealError, UsageError
from fsdecloud.fs.manifest import RepairPayload, open_repair_part
from fsdecloud.ledger.transactions import Anchor, decode_tx
from fsdecloud.limits import MIB
from fsdecloud.net.nursery import open_background
from fsdecloud.swarm.repair import Policy
from fsdecloud.types import EntryId, Ref
from fsdecloud.wire.agentapi import AgentHello, AgentStatus, SignedGrant, SignGrant

log = logging.getLogger(__name__)

PATIENCE: Final = 60.0
"""Seconds for the ledger daemon and the peers to answer before it gives up (or tries again, when it watches)."""

RETRY: Final = 1.0

FOLLOW: Final = 60.0
"""Seconds between two looks at the ledger, and between two reports."""

SETTLED: Final = 60.0
"""A single check ends when nothing will be due within so many seconds."""

LOOK: Final = 0.2

HOST_MAP_MAX: Final = MIB

_FOLLOWED: Final = b"followed"


class Report(msgspec.Struct, frozen=True):
    """What was found, and done since the start."""

    sequence: int
    """Of the anchor whose state this is."""
    status: AgentStatus
    renewed_shards: int


class StandIn:
    """The agent of one repair key. Made by `open_standin`."""

    def __init__(self, key: RepairKey, directory: Path, ledger: Path, writer: JournalWriter, transport: Transport,
                 policy: Policy, bootstrap: Sequence[str] = ()) -> None:  # fmt: skip
        hello = AgentHello(
            volume=key.volume_id,
            deal_secret=key.deal_secret,
            repair_secret=key.repair_secret,
            state_dir=str(directory),
            staged_dir=str(make_private_dir(directory / "staged")),
            cache_dir=str(directory / "cache"),
            ledger_socket=str(ledger),
            network=key.network,
            redundancy=key.redundancy,
            map_root=b"",
            host_map=b"",
            map_sequence=0,
            repair=True,
            bootstrap=tuple(bootstrap),
        )
        self._key = key
        self._keys = RepairKeys.from_secret(key.repair_secret)
        self._writer = writer
        self.stack = Stack(hello, writer, transport, lambda _method, _notice: None, _sign_nothing, policy)
        self.stack.garbage.keeps_moved = False
        self.sequence = int(writer.journal.get(META, _FOLLOWED) or b"0")

    # ---- what the owner wrote --------------------------------------------------------------------------------------
    async def follow(self) -> None:
        """Take the state of the volume's latest anchor. Raises UsageError when there is none for this key, RemoteError,
        LedgerUnavailable."""
        stack = self.stack
        found = await stack.ledger_volume()
        if not found.tx:
            raise LedgerUnavailable("the ledger has no anchor of this volume yet")
        anchor = decode_tx(found.tx)
        if not isinstance(anchor, Anchor) or anchor.volume != self._key.volume_id:
            raise MalformedError("the ledger daemon answers with what is no anchor of this volume")
        if anchor.sequence == self.sequence:
            return
        head = self._open(anchor)
        sealed = await stack.fetcher.fetch_copy(EntryId(head.host_map[:32]), head.host_map_length, head.holders)
        host_map = seal.open_ref(Ref.from_bytes(head.host_map), seal.Kind.HOST_MAP, sealed, limit=HOST_MAP_MAX)
        more = [
            (META, b"manifest", head.manifest),
            (META, b"host_map_copy", head.host_map),
            (META, _FOLLOWED, str(anchor.sequence).encode()),
        ]
        await stack.locations.follow(head.map_root, host_map, more)
        self.sequence = anchor.sequence
        stack.repairer.poke()
        log.info("follows anchor %d", anchor.sequence)

    def _open(self, anchor: Anchor) -> RepairPayload:
        try:
            head = open_repair_part(self._keys.payload_key, anchor.payload)
        except SealError:
            raise UsageError(
                f"anchor {anchor.sequence} has no part for this repair key: a release without repair keys wrote it "
                "(mount the volume and write something), or the key is another volume's"
            ) from None
        if head.sequence != anchor.sequence:
            raise MalformedError("an anchor whose part for repair keys is another anchor's")
        return head

    async def _follow_patiently(self) -> None:
        """Follow, trying again while ledger or peers do not answer. Raises what the last try did."""
        deadline = trio.current_time() + PATIENCE
        while True:
            try:
                await self.follow()
                return
            except (RemoteError, LedgerUnavailable):
                if trio.current_time() >= deadline:
                    raise
            await trio.sleep(RETRY)

    # ---- working ---------------------------------------------------------------------------------------------------
    async def run(self, report: Callable[[Report], None], *, watch: bool) -> None:
        """Check and repair, and report: once, or until cancelled. Raises as `follow` does, at the start."""
        stack = self.stack
        async with open_background() as nursery:
            if stack.discovery is not None:
                nursery.start_soon(stack.discovery.run)
            for run in (stack.book.run, stack.link.run):
                nursery.start_soon(run)
            await self._follow_patiently()
            for run in (stack.hosts.run, stack.uploader.run):
                nursery.start_soon(run)
            await self._probe_all()
            nursery.start_soon(stack.auditor.run)
            nursery.start_soon(stack.repairer.run)
            if watch:
                nursery.start_soon(stack.renewer.run)
                await self._watch(report)
            while not stack.repairer.is_settled(SETTLED):  # noqa: ASYNC110 - many things may change it
                await trio.sleep(LOOK)
            await stack.renewer.look()
            report(self.report())
            nursery.cancel_scope.cancel()

    async def _probe_all(self) -> None:
        """Learn who is there before anything is judged."""
        async with trio.open_nursery() as nursery:
            for peer in self.stack.hosts.map.current:
                nursery.start_soon(self.stack.book.probe, peer)

    async def _watch(self, report: Callable[[Report], None]) -> None:
        last: object = None
        while True:
            found = self.report()
            essence = (found.sequence, found.status.repair)
            if essence != last:
                report(found)
            last = essence
            await trio.sleep(FOLLOW)
            try:
                await self.follow()
            except FsdecloudError as exc:
                log.warning("cannot learn whether there is a newer anchor: %s", exc)

    def report(self) -> Report:
        """Return what is known now."""
        return Report(self.sequence, self.stack.status(), self.stack.renewer.renewed_shards)


async def _sign_nothing(_request: SignGrant) -> SignedGrant:
    return SignedGrant(b"", ())


@asynccontextmanager
async def open_standin(
    key: RepairKey,
    directory: Path,
    ledger: Path,
    transport: AbstractAsyncContextManager[Transport],
    policy: Policy,
    bootstrap: Sequence[str] = (),
) -> AsyncIterator[StandIn]:
    """Have a stand-in for the length of the body; its state lies in `directory`, and losing that loses nothing.
    `bootstrap`: peers to ask for others.

    Raises StoreLocked when one runs there already, StoreError.
    """
    make_private_dir(directory)
    async with AsyncExitStack() as exits:
        exits.enter_context(await lock_agent(directory / "agent.lock"))
        journal = await trio.to_thread.run_sync(open_journal, directory / "journal", key.volume_id)
        exits.callback(journal.close)
        writer = await exits.enter_async_context(open_writer(journal))
        connections = await exits.enter_async_context(transport)
        yield StandIn(key, directory, ledger, writer, connections, policy, bootstrap)
