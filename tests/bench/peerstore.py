"""A storage peer with very many shards: how long it takes to start, what `has` costs, and segments against LMDB values.

    python -m tests.bench.peerstore [--shards N] [--size BYTES] [--no-peer] [--no-compare] [--directory DIR]

*peer*: a store of N shards is filled as the peer's writer fills it; then the real process is started (from exec to the line
that says that it serves), warm and with nothing of its store in the page cache, and a real client asks it over TLS. The
limits on one client are lifted: they would be measured otherwise.

*compare*: the same shards into the store as it is (segments and an index in LMDB) and into LMDB values (`Values`: what the
store would be without segments), in the same batches, each durable. Then half of them are deleted and the space is used
again by as many new ones: what that costs, and what the disk holds in the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import blake3
import trio

from fsdecloud.config import HOME_VARIABLE, Paths, find_paths, write_private_file
from fsdecloud.crypto import sign
from fsdecloud.limits import KIB, MIB
from fsdecloud.net.address import Address, parse_endpoint
from fsdecloud.net.pool import PeerPool, open_pool
from fsdecloud.peerd import setup
from fsdecloud.peerd.leases import LEASE_GRACE
from fsdecloud.store.environment import open_environment
from fsdecloud.store.shardrows import NUMBER, Claim, Deletion
from fsdecloud.store.shards import ShardStore
from fsdecloud.types import PeerId, ShardId
from fsdecloud.wire.peer import IDS_MAX, PUT_BYTES_MAX
from fsdecloud.wire.receipts import LEASE_TERM

NETWORK: Final = b"n" * 32
DEAL: Final = b"d" * 32
CLAIM: Final = Claim(sign.public_key(DEAL), sign.public_key(b"o" * 32))
QUOTA: Final = 1 << 40
BATCH_SHARDS: Final = 2000
BATCH_BYTES: Final = 32 * MIB
"""One transaction, as large as the peer's writer makes it under load (`peerd.writer.BATCH_MAX`)."""

READS: Final = 20_000
ASKED: Final = 3000
SAMPLE: Final = 20_000
"""Ids that are remembered to ask for."""

Shard = tuple[ShardId, bytes]
Figures = dict[str, float]


def make_shards(first: int, count: int, size: int) -> list[Shard]:
    """Return shards that nobody can compress or confuse, cheaply."""
    noise = random.Random(1).randbytes(size)
    found = []
    for number in range(first, first + count):
        data = number.to_bytes(8, "big") + noise[8:]
        found.append((ShardId(blake3.blake3(data).digest()), data))
    return found


