"""The parts of a running agent, put together for one volume.

Called only from the trio thread. Not here: who may call what (`service`).
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import trio

from fsdecloud import codec
from fsdecloud.agent.arranging import Arranger
from fsdecloud.agent.audit import Audit
from fsdecloud.agent.auditor import Auditor
from fsdecloud.agent.copies import Copies
from fsdecloud.agent.dealbook import DealBook
from fsdecloud.agent.dealforming import NoteRefund, Pay
from fsdecloud.agent.dealholdings import shards_at
from fsdecloud.agent.dealing import Dealer
from fsdecloud.agent.dealstatus import deals_status
from fsdecloud.agent.discovery import Discovery, Finding
from fsdecloud.agent.fetch import Fetcher
from fsdecloud.agent.garbage import Garbage
from fsdecloud.agent.granting import Granter, Sign
from fsdecloud.agent.hosts import Hosts
from fsdecloud.agent.journal import META, NODES, ROWS, JournalWriter, Write, open_journal, open_writer
from fsdecloud.agent.leases import Renewer
from fsdecloud.agent.ledgerlink import LedgerLink
from fsdecloud.agent.locations import COMMIT_PATIENCE, LocationMap
from fsdecloud.agent.moving import Mover
from fsdecloud.agent.outbox import Outbox
from fsdecloud.agent.peer import Paying, Transport
from fsdecloud.agent.peers import PeerBook
from fsdecloud.agent.reach import Reach
from fsdecloud.agent.recoding import Recoder
from fsdecloud.agent.repair import Repairer
from fsdecloud.agent.rows import manifest_key
from fsdecloud.agent.settling import Settler
from fsdecloud.agent.sweep import Sweeper
from fsdecloud.agent.upkeep import Parts
from fsdecloud.agent.upload import Uploader
from fsdecloud.config import make_private_dir
from fsdecloud.crypto import seal
from fsdecloud.crypto.keys import RepairKeys
from fsdecloud.crypto.seal import entry_id
from fsdecloud.errors import MalformedError, NotEnoughPeers, StoreLocked
from fsdecloud.fs.manifest import HOLDERS_MAX
from fsdecloud.fs.marks import Marks
from fsdecloud.limits import BLOB_MAX
from fsdecloud.net.address import parse_bootstrap
from fsdecloud.net.nursery import open_background
from fsdecloud.store.lockfile import LockFile, acquire_lock
from fsdecloud.store.segments import SegmentStore
from fsdecloud.swarm.policy import parse_redundancy
from fsdecloud.swarm.repair import Policy
from fsdecloud.types import BlobId, PeerId
from fsdecloud.wire.agentapi import (
    AgentHello,
    AgentStatus,
    Anchored,
    Bandwidth,
    DealsStatus,
    GarbageFinal,
    GcGranted,
    GcSweep,
    GcSwept,
    Holders,
    LedgerTip,
    LedgerVolume,
    MapCommit,
    Registry,
    RegistryPeer,
    Repaired,
    RepairStatus,
    Stored,
)
from fsdecloud.wire.ledgerapi import KeyQuery, VolumeAnchor

log = logging.getLogger(__name__)

LOCK_PATIENCE: Final = 10.0
"""How long to wait for an agent that the last driver left and that has not noticed yet."""

POLICY: Final = Policy()
"""How much a volume spends on staying whole."""

Notice = Stored | Anchored | LedgerTip | GarbageFinal | Repaired
Notify = Callable[[str, Notice], None]
"""Send a notice, by method name."""


class Stack:
    """All parts of the agent of one volume. Made by `open_stack`."""

    def __init__(
        self,
        hello: AgentHello,
        writer: JournalWriter,
        transport: Transport,
        notify: Notify,
        sign: Sign,
        policy: Policy | None = None,
        pay: Pay | None = None,
        note_refund: NoteRefund | None = None,
    ) -> None:
        """`policy` None: POLICY. Without `pay` no deals are made."""
        policy = policy or POLICY
        self._hello = hello
        self._writer = writer
        self._notify = notify
        journal = writer.journal
        keys = self._keys = RepairKeys.from_secret(hello.repair_secret)
        self.book = PeerBook(transport, network=hello.network, clock=trio.current_time, jitter=random.random)
        self.limit(Bandwidth(hello.up, hello.down))
        self.hosts = Hosts(
            writer,
            self.book,
            keys.placement_secret,
            parse_redundancy(hello.redundancy),
            journal.get(META, b"host_map") or hello.host_map,
        )
        self.garbage = Garbage(writer)
        self.uploader = Uploader(
            writer=writer,
            garbage=self.garbage,
            staged=SegmentStore(Path(hello.staged_dir), "staged", create=False, is_shared=True),
            book=self.book,
            hosts=self.hosts,
            notify=partial(notify, "stored"),
        )
        self.locations = LocationMap(writer, keys, self.hosts, self.garbage)
        self.fetcher = Fetcher(
            book=self.book,
            hosts=self.hosts,
            cache=SegmentStore(make_private_dir(Path(hello.cache_dir)), "fetched", is_shared=True),
            locate=self.locations.locate,
        )
        self.locations.connect(self.uploader, self.fetcher.fetch_copy)
        self.link = LedgerLink(
            Path(hello.ledger_socket), hello.network, on_tip=self._take_tip, on_registry=self._take_registry
        )
        self.outbox = Outbox(writer, self.link, partial(notify, "anchored"), self._take_final)
        self.sweeper = Sweeper(journal, self.locations, self.uploader, self.hosts, self.garbage)
        self.dealer: Dealer | None = None
        if hello.wallet and pay is not None and note_refund is not None and isinstance(transport, Paying):
            self.dealer = Dealer(
                deals=DealBook(writer, Path(hello.state_dir) / "deals"),
                link=self.link,
                transport=transport,
                book=self.book,
                hosts=self.hosts,
                network=hello.network,
                deal_secret=hello.deal_secret,
                wallet=hello.wallet,
                budget=hello.budget,
                pay=pay,
                note_refund=note_refund,
                stored_at=partial(shards_at, self.locations, self.hosts, self.uploader, self.garbage),
            )
        self.granter = Granter(
            self.garbage, self.uploader, self.book, self.hosts, sign, self.dealer.release if self.dealer else None
        )
        self.audit = Audit(journal, self.locations, self.hosts, self.book)
        parts = Parts(
            locations=self.locations,
            hosts=self.hosts,
            book=self.book,
            fetcher=self.fetcher,
            uploader=self.uploader,
            garbage=self.garbage,
            writer=writer,
            policy=policy,
        )
        self.auditor = Auditor(parts, randomness=os.urandom)
        self.reach = Reach(self.locations, self.hosts, self.book, self.auditor, self.fetcher)
        self.mover = Mover(parts, moved=lambda blobs, redundancy: notify("repaired", Repaired(blobs, redundancy)))
        copies = Copies(parts, mover=self.mover)
        self.repairer = Repairer(parts, auditor=self.auditor, mover=self.mover, copies=copies)
        self.recoder = Recoder(parts, auditor=self.auditor, mover=self.mover)
        self.arranger = Arranger(
            parts,
            recoder=self.recoder,
            settler=Settler(parts, auditor=self.auditor, mover=self.mover),
            repairer=self.repairer,
            mover=self.mover,
            copies=copies,
        )
        self.hosts.on_wanted.append(self.repairer.poke)
        self.renewer = Renewer(
            parts, auditor=self.auditor, is_busy=lambda: self.fetcher.is_busy or self.uploader.is_busy
        )
        if hello.repair:
            self.fetcher.gatherer.on_miss = self.auditor.note_miss
            self.fetcher.gatherer.find = self.repairer.find
        self.book.is_urgent = lambda: self.uploader.has_parked
        self.discovery: Discovery | None = None
        if isinstance(transport, Finding):
            self.discovery = Discovery(
                pool=transport,
                book=self.book,
                hosts=self.hosts,
                path=Path(hello.state_dir) / "known",
                network=hello.network,
                bootstrap=parse_bootstrap(hello.bootstrap),
                lan=hello.lan,
            )

    async def start(self, nursery: trio.Nursery) -> None:
        """Compare the journal with the driver's last anchor, and start everything."""
        journal = self._writer.journal
        sequence = int(journal.get(META, b"map_sequence") or b"0")
        hello = self._hello
        if hello.map_sequence >= sequence and not self.locations.has_written(hello.map_root):
            await self.locations.adopt(hello.map_root, hello.host_map)
            await self._note_anchor(hello.map_sequence)
        await trio.to_thread.run_sync(self.locations.sweep)
        registry = journal.get(META, b"registry")
        if registry is not None:
            self._use_registry(codec.decode_loose(registry, Registry).peers)  # an earlier release knew less of each
        if self.discovery is not None:
            self.discovery.remember()
            nursery.start_soon(self.discovery.run, name="Discovery.run")
        for run in (self.book.run, self.hosts.run, self.uploader.run, self.link.run, self.outbox.run):
            nursery.start_soon(run, name=run.__qualname__)
        if hello.repair:
            nursery.start_soon(self.auditor.run, name="Auditor.run")
            nursery.start_soon(self.repairer.run, name="Repairer.run")
            nursery.start_soon(self.arranger.run, name="Arranger.run")
            nursery.start_soon(self.renewer.run, name="Renewer.run")
        if self.dealer is not None:
            nursery.start_soon(self.dealer.run, name="Dealer.run")

    def limit(self, bandwidth: Bandwidth) -> None:
        """Limit the traffic with peers."""
        if bandwidth.up is not None:
            self.book.up.set_rate(bandwidth.up)
        if bandwidth.down is not None:
            self.book.down.set_rate(bandwidth.down)

    # ---- what the driver asks --------------------------------------------------------------------------------------
    async def commit_map(self) -> MapCommit:
        """Write the location map, and the host map for repair keys; returns them, complete on the peers."""
        changes = self.mover.changes
        root = await self.locations.commit()
        self.mover.note_committed(changes)
        encoded = self.hosts.encoded
        ref, sealed = seal.seal(self._keys.map_seal_secret, seal.Kind.HOST_MAP, encoded)
        known = self._writer.journal.get(META, b"host_map_copy") or b""
        if known[:64] != ref.to_bytes():
            holders = await self._store_copy("host map", sealed)
            known = ref.to_bytes() + b"".join(holders.peers[:HOLDERS_MAX])
            await self._writer.write([(META, b"host_map_copy", known)])
        peers = tuple(PeerId(known[at : at + 32]) for at in range(64, len(known), 32))
        return MapCommit(root, encoded, known[:64], peers)

    async def store_manifest(self, data: bytes) -> Holders:
        """Store whole copies and return who holds them, fastest first. Raises NotEnoughPeers after COMMIT_PATIENCE."""
        if not 0 < len(data) <= BLOB_MAX:
            raise MalformedError(f"a manifest has 1 to {BLOB_MAX} bytes, not {len(data)}")
        name = entry_id(data)
        writes: tuple[Write, ...] = (META, b"manifest", name), (ROWS, manifest_key(name), b"\x01")
        return await self._store_copy("manifest", data, *writes)

    async def _store_copy(self, what: str, data: bytes, *more: Write) -> Holders:
        name = BlobId(entry_id(data))
        with trio.move_on_after(COMMIT_PATIENCE):
            await self.hosts.wait_known()
            writes = [(NODES, name, data), *self.uploader.add_local([(name, len(data))])]
            await self._writer.write([*writes, *more])
            self.uploader.start_local([name])
            (blob,) = await self.uploader.wait_anchorable([name])
            peers = sorted(blob.holders.values(), key=lambda peer: self.book.peer(peer).score.expected(len(data)))
            return Holders(tuple(peers), tuple(blob.receipts))
        raise NotEnoughPeers(f"the {what} is not stored on enough peers yet: {self.uploader.last_error}")

    async def submit(self, tx: bytes, sequence: int, map_root: bytes) -> None:
        """Put an anchor into the outbox."""
        generation = self.garbage.generation if map_root and map_root == self.locations.root else 0
        await self.outbox.submit(tx, sequence, generation)
        await self._note_anchor(sequence)

    async def _note_anchor(self, sequence: int) -> None:
        """Remember up to which anchor our own location map is newer than any that the driver may name."""
        await self._writer.write([(META, b"map_sequence", str(sequence).encode())])

    async def sweep(self, request: GcSweep) -> GcSwept:
        """Condemn what the driver's marks do not reach."""
        data = await trio.to_thread.run_sync(Path(request.marks).read_bytes)
        found = await self.sweeper.sweep(Marks.decode(data), dry_run=request.dry_run)
        return GcSwept(
            found.live_entries,
            found.live_bytes,
            found.dead_entries,
            found.dead_bytes,
            found.condemned_blobs,
            found.condemned_bytes,
            found.is_complete,
            tuple(found.repack),
        )

    async def grant(self) -> GcGranted:
        """Have peers delete what is final."""
        self.garbage.tried_generation = self.garbage.final_generation
        shards, size = self.garbage.freed_shards, self.garbage.freed_bytes
        waiting = await self.granter.run()
        return GcGranted(self.garbage.freed_shards - shards, self.garbage.freed_bytes - size, waiting)

    async def ledger_volume(self) -> LedgerVolume:
        """Ask the ledger for the volume's latest anchor. Raises LedgerUnavailable."""
        found = await self.link.call("volume", KeyQuery(self._hello.volume), VolumeAnchor)
        return LedgerVolume(found.tx, found.height)

    def status(self) -> AgentStatus:
        """Return what `decloud status` shows."""
        redundancy, warning = self.hosts.redundancy()
        warnings = [warning, self.renewer.warning()]
        if damaged := len(self.uploader.damaged):
            warnings.append(
                f"{damaged} staged entries are damaged on this disk and on no peer: files with them cannot be read whole"
            )
        entries, size = self.uploader.queued()
        in_use = self.hosts.map.current
        others = tuple(peer for peer in self.book.everybody() if peer not in in_use)
        return AgentStatus(
            pid=os.getpid(),
            peers=self.book.states((*in_use, *others)),
            k=redundancy.k,
            n=redundancy.n,
            warning="; ".join(filter(None, warnings)),
            queued_entries=entries,
            queued_bytes=size,
            partial_blobs=self.uploader.partial(),
            uploaded_bytes=self.book.uploaded_bytes,
            downloaded_bytes=self.book.downloaded_bytes,
            fetched_entries=self.fetcher.fetched_entries,
            outbox=len(self.outbox),
            ledger_height=self.link.height,
            ledger_pid=self.link.pid,
            last_error=self._writer.last_error or self.uploader.last_error or self.book.last_error,
            condemned_blobs=self.garbage.count(),
            freed_bytes=self.garbage.freed_bytes,
            repair=self._repair_status(),
            deals=self.deals(),
        )

    def deals(self) -> DealsStatus:
        """Return what `decloud deals` shows."""
        return DealsStatus() if self.dealer is None else deals_status(self.dealer, self.book, self.link)

    def _repair_status(self) -> RepairStatus:
        if not self._hello.repair:
            return RepairStatus()
        return msgspec.structs.replace(self.repairer.status(), recoding=self.arranger.status())

    def announce_garbage(self) -> None:
        """Tell the driver what may be deleted, but for what it had deleted already as far as peers answered."""
        garbage = self.garbage
        generations = garbage.generations()
        pending = sum(not 0 < generation <= garbage.final_generation for generation in generations)
        if self.arranger.wants_collection or any(self.book.peer(entry.id).leaves for entry in self.book.registry):
            generations = garbage.generations(with_moved=True)  # who leaves waits for that; else it takes much room
        final = sum(garbage.tried_generation < generation <= garbage.final_generation for generation in generations)
        self._notify("garbage", GarbageFinal(final, pending))

    async def _take_final(self, generation: int) -> None:
        await self.garbage.finalize(generation)
        self.announce_garbage()

    # ---- what the ledger says --------------------------------------------------------------------------------------
    def _take_tip(self, tip: LedgerTip) -> None:
        self._notify("ledger_tip", tip)
        if tip.height >= 0:
            self.outbox.poke()
            if self.dealer is not None:
                self.dealer.poke()

    def _take_registry(self, peers: Sequence[RegistryPeer]) -> None:
        if tuple(peers) != self.book.registry:
            self._writer.write_nowait([(META, b"registry", codec.encode(Registry(tuple(peers))))])
            self._use_registry(peers)

    def _use_registry(self, peers: Sequence[RegistryPeer]) -> None:
        self.book.update(peers)
        self.hosts.poke()
        if self.dealer is not None:
            self.dealer.poke()


