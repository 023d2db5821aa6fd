"""The journal of a voter: what it gives back is what was written, or an error."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
import pytest

from fsdecloud import config
from fsdecloud.errors import StoreCorrupt, StoreError
from fsdecloud.ledger.finality import Voted
from fsdecloud.peerd.votejournal import VoteRecord, encode_journal, read_journal, write_journal

NETWORK, PEER = bytes([1]) * 32, bytes([2]) * 32
RECORD = VoteRecord(1, NETWORK, PEER, 8, 12, (bytes([3]) * 32, bytes([4]) * 32))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "peer" / "votes"


@pytest.mark.parametrize("record", [RECORD, msgspec.structs.replace(RECORD, link=None)])
def test_what_was_written_comes_back(path: Path, record: VoteRecord) -> None:
    assert read_journal(path, NETWORK, PEER) is None
    write_journal(path, msgspec.structs.replace(record, target_height=10))
    write_journal(path, record)
    assert read_journal(path, NETWORK, PEER) == record
    assert record.voted == Voted(8, 12)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["votes"]


def test_each_cut_and_each_changed_byte_is_an_error(path: Path) -> None:
    """And none of them looks like a journal that never was: an empty file does not, either."""
    data = encode_journal(RECORD)
    write_journal(path, RECORD)
    damaged = [data[:cut] for cut in range(len(data))] + [data + b"\0"]
    for place in range(len(data)):
        damaged += [data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :] for flip in (1, 0x80, 0xFF)]
    for one in damaged:
        path.write_bytes(one)
        with pytest.raises(StoreCorrupt, match="move that file away"):
            read_journal(path, NETWORK, PEER)
    path.write_bytes(data)
    assert read_journal(path, NETWORK, PEER) == RECORD


def test_it_belongs_to_one_peer_of_one_network(path: Path) -> None:
    write_journal(path, RECORD)
    for network, peer in ((PEER, PEER), (NETWORK, NETWORK)):
        with pytest.raises(StoreCorrupt, match="another peer's"):
            read_journal(path, network, peer)


def test_what_cannot_be_read_is_no_missing_journal(path: Path) -> None:
    write_journal(path, RECORD)
    path.chmod(0o644)
    with pytest.raises(StoreCorrupt, match="chmod 600"):
        read_journal(path, NETWORK, PEER)
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreCorrupt):
        read_journal(path, NETWORK, PEER)
    with pytest.raises(StoreCorrupt):
        read_journal(path.parent / ("x" * 300), NETWORK, PEER)
    path.rmdir()
    path.symlink_to("elsewhere")
    with pytest.raises(StoreCorrupt):
        read_journal(path, NETWORK, PEER)


def test_a_failing_disk_leaves_the_old_record_or_the_new_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever call fails. What could not be made durable is never taken for durable."""
    write_journal(path, RECORD)
    later = msgspec.structs.replace(RECORD, target_height=16)

    def fail(*_args: object, **_options: object) -> None:
        raise OSError(5, "Input/output error")

    for name in ("open", "write", "fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(config.os, name, fail)
            with pytest.raises(StoreError, match="do not vote"):
                write_journal(path, later)
        assert read_journal(path, NETWORK, PEER) == RECORD
    with monkeypatch.context() as patch:
        patch.setattr(config, "sync_directory", fail)
        with pytest.raises(StoreError, match="do not vote"):
            write_journal(path, later)
    assert read_journal(path, NETWORK, PEER) == later


def test_it_is_on_the_disk_before_it_is_done(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes before the name, and the name before anybody signs."""
    done: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def record(*args: object, name: str = name, real: object = real) -> None:
            is_directory = name == "fsync" and stat.S_ISDIR(os.fstat(args[0]).st_mode)  # type: ignore[arg-type]
            done.append("directory" if is_directory else name)
            real(*args)  # type: ignore[operator]

        monkeypatch.setattr(config.os, name, record)
    write_journal(path, RECORD)
    assert done[-3:] == ["fsync", "replace", "directory"]
