"""The driver process: opens a volume, mounts it, serves it, unmounts it.

    python -m fsdecloud.fuse --name NAME --mountpoint DIR [--options O] --secret-fd N [--ready-fd N]

Started by `mount.decloud`. The root secret comes as 32 bytes through an inherited pipe, never in argv or the environment.
One JSON line on the ready fd says {"pid", "mountpoint"} once the mount answers, or {"error", "exit"}.

The mount is ended by unmounting while the event loop still serves, never the other way round: the kernel's dirty pages
have to come through it (fuse.md, 5 and 11).
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import pyfuse3
import trio

from fsdecloud import limits
from fsdecloud.config import check_name, find_paths, read_private_file
from fsdecloud.crypto.keys import VolumeKeys
from fsdecloud.crypto.slots import decode_document
from fsdecloud.driver.control import serve_control, serve_state_control
from fsdecloud.driver.statemount import StateMount, open_state
from fsdecloud.driver.volume import Volume, VolumeSetup, open_volume
from fsdecloud.errors import FsdecloudError, StoreLocked, UsageError
from fsdecloud.fuse.invalidation import invalidate
from fsdecloud.fuse.mounting import mount, mount_with_acl, unmount_with_acl
from fsdecloud.fuse.operations import Operations
from fsdecloud.fuse.routing import MountOperations
from fsdecloud.fuse.states import StateOperations, operations_of
from fsdecloud.mountoptions import NOATIME, parse_options
from fsdecloud.readiness import notify, report_failure, report_ready
from fsdecloud.store.lockfile import acquire_lock

log = logging.getLogger("fsdecloud.driver")

MOUNT_FAILED: Final = 32
SWITCH_INTERVAL: Final = 0.00005
"""Seconds a thread in pure Python may hold the interpreter against others (default 5 ms). Sealing gives it up and wants it
back half a dozen times for each chunk: at ten times this value, writing 256 MiB with fsync is a fifth slower (measured)."""

READ_AHEAD_KIB: Final = 4096
"""bdi read-ahead: the kernel then asks in 1 MiB requests, four at a time, instead of 128 KiB."""

PR_SET_DUMPABLE: Final = 4
UNMOUNT_TIMEOUT: Final = 8.0
DETACH_TIMEOUT: Final = 2.0
INTERRUPTED: Final = 130
"""Exit code after a second SIGINT, as shells have it."""


def main() -> None:
    """Run the driver; ends the process."""
    parser = argparse.ArgumentParser(prog="decloud-driver")
    parser.add_argument("--name", required=True)
    parser.add_argument("--mountpoint", required=True)
    parser.add_argument("--options", default="")
    parser.add_argument("--secret-fd", type=int, required=True)
    parser.add_argument("--ready-fd", type=int)
    arguments = parser.parse_args()
    logging.basicConfig(
        level=os.environ.get("FSDECLOUD_LOG", "info").upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    try:
        _run(arguments)
    except (FsdecloudError, OSError) as exc:
        _fail(arguments.ready_fd, exc)
    except BaseExceptionGroup as group:  # what the tasks failed with is told to whoever mounts
        failures = group.subgroup((FsdecloudError, OSError))
        if failures is None:
            log.exception("the driver failed")
        _fail(arguments.ready_fd, _leaf(failures or group))
    except Exception as exc:  # a bug; whoever mounts must be told of it, too
        log.exception("the driver failed")
        _fail(arguments.ready_fd, exc)
    sys.exit(0)


def _fail(ready_fd: int | None, exc: BaseException) -> None:
    code = exc.exit_code if isinstance(exc, UsageError) else MOUNT_FAILED
    log.error("%s", exc)
    report_failure(ready_fd, str(exc), code)
    sys.exit(code)


def _leaf(exc: BaseException) -> BaseException:
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc


def _run(arguments: argparse.Namespace) -> None:
    secret = _read_secret(arguments.secret_fd)
    _harden()
    sys.setswitchinterval(SWITCH_INTERVAL)
    paths = find_paths()
    name = check_name(arguments.name)
    options, _unknown = parse_options(arguments.options)
    keys = VolumeKeys.from_root(secret)
    document = decode_document(read_private_file(paths.volume_config(name)))
    if bytes.fromhex(document.volume_id) != keys.volume_id:
        raise UsageError(f"the key given is not volume {name}'s", MOUNT_FAILED)
    os.chdir("/")
    setup = VolumeSetup(paths, document, keys, options, arguments.mountpoint)
    try:
        lock = acquire_lock(paths.lock_file(f"driver-{setup.served_name}"))
    except StoreLocked as exc:
        raise UsageError(f"volume {setup.served_name} is mounted already: {exc}", MOUNT_FAILED) from exc
    with lock:
        trio.run(_serve_state if options.snapshot else _serve, setup, arguments.ready_fd, strict_exception_groups=True)


def _read_secret(fd: int) -> bytes:
    with os.fdopen(fd, "rb") as pipe:
        secret = pipe.read(33)
    if len(secret) != 32:
        raise UsageError("the root secret must come as 32 bytes through --secret-fd", MOUNT_FAILED)
    return secret


def _harden() -> None:
    """Keep keys out of core dumps and debuggers (fault 128)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


