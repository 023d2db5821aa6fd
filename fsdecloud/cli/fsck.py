"""`decloud fsck NAME` and the helper `fsck.decloud` that fsck(8) calls: check a volume that is not mounted.

No check is ever needed after a crash. Exit codes are those of fsck(8): 0 nothing is wrong, 1 everything was repaired, 4
something is left, 8 the check could not be done, 16 a wrong argument, 32 cancelled.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import click

from fsdecloud.cli import drivers, mounts, network, parts, volumes
from fsdecloud.cli.output import Progress, clean, emit, emit_json, note
from fsdecloud.cli.run import run
from fsdecloud.config import Paths, find_paths
from fsdecloud.errors import FsdecloudError, StoreLocked, UsageError
from fsdecloud.mountoptions import parse_options
from fsdecloud.units import format_size

if TYPE_CHECKING:
    from fsdecloud.driver.fsck import FsckOptions, Report

OPERATIONAL: Final = 8
USAGE: Final = 16
CANCELLED: Final = 32

QUIET: Final = 2.0
"""Seconds before progress is shown."""

SHOWN: Final = 1000
"""Findings that are printed; `--json` has all that are kept."""


class FsckCommand(click.Command):
    """A command with the exit codes of fsck(8)."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the arguments."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as exc:
            raise UsageError(exc.format_message(), USAGE) from exc

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except click.UsageError as exc:
            raise UsageError(exc.format_message(), USAGE) from exc
        except UsageError as exc:
            raise UsageError(str(exc), exc.exit_code if exc.exit_code == USAGE else OPERATIONAL) from exc
        except (FsdecloudError, OSError) as exc:
            raise UsageError(str(exc), OPERATIONAL) from exc
        except (KeyboardInterrupt, EOFError, click.Abort) as exc:
            raise UsageError("cancelled; nothing is half done", CANCELLED) from exc
        except (click.ClickException, click.exceptions.Exit):
            raise
        except Exception as exc:  # a bug, or no memory: Python's own exit code, 1, says that everything was repaired
            traceback.print_exc()
            raise UsageError(f"internal error: {str(exc) or type(exc).__name__}", OPERATIONAL) from exc


