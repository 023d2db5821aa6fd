"""`decloud mount NAME DIR` and the helper `mount.decloud` that mount(8) calls.

Checks everything that can be checked without the driver, opens the root secret, makes sure that this home's ledger daemon
runs, starts the driver and returns when the mount answers. Nothing is changed when a check fails.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import click

from fsdecloud.cli import drivers, mounts, network, parts, volumes
from fsdecloud.cli.output import emit, note
from fsdecloud.cli.run import INTERRUPTED_MOUNT, MOUNT_FAILED, SYSTEM, run
from fsdecloud.config import Paths, check_name, find_paths
from fsdecloud.errors import FsdecloudError, UsageError
from fsdecloud.mountoptions import MountOptions, describe_options, format_options, parse_options, served_name
from fsdecloud.readiness import notify

FUSE_CONF: Final = "/etc/fuse.conf"
DEVICE: Final = "/dev/fuse"
CAP_SYS_ADMIN: Final = 21
"""Its bit in capabilities(7)."""

ANSWER_TIMEOUT: Final = 15.0
"""A new mount that does not answer within this does not work."""


def mount_volume(
    paths: Paths, name: str, directory: str, options: MountOptions, *, fake: bool = False, light: bool = False
) -> subprocess.Popen[bytes] | None:
    """Mount the volume `name`; return the driver's process once the mount answers (None with `fake`).

    Raises UsageError, exit code 1: no such volume, wrong mount point, wrong passphrase; 32: already mounted, or the driver's
    own reason.
    """
    network.require_own(paths, name, volumes.load_document(paths, name).network)
    served = served_name(check_name(name), options)
    daemon = drivers.PREFIX + served
    if drivers.is_mounted(paths, served):
        raise UsageError(drivers.describe_running(paths, served), MOUNT_FAILED)
    # The mount table must say which of the volume's mounts it is.
    if options.snapshot and options.fsname.removeprefix(mounts.SOURCE_PREFIX) != served:
        options = replace(options, fsname=mounts.SOURCE_PREFIX + served)
    _check_kernel(options)
    detach_stale(served, directory, fake=fake)
    mountpoint = mounts.check_mountpoint(directory, nonempty=options.nonempty)
    _check_apart(paths, mountpoint)
    if fake:
        return None
    root = volumes.open_root(paths, name, credential=options.credential, passfile=options.passfile)
    try:
        network.ensure_ledger(paths, light=light)
    except FsdecloudError as exc:
        note(f"mount: the ledger daemon does not start ({exc}); the volume is mounted without it")
    part = parts.Part(
        daemon, "fsdecloud.fuse", ("--name", name, "--mountpoint", mountpoint, "--options", format_options(options))
    )
    try:
        process, _ = parts.start_part(
            paths, part, timeout=options.mount_timeout, secret=root, detached=not options.foreground
        )
        _check_answers(mountpoint, daemon, paths)
    except UsageError:
        detach_stale(served, mountpoint)  # it was killed after the kernel had mounted (fault 4)
        raise
    return process


def detach_stale(name: str, directory: str, *, fake: bool = False) -> None:
    """Take away what a dead driver of this volume left at `directory`; anything else stays as it is.

    A dead mount is left in place until then on purpose: an empty directory in its stead would look like lost files.
    """
    table = mounts.read_mounts()
    path = mounts.canonical(directory, table)
    while (there := mounts.mount_at(path, table)) is not None and there.is_ours and mounts.is_stale(path):
        if there.volume != name:
            raise UsageError(
                f"{path} holds the dead mount of volume {there.volume}: decloud umount --lazy {path}", MOUNT_FAILED
            )
        if fake:
            return
        try:
            mounts.unmount(path, lazy=True)
        except OSError as exc:
            raise UsageError(f"the dead mount at {path} cannot be taken away: {exc.strerror}", MOUNT_FAILED) from exc
        table = mounts.read_mounts()


def _check_kernel(options: MountOptions) -> None:
    """Raise UsageError when this machine or user cannot mount with these options."""
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError as exc:
        raise UsageError(f"{DEVICE} does not exist: modprobe fuse, or give the container that device", SYSTEM) from exc
    except PermissionError as exc:
        if os.geteuid() == 0:
            raise UsageError(f"{DEVICE}: {exc.strerror}: give the container that device", SYSTEM) from exc
        raise UsageError(f"you may not use {DEVICE}: ask for mode 0666, as udev sets it, or mount as root") from exc
    except OSError as exc:
        raise UsageError(f"{DEVICE} does not work ({exc.strerror}): modprobe fuse", SYSTEM) from exc
    if not _may_mount():
        raise UsageError("nobody may mount here: the container lacks the capability CAP_SYS_ADMIN", SYSTEM)
    if os.geteuid() == 0:
        return
    if options.allow_other or "allow_root" in options.kernel:
        try:
            with open(FUSE_CONF, encoding="utf-8", errors="replace") as file:
                allowed = any(line.split("#")[0].strip() == "user_allow_other" for line in file)
        except OSError:
            allowed = False
        if not allowed:
            raise UsageError(f"allow_other needs the line user_allow_other in {FUSE_CONF}")


def _may_mount() -> bool:
    """Whether root here, or fusermount3 for anybody else, can have the capability that mount(2) asks for."""
    wanted = "CapEff" if os.geteuid() == 0 else "CapBnd"
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        sets = dict(line.split(":", 1) for line in file if line.startswith("Cap"))
    return wanted not in sets or bool(int(sets[wanted], 16) >> CAP_SYS_ADMIN & 1)


def _check_apart(paths: Paths, mountpoint: str) -> None:
    """Raise UsageError when our own files would lie in the mount: the driver would wait for itself (fault 153)."""
    for directory in (paths.config, paths.state, paths.cache, paths.runtime):
        own = os.path.realpath(directory)
        common = os.path.commonpath([mountpoint, own])
        if common == mountpoint:
            raise UsageError(f"{mountpoint} holds fsdecloud's own files ({directory}): choose another mount point")
        if common == own:
            raise UsageError(f"{mountpoint} lies in fsdecloud's own directory {directory}: choose another mount point")


def _check_answers(mountpoint: str, daemon: str, paths: Paths) -> None:
    """Look at the mount from another process, so that a hung driver cannot hang us."""
    reason = mounts.probe(mountpoint, ANSWER_TIMEOUT)
    if reason:
        parts.stop_parts(paths, [daemon], timeout=10.0)
        raise UsageError(f"{mountpoint} does not work ({reason}); see {paths.log_file(daemon)}", MOUNT_FAILED)


def _serve(process: subprocess.Popen[bytes], name: str, mountpoint: str) -> int:
    """Stay until the driver ends, passing signals on; return the exit code."""

    def pass_on(number: int, _frame: object) -> None:
        notify("STOPPING=1")
        if process.poll() is None:
            process.send_signal(number)

    # A terminal sends Ctrl-C to the driver itself; a second SIGINT from here would only repeat it.
    signal.signal(signal.SIGINT, signal.SIG_IGN if os.isatty(0) else pass_on)
    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGHUP, pass_on)
    notify(f"READY=1\nSTATUS=volume {name} at {mountpoint}")
    code = process.wait()
    return code if code >= 0 else SYSTEM


def _mount_and_serve(
    name: str, directory: str, options: MountOptions, *, fake: bool, verbose: bool, light: bool = False
) -> int:
    """Do what both commands do."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # an end while starting ends the driver as well
    try:
        process = mount_volume(find_paths(), name, directory, options, fake=fake, light=light)
    except KeyboardInterrupt as exc:
        raise UsageError("interrupted", INTERRUPTED_MOUNT) from exc
    if process is None:
        if verbose:
            emit(f"volume {name} could be mounted at {directory}")
        return 0
    if verbose:
        emit(f"volume {name} is mounted at {directory}")
        sys.stdout.flush()
    if options.foreground:
        return _serve(process, name, directory)
    process.returncode = 0  # it lives on; nobody waits for it here
    return 0


