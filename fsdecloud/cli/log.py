"""`decloud log [NAME]`: the recorded operations of a volume, decrypted, oldest first."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import click

from fsdecloud import codec
from fsdecloud.cli import client, drivers, parts, volumes
from fsdecloud.cli.output import Progress, clean, emit, emit_json
from fsdecloud.cli.run import SYSTEM
from fsdecloud.config import Paths, find_paths
from fsdecloud.errors import UsageError
from fsdecloud.wire.controlapi import LogLine, LogPage, LogQuery


def read_log(paths: Paths, volume: str) -> Iterator[LogLine]:
    """Yield all records of a mounted volume, oldest first."""
    with client.Client(paths.socket(drivers.PREFIX + volume), error=drivers.UnansweredDriver) as link:
        batch = 0
        while batch >= 0:
            page = link.call("log", LogQuery(batch), LogPage, timeout=120.0)
            yield from page.lines
            if 0 <= page.next_batch <= batch:
                raise UsageError(f"the driver of {volume} repeats record batch {batch}", SYSTEM)
            batch = page.next_batch


def record_fields(line: LogLine) -> dict[str, object]:
    """Return one record as stable JSON fields. Bytes that are not UTF-8 appear as surrogates (PEP 383)."""
    from fsdecloud.fs.records import Record

    record = codec.decode(line.record, Record)
    return {
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
@click.option("--verify", is_flag=True, help="Recompute every batch, anchor, block link, proof of work and state root.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def command(name: str | None, verify: bool, as_json: bool) -> int:
    """Show the recorded operations of the volume NAME (the only mounted one by default), oldest first."""
    paths = find_paths()
    if verify:
        return _verify(paths, name, as_json=as_json)
    volume = _running_volume(paths, name)
    for line in read_log(paths, volume):
        fields = record_fields(line)
        if as_json:
            emit_json(fields)
        else:
            emit(record_line(fields))
    return 0


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