async def _serve(setup: VolumeSetup, ready_fd: int | None) -> None:
    async with open_volume(setup) as volume:
        async with trio.open_nursery() as nursery:
            await nursery.start(_keep_control, volume, partial(serve_control, volume, setup.paths))
            volume.restorer.invalidate = invalidate
            await _serve_mount(volume, MountOperations(volume), ready_fd, nursery)
        notify("STOPPING=1")


async def _serve_state(setup: VolumeSetup, ready_fd: int | None) -> None:
    """Serve a snapshot that is mounted alone."""
    async with open_state(setup) as state:
        async with trio.open_nursery() as nursery:
            await nursery.start(_keep_control, state, partial(serve_state_control, state, setup.paths))
            await _serve_mount(state, operations_of(state), ready_fd, nursery)
        notify("STOPPING=1")


async def _serve_mount(
    volume: Volume | StateMount, operations: Operations | StateOperations, ready_fd: int | None, nursery: trio.Nursery
) -> None:
    """Mount, and serve the mount until it is unmounted."""
    setup, supervisor = volume.setup, volume.supervisor
    operations.requests.start()
    volume.slow_requests = lambda: (operations.requests.slow, operations.requests.timed_out)
    nursery.start_soon(supervisor.run, "watchdog", operations.requests.run_watchdog)
    has_own_mount = setup.options.acl and os.geteuid() == 0
    place = setup.mountpoint
    if has_own_mount:
        place = mount_with_acl(setup.mountpoint, _fsname(setup), setup.options)
    mount(operations, place, _fuse_options(setup))
    unmount = False
    try:
        nursery.start_soon(supervisor.once, "announcement", partial(_announce, volume, ready_fd))
        nursery.start_soon(supervisor.run, "signals", partial(_watch_signals, setup, volume))
        nursery.start_soon(supervisor.run, "unmount", partial(_watch_stop, setup, volume))
        gc.freeze()
        await pyfuse3.main(max_tasks=limits.FUSE_TASKS)
    except BaseException:  # whatever it was, nobody serves the mount any more
        unmount = True
        raise
    finally:
        pyfuse3.close(unmount=unmount)
        if unmount and has_own_mount:
            unmount_with_acl(setup.mountpoint)
        nursery.cancel_scope.cancel()


def _fsname(setup: VolumeSetup) -> str:
    return setup.options.fsname or f"decloud:{setup.served_name}"


class _Started:
    """Passes on that the control socket serves, and remembers it."""

    def __init__(self, status: trio.TaskStatus[None]) -> None:
        self._status = status
        self.is_set = False

    def started(self, value: None = None) -> None:
        self.is_set = True
        self._status.started(value)


