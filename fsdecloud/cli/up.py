"""`decloud up [DIR]`: everything on this machine, from nothing to a mounted volume, and back again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from functools import partial
from typing import Final

import click

from fsdecloud.cli import client, down, drivers, mounts, network, parts, peers, priced, services, settings, volumes
from fsdecloud.cli.init import create_volume
from fsdecloud.cli.mount import detach_stale, mount_volume
from fsdecloud.cli.output import emit, note
from fsdecloud.cli.run import MOUNT_FAILED, SYSTEM
from fsdecloud.cli.supervise import Supervisor, Watched
from fsdecloud.config import Paths, find_paths
from fsdecloud.errors import FsdecloudError, LedgerUnavailable, StoreLocked, UsageError
from fsdecloud.mountoptions import MountOptions
from fsdecloud.store.lockfile import acquire_lock
from fsdecloud.wire.agentapi import Empty, Registry

REGISTRATION_TIMEOUT: Final = 60.0
"""All peers have to be in a block before the first mount chooses a redundancy."""


def peer_names(count: int) -> list[str]:
    """Return the names of the peers that `up` makes."""
    return [f"peer-{i}" for i in range(1, count + 1)]


class Network:
    """The parts of one home and how each is started."""

    def __init__(self, paths: Paths, chosen: settings.UpSettings, *, light: bool = False) -> None:
        self._paths = paths
        self._light = light
        self._light_arguments: list[str] = []
        self._chosen = chosen
        self._children: list[subprocess.Popen[bytes]] = []
        """Kept so that their ends are seen; they outlive this process."""

    def start_ledger(self) -> None:
        """Start the ledger daemon unless it runs."""
        duty = self._chosen.mine_duty
        arguments = list(self._light_arguments)
        if duty is not None:
            arguments += ["--mine-duty", str(duty)]
        if self._chosen.priced:
            arguments.append("--mine")
        self._keep(parts.ensure_part(self._paths, parts.ledger_part(arguments)))

    def start_peer(self, name: str) -> None:
        """Start a peer unless it runs."""
        self._keep(parts.ensure_part(self._paths, parts.peer_part(name)))

    def start_driver(self) -> None:
        """Mount the volume unless it is mounted."""
        if not drivers.is_mounted(self._paths, settings.VOLUME):
            self._keep(mount_volume(self._paths, settings.VOLUME, self._chosen.directory, MountOptions()))

    def _keep(self, process: subprocess.Popen[bytes] | None) -> None:
        self._children = [child for child in self._children if child.poll() is None]
        if process is not None:
            self._children.append(process)

    def release(self) -> None:
        """Let go of the processes: they live on."""
        for child in self._children:
            child.returncode = child.poll() or 0

    def bring_up(self) -> None:
        """Start everything that does not run, in order. Raises UsageError; what already runs stays."""
        paths = self._paths
        if settings.VOLUME in volumes.list_volumes(paths):
            network.require_own(
                paths, settings.VOLUME, volumes.load_document(paths, settings.VOLUME).network, made_here=True
            )
        self._light_arguments = network.light_arguments(paths, light=self._light)
        network_id = network.ensure_network(paths, priced=self._chosen.priced)
        self.start_ledger()
        names = peer_names(self._chosen.peers)
        for name in names:
            peers.ensure_peer(paths, name, network_id, price=priced.PRICE if self._chosen.priced else None)
        if settings.VOLUME not in volumes.list_volumes(paths):
            budget = priced.BUDGET if self._chosen.priced else 0
            root = create_volume(paths, settings.VOLUME, network_id, budget=budget)
            emit(volumes.show_phrase(settings.VOLUME, root))
            emit(f"`decloud phrase {settings.VOLUME}` shows them again.\n")
        else:
            network.admit_volume(paths, volumes.open_root(paths, settings.VOLUME))
        for name in names:
            self.start_peer(name)
        if not drivers.is_mounted(paths, settings.VOLUME):
            self._wait_registered(len(names))
            if self._chosen.priced:
                priced.supply(paths, settings.VOLUME, names)
            self.start_driver()

    def _wait_registered(self, count: int) -> None:
        """Wait until the ledger knows the peers: the volume's redundancy follows from their number."""
        deadline = time.monotonic() + REGISTRATION_TIMEOUT
        known = 0
        with client.Client(self._paths.socket("ledger"), error=LedgerUnavailable) as link:
            while True:
                registry = link.call("registry", Empty(), Registry)
                own = {peer.id for peer in peers.local_peers(self._paths)}
                known = sum(1 for peer in registry.peers if peer.id.hex() in own)
                if known >= count:
                    return
                if time.monotonic() >= deadline:
                    break
                time.sleep(0.1)
        note(f"only {known} of {count} peers are registered in the ledger so far; mounting with those")

    def watched(self) -> list[Watched]:
        """Return what a supervisor has to keep running; the driver last, as it needs the others."""
        return [
            Watched("ledger", self.start_ledger),
            *(Watched(f"peer-{name}", partial(self.start_peer, name)) for name in peer_names(self._chosen.peers)),
            Watched(drivers.PREFIX + settings.VOLUME, self.start_driver),
        ]


