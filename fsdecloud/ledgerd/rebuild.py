"""`decloud ledger rebuild`: a chain store made anew from what is whole of the old one; the rest comes from other daemons.

Blocking, with the daemon stopped. The new store grows beside the old one (`chain.new`) and takes its place in two renames, so
that a crash at any moment leaves the old store or the new one; `finish_rebuild` does the second rename when only the first was
done. Every block is verified on its way, from genesis on: nothing of the old indexes is believed.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fsdecloud.config import Paths, sync_directory
from fsdecloud.errors import FsdecloudError, InvalidBlock, StoreError, UsageError
from fsdecloud.ledger.blocks import decode_block
from fsdecloud.ledger.chain import CheckedBlock, Switch, check_block
from fsdecloud.ledger.network import NetworkDocument
from fsdecloud.ledgerd.setup import chain_path, load_network
from fsdecloud.store.chain import ChainStore, open_chain
from fsdecloud.store.lockfile import acquire_lock

log = logging.getLogger(__name__)

BATCH: Final = 256
"""Blocks to one disk transaction."""

PRUNE_EVERY: Final = 4096
"""Blocks after which the state nodes of old blocks are dropped."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What became of a chain: blocks kept of so many, and why no more were ("" when all were)."""

    kept: int
    before: int | None
    """The old chain's height, None when it could not be read at all."""
    reason: str


def rebuild_chain(
    paths: Paths, *, discard: bool = False, progress: Callable[[int, int], None] = lambda _done, _total: None
) -> Rebuilt:
    """Make this machine's chain store anew from the old one's whole blocks, or, with `discard`, empty. `progress` is called
    with (blocks done, blocks in all).

    Raises UsageError when this machine is in no network, StoreLocked while the daemon runs, StoreError when the new store
    cannot be written; the old one is then as it was.
    """
    document = load_network(paths)
    if document is None:
        raise UsageError(f"there is no ledger network below {paths.ledger_state}")
    old, new, away = _places(paths)
    with acquire_lock(paths.lock_file("ledger")):
        finish_rebuild(paths)
        for leftover in (new, away):
            shutil.rmtree(leftover, ignore_errors=True)
        with open_chain(new, document) as store:
            if discard or not old.exists():
                found = Rebuilt(0, None, "" if not old.exists() else "the old chain was not looked at")
            else:
                found = _salvage(old, store, document, progress)
        try:
            if old.exists():
                os.rename(old, away)
            sync_directory(old.parent)
        except OSError as exc:
            raise StoreError(f"cannot put {old} away: {exc.strerror}") from exc
        finish_rebuild(paths)
    return found


def finish_rebuild(paths: Paths) -> None:
    """Put the new store in the place of the old one, if a rebuild got so far that the old one is away. Under the daemon's lock.

    Raises StoreError.
    """
    old, new, away = _places(paths)
    if old.exists():
        shutil.rmtree(away, ignore_errors=True)
        return
    if not new.exists():
        return
    try:
        os.rename(new, old)
        sync_directory(old.parent)
    except OSError as exc:
        raise StoreError(f"cannot put {new} in the place of {old}: {exc.strerror}") from exc
    shutil.rmtree(away, ignore_errors=True)


def _places(paths: Paths) -> tuple[Path, Path, Path]:
    """Return the store, the one that is being made and the one that is being dropped."""
    old = chain_path(paths)
    return old, old.with_name("chain.new"), old.with_name("chain.old")


def _salvage(old: Path, store: ChainStore, document: NetworkDocument, progress: Callable[[int, int], None]) -> Rebuilt:
    """Copy the blocks of the old store's best chain up to the first that is missing or wrong."""
    before: int | None = None
    writer = _Writer(store, document)
    reason = ""
    try:
        with open_chain(old, document) as damaged:
            before = damaged.tip().height
            if damaged.first_body() > 1:
                return Rebuilt(0, before, "its first blocks were pruned, and nothing can be verified without them")
            for _, data in damaged.stored_blocks():
                writer.add(data)
                progress(writer.height, before)
    except InvalidBlock as exc:
        reason = f"block {writer.height + 1}: {type(exc).__name__}: {exc}"
    except _WriteFailed as exc:
        raise exc.reason from exc
    except FsdecloudError as exc:
        reason = str(exc)
    try:
        writer.flush()
    except _WriteFailed as exc:
        raise exc.reason from exc
    return Rebuilt(writer.height, before, reason)


class _WriteFailed(Exception):
    """The new store cannot be written: not the old one's fault."""

    def __init__(self, reason: StoreError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class _Writer:
    """Verifies blocks one after another and stores them in batches."""

    def __init__(self, store: ChainStore, document: NetworkDocument) -> None:
        self._store = store
        self._document = document
        self._point = self._fork = store.tip()
        self._pending: list[tuple[CheckedBlock, bytes]] = []
        self._nodes: dict[bytes, bytes] = {}
        self._unpruned = 0

    @property
    def height(self) -> int:
        """The height that is verified."""
        return self._point.height

    def add(self, data: bytes) -> None:
        """Take the next block. Raises an InvalidBlock leaf."""
        block = decode_block(data, self._document.block_max)
        checked = check_block(self._document, self._point, block, self._node, None)
        self._pending.append((checked, data))
        self._nodes.update(checked.nodes)
        self._point = checked.point
        if len(self._pending) >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Store what is verified. Raises _WriteFailed."""
        if not self._pending:
            return
        switch = Switch(self._fork, (), tuple(checked.point for checked, _ in self._pending))
        self._unpruned += len(self._pending)
        try:
            self._store.add_many(self._pending, switch)
            if self._unpruned >= PRUNE_EVERY:
                self._unpruned = 0
                self._store.prune(self._document.finality_depth)
        except StoreError as exc:
            raise _WriteFailed(exc) from exc
        self._fork, self._pending, self._nodes = self._point, [], {}

    def _node(self, ref: bytes) -> bytes | None:
        data = self._nodes.get(ref)
        return self._store.node(ref) if data is None else data
