"""`decloud log [NAME]`: the recorded operations of a volume, decrypted, oldest first."""

from __future__ import annotations

import errno
import os
import pwd
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import click

from fsdecloud import codec
from fsdecloud.cli import client, drivers, mounts, parts, volumes
from fsdecloud.cli.output import Progress, clean, emit, emit_json
from fsdecloud.cli.run import SYSTEM
from fsdecloud.config import Paths, find_paths
from fsdecloud.errors import UsageError
from fsdecloud.wire.controlapi import LOG_CURSORS, LogLine, LogPage, LogQuery

if TYPE_CHECKING:
    from fsdecloud.cli.logfilter import LogFilter
    from fsdecloud.fs.records import Record

FOLLOW_PAUSE: Final = 0.5
"""Seconds between two looks for new records."""

_TIMEOUT: Final = 120.0


def read_log(paths: Paths, volume: str, cursor: int = 0) -> Iterator[LogLine]:
    """Yield all records of a mounted volume from a cursor on, oldest first, one batch in memory."""
    with client.Client(paths.socket(drivers.PREFIX + volume), error=drivers.UnansweredDriver) as link:
        while cursor >= 0:
            page = link.call("log", LogQuery(cursor), LogPage, timeout=_TIMEOUT)
            yield from page.lines
            if 0 <= page.next_batch <= cursor:
                raise UsageError(f"the driver of {volume} repeats record batch {cursor}", SYSTEM)
            cursor = page.next_batch


def follow_log(paths: Paths, volume: str, cursor: int = 0) -> Iterator[LogLine | None]:
    """As `read_log`, and then each new record once, as it comes; None whenever there is none more for now.

    Ends only with the driver (`drivers.UnansweredDriver`).
    """
    shown = 0
    with client.Client(paths.socket(drivers.PREFIX + volume), error=drivers.UnansweredDriver) as link:
        while True:
            page = link.call("log", LogQuery(cursor), LogPage, timeout=_TIMEOUT)
            yield from page.lines[shown:]
            if page.next_batch > cursor:
                cursor, shown = page.next_batch, 0
            else:  # the last one: more come at its end, and then behind it
                shown = max(shown, len(page.lines))
                yield None


def cursor_since(paths: Paths, volume: str, since: int) -> int:
    """Return a cursor behind anchors that have nothing from `since` (nanoseconds since 1970) on, as the snapshots tell."""
    from fsdecloud.cli.snapshot import read_snapshots

    sequence = 0
    for info in read_snapshots(paths, volume):
        if info.time >= since:
            break
        sequence = info.sequence
    return (sequence + 1) * LOG_CURSORS if sequence else 0


def record_fields(line: LogLine) -> dict[str, object]:
    """Return one record as stable JSON fields. Bytes that are not UTF-8 appear as surrogates (PEP 383)."""
    from fsdecloud.fs.records import Operation, Record

    record = codec.decode(line.record, Record)
    payment = _payment_fields(record) if record.operation == Operation.PAYMENT else {}
    return payment | {
        "time": precise_time(record.time),
        "operation": operation_name(record.operation),
        "inode": record.inode,
        "path": record.path.decode("utf-8", "surrogateescape"),
        "path2": record.path2.decode("utf-8", "surrogateescape"),
        "uid": record.uid,
        "program": record.program.decode("utf-8", "surrogateescape"),
        "result": errno.errorcode.get(record.result, str(record.result)) if record.result else "ok",
        "amount": record.amount,
        "sequence": line.sequence or None,
        "height": line.height if line.height >= 0 else None,
        "tx": line.tx.hex() or None,
    }


def _payment_fields(record: Record) -> dict[str, object]:
    """Return what a payment's record says besides."""
    from fsdecloud.fs.payment import read_payment_words

    words = read_payment_words(record.path2)
    return {} if words is None else {"recipient": words.recipient, "fee": words.fee, "transaction": words.tx}


def operation_name(number: int) -> str:
    """Return the operation's name in lower case, or its number if this version does not know it."""
    from fsdecloud.fs.records import Operation

    try:
        return Operation(number).name.lower()
    except ValueError:
        return f"operation-{number}"


def precise_time(nanoseconds: int) -> str:
    """Return a time in UTC as RFC 3339 writes it, with its nanoseconds."""
    from fsdecloud.cli.output import rfc3339

    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return rfc3339(seconds).removesuffix("Z") + f".{rest:09d}Z"


def record_line(fields: dict[str, object]) -> str:
    """Return one record for people."""
    path, path2 = clean(str(fields["path"])), clean(str(fields["path2"]))
    names = f"{path} -> {path2}" if path2 else path
    if "recipient" in fields:
        names = f"{fields['amount']} to {fields['recipient']}, fee {fields['fee']}, transaction {fields['transaction']}"
    amount = f" {fields['amount']} bytes" if fields["operation"] in ("read", "write", "truncate") else ""
    result = "" if fields["result"] == "ok" else f" {fields['result']}"
    where = "not anchored yet"
    if fields["height"] is not None:
        where = f"block {fields['height']} anchor {fields['sequence']}"
    elif fields["sequence"] is not None:
        where = f"anchor {fields['sequence']} on its way"
    who = f"uid {fields['uid']} {clean(str(fields['program']))}".rstrip()
    return f"{str(fields['time'])[:23]}Z {fields['operation']:<11} {names}{amount}{result} ({who}; {where})"