async def _keep_control(
    volume: Volume | StateMount,
    serve: Callable[..., Awaitable[None]],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the control socket; once it served, whatever ends it only starts it again."""
    started = _Started(task_status)
    try:
        await serve(task_status=started)
    except Exception as exc:  # a bug in it must not end the mount
        if not started.is_set:
            raise
        volume.incidents.note("task control", exc)
    await volume.supervisor.run("control", serve)


def _fuse_options(setup: VolumeSetup) -> set[str]:
    options = setup.options
    chosen = {"default_permissions", "subtype=decloud", f"fsname={_fsname(setup)}"}
    chosen.update(options.kernel)
    if options.atime == NOATIME:
        chosen.add(NOATIME)
    if options.allow_other:
        chosen.add("allow_other")
    if options.read_only:
        chosen.add("ro")
    return chosen


async def _announce(volume: Volume | StateMount, ready_fd: int | None) -> None:
    """Say that the mount serves once it answers another process: a stat from in here could not be answered."""
    setup = volume.setup
    probe = ["stat", "--file-system", "--format=%T", setup.mountpoint]
    try:
        result = await trio.run_process(probe, capture_stdout=True, capture_stderr=True, check=False)
    except OSError as exc:
        log.error("cannot see whether the mount answers: %s", exc)
    else:
        if result.returncode:
            log.error("the mount does not answer: %s", result.stderr.decode(errors="replace").strip())
    set_read_ahead = partial(trio.to_thread.run_sync, _raise_read_ahead, setup.mountpoint)
    await volume.supervisor.once("read-ahead setting", set_read_ahead)
    log.info("serving %s at %s", setup.served_name, setup.mountpoint)
    report_ready(ready_fd, {"mountpoint": setup.mountpoint})


def _raise_read_ahead(mountpoint: str) -> None:
    """Let the kernel read 4 MiB ahead, where that is permitted. Worker thread; asks /proc, never the mount."""
    wanted = mountpoint.encode()
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            found = [fields for fields in map(bytes.split, file) if _unescape(fields[4]) == wanted]
        if found:
            with open(f"/sys/class/bdi/{found[-1][2].decode()}/read_ahead_kb", "w") as setting:
                setting.write(str(READ_AHEAD_KIB))
    except OSError as exc:
        log.info("read-ahead stays at the kernel's default: %s", exc)


def _unescape(path: bytes) -> bytes:
    """Undo the octal escapes of mountinfo (proc(5))."""
    for code, char in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        path = path.replace(code, char)
    return path


async def _watch_signals(setup: VolumeSetup, volume: Volume | StateMount) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for number in signals:
            if number == signal.SIGHUP:
                log.info("SIGHUP: there is nothing to read again; options hold until the volume is unmounted")
            elif number == signal.SIGINT and volume.stop_requested.is_set():
                await _end_at_once(setup)
            else:
                log.info("signal %d: unmounting", number)
                volume.stop_requested.set()


async def _end_at_once(setup: VolumeSetup) -> None:
    """End as a crash would, but for the mount, which is taken away: somebody will not wait (fault 7)."""
    log.warning("interrupted again: ending at once; what was synced is safe, younger changes may be lost")
    with trio.move_on_after(DETACH_TIMEOUT):
        await _unmount(setup, lazy=True)
    os._exit(INTERRUPTED)


async def _watch_stop(setup: VolumeSetup, volume: Volume | StateMount) -> None:
    """Unmount when asked to: properly first, then lazily, so that open files do not keep the process from ending."""
    await volume.stop_requested.wait()
    notify("STOPPING=1")
    if await _unmount(setup, lazy=False):
        return
    log.warning("the mount is busy; detaching it, open files go on until they are closed")
    await _unmount(setup, lazy=True)
    await trio.sleep(UNMOUNT_TIMEOUT)
    log.warning("files are still open; ending anyway")
    pyfuse3.terminate()


async def _unmount(setup: VolumeSetup, *, lazy: bool) -> bool:
    command = ["umount", "-i", *(["-l"] if lazy else []), setup.mountpoint]
    if os.geteuid() != 0:
        command = ["fusermount3", "-u", *(["-z"] if lazy else []), setup.mountpoint]
    with trio.move_on_after(UNMOUNT_TIMEOUT) as scope:
        result = await trio.run_process(command, check=False, capture_stderr=True, stdin=subprocess.DEVNULL)
        if result.returncode:
            log.warning("%s", result.stderr.decode(errors="replace").strip())
        return result.returncode == 0
    return not scope.cancelled_caught


if __name__ == "__main__":
    main()
