"""LMDB's own faults (faults.md, 35 to 44), one test each, but for those that other files cover (tests/README.md)."""

from __future__ import annotations

import ast
import functools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import fsdecloud
from fsdecloud.crypto.keys import VolumeKeys
from fsdecloud.errors import StoreFull, StoreLocked
from fsdecloud.limits import KIB, MIB
from fsdecloud.store.cache import CacheStore
from fsdecloud.store.environment import KEY_MAX, open_environment
from fsdecloud.store.segments import Location
from fsdecloud.store.state import StateStore
from fsdecloud.types import EntryId, VolumeId

MAP = 1 << 28
SOURCES = sorted(Path(fsdecloud.__file__).parent.rglob("*.py"))


def entry(number: int) -> EntryId:
    return EntryId(number.to_bytes(32, "big"))


def test_fault_035_a_full_map_costs_no_commit(tmp_path):
    """Commits are in the log; a table that has no room for them keeps the log, and catches up once it has."""
    state = StateStore(tmp_path, bytes(32), VolumeId(b"v" * 32), map_size=MIB)
    places = {entry(number): Location(1, number, 1) for number in range(60_000)}
    state.commit([b"row"], staged=places.items())
    with pytest.raises(StoreFull, match="map is full"):
        state.checkpoint()
    state.commit([b"more"])
    state.close()
    with StateStore(tmp_path, bytes(32), VolumeId(b"v" * 32), map_size=16 * MIB) as state:
        assert [rows for _sequence, rows in state.replay()] == [[b"row"], [b"more"]]
        assert dict(state.staged()) == places


def test_fault_036_a_slow_consumer_pins_no_pages(tmp_path):
    """The only long reading is in batches: a consumer that stops between two does not make the file grow."""
    with StateStore(tmp_path, bytes(32), VolumeId(b"v" * 32)) as state:
        state.commit([], staged=[(entry(number), Location(1, number, 1)) for number in range(3000)])
        consumer = state.staged()
        assert next(consumer)[0] == entry(0)
        sizes = []
        for turn in range(40):
            state.commit([], staged=[(entry(number), Location(turn, number, 1)) for number in range(500)])
            state.checkpoint()
            sizes.append(state.statistics().file_bytes)
        assert sizes[-1] == sizes[9]
        assert len(list(consumer)) == 2999


def test_fault_037_a_full_reader_table_is_a_clear_error(tmp_path):
    with open_environment(tmp_path, MAP) as env:
        db = env.database(b"a")
        with env.write() as txn:
            txn.put(b"k", b"v", db=db)
        scopes = []
        with pytest.raises(StoreLocked, match="too many readers"):  # noqa: PT012 - which one is refused is the point
            for _ in range(200):
                scope = env.read()
                scope.__enter__()
                scopes.append(scope)
        assert len(scopes) >= 126
        with env.write() as txn:  # writing needs no place in the table
            txn.put(b"k", b"w", db=db)
        for scope in scopes:
            scope.__exit__(None, None, None)
        with env.read() as txn:
            assert txn.get(b"k", db=db) == b"w"


KEEPER = """
import os, sys
from pathlib import Path
from fsdecloud.store.environment import open_environment
env = open_environment(Path(sys.argv[1]), 1 << 28)
os.write(1, b"x")
sys.stdin.read()
"""
READER = KEEPER.replace(
    "os.write",
    """
db = env.database(b"a")
scope = env.read()
txn = scope.__enter__()
txn.get(b"k", db=db)
os.write""",
)