def choose_settings(
    paths: Paths, directory: str | None, count: int | None, duty: int | None = None, *, is_priced: bool = False
) -> settings.UpSettings:
    """Return what this `up` works with: what is named, else what was remembered, else the defaults; make DIR if missing.

    Peers are never fewer than there are: they hold data. Raises UsageError when the volume is mounted elsewhere.
    """
    before = settings.load_settings(paths)
    where = os.path.abspath(directory) if directory is not None else before.directory
    existing = len([name for name in parts.local_peers(paths) if name.startswith("peer-")])
    wanted = count if count is not None else max(before.peers, existing)
    if wanted < existing:
        note(f"{existing} peers hold data of this network; all of them are started")
    duty = duty if duty is not None else before.mine_duty
    if duty != before.mine_duty and parts.running_pid(paths, "ledger") is not None:
        note("the ledger daemon runs already: --mine-duty holds from its next start on")
    is_priced = is_priced or before.priced
    chosen = settings.UpSettings(where, max(wanted, existing), duty, is_priced)
    if drivers.is_mounted(paths, settings.VOLUME):
        present = drivers.where_mounted(paths, settings.VOLUME)
        if directory is not None and mounts.canonical(where, mounts.read_mounts()) != present:
            raise UsageError(f"volume {settings.VOLUME} is mounted at {present}: decloud down first", MOUNT_FAILED)
        return settings.UpSettings(present, chosen.peers, duty, is_priced)
    detach_stale(settings.VOLUME, where)
    if not os.path.lexists(where):
        try:
            os.makedirs(where)
        except OSError as exc:
            raise UsageError(f"cannot make the mount point {where}: {exc.strerror}") from exc
    return settings.UpSettings(mounts.check_mountpoint(where), chosen.peers, duty, is_priced)


@click.command("up")
@click.argument("directory", metavar="[DIR]", required=False)
@click.option(
    "--peers",
    "count",
    metavar="N",
    type=click.IntRange(1, settings.PEERS_MAX),
    help="Storage peers to run (6 at first).",
)
@click.option(
    "--mine-duty",
    "duty",
    metavar="PERCENT",
    callback=services.take_percent,
    help="How much of one core mining may use (100% at first).",
)
@click.option("--light", is_flag=True, help="Run the ledger daemon with headers only (remembered).")
@click.option(
    "--priced", "is_priced", is_flag=True, help="Peers that are paid, and a volume that pays them (remembered)."
)
@click.option("--detach", is_flag=True, help="Return once the mount answers; run again, it restarts whatever died.")
def command(
    directory: str | None, count: int | None, duty: int | None, light: bool, is_priced: bool, detach: bool
) -> int:
    """Start a ledger daemon and N storage peers on this machine, make a volume on first use, and mount it at DIR (default
    ~/decloud, or where it was last time).

    Shows the state and restarts what dies until Ctrl-C, or `decloud down` elsewhere, unmounts and stops everything.
    """
    paths = find_paths()
    if detach:
        chosen = choose_settings(paths, directory, count, duty, is_priced=is_priced)
        running = Network(paths, chosen, light=light)
        settings.save_settings(paths, chosen)
        try:
            running.bring_up()
        finally:
            running.release()
        emit(f"volume {settings.VOLUME} is mounted at {chosen.directory}; decloud down stops everything")
        return 0
    try:
        lock = acquire_lock(paths.lock_file(down.SUPERVISOR))
    except StoreLocked as exc:
        raise UsageError("`decloud up` runs already in another shell: decloud status, decloud down", SYSTEM) from exc
    with lock:
        chosen = choose_settings(paths, directory, count, duty, is_priced=is_priced)
        settings.save_settings(paths, chosen)
        return _stay(paths, Network(paths, chosen, light=light), chosen)


def _stay(paths: Paths, running: Network, chosen: settings.UpSettings) -> int:
    """Bring everything up, watch it, and take it down at the end, however that comes."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        try:
            running.bring_up()
            emit(f"volume {settings.VOLUME} is mounted at {chosen.directory}")
            Supervisor(paths, settings.VOLUME, running.watched()).run()
        except KeyboardInterrupt:
            note("interrupted while starting")
        except FsdecloudError:
            note("not everything could be started")
            raise
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        note("unmounting and stopping everything ...")
        down.stop_everything(paths, note)
    emit("everything is stopped; decloud up goes on where it was")
    return 0
