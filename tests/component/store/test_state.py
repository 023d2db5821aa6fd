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

from fsdecloud.errors import StoreCorrupt, StoreError, StoreFull
from fsdecloud.store import state as state_module
from fsdecloud.store.environment import open_environment
from fsdecloud.store.segments import Location, SegmentStore
from fsdecloud.store.state import StateStore
from fsdecloud.store.wal import FILE_SIZE
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


@pytest.mark.parametrize("size", [0, 1, 2039, 2041, 4080, 4096, FILE_SIZE - 4096, FILE_SIZE, 3 * FILE_SIZE])
def test_42_transactions_of_any_size(tmp_path, size):
    rows = [os.urandom(size), b"after"]
    with open_state(tmp_path) as state:
        state.commit(rows)
        state.commit([b"next"])
        assert list(state.replay()) == [(1, rows), (2, [b"next"])]
    with open_state(tmp_path) as state:
        assert list(state.replay()) == [(1, rows), (2, [b"next"])]
        state.commit([b"x"], truncate_before=3)
        assert list(state.replay()) == [(3, [b"x"])]


def test_meta_and_staged(tmp_path):
    with open_state(tmp_path) as state:
        assert state.meta("volume") is None
        places = {entry(i): Location(i // 100 + 1, i, i * 7) for i in range(3000)}
        assert state.commit([], staged=places.items(), meta={"volume": b"secret value", "other": b""}) == 1
        assert state.meta("volume") == b"secret value"
        assert dict(state.staged()) == places
        assert list(dict(state.staged())) == sorted(places)
        assert state.commit([b"row"], unstaged=[entry(i) for i in range(2999)] + [entry(9999)]) == 2
        assert dict(state.staged()) == {entry(2999): places[entry(2999)]}
        state.commit([], meta={"volume": b"changed"})
    with open_state(tmp_path) as state:
        assert state.meta("volume") == b"changed"
        assert state.meta("other") == b""
        statistics = state.statistics()
        assert (statistics.last_sequence, statistics.staged_entries) == (3, 1)


def test_numbers_grow_over_an_emptied_journal(tmp_path):
    with open_state(tmp_path) as state:
        for i in range(5):
            state.commit([b"%d" % i])
        state.commit([], truncate_before=4)
        assert [sequence for sequence, _ in state.replay()] == [4, 5]
        state.commit([], truncate_before=1000)
        assert list(state.replay()) == []
    with open_state(tmp_path) as state:
        assert state.last_sequence == 7
        assert state.commit([b"next"], truncate_before=3) == 8
        assert list(state.replay()) == [(8, [b"next"])]


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
    assert len(salts) == len(set(salts)) == 1 + 1 + 1 + 2  # whose it is, two commits, a checkpoint of two values
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
        meta, staged = env.database(b"meta"), env.database(b"staged")
        with env.write() as txn:
            edit(txn, meta, staged)


def test_19_damage_in_a_value_is_noticed(tmp_path):
    with open_state(tmp_path) as state:
        for i in range(4):
            state.commit([b"%d" % i], meta={"m": b"x"}, staged=[(entry(i), Location(1, 2, 3))])

    def flip(value: bytes, position: int) -> bytes:
        return value[:position] + bytes([value[position] ^ 1]) + value[position + 1 :]

    def attempt(edit, use) -> None:
        kept = (tmp_path / "data.mdb").read_bytes()
        change(tmp_path, edit)
        with open_state(tmp_path) as state, pytest.raises(StoreCorrupt):
            use(state)
        (tmp_path / "data.mdb").write_bytes(kept)

    attempt(lambda t, m, s: t.put(b"m", flip(t.get(b"m", db=m), 40), db=m), lambda state: state.meta("m"))
    attempt(lambda t, m, s: t.put(b"m", b"", db=m), lambda state: state.meta("m"))
    attempt(lambda t, m, s: t.put(entry(1), b"\xff", db=s), lambda state: list(state.staged()))
    attempt(lambda t, m, s: t.put(b"short", t.get(entry(1), db=s), db=s), lambda state: list(state.staged()))
    with open_state(tmp_path) as state:
        assert len(list(state.replay())) == 4


def test_19_damage_in_the_log_is_noticed(tmp_path):
    """After a clean end every damaged record is an error; what follows the last one is not looked at."""
    with open_state(tmp_path) as state:
        for i in range(4):
            state.commit([b"%d" % i])
    (log,) = tmp_path.glob("*.wal")
    kept = log.read_bytes()
    for record in range(1, 5):
        for position in (0, 16, 24, 28, 60, 70):
            data = bytearray(kept)
            data[record * 4096 + position] ^= 1
            log.write_bytes(data)
            with pytest.raises(StoreCorrupt):
                open_state(tmp_path)
    log.write_bytes(kept[: 3 * 4096])
    with pytest.raises(StoreCorrupt):
        open_state(tmp_path)
    log.write_bytes(bytes(len(kept)))
    with pytest.raises(StoreCorrupt):
        open_state(tmp_path)
    log.unlink()
    with pytest.raises(StoreCorrupt):
        open_state(tmp_path)
    log.write_bytes(kept[:-4096] + os.urandom(4096))
    with open_state(tmp_path) as state:
        assert [rows for _, rows in state.replay()] == [[b"%d" % i] for i in range(4)]


def test_35_a_full_map_loses_nothing(tmp_path, monkeypatch):
    """What does not fit into LMDB stays in the log and in memory; space freed, the next checkpoint takes it."""
    monkeypatch.setattr(state_module, "CHECKPOINT_ITEMS", 3000)
    with open_state(tmp_path, map_size=1 << 20) as state:
        for i in range(0, 20_000, 100):
            state.commit([b"row"], staged=[(entry(i + j), Location(1, i + j, 1)) for j in range(100)])
        with pytest.raises(StoreFull):
            state.checkpoint()
        assert len(list(state.replay())) == 200
        state.commit([], unstaged=[entry(i) for i in range(100, 20_000)], truncate_before=11)
        assert len(list(state.replay())) == 190
        assert dict(state.staged()) == {entry(i): Location(1, i, 1) for i in range(100)}
    with open_state(tmp_path, map_size=1 << 20) as state:
        assert len(dict(state.staged())) == 100


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
            last += 1
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
        assert state.statistics().file_bytes < 1 << 20
        assert state.statistics().log_bytes < 5 * live
        assert sum(path.stat().st_size for path in tmp_path.glob("*.wal")) < 6 * live


def first_format(path, groups: dict[int, list[bytes]], floor: int) -> None:
    """Write a store as the first format had it."""
    from fsdecloud import codec
    from fsdecloud.crypto.rows import seal_rows

    with open_environment(path, 1 << 30, 4) as env:
        volume, journal = env.database(b"volume"), env.database(b"journal")
        with env.write() as txn:
            salt = os.urandom(32)
            check = salt + seal_rows(KEY, salt, 0, [b"fsdecloud state 1"], table=b"volume" + VOLUME)[0]
            txn.put(b"volume", VOLUME + check, db=volume)
            txn.put(b"floor", floor.to_bytes(8, "big"), db=volume)
            for sequence, rows in groups.items():
                payload = codec.encode(rows)
                parts = [payload[at : at + 1000] for at in range(0, len(payload), 1000)]
                salt = os.urandom(32)
                for number, part in enumerate(seal_rows(KEY, salt, sequence, parts)):
                    key = sequence.to_bytes(8, "big") + number.to_bytes(4, "big")
                    txn.put(key, part if number else salt + part, db=journal)


def test_31_32_a_store_of_the_first_format_is_brought_up(tmp_path):
    """Whatever step the migration ends at, it is done again or was done."""
    groups = {sequence: [b"row %d" % sequence, b"x" * sequence * 300] for sequence in range(5, 12)}
    written = 0

    class Dying:
        """Fails for ever from the n-th write on."""

        def __init__(self, count: int) -> None:
            self.left = count

        def _step(self) -> None:
            self.left -= 1
            if self.left < 0:
                raise OSError(5, "gone")

        def pwritev(self, fd, buffers, offset):
            self._step()
            return os.pwritev(fd, buffers, offset)

        def fdatasync(self, fd):
            self._step()
            os.fdatasync(fd)

        def fsync(self, fd):
            self._step()
            os.fsync(fd)

    for step in range(100):
        path = tmp_path / str(step)
        path.mkdir(mode=0o700)
        first_format(path, groups, 4)
        try:
            open_state(path, disk=Dying(step)).close()
            written = step
        except StoreError:
            with open_state(path) as state:
                assert list(state.replay()) == list(groups.items())
                assert state.commit([b"new"]) == 12
            with open_state(path) as state:
                assert list(state.replay()) == [*groups.items(), (12, [b"new"])]
            continue
        break
    assert written > 8
    with open_state(tmp_path / str(written)) as state:
        assert list(state.replay()) == list(groups.items())


def test_31_a_store_of_the_first_format_with_a_gap_is_refused(tmp_path):
    first_format(tmp_path, {5: [b"five"], 6: [b"six"], 8: [b"eight"]}, 4)
    with pytest.raises(StoreCorrupt, match="journal transaction 7 is missing"):
        open_state(tmp_path)


def test_13_the_index_is_read_without_writing_to_it(tmp_path):
    """After a kill the disk may be full; what the log has beyond the index is in memory."""
    places = {entry(i): Location(1, i, 7) for i in range(3000)}
    with open_state(tmp_path) as state:
        state.commit([], staged=list(places.items())[:2000])
        state.checkpoint()
        state.commit([], staged=list(places.items())[1990:], unstaged=[entry(5)])
        checkpoints = state.statistics().checkpoints
        del places[entry(5)]
        assert dict(state.staged()) == places
        assert list(dict(state.staged())) == sorted(places)
        assert state.statistics().checkpoints == checkpoints


def test_31_a_newer_format_is_refused(tmp_path):
    with open_state(tmp_path) as state, state._env.write() as txn:
        txn.put(b"volume", VOLUME + state._seal(b"volume" + VOLUME, b"fsdecloud state 3"), db=state._volume_db)
    with pytest.raises(StoreCorrupt, match="a format that this release does not know"):
        open_state(tmp_path)
