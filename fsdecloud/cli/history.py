"""`decloud history FILE`: the versions that a file had, who made them, and how one comes back.

A version is what a path was in one snapshot or more in a row, told apart by inode, size and modification time; who made it
is in the records of the anchors since the snapshot before. Only snapshots that the policy retains are there to look at.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import click

from fsdecloud import codec
from fsdecloud.cli import client, drivers, snapshot
from fsdecloud.cli.log import operation_name, precise_time, read_log
from fsdecloud.cli.output import clean, emit, emit_json, table
from fsdecloud.config import Paths, find_paths
from fsdecloud.errors import UsageError
from fsdecloud.units import format_size
from fsdecloud.wire.controlapi import (
    LOG_CURSORS,
    LogLine,
    SnapshotRestore,
    SnapshotRestored,
    Version,
    VersionPage,
    VersionQuery,
)

if TYPE_CHECKING:
    from fsdecloud.fs.records import Record

PRESENT: Final = 0
"""Sequence number of what is not anchored yet."""


@dataclass(frozen=True, slots=True)
class Change:
    """A version, and the snapshots between which it came."""

    version: Version
    """As in the first snapshot that has it; without an inode: the file is gone."""
    before: int
    """The snapshot before that one, 0 if there was none."""


@click.command("history")
@click.argument("file", metavar="FILE")
@click.option("--restore", "which", metavar="SNAP", help="Bring the version of this snapshot back.")
@click.option("--to", "dest", metavar="PATH", help="Restore it as PATH in the same volume, not in its old place.")
@click.option("--force", is_flag=True, help="Replace what is there; the replaced contents stay in snapshots.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def command(file: str, which: str | None, dest: str | None, force: bool, as_json: bool) -> None:
    """Show the versions of FILE, oldest first, with who made them; or bring one of them back.

    FILE is a path in a mounted volume, where it may be gone by now. SNAP is the number of a snapshot as shown, or whatever else
    `decloud snapshot` takes.
    """
    paths = find_paths()
    volume, path = drivers.place_of(paths, file)
    if which is not None:
        _restore(paths, volume, path, which, dest, force=force, as_json=as_json)
        return
    if dest is not None or force:
        raise UsageError("--to and --force belong to --restore")
    found = 0
    rows = []
    for change in changes_of(read_versions(paths, volume, path)):
        found += 1
        fields = version_fields(change.version, maker_of(read_records(paths, volume, change), change.version, path))
        if as_json:
            emit_json(fields)
        else:
            rows.append(_row(fields))
    if not found:
        raise UsageError(f"no snapshot of {volume} has {file}, nor has the volume")
    if rows:
        for line in table(rows, header=("snapshot", "modified", "size", "by", "anchored"), right=(0, 2)):
            emit(line)


def read_versions(paths: Paths, volume: str, path: bytes) -> Iterator[Version]:
    """Yield what a path was in each snapshot, oldest first, and what it is now."""
    first = 1
    with client.Client(paths.socket(drivers.PREFIX + volume), error=drivers.UnansweredDriver) as link:
        while first:
            page = link.call("versions", VersionQuery(path, first), VersionPage, timeout=snapshot.ANSWER_TIMEOUT)
            yield from page.versions
            first = page.following


def changes_of(versions: Iterable[Version]) -> Iterator[Change]:
    """Yield each that differs from the one before it; a file that is not there yet is no version."""
    last: tuple[int, int, int] | None = (0, 0, 0)
    before = 0
    for version in versions:
        now = (version.inode, version.size, version.modified)
        if now != last:
            yield Change(version, before)
        last, before = now, version.sequence


def read_records(paths: Paths, volume: str, change: Change) -> Iterator[LogLine]:
    """Yield the records between the snapshot that has a version and the one before."""
    last = change.version.sequence
    for line in read_log(paths, volume, (change.before + 1) * LOG_CURSORS):
        if last != PRESENT and (line.sequence == 0 or line.sequence > last):
            return
        yield line


def maker_of(lines: Iterable[LogLine], version: Version, path: bytes) -> Record | None:
    """Return the last record that made a version, or removed the file, None if there is none."""
    from fsdecloud.fs.records import Operation, Record

    made = {
        Operation.CREATE, Operation.WRITE, Operation.TRUNCATE, Operation.RENAME, Operation.LINK, Operation.EXCHANGE,
        Operation.RESTORE, Operation.SYMLINK, Operation.MKDIR, Operation.MKNOD, Operation.ATTRIBUTES,
    }  # fmt: skip
    gone = {Operation.REMOVE, Operation.RMDIR, Operation.RENAME}
    found: tuple[bool, Record] | None = None
    for line in lines:
        record = codec.decode(line.record, Record)
        if record.result:
            continue
        if version.inode:
            is_meant = record.operation in made and (record.inode == version.inode or record.path2 == path)
        else:
            is_meant = record.operation in gone and record.path == path
        # An attribute's change counts only where nothing else explains the version: touch(1) makes one too.
        is_change = record.operation != Operation.ATTRIBUTES
        if is_meant and (found is None or is_change >= found[0]):
            found = is_change, record
    return found[1] if found is not None else None


def version_fields(version: Version, record: Record | None) -> dict[str, object]:
    """Return a version as stable JSON fields; for a file that is gone, `bytes` and `modified` are null."""
    is_there = bool(version.inode)
    return {
        "sequence": version.sequence or None,
        "anchored": precise_time(version.anchored) if version.anchored else None,
        "inode": version.inode or None,
        "modified": precise_time(version.modified) if is_there else None,
        "bytes": version.size if is_there else None,
        "mode": f"{version.mode:o}" if is_there else None,
        "owner": version.uid if is_there else None,
        "operation": None if record is None else operation_name(record.operation),
        "time": None if record is None else precise_time(record.time),
        "uid": None if record is None else record.uid,
        "program": None if record is None else record.program.decode("utf-8", "surrogateescape"),
    }


def _row(fields: dict[str, object]) -> list[str]:
    size, modified = fields["bytes"], fields["modified"] or fields["time"]
    by = "" if fields["uid"] is None else f"uid {fields['uid']} {fields['program']} ({fields['operation']})"
    return [
        str(fields["sequence"] or "-"),
        f"{str(modified)[:19]}Z" if modified else "",
        format_size(size) if isinstance(size, int) else "gone",
        by,
        f"{str(fields['anchored'])[:19]}Z" if fields["anchored"] else "not yet",
    ]


def _restore(
    paths: Paths, volume: str, path: bytes, which: str, dest: str | None, *, force: bool, as_json: bool
) -> None:
    target = path
    if dest is not None:
        other, target = drivers.place_of(paths, dest)
        if other != volume:
            raise UsageError(f"{dest} is in volume {other}, the file in {volume}: restore it there and copy it")
    request = SnapshotRestore(which, path, target, force)
    done = snapshot.ask(paths, volume, "snapshot_restore", request, SnapshotRestored)
    where = os.fsdecode(done.dest)
    if as_json:
        emit_json({"path": where, "files": done.files, "bytes": done.size})
    else:
        emit(f"{clean(where)} is as it was in snapshot {which}: {format_size(done.size)}")
