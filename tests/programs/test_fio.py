"""fio writes, reads and verifies every block, by every way into a file."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest

from tests.cluster.harness import Network
from tests.programs.support import Places, drop_pages

COMMON = ("--verify=crc32c", "--verify_fatal=1", "--verify_backlog=0", "--fallocate=none")
MIXED = "--bssplit=512/10:4k/40:7k/10:64k/20:256k/20"

JOBS: dict[str, tuple[str, ...]] = {
    "sequential": ("--rw=write", "--bs=128k", "--ioengine=sync"),
    "sequential_fsync": ("--rw=write", "--bs=16k", "--ioengine=sync", "--fsync=16"),
    "random": ("--rw=randwrite", "--bs=4k", "--ioengine=psync", "--fdatasync=64"),
    "mixed_sizes": ("--rw=randwrite", MIXED, "--ioengine=sync", "--bs_unaligned=1", "--verify_interval=512"),
    "mapped": ("--rw=randwrite", "--bs=4k", "--ioengine=mmap", "--fsync=128"),
    "mapped_sequential": ("--rw=write", "--bs=64k", "--ioengine=mmap"),
    "direct": ("--rw=randwrite", "--bs=8k", "--ioengine=psync", "--direct=1"),
    "direct_sequential": ("--rw=write", "--bs=1m", "--ioengine=psync", "--direct=1"),
    "asynchronous": ("--rw=randwrite", "--bs=16k", "--ioengine=libaio", "--iodepth=16", "--direct=1"),
    "asynchronous_buffered": ("--rw=randrw", "--bs=16k", "--ioengine=libaio", "--iodepth=8"),
    "read_and_write": ("--rw=randrw", "--rwmixread=40", "--bs=4k", "--ioengine=psync", "--fsync=512"),
    "synchronous": ("--rw=randwrite", "--bs=4k", "--ioengine=psync", "--sync=1"),
    "vectors": ("--rw=randwrite", "--bs=4k", "--ioengine=pvsync", "--fsync=256"),
}
"""Options of each job by name. No two writes of a job meet, so that what is there at the end can be verified."""

SLOW = ("synchronous", "sequential_fsync", "random", "direct")
"""These wait for the disk or for the driver at each small write: they get less to do."""


def fio(
    network: Network,
    places: Places,
    names: Iterable[str],
    size: int,
    *more: str,
    slow_size: int = 0,
    jobs: int = 1,
    deadline: float = 60,
) -> None:
    """Run these jobs, all at once; `size` is in KiB. fio fails when anything that it verifies differs.

    With `--verify_only` it only reads back what the same jobs wrote; this fails also when it read less than that.
    """
    command = ["fio", f"--directory={places.inside}", f"--numjobs={jobs}", *COMMON, "--output-format=json", *more]
    sizes = {name: slow_size or size // 8 if name in SLOW else size for name in names}
    for name, kibibytes in sizes.items():
        command += [f"--name={name}", f"--size={kibibytes}k", *JOBS[name]]
    result = network.run(*command, cwd=network.work, deadline=deadline)
    report = json.loads(result.out[result.out.index("{") :])
    assert len(report["jobs"]) == len(sizes) * jobs
    for job in report["jobs"]:
        name = job["jobname"]
        assert job["error"] == 0, result.describe()
        if "--verify_only" in more and "--rw=randrw" not in JOBS[name]:
            assert job["read"]["io_bytes"] == sizes[name] << 10, (name, job["read"])


def test_written_and_verified(network: Network, places: Places) -> None:
    """All jobs at once: verified as soon as written, without the kernel's pages, and after a remount."""
    fio(network, places, JOBS, 2048)
    drop_pages(network)
    fio(network, places, JOBS, 2048, "--verify_only")
    network.umount()
    network.mount()
    fio(network, places, JOBS, 2048, "--verify_only")


def test_many_jobs_on_one_file(network: Network, places: Places) -> None:
    """Eight processes write their own part of one file, each by its own way.

    Not mmap: fio's engine maps the wrong part of a file that it starts in the middle, on ext4 too.
    """
    command = ["fio", f"--filename={places.inside}/shared", "--size=512k", "--bs=4k", *COMMON]
    for number, engine in enumerate(("sync", "psync", "vsync", "pvsync", "libaio", "psync", "pvsync2", "sync")):
        command += [f"--name=job{number}", "--rw=randwrite", f"--ioengine={engine}", f"--offset={number * 512}k"]
    network.run(*command, cwd=network.work)
    drop_pages(network)
    network.run(*command, "--verify_only", cwd=network.work)


@pytest.mark.long
@pytest.mark.parametrize("name", JOBS)
def test_long_written_and_verified(network: Network, places: Places, name: str) -> None:
    """Four processes, some of them more than the driver keeps in memory; verified again from the peers' copies."""
    settings = {"jobs": 4, "slow_size": 2048, "deadline": 240}
    fio(network, places, [name], 20480, **settings)
    drop_pages(network)
    fio(network, places, [name], 20480, "--verify_only", **settings)
    network.sync("stored", deadline=240)
    network.drop_cache()
    fio(network, places, [name], 20480, "--verify_only", **settings)


@pytest.mark.long
def test_long_overwritten(network: Network, places: Places) -> None:
    """The same blocks again and again: patches over chunks, folded, and patched again."""
    for turn in range(6):
        fio(network, places, ("random", "mapped", "vectors"), 16384, f"--randseed={turn}", slow_size=4096, deadline=120)
