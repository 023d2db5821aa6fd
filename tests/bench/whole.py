"""What only the whole network has: store rate, cold reads, the driver's memory while copying, the cost of doing nothing."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Final

from fsdecloud.cli import drivers, settings
from fsdecloud.cli.client import Client
from fsdecloud.config import HOME_VARIABLE, find_paths
from fsdecloud.swarm.policy import choose_redundancy
from fsdecloud.wire.agentapi import Empty
from fsdecloud.wire.controlapi import DriverStatus, SyncRequest
from tests.bench import transport
from tests.bench.steps import MIB
from tests.bench.targets import STEP_DEADLINE, Decloud, run_step
from tests.cluster.harness import K, N, Network

_TICKS: Final = os.sysconf("SC_CLK_TCK")


def measure_transport(options: Any) -> dict[str, float]:
    """Return MB/s of the bare connections, `bare_store` and `bare_fetch`: as many as there are peers, and messages as long as
    a shard of a full chunk; as `channel_store` and `channel_fetch` those of our own connections with nothing behind them."""
    redundancy, _ = choose_redundancy(None, options.peers)
    size = MIB // redundancy.k
    found: dict[str, float] = {}
    for kind, channels in (("bare", False), ("channel", True)):
        total = options.transport * MIB
        figures = transport.run(total=total, connections=options.peers, message=size, channels=channels)
        found |= {f"{kind}_{name}": value for name, value in figures.items()}
    return found


def measure_network(target: Decloud, options: Any, turn: int) -> dict[str, float]:
    """Store a large file and a tree; drop the cache; read them back from the peers.

    `store` is shard bytes per second from the end of the program's fsync until all shards have receipts, so that the time in
    which upload and program share the machine does not count; `drain` is how long that took. `store_cpu` and
    `cold_read_cpu` are milliseconds of processor that all processes together need for a MiB.
    """
    network = target.network
    directory = target.directory / f"cold-{turn}"
    network.run("mkdir", directory)
    run_step(network, "sequential_write", directory, options)
    sent, drain, used = wait_stored(network)
    figures = {"store": sent / 1e6 / drain, "drain": drain}
    if sent < options.size * MIB // 4:
        figures.pop("store")  # nearly all of it was stored before the program ended: nothing left to measure
    else:
        figures["store_cpu"] = used * 1e3 / (sent / MIB)

    start = time.perf_counter()
    run_step(network, "create_2000", directory, options)
    network.sync("stored", deadline=STEP_DEADLINE)
    figures["small_store"] = time.perf_counter() - start

    run_step(network, "untar", directory, options)
    network.sync("anchored", deadline=STEP_DEADLINE)
    network.drop_cache()
    target.apply_pins()
    before = network.status()
    used = sum(processor_seconds(network).values())
    figures |= run_step(network, "read_large", directory, options)
    figures["cold_read_cpu"] = (sum(processor_seconds(network).values()) - used) * 1e3 / options.size
    fetched = network.status()["downloaded_bytes"] - before["downloaded_bytes"]
    if fetched < options.size * MIB:
        raise AssertionError(f"only {fetched} bytes came from the peers: the cold read was not cold")
    figures |= run_step(network, "read_tree", directory, options)
    network.run("rm", "-rf", directory)
    network.sync("stored", deadline=STEP_DEADLINE)
    return figures


def wait_stored(network: Network) -> tuple[int, float, float]:
    """Have the driver store everything; return the shard bytes that were sent from now on, in how many seconds, and what all
    processes used for it.

    Asks the driver itself: a program takes a part of a second to start, on the processors that store.
    """
    socket = find_paths({HOME_VARIABLE: str(network.home)}).socket(drivers.PREFIX + settings.VOLUME)
    used = sum(processor_seconds(network).values())
    start = time.perf_counter()
    with Client(socket, timeout=STEP_DEADLINE) as driver:
        before = driver.call("status", Empty(), DriverStatus)
        found = driver.call("sync", SyncRequest("stored"), DriverStatus, timeout=STEP_DEADLINE)
        wanted = found.written_sequence
        while found.stored_sequence < wanted:
            if time.perf_counter() > start + STEP_DEADLINE:
                raise AssertionError(f"not stored after {STEP_DEADLINE:g} s")
            time.sleep(0.02)
            found = driver.call("status", Empty(), DriverStatus)
    seconds = time.perf_counter() - start
    used = sum(processor_seconds(network).values()) - used
    return found.uploaded_bytes - before.uploaded_bytes, seconds, used


def measure_memory(target: Decloud, options: Any) -> dict[str, float]:
    """Copy some GiB into the mount; return the peak MiB of RssAnon + RssShmem of the driver, and of the agent."""
    network = target.network
    size = options.memory
    needed = size * MIB * (1 + N // K + 1)
    free = shutil.disk_usage(network.base).free
    if free < needed:
        raise AssertionError(f"copying {size} MiB needs {needed >> 30} GiB of disk, {free >> 30} GiB are free")
    status = network.status()
    watched = {"driver": int(status["driver_pid"]), "agent": int(status["agent_pid"])}
    figures = {f"{name}_before": resident(pid) for name, pid in watched.items()}
    peaks = dict.fromkeys(watched, 0.0)
    command = (sys.executable, "-m", "tests.bench.steps", "copy_in", str(target.directory), "--size", str(size))
    process = network.start(*command, log=network.work / "copy.log")
    end = time.monotonic() + 60 + size / 4
    while process.poll() is None:
        if time.monotonic() > end:
            network.wait_for_exit(process, 0.1, f"the copy of {size} MiB")
        for name, pid in watched.items():
            peaks[name] = max(peaks[name], resident(pid))
        time.sleep(0.05)
    if process.returncode:
        raise AssertionError(f"the copy failed: {(network.work / 'copy.log').read_text()[-500:]}")
    copied = re.search(r'"copy": ([0-9.]+)', (network.work / "copy.log").read_text())
    stop = time.monotonic() + STEP_DEADLINE * 2
    while time.monotonic() < stop:  # storing goes on after the program has ended, and takes memory as well
        for name, pid in watched.items():
            peaks[name] = max(peaks[name], resident(pid))
        now = network.status()
        if now.bytes("staged") + now.bytes("dirty") == 0:
            break
        time.sleep(0.5)
    network.run("rm", target.directory / "copied")
    figures |= {f"{name}_peak": peak for name, peak in peaks.items()}
    if copied is not None:
        figures["copy"] = float(copied[1])
    return figures


def resident(pid: int) -> float:
    """Return MiB of anonymous and shared memory that a process holds; LMDB's pages and programs are files, not counted."""
    text = Path(f"/proc/{pid}/status").read_text()
    return sum(int(kib) for kib in re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+) kB", text, re.MULTILINE)) / 1024


def measure_idle(network: Network, options: Any) -> dict[str, float]:
    """Let everything come to rest, then return the percent of one core that all processes together use."""
    network.sync("anchored", deadline=STEP_DEADLINE)
    time.sleep(options.rest)
    before, start = processor_seconds(network), time.perf_counter()
    time.sleep(options.idle)
    after, seconds = processor_seconds(network), time.perf_counter() - start
    used = {name: (value - before.get(name, 0.0)) / seconds * 100 for name, value in after.items()}
    gone = [name for name in before if name not in after]
    if gone:
        raise AssertionError(f"a process ended while idle: {', '.join(gone)}")
    return {"idle": sum(used.values()), **{f"idle_{name}": value for name, value in used.items()}}


def processor_seconds(network: Network) -> dict[str, float]:
    """Return the processor seconds used so far by each process of the network, children that have ended included."""
    status = network.status()
    names = {status["driver_pid"]: "driver", status["agent_pid"]: "agent", status["ledger_pid"]: "ledger"}
    found: dict[str, float] = {}
    for pid in network.processes():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        name = names.get(pid, f"other-{pid}")
        found[name] = sum(int(ticks) for ticks in fields[11:15]) / _TICKS
    return found
