"""A program that stores: what a driver does with its state and its staged segments, step by step, noting its progress.

    python -m tests.power.store_workload DIRECTORY [without-segment-sync] NOTES

Every step is one commit. "begin N" is noted before it, "done N" when it is acknowledged; what a step does is a function of
N, so that `check` knows what must be in a directory after a power cut.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from fsdecloud.store.segments import SegmentStore
from fsdecloud.store.state import StateStore
from fsdecloud.types import EntryId, VolumeId

STEPS = 44
KEY = bytes(range(32))
VOLUME = VolumeId(b"v" * 32)
SEGMENT_SIZE = 60_000


@dataclass(frozen=True, slots=True)
class Step:
    """One commit."""

    rows: list[bytes]
    records: list[bytes]
    meta: dict[str, bytes]
    keep: int | None
    """Transactions with rows that stay in the journal, beside this one; None for all."""
    release: bool
    """The oldest staged segment leaves: its file first, its index rows with this commit, as the driver does it."""
    reopen: bool
    """The store is closed and opened before."""


def step(number: int) -> Step:
    """Return what step `number` does."""
    chance = random.Random(number)
    sizes = [chance.choice([0, 10, 200, 4000, 5000, 30_000]) for _ in range(chance.randrange(4))]
    if number == 20:
        sizes = [600_000]
    if number in (7, 30, 31):
        sizes = []  # a commit without rows
    return Step(
        rows=[chance.randbytes(size) for size in sizes],
        records=[chance.randbytes(chance.choice([1, 300, 4096, 9000, 20_000])) for _ in range(chance.randrange(4))],
        meta={"volume": chance.randbytes(chance.choice([50, 3000]))} if number % 5 == 0 else {},
        keep=chance.randrange(8) if number % 6 == 0 else None,
        release=number % 7 == 6,
        reopen=number in (15, 33),
    )


@dataclass
class Model:
    """What the store holds after some steps."""

    journal: list[list[bytes]] = field(default_factory=list)
    staged: dict[bytes, bytes] = field(default_factory=dict)
    meta: dict[str, bytes] = field(default_factory=dict)

    def contents(self) -> tuple[list[list[bytes]], Set[bytes], bytes | None]:
        """Return what is compared."""
        return self.journal, self.staged.keys(), self.meta.get("volume")

    def after(self, number: int, gone: Sequence[bytes]) -> Model:
        """Return what it holds after step `number`, in which the entries `gone` leave."""
        doing = step(number)
        old = self.journal if doing.keep is None else self.journal[max(0, len(self.journal) - doing.keep) :]
        staged = self.staged | {entry(record): record for record in doing.records}
        return Model(
            [*old, doing.rows] if doing.rows else old,
            {name: record for name, record in staged.items() if name not in gone},
            self.meta | doing.meta,
        )


def entry(record: bytes) -> EntryId:
    """Return a record's id."""
    return EntryId(len(record).to_bytes(8, "big") + record[:24].ljust(24, b"."))


class _Lazy:
    """A disk whose fdatasync does nothing."""

    pwritev = staticmethod(os.pwritev)
    fsync = staticmethod(os.fsync)

    @staticmethod
    def fdatasync(_fd: int) -> None:
        pass


def run(root: Path, notes: Path, *, lazy: bool) -> None:
    """Do all steps."""
    log = os.open(notes, os.O_WRONLY)

    def note(text: str) -> None:
        os.write(log, text.encode() + b"\n")

    def open_stores() -> tuple[SegmentStore, StateStore]:
        disk = _Lazy() if lazy else os
        segments = SegmentStore(root / "staged", "staged", disk=disk, segment_size=SEGMENT_SIZE)
        return segments, StateStore(root / "state.lmdb", KEY, VOLUME)

    segments, state = open_stores()
    entries: dict[int, list[EntryId]] = {}
    numbers: list[int] = []
    for number in range(1, STEPS + 1):
        doing = step(number)
        if doing.reopen:
            segments.close()
            state.close()
            segments, state = open_stores()
        gone: list[EntryId] = []
        old = min(entries, default=segments.current)
        if doing.release and old < segments.current:
            gone = entries.pop(old)
        note(f"begin {number} " + " ".join(e.hex() for e in gone))
        if gone:
            segments.remove(old)
        places = segments.append_many(doing.records)
        for record, place in zip(doing.records, places, strict=True):
            entries.setdefault(place.segment, []).append(entry(record))
        if places:
            segments.sync()
        oldest = None
        if doing.keep is not None:
            numbers = numbers[max(0, len(numbers) - doing.keep) :]
            oldest = numbers[0] if numbers else state.last_sequence + 1
        staged = zip(map(entry, doing.records), places, strict=True)
        sequence = state.commit(doing.rows, staged=staged, unstaged=gone, meta=doing.meta, truncate_before=oldest)
        if doing.rows:
            numbers.append(sequence)
        note(f"done {number}")
    segments.close()
    state.close()
    note("closed")


def models(notes: Sequence[str]) -> Iterator[tuple[Model, set[bytes]]]:
    """Give what may be in the directory, and of which entries the bytes may be gone already, given the program's notes."""
    model = Model()
    missing: set[bytes] = set()
    begun = done = 0
    possible = [model]
    for line in notes:
        word, *rest = line.split()
        if word == "begin":
            begun = int(rest[0])
            gone = [bytes.fromhex(text) for text in rest[1:]]
            missing.update(gone)
            model = model.after(begun, gone)
            possible.append(model)
        elif word == "done":
            done = int(rest[0])
    for model in possible[done:]:
        yield model, missing


def check(directory: Path, notes: Sequence[str]) -> None:
    """Open what a power cut left, and compare. Raises AssertionError, or whatever the store raises."""
    with (
        SegmentStore(directory / "staged", "staged") as segments,
        StateStore(directory / "state.lmdb", KEY, VOLUME) as state,
    ):
        journal, staged = [rows for _sequence, rows in state.replay()], dict(state.staged())
        held = (journal, staged.keys(), state.meta("volume"))
        allowed = list(models(notes))
        fitting = [found for found in allowed if held == found[0].contents()]
        if not fitting:
            wanted = [(len(model.journal), len(model.staged)) for model, _gone in allowed]
            raise AssertionError(f"it holds {len(journal)} transactions, {len(staged)} entries, not one of {wanted}")
        model, gone = fitting[0]
        present = segments.sizes()
        for name, place in staged.items():
            if place.segment in present:
                assert segments.read(place) == model.staged[name], (
                    f"a record of segment {place.segment} has other bytes"
                )
            else:
                assert name in gone, f"segment {place.segment} is missing"
        state.commit([b"goes on"])
    with StateStore(directory / "state.lmdb", KEY, VOLUME) as state:
        assert [rows for _sequence, rows in state.replay()] == [*journal, [b"goes on"]]


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[-1]), lazy="without-segment-sync" in sys.argv[2:-1])