def test_fault_038_a_reader_that_was_killed_pins_nothing(tmp_path):
    with open_environment(tmp_path, MAP) as env:
        db = env.database(b"a")
        with env.write() as txn:
            txn.put(b"k", bytes(MIB), db=db)

    def start(program: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    # One that has the environment open all along: LMDB itself resets the table for whoever opens it alone.
    with start(KEEPER) as keeper, start(READER) as child:
        assert (keeper.stdout.read(1), child.stdout.read(1)) == (b"x", b"x")
        child.send_signal(signal.SIGKILL)
        child.wait()
        with open_environment(tmp_path, MAP) as env:
            db = env.database(b"a")
            sizes = []
            for turn in range(20):
                with env.write() as txn:
                    txn.put(b"k", bytes([turn]) * MIB, db=db)
                sizes.append(env.used_bytes())
            assert sizes[-1] == sizes[5]
        keeper.stdin.close()


@functools.cache
def nodes_of(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


def calls_of(name: str) -> list[str]:
    """Return where in the program a function or method of this name is called."""
    found = []
    for path in SOURCES:
        for node in nodes_of(path):
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called == name:
                    found.append(f"{path.name}:{node.lineno}")
    return found


def test_fault_039_nothing_forks():
    """Processes are started by exec alone. That an environment is of no use after a fork is in test_environment."""
    for name in ("fork", "forkpty", "Process", "ProcessPoolExecutor", "Pool"):
        found = calls_of(name)
        assert not found or name == "Process", found
    for path in SOURCES:
        assert "multiprocessing" not in path.read_text(), path


def test_fault_040_a_transaction_never_changes_threads():
    """Each write transaction is one `with` block of one function that neither awaits nor yields within it."""
    blocks = 0
    for path in SOURCES:
        for node in nodes_of(path):
            if not isinstance(node, ast.With):
                continue
            for item in node.items:
                called = item.context_expr
                if not (isinstance(called, ast.Call) and isinstance(called.func, ast.Attribute)):
                    continue
                if called.func.attr not in ("read", "write") or called.args or item.optional_vars is None:
                    continue
                blocks += 1
                inside = [inner for statement in node.body for inner in ast.walk(statement)]
                assert not any(isinstance(inner, ast.Await | ast.Yield | ast.YieldFrom) for inner in inside), (
                    f"{path}:{node.lineno}"
                )
    assert blocks > 30
    assert [place.split(":")[0] for place in calls_of("begin") if "service" not in place] == ["environment.py"]


def test_fault_041_no_key_is_longer_than_lmdb_takes(tmp_path):
    """Keys are ids, numbers and our own short names; the longest are a cache segment's rows."""
    with StateStore(tmp_path / "state", VolumeKeys.from_root(bytes(32)).at_rest_key, VolumeId(b"v" * 32)) as state:
        with pytest.raises(ValueError, match="name"):
            state.commit([], meta={"n" * (KEY_MAX + 1): b""})
        state.commit([], meta={"n" * KEY_MAX: b"value"})
        state.checkpoint()
        assert state.meta("n" * KEY_MAX) == b"value"
    with CacheStore(tmp_path / "cache", boot=lambda: "b") as cache:
        cache.put_located([(entry(1), "fetched", Location((1 << 63) - 1, 0, 1))])
        with cache._env.read() as txn, txn.cursor(cache._segment) as cursor:
            assert max(len(key) for key in cursor.iternext(values=False)) == 1 + 8 + 32


@pytest.mark.parametrize("size", [0, 1, 2039, 2040, 2041, 4080, 4096, MIB, MIB + 1])
def test_fault_042_value_sizes_in_every_place(tmp_path, size):
    value = os.urandom(size)
    with StateStore(tmp_path / "state", bytes(32), VolumeId(b"v" * 32)) as state:
        state.commit([value], meta={"m": value})
        assert state.meta("m") == value
        state.checkpoint()
        assert state.meta("m") == value
        assert list(state.replay()) == [(1, [value])]
    with StateStore(tmp_path / "state", bytes(32), VolumeId(b"v" * 32)) as state:
        assert state.meta("m") == value
        assert list(state.replay()) == [(1, [value])]


def test_fault_043_churn_of_ten_times_the_cache_leaves_no_growing_free_list(tmp_path):
    """Sizes and answers are in test_cache; here: the free list, whose growth would make each commit slower."""
    limit = 4 * MIB
    with CacheStore(tmp_path, boot=lambda: "b", limit=limit) as cache:
        highest, number = [], 0
        for _ in range(10):
            through = 0
            while through < limit:
                batch = [(entry(number + i), os.urandom((number * 7919 + i * 613) % (16 * KIB))) for i in range(20)]
                number += 20
                through += sum(len(data) for _entry, data in batch)
                cache.put_small(batch)
            highest.append(cache.statistics().index_bytes)
        assert highest[-1] <= highest[2] * 1.1
        assert highest[-1] < limit


def test_fault_044_reading_beside_a_writer_that_fills_the_map(tmp_path):
    """The map is never resized while it is open, so that no reader can meet it; readers beside a full map read on."""
    assert calls_of("set_mapsize") == []
    with open_environment(tmp_path, 2 * MIB) as env:
        db = env.database(b"a")
        with env.write() as txn:
            txn.put(b"k", b"v" * 1000, db=db)
        errors: list[BaseException] = []
        stop = threading.Event()

        def read() -> None:
            try:
                while not stop.wait(0.0002):  # without a pause two readers can keep the interpreter to themselves
                    with env.read() as txn:
                        assert txn.get(b"k", db=db) == b"v" * 1000
            except BaseException as exc:  # a thread's error would be lost otherwise
                errors.append(exc)

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            with pytest.raises(StoreFull), env.write() as txn:
                txn.cursor(db).putmulti([(b"%d" % i, bytes(4096)) for i in range(1000)])
        stop.set()
        for thread in threads:
            thread.join()
        assert not errors
