"""How a storage peer with a stake votes about checkpoints (fsdecloud-ledger(7), VOTES).

Runs beside everything else. At each new tip it asks the local ledger daemon for the checkpoints, decides by `plan_vote`, writes
the link down, signs it, and submits it, at each tip again until a block has it: the same bytes, because a signature follows
from the link and the key.

**Invariant:** nothing is signed but the record that `votejournal` has made durable, and each is above the one before. So no two
votes conflict, whatever chains the ledger daemon followed, and wherever this process was killed. Without a journal it begins
above everything that the ledger knows of it, the newest checkpoint included: its vote for that one may be on its way. When the
ledger has a later vote of its key than the journal, the journal is an old copy or another machine votes too: it stops, until a
person acts. Called only from the trio thread.
"""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Final

import trio

from fsdecloud.errors import FsdecloudError, InvalidTransaction, LedgerUnavailable, StoreCorrupt
from fsdecloud.ledger.finality import plan_vote
from fsdecloud.ledger.network import decode_network
from fsdecloud.ledger.staking import Checkpoint, Finality, Voters
from fsdecloud.ledger.transactions import sign_vote
from fsdecloud.net.nursery import wait_first
from fsdecloud.net.unix import RpcConnection, connect_unix, open_rpc
from fsdecloud.peerd.registration import CALL_TIMEOUT, RETRY
from fsdecloud.peerd.votejournal import VoteRecord, read_journal, write_journal
from fsdecloud.types import PeerId
from fsdecloud.wire.agentapi import Empty
from fsdecloud.wire.ledgerapi import (
    FinalityInfo,
    FinalityQuery,
    LedgerStatus,
    NetworkInfo,
    StakeInfo,
    SubmitTx,
    TipNotice,
    TxResult,
)

log = logging.getLogger(__name__)

RECHECK: Final = 120.0
"""Seconds without a new tip after which a vote that no block took up is submitted again, at the latest."""


class MustNotVote(FsdecloudError):
    """A vote might contradict one that was signed before; only a person can tell."""