def _with_snapshot(name: str, options: MountOptions) -> tuple[str, MountOptions]:
    """Return the name of a volume, and the options with the snapshot that a source such as docs@7 names."""
    name, _, snapshot = name.partition("@")
    return name, parse_options(f"snapshot={snapshot}", base=options)[0] if snapshot else options


def _is_there(paths: Paths, served: str, directory: str) -> bool:
    """Whether the volume or snapshot is mounted at just this directory, and answers."""
    table = mounts.read_mounts()
    path = mounts.canonical(directory, table)
    found = mounts.mount_at(path, table)
    is_ours = found is not None and found.is_ours and found.volume == served
    return is_ours and not mounts.is_stale(path) and drivers.is_mounted(paths, served)


def _options_help() -> str:
    """Return the list of mount options for --help (click keeps the lines of a paragraph that starts with a backspace)."""
    lines = [f"  {name:<18} {text}" for name, text in describe_options()]
    return "\n\n\b\nMount options (-o):\n" + "\n".join(lines)


@click.command("mount", help=f"Mount the volume NAME at DIR.{_options_help()}")
@click.argument("name", metavar="NAME")
@click.argument("directory", metavar="DIR")
@click.option("-o", "texts", metavar="OPTIONS", multiple=True, help="Mount options, separated by commas.")
@click.option("-r", "--read-only", is_flag=True, help="Mount read-only.")
@click.option("--allow-other", is_flag=True, help="Let other users in; the mode bits decide what they may do.")
@click.option("--foreground", is_flag=True, help="Stay until the volume is unmounted; Ctrl-C unmounts it.")
@click.option(
    "--light", is_flag=True, help="Start the ledger daemon, if it does not run, with headers only (remembered)."
)
def command(
    name: str, directory: str, texts: tuple[str, ...], read_only: bool, allow_other: bool, foreground: bool, light: bool
) -> int:
    """Mount a volume."""
    options, _ = parse_options(",".join(texts))
    options = replace(
        options,
        read_only=options.read_only or read_only,
        allow_other=options.allow_other or allow_other,
        foreground=options.foreground or foreground,
    )
    name, options = _with_snapshot(name.removeprefix(mounts.SOURCE_PREFIX), options)
    return _mount_and_serve(name, directory, options, fake=False, verbose=True, light=light)


