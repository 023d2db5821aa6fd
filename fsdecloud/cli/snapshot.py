"""`decloud snapshot list|diff|restore|keep|forget|policy`: the states that a volume has been in.

All of it is asked of the driver of a mounted volume; the contents are below `.snapshots` in the mount.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final, TypeVar

import click

from fsdecloud.cli import client, drivers, parts, volumes
from fsdecloud.cli.output import clean, emit, emit_json, rfc3339, table
from fsdecloud.config import Paths, find_paths
from fsdecloud.errors import UsageError
from fsdecloud.units import format_size
from fsdecloud.wire.controlapi import (
    DiffLine,
    DiffPage,
    SnapshotDiff,
    SnapshotForget,
    SnapshotInfo,
    SnapshotKeep,
    SnapshotPage,
    SnapshotPolicy,
    SnapshotQuery,
    SnapshotRestore,
    SnapshotRestored,
)

R = TypeVar("R")

ANSWER_TIMEOUT: Final = 3600.0
"""Comparing and restoring take as long as there is to do; peers that do not answer end them much earlier."""

MARKS: Final = {"added": "+", "removed": "-", "changed": "*", "renamed": ">"}


def ask(paths: Paths, volume: str, method: str, params: object, result: type[R]) -> R:
    """Make one call to the driver of a mounted volume."""
    return client.call(
        paths.socket(drivers.PREFIX + volume),
        method,
        params,
        result,
        timeout=ANSWER_TIMEOUT,
        error=drivers.UnansweredDriver,
    )


def mounted(paths: Paths, name: str) -> str:
    """Return the name of a mounted volume. Raises UsageError when it is not."""
    volumes.load_document(paths, name)
    if parts.running_pid(paths, drivers.PREFIX + name) is None:
        raise UsageError(f"volume {name} is not mounted: decloud mount {name} DIR first")
    return name


def read_snapshots(paths: Paths, volume: str) -> Iterator[SnapshotInfo]:
    """Yield all snapshots of a mounted volume, oldest first."""
    first = 1
    while first:
        page = ask(paths, volume, "snapshots", SnapshotQuery(first), SnapshotPage)
        yield from page.snapshots
        first = page.following


def as_json(info: SnapshotInfo) -> dict[str, object]:
    """Return a snapshot as stable JSON fields."""
    return {
        "sequence": info.sequence,
        "time": rfc3339(info.time // 10**9),
        "directory": info.directory,
        "name": info.name or None,
        "kept": info.kept,
        "files": info.files,
        "bytes": info.bytes,
        "records": info.records,
    }


@click.group("snapshot")
def command() -> None:
    """The states that a volume has been in: list, diff, restore, keep, forget, policy.

    Every anchored commit is a snapshot. SNAP is its sequence number, its name, a time in UTC such as 2026-11-22T18:30 (the
    last one until then), or latest.
    """


@command.command("list")
@click.argument("name", metavar="NAME")
@click.option("--json", "json_output", is_flag=True, help="Print one JSON object per line.")
def list_command(name: str, json_output: bool) -> None:
    """List the snapshots of the mounted volume NAME, oldest first."""
    paths = find_paths()
    found = read_snapshots(paths, mounted(paths, name))
    if json_output:
        for info in found:
            emit_json(as_json(info))
        return
    rows = [
        [
            str(info.sequence),
            rfc3339(info.time // 10**9),
            str(info.files),
            format_size(info.bytes),
            info.name or ("kept" if info.kept else ""),
        ]
        for info in found
    ]
    for line in table(rows, header=("snapshot", "time", "files", "size", "name"), right=(0, 2, 3)):
        emit(line)
    if not rows:
        emit("no snapshot yet: there is one for each anchor in a block (decloud sync --wait anchored)")


def read_diff(paths: Paths, volume: str, old: str, new: str) -> Iterator[DiffLine]:
    """Yield the differences between two snapshots, or between one and the present (`new` empty)."""
    session = 0
    with client.Client(paths.socket(drivers.PREFIX + volume), error=drivers.UnansweredDriver) as link:
        while True:
            page = link.call("snapshot_diff", SnapshotDiff(old, new, session), DiffPage, timeout=ANSWER_TIMEOUT)
            yield from page.lines
            session = page.session
            if not session:
                return


@command.command("diff")
@click.argument("name", metavar="NAME")
@click.argument("old", metavar="SNAP")
@click.argument("new", metavar="[SNAP2]", required=False)
@click.option("--json", "json_output", is_flag=True, help="Print one JSON object per line.")
def diff_command(name: str, old: str, new: str | None, json_output: bool) -> None:
    """Show what changed in the volume NAME from SNAP to SNAP2, or to the present.

    + added, - removed, * changed, > renamed. What a removed or added directory held is listed too.
    """
    paths = find_paths()
    for line in read_diff(paths, mounted(paths, name), old, new or ""):
        path, path2 = (os.fsdecode(p) for p in (line.path, line.path2))
        if json_output:
            emit_json({"change": line.kind, "path": path, "path2": path2 or None})
        else:
            emit(f"{MARKS[line.kind]} {clean(path)}" + (f" -> {clean(path2)}" if path2 else ""))


@command.command("restore")
@click.argument("name", metavar="NAME")
@click.argument("snapshot", metavar="SNAP")
@click.argument("path", metavar="PATH")
@click.option("--to", "dest", metavar="DEST", help="Restore it as DEST, not in its old place.")
@click.option("--force", is_flag=True, help="Replace what is there; the replaced contents stay in snapshots.")
@click.option("--json", "json_output", is_flag=True, help="Print one JSON object.")
def restore_command(name: str, snapshot: str, path: str, dest: str | None, force: bool, json_output: bool) -> None:
    """Bring the file or directory PATH back as it was in the snapshot SNAP.

    PATH and DEST begin at the volume's root (a leading / may be left out). No data is transferred. The volume has the old
    contents or the restored ones at every moment, whatever happens.
    """
    paths = find_paths()
    source = in_volume(path)
    request = SnapshotRestore(snapshot, source, source if dest is None else in_volume(dest), force)
    done = ask(paths, mounted(paths, name), "snapshot_restore", request, SnapshotRestored)
    where = os.fsdecode(done.dest)
    if json_output:
        emit_json({"path": where, "files": done.files, "bytes": done.size})
    else:
        emit(f"{clean(where)} is back: {done.files} files, {format_size(done.size)}")


def in_volume(path: str) -> bytes:
    """Return a path as one from the volume's root."""
    return b"/" + os.fsencode(path).strip(b"/")


