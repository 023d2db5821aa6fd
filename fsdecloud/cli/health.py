"""How whole the stored blobs are, as `status` shows it."""

from __future__ import annotations

from fsdecloud.cli.output import clean
from fsdecloud.units import format_size
from fsdecloud.wire.agentapi import RecodingStatus, RepairStatus


def as_json(repair: RepairStatus) -> dict[str, object]:
    """Return the object `repair` of `status --json`."""
    return {
        "blobs": repair.blobs,
        "under_replicated": repair.degraded,
        "away": repair.away,
        "endangered": repair.endangered,
        "unreadable": repair.unreadable,
        "waiting": repair.waiting,
        "moving": repair.moving,
        "repaired_blobs": repair.repaired_blobs,
        "repaired_shards": repair.repaired_shards,
        "repaired_bytes": repair.repaired_bytes,
        "audits_passed": repair.audits_passed,
        "audits_failed": repair.audits_failed,
        "contained": repair.contained,
        "surveying": repair.is_surveying,
        "last_error": repair.last_error or None,
        "recoding": _recoding_json(repair.recoding),
    }


def _recoding_json(recoding: RecodingStatus) -> dict[str, object] | None:
    """Return how far coding anew is, None while nothing is to have another code than it has."""
    if not recoding.n:
        return None
    return {
        "redundancy": f"{recoding.k}/{recoding.n}",
        "counted": recoding.is_counted,
        "blobs": recoding.blobs,
        "bytes": recoding.bytes,
        "waiting": recoding.waiting,
        "done_blobs": recoding.done_blobs,
        "done_bytes": recoding.done_bytes,
        "last_error": recoding.last_error or None,
    }


def describe_recoding(recoding: RecodingStatus) -> str:
    """Return one line for people, "" if nothing was or is to be coded anew."""
    if not recoding.n or not (recoding.blobs or recoding.done_blobs):
        return ""
    done = f"{recoding.done_blobs} blobs ({format_size(recoding.done_bytes)}) done"
    if not recoding.blobs:
        return f"re-coding to {recoding.k}/{recoding.n}: {done}, none left" if recoding.is_counted else ""
    parts = [f"{recoding.blobs} blobs ({format_size(recoding.bytes)}) still stored otherwise", done]
    if recoding.waiting:
        parts.append(f"{recoding.waiting} wait: {clean(recoding.last_error)}")
    return f"re-coding to {recoding.k}/{recoding.n}: " + ", ".join(parts)


def problems(repair: RepairStatus) -> list[str]:
    """Return what makes the volume degraded."""
    found = []
    if repair.degraded:
        found.append(f"under-replicated {repair.degraded} blobs, {repair.endangered} of them need repair")
    if repair.unreadable:
        text = f"{repair.unreadable} blobs have too few shards to be read until a peer returns"
        found.append(f"{text}; decloud unreadable names the files")
    return found


def describe(repair: RepairStatus) -> str:
    """Return one line for people, "" if there is nothing to tell."""
    if not (repair.blobs or repair.repaired_blobs):
        return ""
    parts = [f"{repair.blobs - repair.degraded - repair.away} of {repair.blobs} blobs whole"]
    if repair.away:
        parts.append(f"{repair.away} whole again when their peers are back")
    if repair.degraded:
        parts.append(f"{repair.degraded} under-replicated")
    if repair.moving:
        parts.append(f"{repair.moving} have shards with peers that leave")
    if repair.waiting:
        parts.append(f"{repair.waiting} wait for a peer")
    if repair.repaired_blobs:
        parts.append(f"{repair.repaired_blobs} repaired ({format_size(repair.repaired_bytes)})")
    audits = repair.audits_passed + repair.audits_failed
    parts.append(f"{audits} audits" + (f", {repair.audits_failed} failed" if repair.audits_failed else ""))
    if repair.degraded and repair.last_error:
        parts.append(clean(repair.last_error))
    return "repair: " + ", ".join(parts)