class Voter:
    """Votes with one peer's stake."""

    def __init__(self, *, socket: Path, journal: Path, seed: bytes, peer: PeerId, network: bytes) -> None:
        """`journal` is the file of `votejournal`; nobody else may write it."""
        self._socket = socket
        self._path = journal
        self._seed = seed
        self._peer = peer
        self._network = network
        self._tip = trio.Event()
        self._record: VoteRecord | None = None
        """As it is durable on the disk."""
        self.stake: StakeInfo | None = None
        """As the ledger was last seen to have it."""
        self.error = ""
        """Why it does not vote; empty if it does, or has no stake."""

    @property
    def last_vote(self) -> int:
        """Height of the checkpoint that it voted for last, 0 for none."""
        return self._record.target_height if self._record is not None and self._record.link is not None else 0

    async def run(self) -> None:
        """Vote. Returns when that will not be possible before the next start: the network has no checkpoints, the ledger daemon
        is of another network, or a person has to act."""
        failures = 0
        while True:
            try:
                stream = await connect_unix(self._socket, error=LedgerUnavailable)
                notices = {"tip": (TipNotice, self._on_tip)}
                async with open_rpc(stream, notices=notices, lost=LedgerUnavailable) as ledger:
                    status = await ledger.call("watch", Empty(), LedgerStatus, timeout=CALL_TIMEOUT)
                    failures = 0
                    if status.network != self._network or not await self._has_checkpoints(ledger):
                        return
                    if self._record is None:
                        self._record = await trio.to_thread.run_sync(
                            read_journal, self._path, self._network, self._peer
                        )
                    if status.light:
                        await self._wait_full(ledger)
                    else:
                        await self._keep(ledger)
            except (MustNotVote, StoreCorrupt) as exc:
                self._failed(str(exc))
                return
            except FsdecloudError as exc:  # whatever the daemon says or does: it is tried again
                if self._record is not None or self.stake is not None:
                    self._failed(f"does not vote: {exc}")
            first, longest = RETRY
            await trio.sleep(min(longest, first * 2**failures) * random.uniform(0.5, 1.0))
            failures = min(failures + 1, 10)

    async def _has_checkpoints(self, ledger: RpcConnection) -> bool:
        found = await ledger.call("network", Empty(), NetworkInfo, timeout=CALL_TIMEOUT)
        return decode_network(found.document).checkpoint_interval > 0

    async def _wait_full(self, ledger: RpcConnection) -> None:
        """Wait until the light daemon ends: the next one may be full."""
        if self._record is not None:
            self._failed("does not vote: the ledger daemon of this home is light; voting needs a full one")
        await ledger.wait_closed()

    async def _keep(self, ledger: RpcConnection) -> None:
        """Vote at each tip until the connection ends."""
        while not ledger.is_closed:
            self._tip = trio.Event()  # a tip that comes while this one is looked at is looked at next
            await self._look(ledger)
            await wait_first(RECHECK, ledger.wait_closed, self._tip.wait)
        raise LedgerUnavailable("the ledger daemon went away")

    async def _look(self, ledger: RpcConnection) -> None:
        """Look at the checkpoints once, and vote if there is something to vote for. Raises MustNotVote."""
        found = await ledger.call("finality", FinalityQuery(self._peer), FinalityInfo, timeout=CALL_TIMEOUT)
        stake = self.stake = found.stake
        if stake is None:
            self.error = ""
            return
        if stake.is_burned:
            raise MustNotVote("votes no more: its stake was burned, because two of its votes contradicted each other")
        if self._record is None:
            await self._begin(found, stake)
        assert self._record is not None
        if stake.target > self._record.target_height:
            raise MustNotVote(
                f"does not vote: the ledger has a vote of its key for block {stake.target}, and {self._path} none above block "
                f"{self._record.target_height}: that file is an older copy, or another machine votes with the same key, which "
                "burns the stake. Make sure that this is the only one, move that file away, and start the peer again"
            )
        if not stake.may_vote:
            self.error = ""
            return
        await self._decide(found)
        if _is_current(self._record, found) and stake.target < self._record.target_height:
            await self._submit(ledger, self._record)
        else:
            self.error = ""

    async def _begin(self, found: FinalityInfo, stake: StakeInfo) -> None:
        """Make the first journal: whatever this key may have voted before is not above it."""
        bound = max(stake.target, found.newest.height)
        await self._write(VoteRecord(1, self._network, self._peer, found.justified.height, bound, None))
        if stake.target:
            log.warning("no journal of what it voted: begins above block %d, by what the ledger knows", bound)

    async def _decide(self, found: FinalityInfo) -> None:
        """Write the next vote down, if there is one."""
        assert self._record is not None
        if plan_vote(_finality(found), self._record.voted) is None:
            return
        source, target = found.justified, found.newest
        link = source.id, target.id
        await self._write(VoteRecord(1, self._network, self._peer, source.height, target.height, link))
        log.info("votes for block %d, from block %d", target.height, source.height)

    async def _write(self, record: VoteRecord) -> None:
        """Make a record durable. Raises StoreError; nothing of it is signed then."""
        await trio.to_thread.run_sync(write_journal, self._path, record)
        self._record = record

    async def _submit(self, ledger: RpcConnection, record: VoteRecord) -> None:
        """Sign what the journal has, and hand it in."""
        assert record.link is not None
        source, target = record.link
        vote = sign_vote(self._network, self._seed, source, record.source_height, target, record.target_height)
        try:
            await ledger.call("submit", SubmitTx(vote), TxResult, timeout=CALL_TIMEOUT)
        except InvalidTransaction as exc:
            if not self._tip.is_set():  # or the chain went on, and with the next look so does this
                self._failed(f"the ledger refuses the vote for block {record.target_height}: {exc}")
        else:
            self.error = ""

    def _on_tip(self, _notice: TipNotice) -> None:
        self._tip.set()

    def _failed(self, why: str) -> None:
        if why != self.error:
            log.warning("%s", why)
        self.error = why


def _is_current(record: VoteRecord, found: FinalityInfo) -> bool:
    """Tell whether a record is a vote for what is voted about on this chain."""
    return record.link == (found.justified.id, found.newest.id)


def _finality(found: FinalityInfo) -> Finality:
    """Return what the ledger daemon says as the rules have it; the stakes of checkpoints decide nothing here."""
    final, justified, newest = (
        Checkpoint(one.height, one.id, 0) for one in (found.final, found.justified, found.newest)
    )
    return Finality(final, justified, newest, Voters(0, found.front), Voters(0, found.rear), 0, 0, 0, found.bonded)
