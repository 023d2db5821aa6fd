"""Many processes on the same files: maps, appends, races, locks, and crowds. The same is done on a plain disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.harness import Network
from tests.programs.support import Places, drop_pages, job

WITHOUT_WRITEBACK = "nowriteback"


def shared_files(network: Network, places: Places, scale: int) -> None:
    """Everything of faults 149 to 151, in the mount and on the plain disk."""
    said = []
    for place in places:
        answers = [job(network, "mapped", place), job(network, "appended", place, 4, 100 * scale)]
        assert answers[-1] == {"lines": 400 * scale, "written": 400 * scale, "wrong": 0}
        network.run("mkdir", place / "exclusive")
        answers.append(job(network, "exclusive", place / "exclusive", 4, 20 * scale))
        assert answers[-1]["wrong"] == 0
        answers.append(job(network, "far_away", place))
        answers.append(job(network, "locked", place))
        for kind in ("flock", "range"):
            answers.append(job(network, "counted", place, kind, 4, 50 * scale))
            assert answers[-1] == {"counted": 200 * scale}
        said.append(answers)
    assert said[0] == said[1]
    drop_pages(network)
    assert job(network, "digest", places.inside / "mapped") == said[0][0]["sha256"]


def test_faults_149_150_151_shared_files(network: Network, places: Places) -> None:
    shared_files(network, places, 1)
    network.umount()
    network.mount()
    digests = [job(network, "digest", place / "mapped") for place in places]
    assert digests[0] == digests[1]


def test_fault_154_without_the_write_cache_of_the_kernel(network: Network, places: Places) -> None:
    """The same results with `-o nowriteback`: what the kernel does by itself otherwise, the driver does."""
    with network.mounted_with(WITHOUT_WRITEBACK):
        shared_files(network, places, 1)
        there, here = (network.worker("database", place / "test.db", "wal", deadline=120) for place in places)
        assert there == here
        fio = ("fio", "--size=1m", "--bs=4k", "--verify=crc32c", "--verify_fatal=1", "--rw=randwrite")
        jobs = [word for name in ("sync", "mmap", "libaio") for word in (f"--name={name}", f"--ioengine={name}")]
        command = (*fio, "--fallocate=none", f"--directory={places.inside}", *jobs)
        network.run(*command, cwd=network.work)
        drop_pages(network)
        network.run(*command, "--verify_only", cwd=network.work)


def unpack_in_parallel(network: Network, places: Places, library: Path, count: int, names: tuple[str, ...]) -> None:
    archive = places.outside / "archive.tar"
    network.run("tar", "-C", library, "-cf", archive, *names)
    script = 'for i in $(seq "$1"); do mkdir "$i" && tar -C "$i" -xpf "$2" & done; wait'
    network.run("sh", "-c", script, "sh", str(count), archive, cwd=places.inside, deadline=120 + count * 4)
    check = 'for i in $(seq "$1"); do tar -C "$i" --compare -f "$2" || exit 1; done'
    network.run("sh", "-c", check, "sh", str(count), archive, cwd=places.inside, deadline=60 + count * 4)


def test_fault_152_parallel_writers(network: Network, places: Places) -> None:
    assert job(network, "write_many", places.inside, 60, 20_000) == 60 * 20_000 + 59 * 30
    assert job(network, "check_many", places.inside, 60, 20_000) == []
    drop_pages(network)
    assert job(network, "check_many", places.inside, 60, 20_000) == []


def test_fault_152_parallel_tar(network: Network, places: Places, library: Path) -> None:
    unpack_in_parallel(network, places, library, 12, ("json", "wsgiref"))


@pytest.mark.long
def test_long_fault_152_parallel_writers(network: Network, places: Places) -> None:
    assert job(network, "write_many", places.inside, 1000, 200_000, deadline=240) == 1000 * 200_000 + 999 * 500
    network.sync("stored", deadline=240)
    network.drop_cache()
    assert job(network, "check_many", places.inside, 1000, 200_000, deadline=240) == []


@pytest.mark.long
def test_long_fault_152_parallel_tar(network: Network, places: Places, library: Path) -> None:
    unpack_in_parallel(network, places, library, 100, ("json", "wsgiref", "email"))


@pytest.mark.long
def test_long_faults_149_150_151_shared_files(network: Network, places: Places) -> None:
    shared_files(network, places, 20)
