"""The state environment: a commit is whole or absent, sealed, and survives whatever ends the process."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsdecloud.errors import StoreCorrupt, StoreFull
from fsdecloud.store.environment import open_environment
from fsdecloud.store.segments import Location, SegmentStore
from fsdecloud.store.state import PART_SIZE, StateStore
from fsdecloud.types import EntryId, VolumeId

KEY = bytes(range(32))
VOLUME = VolumeId(b"v" * 32)


def entry(number: int) -> EntryId:
    return EntryId(number.to_bytes(32, "big"))


def open_state(path, key=KEY, volume=VOLUME, **options) -> StateStore:
    return StateStore(path, key, volume, **options)


def test_a_commit_is_replayed_in_order(tmp_path):
    groups = [[b"one"], [b"two", b"", b"x" * 5000], [bytes([i]) for i in range(256)]]
    with open_state(tmp_path) as state:
        assert state.last_sequence == 0
        assert list(state.replay()) == []
        assert [state.commit(rows) for rows in groups] == [1, 2, 3]
        assert list(state.replay()) == list(enumerate(groups, 1))
    with open_state(tmp_path) as state:
        assert state.last_sequence == 3
        assert list(state.replay()) == list(enumerate(groups, 1))
        assert state.commit([b"four"]) == 4


@pytest.mark.parametrize("size", [PART_SIZE - 49, PART_SIZE - 48, PART_SIZE, 3 * PART_SIZE, 5 << 20])
def test_42_large_transactions_are_split(tmp_path, size):
    rows = [os.urandom(size), b"after"]
    with open_state(tmp_path) as state:
        state.commit(rows)
        assert list(state.replay()) == [(1, rows)]
        assert state.statistics().journal_values >= size // PART_SIZE
        with state._env.read() as txn:
            assert max(len(value) for _, value in txn.cursor(state._journal_db)) <= PART_SIZE
        state.commit([b"x"], truncate_before=2)
        assert list(state.replay()) == [(2, [b"x"])]


def test_meta_and_staged(tmp_path):
    with open_state(tmp_path) as state:
        assert state.meta("volume") is None
        places = {entry(i): Location(i // 100 + 1, i, i * 7) for i in range(3000)}
        assert state.commit([], staged=places.items(), meta={"volume": b"secret value", "other": b""}) == 0
        assert dict(state.staged()) == places
        assert list(dict(state.staged())) == sorted(places)
        assert state.commit([b"row"], unstaged=[entry(i) for i in range(2999)] + [entry(9999)]) == 1
        assert dict(state.staged()) == {entry(2999): places[entry(2999)]}
        state.commit([], meta={"volume": b"changed"})
    with open_state(tmp_path) as state:
        assert state.meta("volume") == b"changed"
        assert state.meta("other") == b""
        statistics = state.statistics()
        assert (statistics.last_sequence, statistics.journal_values, statistics.staged_entries) == (1, 1, 1)


def test_numbers_grow_over_an_emptied_journal(tmp_path):
    with open_state(tmp_path) as state:
        for i in range(5):
            state.commit([b"%d" % i])
        state.commit([], truncate_before=4)
        assert [sequence for sequence, _ in state.replay()] == [4, 5]
        state.commit([], truncate_before=1000)
        assert list(state.replay()) == []
    with open_state(tmp_path) as state:
        assert state.last_sequence == 5
        assert state.commit([b"next"], truncate_before=3) == 6
        assert list(state.replay()) == [(6, [b"next"])]


def test_nothing_is_in_the_clear(tmp_path):
    secret = b"a-file-name-nobody-may-read"
    with open_state(tmp_path) as state:
        state.commit([secret] * 10, meta={"volume": secret})
        state.commit([secret * 100])
    for path in tmp_path.iterdir():
        assert secret not in path.read_bytes()


def test_each_salt_is_used_once(tmp_path):
    salts = []

    def source(size: int) -> bytes:
        salts.append(os.urandom(size))
        return salts[-1]

    with open_state(tmp_path, salt_source=source) as state:
        state.commit([b"a", b"b"], meta={"x": b"1", "y": b"2"})
        state.commit([b"a"])
    assert len(salts) == 1 + 3 + 1
    assert {len(salt) for salt in salts} == {32}


def test_20_of_another_volume_or_under_another_key(tmp_path):
    open_state(tmp_path).close()
    with pytest.raises(StoreCorrupt, match="is the state of volume 7676"):
        open_state(tmp_path, volume=VolumeId(b"w" * 32))
    with pytest.raises(StoreCorrupt, match="does not open with this volume's key"):
        open_state(tmp_path, key=b"k" * 32)
    open_state(tmp_path).close()


def change(tmp_path, edit):
    with open_environment(tmp_path, 1 << 30, 4) as env:
        journal, meta, staged = env.database(b"journal"), env.database(b"meta"), env.database(b"staged")
        with env.write() as txn:
            edit(txn, journal, meta, staged)


def test_19_damage_in_a_value_is_noticed(tmp_path):
    with open_state(tmp_path) as state:
        for i in range(4):
            state.commit([b"%d" % i], meta={"m": b"x"}, staged=[(entry(i), Location(1, 2, 3))])
        state.commit([os.urandom(PART_SIZE * 2)])
    journal_key = (2).to_bytes(8, "big") + bytes(4)
    last_key = (5).to_bytes(8, "big")

    def flip(value: bytes, position: int) -> bytes:
        return value[:position] + bytes([value[position] ^ 1]) + value[position + 1 :]

    def attempt(edit, use) -> None:
        kept = (tmp_path / "data.mdb").read_bytes()
        change(tmp_path, edit)
        with open_state(tmp_path) as state, pytest.raises(StoreCorrupt):
            use(state)
        (tmp_path / "data.mdb").write_bytes(kept)

    def replay(state):
        list(state.replay())

    for position in (0, 31, 32, -1):
        attempt(lambda t, j, m, s, p=position: t.put(journal_key, flip(t.get(journal_key, db=j), p), db=j), replay)
    attempt(lambda t, j, m, s: t.put(journal_key, b"", db=j), replay)
    attempt(lambda t, j, m, s: t.delete(journal_key, db=j), replay)
    attempt(lambda t, j, m, s: t.put(journal_key, t.get((3).to_bytes(8, "big") + bytes(4), db=j), db=j), replay)
    attempt(lambda t, j, m, s: t.delete(last_key + (1).to_bytes(4, "big"), db=j), replay)
    attempt(lambda t, j, m, s: t.delete(last_key + (2).to_bytes(4, "big"), db=j), replay)
    attempt(lambda t, j, m, s: t.put(b"m", flip(t.get(b"m", db=m), 40), db=m), lambda state: state.meta("m"))
    attempt(lambda t, j, m, s: t.put(b"m", b"", db=m), lambda state: state.meta("m"))
    attempt(lambda t, j, m, s: t.put(entry(1), b"\xff", db=s), lambda state: list(state.staged()))
    attempt(lambda t, j, m, s: t.put(b"short", t.get(entry(1), db=s), db=s), lambda state: list(state.staged()))
    with open_state(tmp_path) as state:
        assert len(list(state.replay())) == 5


def test_35_a_full_map_loses_nothing(tmp_path):
    with open_state(tmp_path, map_size=1 << 20) as state:
        kept = []
        with pytest.raises(StoreFull):  # noqa: PT012 - the commit that fills it is not known beforehand
            for i in range(1000):
                row = bytes([i % 256]) * 20000
                state.commit([row], staged=[(entry(i), Location(1, i, 1))])
                kept.append(row)
        assert [rows for _, rows in state.replay()] == [[row] for row in kept]
        assert state.last_sequence == len(kept)
        assert len(dict(state.staged())) == len(kept)
        # Space freed: it goes on without being opened again. LMDB reuses freed pages two transactions later.
        state.commit([], truncate_before=len(kept) // 2)
        state.commit([], meta={"a": b"1"})
        assert state.commit([b"again"]) == len(kept) + 1


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("commit"), st.lists(st.binary(max_size=50), max_size=4), st.integers(0, 12)),
            st.tuples(st.just("reopen"), st.just([]), st.just(0)),
        ),
        max_size=15,
    )
)
def test_against_a_model(tmp_path_factory, steps):
    path = tmp_path_factory.mktemp("state")
    state = open_state(path)
    journal: dict[int, list[bytes]] = {}
    last = 0
    for step, rows, bound in steps:
        if step == "reopen":
            state.close()
            state = open_state(path)
        else:
            sequence = state.commit(rows, truncate_before=bound or None)
            last += bool(rows)
            assert sequence == last
            if rows:
                journal[sequence] = rows
            journal = {number: group for number, group in journal.items() if number >= bound}
        assert list(state.replay()) == sorted(journal.items())
        assert state.last_sequence == last
    state.close()


CHILD = """
import os, sys
from pathlib import Path
from fsdecloud.store.segments import SegmentStore
from fsdecloud.store.state import StateStore
base = Path(sys.argv[1])
segments = SegmentStore(base / "staged", "staged", segment_size=200_000)
with StateStore(base / "state", bytes(range(32)), b"v" * 32) as state:
    number = state.last_sequence
    while True:
        number += 1
        record = number.to_bytes(8, "big") * (1 + number * 37 % 3000)
        place = segments.append(record)
        segments.sync()
        sequence = state.commit([b"row %d" % number, record[:4096]], staged=[(number.to_bytes(32, "big"), place)],
                                truncate_before=number - 500)
        assert sequence == number
        os.write(1, b"%d\\n" % number)
