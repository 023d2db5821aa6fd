"""The headers of another daemon's chain, checked before a single body is asked for.

Pure. A `Branch` begins at the last block that is stored here and takes headers as they come. Each is checked in full (work,
difficulty, times, links), but only its id is kept: 32 bytes, so that 100,000 blocks take 3 MiB and the longest branch 32 MiB,
whoever sends it. Nothing is written to the disk for a header: what is stored are blocks, and those are asked for only of a
branch that proved more work than ours, and at least the least work that a person asked for. Not here: who is asked
(`ledgerd.sync`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from fsdecloud.errors import InvalidBlock
from fsdecloud.ledger.blocks import block_id, decode_header
from fsdecloud.ledger.chain import Point, check_header
from fsdecloud.ledger.finality import NO_CLAIM, claim_of
from fsdecloud.ledger.network import NetworkDocument
from fsdecloud.ledger.reasons import KnownInvalid, TimeTooNew, UnknownParent
from fsdecloud.types import BlockId

BRANCH_MAX: Final = 1 << 20
"""Headers of one branch: two years of a block a minute. A longer chain is followed piece by piece."""

_SIZE: Final = 32


class Branch:
    """A chain of headers that leaves what is stored. `extend` until `is_complete` or `is_full`."""

    def __init__(
        self,
        document: NetworkDocument,
        read_point: Callable[[BlockId], Point | None],
        invalid_reason: Callable[[BlockId], str | None],
        keep: int = 0,
    ) -> None:
        """`keep` is how many headers, the first ones, stay at hand encoded in `headers`."""
        self._keep = keep
        self.headers: list[bytes] = []
        self._document = document
        self._read_point = read_point
        self._invalid_reason = invalid_reason
        self._ids = bytearray()
        self.fork: Point | None = None
        """The stored block that the branch begins after; None until the first header."""
        self.last: Point | None = None
        """The last block: stored, or checked by its header alone."""
        self.is_held = False
        """True once a header's time was too far ahead of our clock: the rest may be valid later."""

    def __len__(self) -> int:
        return len(self._ids) // _SIZE

    @property
    def is_full(self) -> bool:
        """True when no more headers fit."""
        return len(self) >= BRANCH_MAX

    @property
    def work(self) -> bytes:
        """Cumulative work that the headers prove, from genesis; nothing before the first."""
        return bytes(32) if self.last is None else self.last.work

    def claim(self, justified: int) -> bytes:
        """Return what the headers prove of a claim (`finality.claim_of`); the justified height is believed until the bodies are
        here."""
        return NO_CLAIM if self.last is None else claim_of(justified, self.last.work, self.last.id)

    def id_at(self, index: int) -> BlockId:
        """Return the id of the branch's block `index` (0: the first that is not stored)."""
        return BlockId(bytes(self._ids[index * _SIZE : (index + 1) * _SIZE]))

    def extend(self, headers: Sequence[bytes], now: int) -> None:
        """Check encoded headers that follow, and append them; those of stored blocks are only passed by.

        Stops, with `is_held`, at one whose time is too far ahead. Raises an InvalidBlock leaf for any other that is wrong,
        UnknownParent for headers that begin nowhere.
        """
        for data in headers:
            header = decode_header(data)
            parent = self.last if self.last is not None else self._read_point(BlockId(header.parent))
            if parent is None:
                raise UnknownParent("headers do not follow a block we named")
            if self.last is None:
                self.fork = self.last = parent
            identity = block_id(header)
            reason = self._invalid_reason(identity)
            if reason is not None:
                raise KnownInvalid(f"its chain holds a block that is invalid: {reason}")
            stored = self._read_point(identity) if not self._ids else None
            if stored is not None and stored.parent == parent.id:
                self.fork = self.last = stored
                continue
            try:
                self.last = check_header(self._document, parent, header, now)
            except TimeTooNew:
                self.is_held = True
                return
            self._ids += identity
            if len(self.headers) < self._keep:
                self.headers.append(data)
            if self.is_full:
                return


def describe(reason: InvalidBlock) -> str:
    """Say which rule a header or block broke."""
    return f"{type(reason).__name__}: {reason}"