@asynccontextmanager
async def open_stack(
    hello: AgentHello,
    open_transport: AbstractAsyncContextManager[Transport],
    notify: Notify,
    sign: Sign,
    pay: Pay | None = None,
    note_refund: NoteRefund | None = None,
) -> AsyncIterator[Stack]:
    """Run the agent of one volume for the length of the body.

    Raises StoreLocked when another agent does not give the volume up, StoreError, UsageError.
    """
    state = make_private_dir(Path(hello.state_dir))
    async with AsyncExitStack() as exits:
        exits.enter_context(await lock_agent(state / "agent.lock"))
        journal = await trio.to_thread.run_sync(open_journal, state / "journal", hello.volume)
        exits.callback(journal.close)
        writer = await exits.enter_async_context(open_writer(journal))
        transport = await exits.enter_async_context(open_transport)
        nursery = await exits.enter_async_context(open_background())
        stack = Stack(hello, writer, transport, notify, sign, pay=pay, note_refund=note_refund)
        if stack.dealer is not None:
            exits.callback(stack.dealer.deals.close)
        await stack.start(nursery)
        yield stack


async def lock_agent(path: Path) -> LockFile:
    """Take a volume's lock for its agent. Raises StoreLocked when another one does not give it up."""
    with trio.move_on_after(LOCK_PATIENCE):
        while True:
            try:
                return acquire_lock(path)
            except StoreLocked:
                await trio.sleep(0.1)
    return acquire_lock(path)
