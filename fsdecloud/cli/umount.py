"""`decloud umount DIR` and the helper `umount.decloud` that umount(8) calls.

Unmounting always leaves everything at D1; what has not reached the peers goes on at the next mount. The kernel's side is
taken away first, while the driver still serves; then the driver ends by itself.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from typing import Final

import click

from fsdecloud.cli import drivers, mounts, parts
from fsdecloud.cli.output import emit, emit_json, note
from fsdecloud.cli.run import MOUNT_FAILED, run
from fsdecloud.config import Paths, find_paths
from fsdecloud.errors import FsdecloudError, UsageError
from fsdecloud.units import format_size
from fsdecloud.wire.controlapi import Count, DriverStatus

END_TIMEOUT: Final = 60.0
"""A driver that has been unmounted only has to make its last changes durable."""


def unmount_volume(paths: Paths, directory: str, *, lazy: bool = False, force: bool = False) -> Count | None:
    """Unmount `directory` and wait for its driver; return what still has to reach peers (None: unknown).

    Raises UsageError: not a mount of ours (1), in use, naming by whom (32), or a driver that does not end (32).
    """
    table = mounts.read_mounts()
    path = mounts.canonical(directory, table)
    there = mounts.mount_at(path, table)
    if there is None or not there.is_ours:
        raise UsageError(f"{path} is not the mount point of a volume")
    serving = _serving_driver(paths, there)
    daemon = drivers.PREFIX + there.volume
    with parts.family_of(paths, [daemon] if serving is not None else []) as family:
        try:
            mounts.unmount(path, lazy=lazy, force=force)
        except OSError as exc:
            raise UsageError(_refusal(there, path, exc), MOUNT_FAILED) from exc
        if serving is None:
            return None
        if not lazy and not family.wait(END_TIMEOUT):
            raise UsageError(
                f"{path} is unmounted, but its driver (pid {serving.driver_pid}) still runs after {END_TIMEOUT:g} s; "
                f"see {paths.log_file(daemon)}",
                MOUNT_FAILED,
            )
    return Count(serving.dirty.entries + serving.staged.entries, serving.dirty.bytes + serving.staged.bytes)


def _refusal(mount: mounts.Mounted, path: str, exc: OSError) -> str:
    """Say why the kernel does not unmount, and who uses the mount if that is why."""
    if exc.errno != errno.EBUSY:
        return f"cannot unmount {path}: {exc.strerror}"
    users = mounts.users_of(mount)
    who = f"by {', '.join(users)}" if users else "by a process that cannot be seen from here"
    return f"{path} is in use {who}: close it, or use --lazy"


def _serving_driver(paths: Paths, mount: mounts.Mounted) -> DriverStatus | None:
    """Return the status of the driver of this home that serves `mount`, None if another home's or none does."""
    if parts.running_pid(paths, drivers.PREFIX + mount.volume) is None:
        return None
    try:
        status = drivers.driver_status(paths, mount.volume)
    except FsdecloudError:
        return None
    return status if status.mountpoint == mount.mountpoint else None


def describe_rest(rest: Count | None) -> str:
    """Say what has not reached all peers."""
    if rest is None or rest.entries == 0:
        return ""
    return f"; {rest.entries} entries ({format_size(rest.bytes)}) are safe here and go to the peers at the next mount"


@click.command("umount")
@click.argument("directory", metavar="DIR")
@click.option("-l", "--lazy", is_flag=True, help="Detach now; the volume is closed when nobody uses it any more.")
@click.option("-f", "--force", is_flag=True, help="Abort what programs wait for, then unmount.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(directory: str, lazy: bool, force: bool, as_json: bool) -> None:
    """Unmount DIR. Everything written stays safe on this machine; what is on its way to the peers continues at the next
    mount (wait with `decloud sync --wait stored` first if that matters)."""
    rest = unmount_volume(find_paths(), directory, lazy=lazy, force=force)
    if as_json:
        emit_json({
            "unmounted": directory,
            "pending_entries": rest.entries if rest else None,
            "pending_bytes": rest.bytes if rest else None,
        })  # fmt: skip
    else:
        emit(f"{directory} is unmounted{describe_rest(rest)}")


@click.command("umount.decloud")
@click.argument("directory", metavar="DIR")
@click.option("-f", "force", is_flag=True, help="Abort what programs wait for, then unmount.")
@click.option("-l", "lazy", is_flag=True, help="Detach now; the volume is closed when nobody uses it any more.")
@click.option("-n", "no_table", is_flag=True, help="Accepted; there is no /etc/mtab to leave alone.")
@click.option("-r", "read_only", is_flag=True, help="Accepted; a mount that cannot be unmounted is not made read-only.")
@click.option("-v", "verbose", is_flag=True, help="Say what was done.")
@click.option("-N", "namespace", metavar="NS", help="Refused: run the command in that namespace instead.")
@click.option("-t", "kind", metavar="TYPE", help="Accepted; the type is decloud.")
def helper_command(
    directory: str,
    force: bool,
    lazy: bool,
    no_table: bool,  # noqa: ARG001 - part of umount(8)'s call
    read_only: bool,
    verbose: bool,
    namespace: str | None,
    kind: str | None,  # noqa: ARG001 - part of umount(8)'s call
) -> None:
    """Unmount the volume at DIR; umount(8) calls this for the file system type decloud."""
    if namespace is not None:
        raise UsageError("-N is not supported: use nsenter(1)")
    try:
        rest = unmount_volume(find_paths(), directory, lazy=lazy, force=force)
    except UsageError:
        if read_only:
            note("umount.decloud: it stays writable: -r is not supported")
        raise
    if verbose:
        emit(f"{directory} is unmounted{describe_rest(rest)}")


def helper_main(arguments: Sequence[str] | None = None) -> None:
    """Run `umount.decloud` and exit."""
    sys.exit(run(helper_command, arguments, "umount.decloud"))