def batches(first: int, count: int, size: int) -> Iterator[list[Shard]]:
    """Yield shards in transactions of the usual size."""
    step = max(1, min(BATCH_SHARDS, BATCH_BYTES // size))
    for start in range(first, first + count, step):
        yield make_shards(start, min(step, first + count - start), size)


def disk_bytes(path: Path) -> int:
    """Return what a directory occupies on the disk."""
    return sum(
        os.lstat(os.path.join(where, name)).st_blocks * 512 for where, _, names in os.walk(path) for name in names
    )


def forget_pages(path: Path) -> None:
    """Have the page cache forget all files below a directory, which nobody may have open."""
    os.sync()
    for where, _, names in os.walk(path):
        for name in names:
            fd = os.open(os.path.join(where, name), os.O_RDONLY)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


# ---- the store in this process ------------------------------------------------------------------------------------------
class Segments:
    """The store as it is."""

    def __init__(self, path: Path) -> None:
        self._store = ShardStore(path, QUOTA)
        self._nonce = 0

    def put(self, shards: Sequence[Shard]) -> None:
        """Store durably."""
        reasons = self._store.put_many(shards, [CLAIM] * len(shards), now=1, end=LEASE_TERM)
        assert not any(reasons), reasons

    def get(self, shard: ShardId) -> bytes:
        """Return a shard."""
        return self._store.get(shard)

    def has(self, shards: Sequence[ShardId]) -> Sequence[bool]:
        """Say which are there."""
        return self._store.has_many(shards)

    def delete(self, shards: Sequence[ShardId]) -> None:
        """Let the owner delete, and the grace period pass."""
        self._nonce += 1
        self._store.delete_many(Deletion(CLAIM.deal, self._nonce.to_bytes(16, "big"), 2, 1 << 31, shards), now=2)
        while self._store.reap(1 << 31):
            pass

    def compact(self) -> None:
        """Give the space back."""
        while self._store.compact():
            pass

    def close(self) -> None:
        """Close it."""
        self._store.close()


class Values:
    """What the store would be with the bytes as values in LMDB: id -> bytes, and the rest of the row in a table of its own."""

    def __init__(self, path: Path) -> None:
        self._env = open_environment(path, 64 << 30)
        self._rows = self._env.database(b"rows")
        self._data = self._env.database(b"data")
        self._ends = self._env.database(b"leases")
        self._row = bytes(37)

    def put(self, shards: Sequence[Shard]) -> None:
        """Check and store durably."""
        with self._env.write() as txn:
            for shard, data in shards:
                assert blake3.blake3(data).digest() == shard
                if txn.get(shard, db=self._rows) is None:
                    txn.put(shard, self._row, db=self._rows)
                    txn.put(shard, data, db=self._data)
                    txn.put(NUMBER.pack(LEASE_TERM) + shard, b"", db=self._ends)

    def get(self, shard: ShardId) -> bytes:
        """Return a shard."""
        with self._env.read() as txn:
            return bytes(txn.get(shard, db=self._data))

    def has(self, shards: Sequence[ShardId]) -> Sequence[bool]:
        """Say which are there."""
        with self._env.read() as txn:
            return [txn.get(shard, db=self._rows) is not None for shard in shards]

    def delete(self, shards: Sequence[ShardId]) -> None:
        """Remove."""
        with self._env.write() as txn:
            for shard in shards:
                txn.delete(shard, db=self._rows)
                txn.delete(shard, db=self._data)
                txn.delete(NUMBER.pack(LEASE_TERM) + shard, db=self._ends)

    def compact(self) -> None:
        """LMDB gives no space back, it uses it again."""

    def close(self) -> None:
        """Close it."""
        self._env.close()


def compare(path: Path, kind: Callable[[Path], Segments | Values], count: int, size: int) -> Figures:
    """Fill, read, delete half, fill again; return the figures."""
    figures: Figures = {}
    store = kind(path)
    total = count * size / MIB

    def fill(first: int, number: int) -> tuple[float, float, float]:
        """Return seconds of the clock and of the processor, and the worst batch's."""
        spent = worst = 0.0
        used = 0.0
        for shards in batches(first, number, size):
            start, begin = time.perf_counter(), time.process_time()
            store.put(shards)
            spent += time.perf_counter() - start
            used += time.process_time() - begin
            worst = max(worst, time.perf_counter() - start)
        return spent, used, worst

    seconds, used, worst = fill(0, count)
    figures |= {"put_shards_s": count / seconds, "put_mib_s": total / seconds, "put_cpu_us": used / count * 1e6}
    figures["worst_batch_s"] = worst
    figures["disk_per_byte"] = disk_bytes(path) / (count * size)
    store.close()
    forget_pages(path)
    start = time.perf_counter()
    store = kind(path)
    figures["open_cold_s"] = time.perf_counter() - start
    chosen = [make_shards(number, 1, size)[0][0] for number in random.Random(2).sample(range(count), min(READS, count))]
    for name, ids in (("cold", chosen[: len(chosen) // 10]), ("warm", chosen)):
        start = time.perf_counter()
        for shard in ids:
            store.get(shard)
        figures[f"get_{name}_us"] = (time.perf_counter() - start) / len(ids) * 1e6
    start = time.perf_counter()
    assert all(store.has(chosen))
    figures["has_us"] = (time.perf_counter() - start) / len(chosen) * 1e6
    start = time.perf_counter()
    doomed = [shard for shards in batches(0, count, size) for shard, _ in shards[::2]]
    making = time.perf_counter() - start
    for begin in range(0, len(doomed), BATCH_SHARDS):
        store.delete(doomed[begin : begin + BATCH_SHARDS])
    store.compact()
    figures["delete_half_s"] = time.perf_counter() - start - making
    seconds, _used, worst = fill(count, count // 2)
    figures |= {"refill_shards_s": count / 2 / seconds, "refill_worst_batch_s": worst}
    figures["disk_per_byte_after"] = disk_bytes(path) / (count * size)
    store.close()
    shutil.rmtree(path)
    return figures


# ---- the real process ---------------------------------------------------------------------------------------------------
def fill_peer(paths: Paths, name: str, count: int, size: int) -> Figures:
    """Set a peer up and fill its store; return what that cost."""
    setup.init_peer(paths, name, QUOTA, "127.0.0.1:0", NETWORK)
    write_private_file(paths.peer_state(name) / "policy.toml", b'admit = ["*"]\n')
    config = setup.load_config(paths, name)
    setup.save_config(paths, name, replace(config, client_requests=10**9, client_rate=1 << 40))
    with ShardStore(paths.peer_state(name), QUOTA) as store:
        while store.leases.give_terms(LEASE_TERM + LEASE_GRACE):
            pass
        spent = 0.0
        for shards in batches(0, count, size):
            start = time.perf_counter()
            reasons = store.put_many(shards, [CLAIM] * len(shards), now=int(time.time()), end=LEASE_TERM)
            spent += time.perf_counter() - start
            assert not any(reasons), reasons
        assert store.counts()[0] == count
    return {
        "fill_shards_s": count / spent,
        "index_mib": (paths.peer_state(name) / "index" / "data.mdb").stat().st_size / MIB,
    }


@contextmanager
def running(paths: Paths, name: str) -> Iterator[tuple[Address, float, int]]:
    """Run the peer; yield its address, the seconds until it served, and its process."""
    reader, writer = os.pipe()
    command = [sys.executable, "-P", "-m", "fsdecloud.peerd", "run", "--name", name, "--ready-fd", str(writer)]
    environment = {**os.environ, HOME_VARIABLE: str(paths.state.parent), "FSDECLOUD_LOG": "error"}
    start = time.perf_counter()
    process = subprocess.Popen(command, pass_fds=[writer], env=environment)
    os.close(writer)
    try:
        with open(reader, "rb") as ready:
            facts = json.loads(ready.readline() or b"{}")
        seconds = time.perf_counter() - start
        if "port" not in facts:
            raise RuntimeError(f"the peer does not start: {facts}")
        host, _ = parse_endpoint("127.0.0.1:0")
        yield Address(host, facts["port"], PeerId(bytes.fromhex(facts["id"])), NETWORK), seconds, process.pid
    finally:
        process.terminate()
        process.wait(30)


def quantiles(name: str, seconds: Sequence[float]) -> Figures:
    """Return median and 99th percentile in milliseconds."""
    ordered = sorted(seconds)
    return {
        f"{name}_ms": statistics.median(ordered) * 1e3,
        f"{name}_p99_ms": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1e3,
    }


def processor_seconds(pid: int) -> float:
    """Return what a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def ask(address: Address, pid: int, ids: Sequence[ShardId], first: int, size: int) -> Figures:
    """Ask a running peer as a client does; return the figures. `first`: shards from this number on are new."""
    figures: Figures = {}

    async def owner(_peer: PeerId) -> bytes:
        return CLAIM.owner

    async with open_pool(network=NETWORK, deal_seed=lambda _peer: DEAL, owner=owner) as pool:
        await pool.has(address, ids[:1])
        for batch in (1, 64, 1024, IDS_MAX):
            times = []
            used = processor_seconds(pid)
            rounds = ASKED if batch == 1 else max(20, ASKED // batch)
            for turn in range(rounds):
                asked = [ids[(turn * batch + i) % len(ids)] for i in range(batch)]
                if turn % 2:  # every second time shards that are not there
                    asked = [ShardId(blake3.blake3(shard).digest()) for shard in asked]
                start = time.perf_counter()
                present = await pool.has(address, asked)
                times.append(time.perf_counter() - start)
                assert all(present) != bool(turn % 2)
            figures |= quantiles(f"has_{batch}", times)
            figures[f"has_{batch}_cpu_ms"] = (processor_seconds(pid) - used) / rounds * 1e3
        times = []
        for shard in ids[:1000]:
            start = time.perf_counter()
            await pool.get(address, shard)
            times.append(time.perf_counter() - start)
        figures |= quantiles("get_one", times)
        figures |= await _flood(pool, address, pid, ids, first, size)
    return figures


async def _flood(pool: PeerPool, address: Address, pid: int, ids: Sequence[ShardId], first: int, size: int) -> Figures:
    """Put and get as fast as one client can; return rates, and the peer's processor time for each shard."""
    figures: Figures = {}
    step = max(1, min(64, PUT_BYTES_MAX // size))
    count = min(len(ids), max(1000, 64 * MIB // size))
    new = [make_shards(start, step, size) for start in range(first, first + count, step)]
    puts = [partial(pool.put, address, shards) for shards in new]
    gets = [partial(pool.get, address, shard) for shard in ids[:count]]
    for name, jobs, each, workers in (("put", puts, step, 3), ("get", gets, 1, 16)):
        todo = iter(jobs)

        async def work(todo: Iterator[Callable[[], object]] = todo) -> None:  # type: ignore[assignment]
            for job in todo:
                await job()  # type: ignore[misc]

        used, start = processor_seconds(pid), time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(workers):
                nursery.start_soon(work)
        seconds = time.perf_counter() - start
        figures[f"{name}_shards_s"] = len(jobs) * each / seconds
        figures[f"{name}_mib_s"] = len(jobs) * each * size / MIB / seconds
        figures[f"{name}_cpu_us"] = (processor_seconds(pid) - used) / (len(jobs) * each) * 1e6
    return figures


def measure_peer(directory: Path, count: int, size: int) -> Figures:
    """Fill a peer, start it, ask it."""
    paths = find_paths({HOME_VARIABLE: str(directory)})
    figures = fill_peer(paths, "many", count, size)
    numbers = random.Random(3).sample(range(count), min(SAMPLE, count))
    ids = [make_shards(number, 1, size)[0][0] for number in numbers]
    empty = "none"
    setup.init_peer(paths, empty, QUOTA, "127.0.0.1:0", NETWORK)
    for name, kind, is_cold in ((empty, "empty", False), ("many", "cold", True), ("many", "warm", False)):
        if is_cold:
            forget_pages(paths.peer_state(name))
        with running(paths, name) as (address, seconds, pid):
            figures[f"start_{kind}_s"] = seconds
            if kind == "warm":
                status = Path(f"/proc/{pid}/status").read_text()
                figures["rss_anon_mib"] = int(status.partition("RssAnon:")[2].split()[0]) / 1024
                figures |= trio.run(ask, address, pid, ids, count, size)
    return figures


def show(title: str, columns: dict[str, Figures]) -> None:
    """Print a table in Markdown."""
    names = dict.fromkeys(name for figures in columns.values() for name in figures)
    print(f"\n{title}\n\n| figure | " + " | ".join(columns) + " |\n| --- |" + " --: |" * len(columns))
    for name in names:
        cells = [f"{figures[name]:,.4g}" if name in figures else "-" for figures in columns.values()]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="peerstore", description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=KIB, help="bytes of each shard (default 1024)")
    parser.add_argument(
        "--compare", type=int, default=200_000, metavar="N", help="shards of the comparison, 0 for none"
    )
    parser.add_argument("--large", type=int, default=8_000, metavar="N", help="of it with shards of 64 KiB, 0 for none")
    parser.add_argument("--no-peer", action="store_true", help="only the comparison")
    parser.add_argument(
        "--directory", type=Path, help="where to work, on a real disk (default: the temporary directory)"
    )
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, Linux {os.uname().release}, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="decloud-bench-", dir=options.directory) as name:
        base = Path(name)
        for count, size in ((options.compare, options.size), (options.large, 64 * KIB)):
            if count:
                figures = {
                    "segments": compare(base / "segments", Segments, count, size),
                    "LMDB values": compare(base / "values", Values, count, size),
                }
                show(f"{count} shards of {size} bytes", figures)
        if not options.no_peer:
            figures = {"peer": measure_peer(base, options.shards, options.size)}
            show(f"a peer with {options.shards} shards of {options.size} bytes", figures)
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
