"""Which power cuts are tried: moments of a trace, and for each some of the states that may be left."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.power.disk import Disk, State
from tests.power.trace import Change, Event, Note, Rename, Sync


@dataclass(frozen=True, slots=True)
class Cut:
    """One state, the progress that the program had noted when the power went, and a name for messages."""

    state: State
    notes: tuple[str, ...]
    name: str


def cuts(events: Sequence[Event], root: Path, count: int, seed: int) -> Iterator[Cut]:
    """Give about `count` different states, from all over the trace, always the same for a seed.

    At the moments around each sync and each note: the state with everything, the one with only what must be there, and
    random ones between.
    """
    chance = random.Random(seed)
    moments = [
        position
        for position, event in enumerate(events)
        if isinstance(event, Sync | Note) or chance.random() < 0.3 or position == len(events) - 1
    ]
    chosen = set(moments if len(moments) * 3 <= count else chance.sample(moments, max(1, count // 3)))
    share = max(1, count // max(1, len(chosen)))
    disk = Disk(root)
    notes: list[str] = []
    seen: set[int] = set()
    for position, event in enumerate(events):
        disk.apply(event)
        if isinstance(event, Note):
            notes.append(event.text)
        if position not in chosen:
            continue
        makers: list[tuple[str, Callable[[], State]]] = [("oldest", disk.oldest), ("newest", disk.newest)]
        makers += [(f"random {number}", lambda: disk.possible(chance)) for number in range(share)]
        for name, make in makers:
            state = make()
            key = _fingerprint(state, len(notes))
            if key not in seen:
                seen.add(key)
                yield Cut(state, tuple(notes), f"seed {seed}, event {position} of {len(events)}, {name}")


def _fingerprint(state: State, notes: int) -> int:
    # A page's hash is kept in its bytes object, and states share most pages.
    files = (
        (path, image.size, frozenset((number, hash(page)) for number, page in image.pages.items()))
        if image
        else (path,)
        for path, image in state.items()
    )
    return hash((notes, *files))


def without_syncs(events: Sequence[Event], pattern: str, *, dsync: bool) -> list[Event]:
    """Return the trace of a program that forgot to sync the files or directories whose path `pattern` finds; with
    `dsync`, it forgot O_DSYNC too."""
    paths = {number: path for event in events if isinstance(event, Rename) for path, number in event.names}
    found: list[Event] = []
    for event in events:
        if isinstance(event, Sync) and re.search(pattern, event.path):
            continue
        if dsync and isinstance(event, Change) and re.search(pattern, paths[event.file]):
            found.append(replace(event, is_durable=False))
        else:
            found.append(event)
    return found
