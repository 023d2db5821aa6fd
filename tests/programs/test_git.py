"""git works in the mount as on a plain disk, and a repository survives the driver's death."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.harness import Network, remove_tree
from tests.programs.jobs import GIT
from tests.programs.support import Places, job

FIXED = {"GIT_AUTHOR_DATE": "2020-01-01T00:00:00Z", "GIT_COMMITTER_DATE": "2020-01-01T00:00:00Z"}


def git(network: Network, where: Path, *args: str | Path) -> str:
    """Run git there."""
    return network.run(*GIT, *args, cwd=where, environment=FIXED, deadline=120).out


def make_origin(network: Network, library: Path, repository: Path) -> None:
    """Make a bare repository of two commits on a plain disk."""
    seed = network.work / "seed"
    network.run("cp", "-a", library / "asyncio", seed)
    git(network, seed, "init", "-q", "-b", "main")
    git(network, seed, "add", "-A")
    git(network, seed, "commit", "-qm", "first")
    network.run("cp", "-a", library / "email", seed / "email")
    git(network, seed, "add", "-A")
    git(network, seed, "commit", "-qm", "second")
    git(network, seed, "clone", "-q", "--bare", seed, repository)
    remove_tree(seed)


def test_as_on_a_plain_disk(network: Network, places: Places, library: Path) -> None:
    repository = network.work / "origin.git"
    make_origin(network, library, repository)
    answers: list[list[str]] = []
    for place in places:
        git(network, place, "clone", "-q", repository, "clone")
        clone = place / "clone"
        said = [git(network, clone, "fsck", "--full", "--strict", "--no-progress")]
        said.append(git(network, clone, "status", "--porcelain"))
        git(network, clone, "checkout", "-q", "-b", "work", "HEAD~1")
        network.run("sh", "-c", "echo changed >> tasks.py && rm queues.py && mv locks.py renamed.py", cwd=clone)
        git(network, clone, "add", "-A")
        git(network, clone, "commit", "-qm", "third")
        git(network, clone, "merge", "-q", "-m", "merge", "main")
        git(network, clone, "gc", "-q", "--prune=now")
        said.append(git(network, clone, "fsck", "--full", "--strict", "--no-progress"))
        said.append(git(network, clone, "log", "--stat", "--format=%H %s"))
        said.append(git(network, clone, "stash", "list"))
        git(network, clone, "push", "-q", "origin", f"work:{'in' if place == places[0] else 'out'}")
        answers.append(said)
    assert answers[0] == answers[1]
    network.run("diff", "-r", "--exclude=.git", places[0] / "clone", places[1] / "clone")
    remove_tree(repository)


CLONES = """
from=$1 to=$2; shift 2
while touch "$to.alive"; do "$@" clone -q --no-local "$from" "$to"; rm -rf "$to"; done
"""
"""One clone after the other, until the mount is dead: a new name is nothing that the kernel answers by itself."""


def driver_killed(network: Network, places: Places, rounds: int) -> None:
    """Kill the driver while a repository is committed to and packed, and another one is cloned from it."""
    chooser = random.Random(rounds)
    repository, noted, said = places.inside / "repository", places.outside / "noted", places.outside / "said"
    network.run("mkdir", repository)
    git(network, repository, "init", "-q", "-b", "main")
    network.run("sync", "-f", repository)
    noted.touch()
    first = 1
    for turn in range(rounds):
        before = noted.read_text().count("\n")
        command = (sys.executable, "-m", "tests.programs.jobs", "git_commit_forever", repository, noted, str(first))
        writer = network.start(*command, log=said)
        clones = network.start("sh", "-c", CLONES, "sh", repository, places.inside / f"clone-{turn}", *GIT, log=said)

        def noticed(word: str, count: int, writer=writer) -> bool:
            assert writer.poll() is None, said.read_text()
            return noted.read_text().count(word) >= count

        network.wait_until(lambda: noticed("\n", before + 3), 60, "commits")  # noqa: B023
        if turn % 2 == 0:
            gcs = noted.read_text().count("gc") + 1
            network.wait_until(lambda: noticed("gc", gcs), 60, "the next gc")  # noqa: B023
        time.sleep(chooser.uniform(0, 0.4))  # any instant will do: whatever is going on, the promise holds
        assert (writer.poll(), clones.poll()) == (None, None), said.read_text()
        network.kill_driver()
        for process in (writer, clones):
            network.wait_for_exit(process, 30, "git, whose mount is gone,")
        network.up()
        found = job(network, "git_check", repository, noted, deadline=120)
        assert found["wrong"] == [], found
        first = found["next"]
    network.run("sh", "-c", "rm -rf clone-*", cwd=places.inside)
    git(network, places.inside, "clone", "-q", "--no-local", repository, "copy")
    git(network, places.inside / "copy", "fsck", "--full", "--strict")
    git(network, repository, "gc", "-q", "--prune=now")
    git(network, repository, "fsck", "--full", "--strict")
    network.run("diff", "-r", "--exclude=.git", repository, places.inside / "copy")


def test_driver_killed(network: Network, places: Places) -> None:
    driver_killed(network, places, 2)


@pytest.mark.long
def test_long_driver_killed(network: Network, places: Places) -> None:
    driver_killed(network, places, 14)
