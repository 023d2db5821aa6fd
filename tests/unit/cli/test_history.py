"""Which snapshots have another version of a file, and who made it."""

from __future__ import annotations

from fsdecloud import codec
from fsdecloud.cli.history import Change, changes_of, maker_of, version_fields
from fsdecloud.fs.records import Operation, Record
from fsdecloud.wire.controlapi import LogLine, Version

PATH = b"/dir/file"


def version(sequence: int, inode: int = 5, size: int = 10, modified: int = 100) -> Version:
    return Version(sequence, sequence * 1000, inode, 0o100644, 0, size, modified)


def absent(sequence: int) -> Version:
    return Version(sequence, sequence * 1000, 0, 0, 0, 0, 0)


def line(operation: Operation, inode: int = 5, path: bytes = PATH, path2: bytes = b"", result: int = 0) -> LogLine:
    record = Record(7, operation, inode, path, path2, 1000, operation.name.lower().encode(), result, 3)
    return LogLine(codec.encode(record), 1, 1, b"")


def made_by(lines: list[LogLine], of: Version) -> bytes | None:
    record = maker_of(lines, of, PATH)
    return None if record is None else record.program


def test_a_version_begins_where_something_differs() -> None:
    seen = [absent(1), version(2), version(3), version(5, size=11), version(6, size=11, modified=7), absent(8), absent(9),
            version(11, inode=6), version(0, inode=6)]  # fmt: skip
    assert list(changes_of(seen)) == [
        Change(seen[1], 1), Change(seen[3], 3), Change(seen[4], 5), Change(seen[5], 6), Change(seen[7], 9),
    ]  # fmt: skip
    assert list(changes_of([version(0)])) == [Change(version(0), 0)], "the present alone"
    assert list(changes_of([absent(1), absent(0)])) == []


def test_the_last_that_explains_it_made_it() -> None:
    create, write = line(Operation.CREATE), line(Operation.WRITE)
    assert made_by([create, write, line(Operation.READ)], version(1)) == b"write"
    assert made_by([write, line(Operation.ATTRIBUTES)], version(1)) == b"write"
    assert made_by([line(Operation.ATTRIBUTES)], version(1)) == b"attributes"
    assert made_by([line(Operation.ATTRIBUTES), write], version(1)) == b"write"
    assert made_by([line(Operation.WRITE, inode=6)], version(1)) is None, "another file"
    assert made_by([line(Operation.WRITE, result=28)], version(1)) is None, "it failed"
    assert made_by([line(Operation.RENAME, path=b"/other", path2=PATH)], version(1)) == b"rename"
    assert made_by([line(Operation.RESTORE, inode=5, path=b"/.snapshots/x", path2=PATH)], version(1)) == b"restore"


def test_who_removed_it() -> None:
    removed = line(Operation.REMOVE)
    assert made_by([line(Operation.WRITE), removed], absent(3)) == b"remove"
    assert made_by([line(Operation.RENAME, path2=b"/elsewhere")], absent(3)) == b"rename"
    assert made_by([line(Operation.WRITE)], absent(3)) is None
    fields = version_fields(absent(3), None)
    assert (fields["sequence"], fields["bytes"], fields["modified"], fields["uid"]) == (3, None, None, None)
