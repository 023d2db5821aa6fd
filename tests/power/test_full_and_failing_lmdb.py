"""What LMDB does in C on a disk that is really full, and under system calls that really fail (strace's fault injection)."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fsdecloud.agent.journal import META, open_journal
from fsdecloud.errors import StoreFull
from fsdecloud.store.cache import CacheStore
from fsdecloud.store.segments import Location, SegmentStore
from fsdecloud.store.state import StateStore
from fsdecloud.types import EntryId, VolumeId

KEY, VOLUME = bytes(32), VolumeId(b"v" * 32)
MIB = 1 << 20


def entry(number: int) -> EntryId:
    return EntryId(number.to_bytes(32, "big"))


def fill(path: Path) -> None:
    """Use up what is left of the disk."""
    with path.open("wb", buffering=0) as file:
        for size in (MIB, 4096):
            while True:
                try:
                    if file.write(bytes(size)) < size:
                        break
                except OSError:
                    break


def test_fault_013_a_state_on_a_full_disk(small_disk, caplog):
    caplog.set_level(logging.CRITICAL)
    with StateStore(small_disk / "state", KEY, VOLUME) as state, SegmentStore(small_disk / "s", "staged") as segments:
        state.commit([b"first"])
        fill(small_disk / "filler")
        done = [[b"first"]]
        for number in range(200):  # the log's file has its room; then it needs another one
            try:
                state.commit([bytes([number]) * 50_000], staged=[(entry(number), Location(1, number, 1))])
                done.append([bytes([number]) * 50_000])
            except StoreFull:
                break
        else:
            raise AssertionError("it was never full")
        with pytest.raises(StoreFull):
            state.checkpoint()
        with pytest.raises(StoreFull):  # noqa: PT012 - which one fails depends on the disk
            for _ in range(10):
                segments.append(bytes(MIB))
        (small_disk / "filler").unlink()
        state.commit([b"again"])
        state.checkpoint()
        assert [rows for _sequence, rows in state.replay()] == [*done, [b"again"]]
    with StateStore(small_disk / "state", KEY, VOLUME) as state:
        assert [rows for _sequence, rows in state.replay()] == [*done, [b"again"]]
        assert len(dict(state.staged())) == len(done) - 1


def test_fault_013_a_cache_on_a_full_disk(small_disk):
    """Clean entries leave first; what cannot be kept is an error, and reading goes on."""
    with CacheStore(small_disk / "cache", boot=lambda: "b", limit=64 * MIB) as cache:
        cache.put_small([(entry(0), b"x" * 100)])
        fill(small_disk / "filler")
        failed = 0
        for number in range(1, 200):
            try:
                cache.put_small([(entry(number), bytes([number]) * 16000)])
            except StoreFull:
                failed += 1
            assert cache.get_small(entry(0)) in (None, b"x" * 100)
        assert failed
        (small_disk / "filler").unlink()
        cache.put_small([(entry(999), b"after")])
        assert cache.get_small(entry(999)) == b"after"


def test_fault_013_an_agents_journal_on_a_full_disk(small_disk):
    journal = open_journal(small_disk / "agent", b"V" * 32)
    journal.apply([(META, b"before", b"1")])
    fill(small_disk / "filler")
    with pytest.raises(StoreFull):  # noqa: PT012 - as above
        for number in range(100):
            journal.apply([(META, b"large %d" % number, bytes(MIB))])
    assert journal.get(META, b"before") == b"1"
    (small_disk / "filler").unlink()
    journal.apply([(META, b"after", b"2")])
    assert journal.get(META, b"after") == b"2"
    journal.close()


def use(base: Path) -> None:
    """Run in a process of its own, under strace: write, and say what was acknowledged and what came up."""
    logging.disable()
    from fsdecloud.errors import StoreError

    done: dict[str, list[int]] = {"journal": [], "state": []}
    errors: list[tuple[str, bool]] = []
    journal, state = open_journal(base / "agent", b"V" * 32), StateStore(base / "state", KEY, VOLUME)
    for number in range(12):
        try:
            journal.apply([(META, b"%d" % number, bytes([number]) * 9000)])
            done["journal"].append(number)
        except StoreError as exc:
            errors.append((str(exc), isinstance(exc, StoreFull)))
        try:
            state.commit([b"%d" % number], staged=[(entry(number), Location(1, number, 1))])
            done["state"].append(number)
            if number % 3 == 2:
                state.checkpoint()
        except StoreError as exc:
            errors.append((str(exc), isinstance(exc, StoreFull)))
    print(json.dumps([done, errors]))
    sys.stdout.flush()
    os._exit(0)  # killed: nothing is tidied up


def run_with_faults(
    base: Path, calls: str, code: str, when: str, module: str = __name__
) -> tuple[dict[str, list[int]], list[tuple[str, bool]]]:
    inject = f"inject={calls}:error={code}:when={when}"
    command = ["strace", "-f", "--seccomp-bpf", "-o", "/dev/null", "-e", f"trace={calls}", "-e", inject]
    program = [sys.executable, "-m", module, str(base)]
    result = subprocess.run(
        [*command, *program], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    done, errors = json.loads(result.stdout)
    return done, errors


MOMENTS = ["2", "4", "7", "5+"]


@pytest.mark.parametrize("when", [*MOMENTS, *(pytest.param(str(n), marks=pytest.mark.long) for n in range(8, 40, 3))])
@pytest.mark.parametrize(("calls", "code"), [("fdatasync", "EIO"), ("pwrite64", "EIO"), ("pwrite64", "EDQUOT")])
def test_fault_015_lmdb_calls_that_fail(tmp_path, calls, code, when):
    # Made before, so that each failing call is one of a store in use.
    open_journal(tmp_path / "agent", b"V" * 32).close()
    StateStore(tmp_path / "state", KEY, VOLUME).close()
    done, errors = run_with_faults(tmp_path, calls, code, when)
    assert all(is_full == (code == "EDQUOT") for text, is_full in errors if "earlier write failed" not in text), errors
    journal = open_journal(tmp_path / "agent", b"V" * 32)
    for number in done["journal"]:
        assert journal.get(META, b"%d" % number) == bytes([number]) * 9000
    journal.close()
    with StateStore(tmp_path / "state", KEY, VOLUME) as state:
        rows = [int(row) for _sequence, group in state.replay() for row in group]
        assert [number for number in rows if number in done["state"]] == done["state"]
        assert {entry(number) for number in done["state"]} <= dict(state.staged()).keys()
    # A commit needs the log alone, of which only the making of a new file calls fdatasync.
    assert len(done["state"]) >= (11 if calls == "fdatasync" else 12)
    assert errors or when not in MOMENTS, "the fault was never met"  # there are not that many calls


if __name__ == "__main__":
    use(Path(sys.argv[1]))