def check(paths: Paths, name: str, options: FsckOptions, mount_options: str = "") -> Report:
    """Check the volume `name`. Raises UsageError when it is mounted, or cannot be opened for reasons of this machine."""
    document = volumes.load_document(paths, name)
    chosen, _unknown = parse_options(mount_options)
    if parts.running_pid(paths, drivers.PREFIX + name) is not None and drivers.is_mounted(paths, name):
        raise UsageError(
            f"volume {name} is mounted at {drivers.where_mounted(paths, name)}: decloud umount first", OPERATIONAL
        )
    root = volumes.open_root(paths, name, credential=chosen.credential, passfile=chosen.passfile)
    if not options.offline and not options.quick:
        try:
            network.ensure_ledger(paths)
        except FsdecloudError as exc:
            note(f"fsck: the ledger daemon does not start ({exc}); new addresses of peers are not known")
    import trio

    from fsdecloud.crypto.keys import VolumeKeys
    from fsdecloud.driver.fsck import Check
    from fsdecloud.driver.volume import VolumeSetup
    from fsdecloud.store.lockfile import acquire_lock

    keys = VolumeKeys.from_root(root)
    if bytes.fromhex(document.volume_id) != keys.volume_id:
        raise UsageError(f"the key given is not volume {name}'s", OPERATIONAL)
    progress, tell = _progress(name)
    try:
        with acquire_lock(paths.lock_file(drivers.PREFIX + name)):
            return trio.run(Check(options, tell).run, VolumeSetup(paths, document, keys, chosen, ""))
    except StoreLocked as exc:
        raise UsageError(f"volume {name} is in use: {exc}", OPERATIONAL) from exc
    except BaseExceptionGroup as group:  # the checkers' group; the person wants the error itself
        raise _first(group) from group
    finally:
        progress.end()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return one of our errors out of a group, or an interrupt; the group itself if there is neither."""
    found = group.subgroup((FsdecloudError, OSError, KeyboardInterrupt))
    leaf: BaseException = found or group
    while found is not None and isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    return leaf


def _progress(name: str) -> tuple[Progress, Callable[[str], None]]:
    progress, begin = Progress(), time.monotonic() + QUIET

    def tell(text: str) -> None:
        if time.monotonic() > begin:
            progress.show(f"{name}: {text}")

    return progress, tell


def as_json(volume: str, report: Report) -> dict[str, object]:
    """Return the object of `fsck --json`; the keys are stable."""
    return {
        "volume": volume,
        "exit": report.exit_code,
        "inodes": report.inodes,
        "names": report.names,
        "bytes": report.bytes,
        "snapshots": report.snapshots,
        "tree_nodes": report.nodes,
        "references": report.references,
        "unchecked_references": report.unchecked,
        "read_bytes": report.read_bytes,
        "staged_entries": report.staged,
        "receipts": report.receipts if report.receipts >= 0 else None,
        "blobs": report.blobs if report.blobs >= 0 else None,
        "incomplete_blobs": report.short if report.blobs >= 0 else None,
        "uploading_blobs": report.under_way if report.blobs >= 0 else None,
        "dropped_findings": report.dropped,
        "findings": [
            {
                "kind": one.kind,
                "severity": one.severity,
                "inode": one.inode or None,
                "path": one.path.decode(errors="backslashreplace") or None,
                "text": one.text,
                "repairable": one.repair is not None,
                "repaired": one in report.repaired,
            }
            for one in report.findings
        ],
    }


def as_lines(volume: str, report: Report, options: FsckOptions) -> list[str]:
    """Return what people read."""
    lines = []
    for one in report.findings[:SHOWN]:
        where = clean(one.path) if one.path else ""
        where += f"{' ' if where else ''}(inode {one.inode})" if one.inode else ""
        state = ""
        if one.severity != "note":
            can = "-y repairs it" if one.repair is not None and not options.repair else "NOT REPAIRED"
            state = "; repaired" if one in report.repaired else f"; {can}"
        lines.append(f"{volume}: {where}{': ' if where else ''}{clean(one.text)}{state}")
    if len(report.findings) > SHOWN:
        lines.append(f"{volume}: and {len(report.findings) - SHOWN} more (--json shows them)")
    if report.dropped:
        lines.append(f"{volume}: and {report.dropped} more; run it again after repairs")
    if options.quick:
        return [*lines, f"{volume}: {'clean' if not report.exit_code else 'not clean'}, the journal was replayed"]
    counts = [f"{report.inodes} inodes ({format_size(report.bytes)})", f"{report.names} names"]
    counts += [f"{report.snapshots} snapshots", f"{report.references} references", f"{report.staged} staged entries"]
    if report.blobs >= 0:
        counts.append(f"{report.blobs - report.short} of {report.blobs} blobs whole with the peers")
        counts += [f"{report.under_way} of them still being uploaded"] if report.under_way else []
    if report.unchecked:
        counts.append(f"{report.unchecked} references not checked (--offline)")
    verdict = {0: "clean", 1: "repaired", 4: "NOT CLEAN"}[report.exit_code]
    return [*lines, f"{volume}: {verdict}: {', '.join(counts)}"]


@click.command("fsck", cls=FsckCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name", metavar="NAME")
@click.option("-n", "only_check", is_flag=True, help="Only check, change nothing. This is the default.")
@click.option("-y", "repair", is_flag=True, help="Repair everything that can be repaired without losing data.")
@click.option(
    "-a", "-p", "preen", is_flag=True, help="As fsck(8) asks at boot: replay the journal, and look no further."
)
@click.option("-f", "force", is_flag=True, help="With -a or -p: check everything all the same.")
@click.option("--data", is_flag=True, help="Read everything that the volume and its snapshots refer to.")
@click.option("--network", "ask_peers", is_flag=True, help="Ask the peers whether they have all shards.")
@click.option("--offline", is_flag=True, help="Ask nobody; what is not on this machine is not checked.")
@click.option("-o", "texts", metavar="OPTIONS", multiple=True, help="Mount options: credential=, passfile=, timeout=.")
@click.option("-C", "descriptor", metavar="FD", help="Accepted; progress goes to standard error.")
@click.option("-v", "verbose", is_flag=True, help="Accepted.")
@click.option("--json", "json_output", is_flag=True, help="Print one JSON object.")
def command(
    name: str,
    only_check: bool,
    repair: bool,
    preen: bool,
    force: bool,
    data: bool,
    ask_peers: bool,
    offline: bool,
    texts: tuple[str, ...],
    descriptor: str | None,  # noqa: ARG001 - part of fsck(8)'s call
    verbose: bool,  # noqa: ARG001 - part of fsck(8)'s call
    json_output: bool,
) -> int:
    """Check the volume NAME, which must not be mounted.

    No check is ever needed after a crash: the journal is replayed at the next mount. This one looks at everything: the local
    state, staged data, the tree and all names, links and counters in it, and whether everything it refers to is known.

    \b
    Exit codes, as fsck(8):
      0   nothing is wrong             8   the check could not be done
      1   everything was repaired      16  a wrong argument
      4   something is left            32  cancelled
    """  # noqa: D301 - click's paragraph mark
    if sum((only_check, repair, preen)) > 1:
        raise UsageError("use one of -n, -y and -a (or -p)", USAGE)
    if offline and (ask_peers or data):
        raise UsageError("--offline asks nobody: leave out --data and --network", USAGE)
    from fsdecloud.driver.fsck import FsckOptions

    options = FsckOptions(repair, data, ask_peers, offline, quick=preen and not force)
    volume = name.removeprefix(mounts.SOURCE_PREFIX)
    report = check(find_paths(), volume, options, ",".join(texts))
    with suppress(BrokenPipeError):  # whoever reads it has seen enough, and gets the exit code all the same
        if json_output:
            emit_json(as_json(volume, report))
        else:
            for line in as_lines(volume, report, options):
                emit(line)
        sys.stdout.flush()
    return report.exit_code


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `fsck.decloud` and exit."""
    sys.exit(run(command, arguments, "fsck.decloud", interrupted=CANCELLED))