@command.command("keep")
@click.argument("name", metavar="NAME")
@click.argument("snapshot", metavar="SNAP")
@click.option("--name", "label", metavar="LABEL", help="Name it: .snapshots/LABEL then leads to it.")
@click.option("--undo", is_flag=True, help="Leave it to the policy again, unnamed.")
@click.option("--json", "json_output", is_flag=True, help="Print one JSON object.")
def keep_command(name: str, snapshot: str, label: str | None, undo: bool, json_output: bool) -> None:
    """Have the policy never forget the snapshot SNAP of the volume NAME."""
    if undo and label is not None:
        raise UsageError("--undo takes the name away: leave --name out")
    paths = find_paths()
    request = SnapshotKeep(snapshot, label, not undo)
    info = ask(paths, mounted(paths, name), "snapshot_keep", request, SnapshotInfo)
    if json_output:
        emit_json(as_json(info))
    else:
        how = f"kept as {info.name}" if info.name else "kept" if info.kept else "left to the policy"
        emit(f"snapshot {info.sequence} of {rfc3339(info.time // 10**9)} is {how}")


@command.command("forget")
@click.argument("name", metavar="NAME")
@click.argument("snapshots", metavar="SNAP...", nargs=-1, required=True)
@click.option("--json", "json_output", is_flag=True, help="Print one JSON object per snapshot.")
def forget_command(name: str, snapshots: tuple[str, ...], json_output: bool) -> None:
    """Forget snapshots of the volume NAME: all of them, or none if one is kept or does not exist.

    The space of what only they held comes back later, from the peers as well. The record of operations stays.
    """
    paths = find_paths()
    page = ask(paths, mounted(paths, name), "snapshot_forget", SnapshotForget(snapshots), SnapshotPage)
    for info in page.snapshots:
        if json_output:
            emit_json(as_json(info))
        else:
            emit(f"snapshot {info.sequence} of {rfc3339(info.time // 10**9)} is forgotten")


@command.command("policy")
@click.argument("name", metavar="NAME")
@click.argument("policy", metavar="[POLICY]", required=False)
@click.option("--json", "json_output", is_flag=True, help="Print one JSON object.")
def policy_command(name: str, policy: str | None, json_output: bool) -> None:
    """Show, or set, which snapshots of the volume NAME are retained.

    POLICY is EVERY:AGE for each age, such as all:1d,1h:1w,1d:forever: all of a day, one each hour up to a week, one each
    day from then on. What is older than the last age is forgotten. Kept snapshots and the latest always stay.
    """
    paths = find_paths()
    found = ask(paths, mounted(paths, name), "snapshot_policy", SnapshotPolicy(policy or ""), SnapshotPolicy)
    if json_output:
        emit_json({"policy": found.policy, "to_forget": found.to_forget if policy else None})
    else:
        emit(found.policy)
        if policy and found.to_forget:
            emit(f"{found.to_forget} snapshots will be forgotten with the next commit")
