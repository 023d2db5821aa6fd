"""Whatever call of an operation fails: the right error, nothing acknowledged lost, nothing half applied, and then it works."""

from __future__ import annotations

import errno
import logging
import os
from contextlib import suppress
from pathlib import Path

import pytest

from fsdecloud.config import read_private_file, write_private_file
from fsdecloud.errors import StoreError, StoreFull
from fsdecloud.store.lockfile import acquire_lock, lock_holder
from fsdecloud.store.segments import Location, SegmentStore, store_error
from fsdecloud.store.state import StateStore
from fsdecloud.types import EntryId, VolumeId
from tests.power.failing import Fault, each_cheap_fault, each_fault, failures, open_below

KEY, VOLUME = bytes(32), VolumeId(b"v" * 32)
FULL = (errno.ENOSPC, errno.EDQUOT)


def entry(number: int) -> EntryId:
    return EntryId(number.to_bytes(32, "big"))


def check_kind(exc: StoreError, fault: Fault) -> None:
    """A full disk says so, anything else does not claim it."""
    if fault.code in FULL:
        assert isinstance(exc, StoreFull), exc
        assert exc.errno == fault.code
    else:
        assert not isinstance(exc, StoreFull), exc


@each_cheap_fault
def test_fault_013_014_015_state_commits(scratch, fault, caplog):
    """Commits with rows, index, meta and truncation, each one tried until it succeeds or the disk stays broken."""
    caplog.set_level(logging.CRITICAL)
    for disk in failures(scratch, fault):
        path = scratch / str(disk._n)
        StateStore(path, KEY, VOLUME).close()
        state = StateStore(path, KEY, VOLUME)
        done: list[bytes] = []
        index: dict[EntryId, int] = {}
        failed = None
        with disk.installed():
            for number in range(1, 7):
                row = b"%d" % number * (3000 * number)
                keep = state.last_sequence if number == 4 else None
                try:
                    state.commit([row], staged=[(entry(number), _place(number))], truncate_before=keep)
                except StoreError as exc:
                    check_kind(exc, fault)
                    failed = row
                    continue
                done = [*(done[-1:] if keep is not None else done), row]
                index[entry(number)] = number
                if number == 5:
                    with suppress(StoreError):
                        state.prepare()
        # The fault is gone: the same process goes on.
        state.commit([b"after"], staged=[(entry(99), _place(99))], truncate_before=None)
        for _ in range(2):
            rows = [row for _sequence, group in state.replay() for row in group]
            assert rows in ([*done, b"after"], _with(done, failed)), disk.failed
            assert {name: place.segment for name, place in state.staged()}.items() >= {**index, entry(99): 99}.items()
            state.close()
            state = StateStore(path, KEY, VOLUME)
        state.close()
        assert not open_below(scratch), disk.failed


def _with(done: list[bytes], failed: bytes | None) -> list[bytes]:
    """What an unacknowledged commit may have left."""
    return [*done, failed, b"after"] if failed is not None else [*done, b"after"]


def _place(number: int) -> Location:
    return Location(number, 0, 1)


@each_cheap_fault
def test_fault_013_014_015_opening_a_state_store(scratch, fault):
    """A store that cannot be made or opened says why, and is made or opened once the disk works."""
    for disk in failures(scratch, fault):
        path = scratch / str(disk._n)
        for number in range(1, 3):  # the first time it is made
            with disk.installed():
                try:
                    state = StateStore(path, KEY, VOLUME)
                    state.commit([b"%d" % number])
                    state.close()
                except StoreError as exc:
                    check_kind(exc, fault)
                    with suppress(NameError):
                        state.close()
            state = StateStore(path, KEY, VOLUME)
            state.commit([b"x"])
            assert next(reversed(list(state.replay())))[1] == [b"x"]
            state.close()
        assert not open_below(scratch), disk.failed


@each_cheap_fault
def test_fault_013_014_015_segments_change_hands(scratch, fault):
    """Append, roll, sync, adopt, remove: what was acknowledged is in the old place or in the new one."""
    for disk in failures(scratch, fault):
        base = scratch / str(disk._n)
        with SegmentStore(base / "a", "staged") as staged, SegmentStore(base / "b", "kept") as kept:
            location = staged.append(b"first" * 1000)
            staged.sync()
            number, is_adopted = 0, False
            with disk.installed():
                try:
                    staged.roll()
                    staged.append(b"second")
                    staged.sync()
                    number = kept.adopt(staged.path(1))
                    is_adopted = True
                    staged.forget(1)
                    staged.remove(1)
                    kept.append(b"third")
                    kept.sync()
                except StoreError as exc:
                    check_kind(exc, fault)
                except OSError:  # `adopt` says that it raises those
                    assert not is_adopted
            if is_adopted:
                assert kept.read(Location(number, 0, location.length)) == b"first" * 1000
            else:
                assert staged.read(location) == b"first" * 1000
        with SegmentStore(base / "a", "staged") as staged, SegmentStore(base / "b", "kept") as kept:
            if is_adopted:
                assert kept.read(Location(number, 0, location.length)) == b"first" * 1000
            place = staged.append(b"again")
            staged.sync()
            assert staged.read(place) == b"again"
        del staged, kept
        assert not open_below(scratch), disk.failed


@each_fault
def test_fault_013_014_015_key_and_configuration_files(scratch, fault):
    """The old contents or the new, whole, whatever failed; nothing is left beside it."""
    for disk in failures(scratch, fault):
        path = scratch / str(disk._n) / "keys" / "device.key"
        write_private_file(path, b"old" * 100)
        is_written = False
        with disk.installed():
            try:
                write_private_file(path, b"new" * 200)
                is_written = True
            except OSError:
                assert disk.failed
        found = read_private_file(path)
        assert found == b"new" * 200 or (not is_written and found == b"old" * 100)
        assert [name for name in os.listdir(path.parent) if name != "device.key"] == [] or fault.is_persistent
        write_private_file(path, b"again")
        assert read_private_file(path) == b"again"
        assert os.listdir(path.parent) == ["device.key"]
        assert not open_below(scratch), disk.failed


@each_fault
def test_fault_013_014_015_lock_files(scratch, fault):
    """A lock that could not be written is not held."""
    for disk in failures(scratch, fault):
        path = scratch / str(disk._n) / "run" / "driver-x.lock"
        with disk.installed():
            try:
                acquire_lock(path).close()
            except StoreError as exc:
                check_kind(exc, fault)
        assert not open_below(scratch), disk.failed
        assert lock_holder(path) is None
        with acquire_lock(path):
            assert lock_holder(path) == os.getpid()
        assert Path(path).read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("code", FULL)
def test_a_full_disk_says_which_limit_it_is(code):
    exc = store_error(OSError(code, os.strerror(code)), "cannot write x")
    assert isinstance(exc, StoreFull)
    assert exc.errno == code