@click.command(
    "mount.decloud", help=f"Mount the volume SPEC (NAME or decloud:NAME) at DIR, as mount(8) asks.{_options_help()}"
)
@click.argument("spec", metavar="SPEC")
@click.argument("directory", metavar="DIR")
@click.option("-o", "texts", metavar="OPTIONS", multiple=True, help="Mount options, separated by commas.")
@click.option("-s", "sloppy", is_flag=True, help="Ignore unknown mount options.")
@click.option("-f", "fake", is_flag=True, help="Check everything, mount nothing.")
@click.option("-n", "no_table", is_flag=True, help="Accepted; there is no /etc/mtab to leave alone.")
@click.option("-v", "verbose", is_flag=True, help="Say what was done.")
@click.option("-r", "read_only", is_flag=True, help="Mount read-only, as -o ro.")
@click.option("-w", "read_write", is_flag=True, help="Mount read-write, as -o rw.")
@click.option("-N", "namespace", metavar="NS", help="Refused: run the command in that namespace instead.")
@click.option("-t", "kind", metavar="TYPE", help="Accepted; the type is decloud.")
def helper_command(
    spec: str,
    directory: str,
    texts: tuple[str, ...],
    sloppy: bool,
    fake: bool,
    no_table: bool,  # noqa: ARG001 - part of mount(8)'s call
    verbose: bool,
    read_only: bool,
    read_write: bool,
    namespace: str | None,
    kind: str | None,  # noqa: ARG001 - part of mount(8)'s call
) -> int:
    """Mount a volume for mount(8)."""
    if namespace is not None:
        raise UsageError("-N is not supported: use nsenter(1)")
    options, unknown = parse_options(",".join(texts), sloppy=sloppy)
    if unknown:
        note(f"mount.decloud: ignored unknown options: {', '.join(unknown)}")
    if read_only or read_write:
        options = replace(options, read_only=read_only and not read_write)
    if not options.fsname:
        options = replace(options, fsname=spec)  # byte for byte, else `mount -a` would mount again on top
    name, options = _with_snapshot(spec.removeprefix(mounts.SOURCE_PREFIX), options)
    served = served_name(name, options)
    # A snapshot can be written in other ways than the mount table has it, and `mount -a` does not know it again then.
    if (
        options.snapshot
        and spec.removeprefix(mounts.SOURCE_PREFIX) != served
        and _is_there(find_paths(), served, directory)
    ):
        note(f"mount.decloud: {mounts.SOURCE_PREFIX}{served} is mounted there already")
        return 0
    return _mount_and_serve(name, directory, options, fake=fake, verbose=verbose)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `mount.decloud` and exit."""
    sys.exit(run(helper_command, arguments, "mount.decloud", interrupted=INTERRUPTED_MOUNT))