"""


def test_1_3_killed_while_committing(tmp_path):
    """kill -9 at random moments: every acknowledged commit is there, whole, with its segment bytes."""
    chance = random.Random(7)
    acknowledged = 0
    for _ in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as child:
            for _ in range(chance.randrange(1, 120)):
                acknowledged = int(child.stdout.readline())
            os.kill(child.pid, signal.SIGKILL)
            rest = child.stdout.read().split(b"\n")
            acknowledged = max([acknowledged, *(int(line) for line in rest[:-1])])
            child.wait()
        with open_state(tmp_path / "state") as state, SegmentStore(tmp_path / "staged", "staged") as segments:
            assert state.last_sequence in (acknowledged, acknowledged + 1)
            found = dict(state.staged())
            assert len(found) == state.last_sequence
            for number in range(1, state.last_sequence + 1):
                expected = number.to_bytes(8, "big") * (1 + number * 37 % 3000)
                assert segments.read(found[entry(number)]) == expected
            for sequence, rows in state.replay():
                assert rows[0] == b"row %d" % sequence
            acknowledged = state.last_sequence
    assert acknowledged > 4  # else it proved nothing


def test_43_churn_keeps_the_file_small(tmp_path):
    """Ten times the journal's bound through it, in random sizes: the file stays near the live size."""
    chance = random.Random(3)
    live = 4 << 20
    with open_state(tmp_path) as state:
        sizes: dict[int, int] = {}
        while sum(sizes.values()) < 10 * live:
            rows = [bytes(chance.choice([100, 4096, 4096, 60_000, 700_000])) for _ in range(chance.randrange(1, 4))]
            oldest = max(1, state.last_sequence - 30)
            while sum(size for number, size in sizes.items() if number >= oldest) > live:
                oldest += 1
            sizes[state.commit(rows, truncate_before=oldest)] = sum(len(row) for row in rows)
        assert state.statistics().file_bytes < 5 * live
