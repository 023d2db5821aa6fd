"""How this daemon gets to the best chain that others have: headers first from one of them, then bodies from all.

One branch at a time. The one that claims most is asked for headers, and every header is checked (`ledger.headers`) before a
body is asked for. A branch is fetched only when its headers prove more work than our tip's (or as much, and a smaller id), and
at least `minimum_work`: so what does not lead is never stored, and cheap headers cost their sender more than us. Where stake
votes, a higher justified checkpoint comes before work; only the bodies show it, so a branch that claims one is fetched with
less work, too, and who claimed one that is not there is not believed again. Everything here runs in the trio thread.
Not here: fetching the bodies (`download`), what is valid (`keeper`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final

import trio

from fsdecloud.errors import (
    InvalidBlock,
    PeerUnavailable,
    RemoteTimeout,
    StoreCorrupt,
    StoreError,
)
from fsdecloud.ledger.blocks import block_id, decode_header
from fsdecloud.ledger.chain import locator
from fsdecloud.ledger.compact import SHORT_ID, assemble, match
from fsdecloud.ledger.finality import work_of_claim
from fsdecloud.ledger.headers import Branch, describe
from fsdecloud.ledgerd.conduct import FALSE_CLAIM, Misbehaviour
from fsdecloud.ledgerd.download import Download
from fsdecloud.ledgerd.keeper import Keeper
from fsdecloud.ledgerd.light import KEPT_HEADERS, LightKeeper, store_branch
from fsdecloud.ledgerd.session import Session
from fsdecloud.ledgerd.snapshot import SnapshotSync
from fsdecloud.limits import REQUEST_TIMEOUT
from fsdecloud.types import BlockId
from fsdecloud.wire import gossip

log = logging.getLogger(__name__)

IMPATIENCE: Final = 10.0
"""Seconds that headers are waited for while somebody else claims more work than we have, too."""

HELD_RETRY: Final = 60.0
"""Seconds after which a chain is looked at again whose headers were too far ahead of our clock."""

STORE_RETRY: Final = 10.0
"""Seconds to wait when a block cannot be stored: a full disk may have room again."""


class Syncer:
    """Keeps the chain at the best that the sessions offer. `run` is the only task."""

    def __init__(self, keeper: Keeper | LightKeeper, minimum_work: int = 0) -> None:
        self._keeper = keeper
        self._minimum = minimum_work.to_bytes(32)
        self._sessions: dict[Session, None] = {}
        self._changed = trio.Event()
        self._held: dict[Session, bytes] = {}
        self.is_busy = False
        """True while a branch is being fetched."""
        self.snapshot: SnapshotSync | None = None
        """What fetches the state that the chain begins with; None when that is the genesis block's."""
        if isinstance(keeper, Keeper) and keeper.needs_snapshot:
            self.snapshot = SnapshotSync(keeper, self)

    # ---- for the hub -----------------------------------------------------------------------------------------------
    def add(self, session: Session) -> None:
        """Take a greeted session into account."""
        self._sessions[session] = None
        self.wake()

    def remove(self, session: Session) -> None:
        """Forget a session; unknown ones do not matter."""
        self._sessions.pop(session, None)
        self._held.pop(session, None)
        self.wake()

    def wake(self) -> None:
        """Look again: a session said something new, came or went."""
        self._changed.set()
        self._changed = trio.Event()

    def changed(self) -> trio.Event:
        """Return the event of the next `wake`."""
        return self._changed

    def sessions(self) -> Iterator[Session]:
        """Yield the sessions."""
        yield from tuple(self._sessions)

    # ---- the task --------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Sync whenever somebody has more work, until cancelled. Raises StoreCorrupt."""
        while True:
            changed = self._changed
            ahead = self._ahead()
            if ahead:
                await self._sync(ahead[0], is_alone=len(ahead) == 1)
                continue
            with trio.move_on_after(HELD_RETRY if self._held else float("inf")) as scope:
                await changed.wait()
            if scope.cancelled_caught:
                held, self._held = self._held, {}
                for session, claim in held.items():
                    session.claim = max(session.claim, claim)

    def _ahead(self) -> list[Session]:
        """Return the sessions that claim a better chain than ours, the best first."""
        ahead = [session for session in self._sessions if session.claim > self._keeper.claim]
        if self.snapshot is not None and self.snapshot.is_wanted:  # no body will show what is justified
            return sorted(ahead, key=lambda session: work_of_claim(session.claim), reverse=True)
        return sorted(ahead, key=lambda session: session.claim, reverse=True)

    async def _sync(self, session: Session, *, is_alone: bool) -> None:
        """Fetch what one session has beyond us."""
        self.is_busy = True
        claim, number = session.claim, session.claims
        try:
            branch = await self._collect(session, REQUEST_TIMEOUT if is_alone else IMPATIENCE)
            if branch is not None and self.snapshot is not None and self.snapshot.is_wanted:
                if not await self.snapshot.take(session, branch, work_of_claim(claim)):
                    session.disclaim(number)
            elif branch is not None:
                if await self._take(session, branch):
                    self._check_followed(session, branch, claim, number)
                else:
                    session.disclaim(number)
        except (PeerUnavailable, RemoteTimeout, Misbehaviour) as exc:
            session.fail(exc)
            self.remove(session)
        except InvalidBlock as exc:  # headers that were valid a moment ago: our clock went back, or another branch won
            log.info("%s: %s", session.remote, describe(exc))
            session.disclaim(number)
        except StoreCorrupt:
            raise
        except StoreError as exc:
            log.error("a block cannot be stored: %s", exc)
            await trio.sleep(STORE_RETRY)
        finally:
            self.is_busy = False

    async def _take(self, session: Session, branch: Branch) -> bool:
        """Fetch a branch that proved its work; return False when nobody can give it."""
        if isinstance(self._keeper, LightKeeper):
            session.height = max(session.height, 0 if branch.last is None else branch.last.height)
            return await store_branch(self._keeper, session, branch)
        body = await self._compact(self._keeper, session, branch.id_at(0)) if len(branch) == 1 else None
        return await Download(self._keeper, self, branch, session, body).run()

    def _check_followed(self, session: Session, branch: Branch, claim: bytes, number: int) -> None:
        """Believe a claim no longer whose chain is here and did not become ours, or else it would be fetched for ever."""
        keeper, last = self._keeper, branch.last
        assert last is not None
        if session.claim <= keeper.claim or keeper.store.best_at(last.height) == last.id:
            return
        if not branch.is_full and claim > max(self._proved(branch, claim), keeper.claim):
            session.misbehave(FALSE_CLAIM, "it claims votes that its blocks do not hold")
        session.disclaim(number)

    def _proved(self, branch: Branch, claim: bytes) -> bytes:
        """Return what of a claim is proved: work and tip by the headers, votes by the blocks once they are here, and until then
        they are believed."""
        justified, last = int.from_bytes(claim[:8]), branch.last
        if isinstance(self._keeper, Keeper) and last is not None and self._keeper.store.point(last.id) is not None:
            justified = min(justified, self._keeper.justified_at(last))
        return branch.claim(justified)

    async def _collect(self, session: Session, patience: float) -> Branch | None:
        """Return a branch of the other's chain that is worth fetching; None, and its claim is forgotten, when it has none.

        Raises Misbehaviour for an invalid header, RemoteTimeout, PeerUnavailable.
        """
        claim, number = session.claim, session.claims
        justified = int.from_bytes(claim[:8])
        store, document = self._keeper.store, self._keeper.document
        keep = KEPT_HEADERS if isinstance(self._keeper, LightKeeper) else 0
        branch = Branch(document, store.point, store.invalid_reason, keep)
        headers, more = await self._first_headers(session, patience)
        while headers:
            try:
                branch.extend(headers, self._keeper.now())
            except InvalidBlock as exc:
                raise Misbehaviour(f"it sent an invalid header: {describe(exc)}") from exc
            assert branch.fork is not None
            assert branch.last is not None
            is_deep = len(branch) > 0 and branch.fork.height < self._keeper.tip.height - document.finality_depth
            # What the stake vouches for may lead deeper: the bodies decide.
            is_voted = justified > int.from_bytes(self._keeper.claim[:8])
            if is_deep and not is_voted and branch.claim(justified) > self._keeper.claim:
                self._keeper.raise_alarm(
                    f"{session.remote} has a better chain that leaves ours at block {branch.fork.height}"
                )
                session.disclaim(number)
                return None
            if not more or branch.is_held or branch.is_full:
                break
            answer = await session.ask(gossip.GetHeaders((branch.last.id,)), gossip.Headers, patience)
            headers, more = answer.headers, len(answer.headers) == gossip.HEADERS_MAX
            await trio.lowlevel.checkpoint()
        return self._judge(session, branch, claim, number)

    def _judge(self, session: Session, branch: Branch, claim: bytes, number: int) -> Branch | None:
        """Return the branch if it is worth fetching."""
        if branch.is_held:
            log.info("%s has a block whose time is too far ahead of this machine's clock", session.remote)
            self._held[session] = claim
        proved = self._proved(branch, claim)
        if len(branch) and proved > self._keeper.claim:
            if branch.work >= self._minimum:
                return branch
            log.info("%s has a chain with less work than --minimum-work asks for; it is not followed", session.remote)
        elif not branch.is_held and claim > max(proved, self._keeper.claim):
            session.misbehave(FALSE_CLAIM, "it claims a better chain than its headers prove")
        session.disclaim(number)
        return None

    async def _first_headers(self, session: Session, patience: float) -> tuple[tuple[bytes, ...], bool]:
        """Return the first headers to look at and whether the other may have more."""
        announced = session.announced
        if announced is not None and self._keeper.store.point(BlockId(decode_header(announced).parent)) is not None:
            return (announced,), False
        if self.snapshot is not None and self.snapshot.is_wanted:
            ids = self.snapshot.locator()
        else:
            ids = locator(self._keeper.tip, self._keeper.store.best_at)
        answer = await session.ask(gossip.GetHeaders(ids[: gossip.LOCATOR_MAX]), gossip.Headers, patience)
        return answer.headers, len(answer.headers) == gossip.HEADERS_MAX

    async def _compact(self, keeper: Keeper, session: Session, identity: BlockId) -> bytes | None:
        """Return a new block put together from what the mempool holds and the few transactions that it lacks; None when that
        does not give it. Raises Misbehaviour, RemoteTimeout, PeerUnavailable."""
        answer = await session.ask(gossip.GetCompact(identity), gossip.Compact)
        if not answer.header:
            return None
        try:
            header = decode_header(answer.header)
        except InvalidBlock as exc:
            raise Misbehaviour(f"it sent a malformed header: {exc}") from exc
        if block_id(header) != identity or len(answer.short_ids) % SHORT_ID:
            raise Misbehaviour("another block than was asked for")
        found = match(identity, answer.coinbase, answer.short_ids, keeper.pool.verified())
        missing = tuple(place for place, data in enumerate(found) if data is None)
        if len(missing) > len(found) // 2:
            return None
        if missing:
            rest = await session.ask(gossip.GetBlockTxs(identity, missing), gossip.BlockTxs)
            if len(rest.txs) != len(missing):
                return None
            for place, data in zip(missing, rest.txs, strict=True):
                found[place] = data
        return assemble(header, [data for data in found if data is not None])