@click.command("log")
@click.argument("name", metavar="[NAME]", required=False)
@click.option("--path", metavar="PATH", help="Only what touched PATH or something below it.")
@click.option("--since", metavar="TIME", help="Only from then on: a time in UTC, or how long ago (90m, 2d).")
@click.option("--until", metavar="TIME", help="Only until then.")
@click.option("--program", "programs", metavar="PROGRAM", multiple=True, help="Only of this program; may be repeated.")
@click.option(
    "--user", "users", metavar="USER", multiple=True, help="Only of this user, a name or number; may be repeated."
)
@click.option("--op", "operations", metavar="OPERATION", multiple=True, help="Only this operation; may be repeated.")
@click.option("--follow", is_flag=True, help="Go on with new records as they come, until Ctrl-C.")
@click.option("--verify", is_flag=True, help="Recompute every batch, anchor, block link, proof of work and state root.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def command(
    name: str | None,
    path: str | None,
    since: str | None,
    until: str | None,
    programs: tuple[str, ...],
    users: tuple[str, ...],
    operations: tuple[str, ...],
    follow: bool,
    verify: bool,
    as_json: bool,
) -> int:
    """Show the recorded operations of the volume NAME (the only mounted one by default), oldest first."""
    paths = find_paths()
    if verify:
        if follow or any((path, since, until, programs, users, operations)):
            raise UsageError("--verify checks the whole record: leave the filters and --follow out")
        return _verify(paths, name, as_json=as_json)
    wanted = _filter(path, since, until, programs, users, operations)
    volume = _running_volume(paths, name)
    cursor = 0 if wanted.since is None else cursor_since(paths, volume, wanted.since)
    _show(follow_log(paths, volume, cursor) if follow else read_log(paths, volume, cursor), wanted, as_json=as_json)
    return 0


def _show(lines: Iterator[LogLine | None], wanted: LogFilter, *, as_json: bool) -> None:
    """Print the wanted ones among the records; None is a pause."""
    from fsdecloud.fs.records import Record

    for line in lines:
        if line is None:
            sys.stdout.flush()
            time.sleep(FOLLOW_PAUSE)
        elif wanted.matches(codec.decode(line.record, Record)):
            fields = record_fields(line)
            if as_json:
                emit_json(fields)
            else:
                emit(record_line(fields))


def _filter(
    path: str | None,
    since: str | None,
    until: str | None,
    programs: tuple[str, ...],
    users: tuple[str, ...],
    operations: tuple[str, ...],
) -> LogFilter:
    """Return what the options ask for. Raises UsageError."""
    from fsdecloud.cli import logfilter

    now = time.time_ns()
    return logfilter.LogFilter(
        path=None if path is None else path_in_volume(path),
        since=None if since is None else logfilter.parse_moment(since, now, is_end=False, what="--since"),
        until=None if until is None else logfilter.parse_moment(until, now, is_end=True, what="--until"),
        programs=frozenset(program.encode("utf-8", "surrogateescape") for program in programs),
        users=frozenset(logfilter.parse_user(user, _uid_of) for user in users),
        operations=frozenset(map(logfilter.parse_operation, operations)),
    )


def path_in_volume(path: str) -> bytes:
    """Return a path from the volume's root: of one below a mount its rest, else the path itself. Touches no mount."""
    table = mounts.read_mounts()
    place = mounts.canonical(path, table)
    found = mounts.mount_below(place, table)
    if found is not None and found.is_ours:
        path = place.removeprefix(found.mountpoint.rstrip("/"))
    return b"/" + os.fsencode(path).strip(b"/")


def _uid_of(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def _running_volume(paths: Paths, name: str | None) -> str:
    if name is None:
        return drivers.volume_of_path(paths, None)
    volumes.load_document(paths, name)
    if parts.running_pid(paths, drivers.PREFIX + name) is None:
        raise UsageError(f"volume {name} is not mounted: decloud mount {name} DIR first")
    return name


def _verify(paths: Paths, name: str | None, *, as_json: bool) -> int:
    """Check the whole record of a mounted volume against the ledger; print what was verified."""
    from dataclasses import asdict

    from fsdecloud.cli.verifylog import verify_log

    volume = _running_volume(paths, name)
    progress = Progress()
    try:
        report = verify_log(paths, volume, bytes.fromhex(volumes.load_document(paths, volume).volume_id), progress.show)
    finally:
        progress.end()
    if as_json:
        emit_json(asdict(report))
        return 0
    emit(
        f"{clean(report.volume)}: {report.records} records in {report.batches} batches of {report.anchors} anchors verify; "
        f"the chain of {report.height} blocks follows the rules"
    )
    if report.pending:
        emit(f"{report.pending} newer records are not in a block yet")
    return 0
