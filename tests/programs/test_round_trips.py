"""Copies into the mount, within it, back out, and back from the peers alone: nothing about any file is different."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.cluster.harness import Network, diff_trees, remove_tree
from tests.programs.support import Places, drop_pages, job, same

WAYS: dict[str, tuple[str, ...]] = {
    "rsync": ("rsync", "-aHX", "--sparse", "{from}/", "{to}"),
    "rsync_inplace": ("rsync", "-aHX", "--inplace", "--no-whole-file", "{from}/", "{to}"),
    "tar": ("sh", "-c", ('mkdir "$2" && tar -C "$1" --xattrs --xattrs-include="*" -Scf - . | tar -C "$2" --xattrs '
            '--xattrs-include="*" -Sxpf -'), "sh", "{from}", "{to}"),
    "cp": ("cp", "-a", "--sparse=always", "{from}", "{to}"),
    "cp_plain": ("cp", "-a", "{from}", "{to}"),
}  # fmt: skip
"""How a tree is copied. All must keep what `jobs.describe_tree` tells."""


def copy(network: Network, way: str, source: Path, target: Path, deadline: float = 120) -> None:
    """Copy a tree in one of the ways."""
    network.run(
        *(word.replace("{from}", str(source)).replace("{to}", str(target)) for word in WAYS[way]), deadline=deadline
    )


FIND_AND_SUMS = (
    r"find . \( -type d -printf '%p %M %n %U %G %T@ %l\n' \) -o -printf '%p %M %n %U %G %s %T@ %l\n' | sort | sha256sum;"
    "find . -print0 | sort -z | xargs -0 getfattr -h -d -m - --absolute-names 2>&1 | sha256sum;"
    "find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum"
)


class Tree(NamedTuple):
    """All about a tree: by our own listing, and by find, getfattr and sha256sum."""

    listing: list[Any]
    sums: str


def describe(network: Network, tree: Path) -> Tree:
    """Return all about a tree."""
    sums = network.run("sh", "-c", FIND_AND_SUMS, cwd=tree, environment={"LC_ALL": "C"}, deadline=120).out
    return Tree(job(network, "describe_tree", tree, deadline=120), sums)


def check_equal(network: Network, copied: Path, original: Tree) -> None:
    """Fail unless everything about the copy is as in the original."""
    there = describe(network, copied)
    assert len(original.listing) > 300
    different = [(a, b) for a, b in zip(there.listing, original.listing, strict=False) if a != b]
    assert (len(there.listing), different[:3]) == (len(original.listing), [])
    assert there.sums == original.sums


@pytest.fixture
def original(network: Network, places: Places) -> Path:
    """The tree to copy, on a plain disk."""
    tree = places.outside / "original"
    job(network, "make_odd_tree", tree)
    return tree


@pytest.mark.parametrize("ways", [("rsync", "tar", "cp_plain"), pytest.param(tuple(WAYS), marks=pytest.mark.long)])
def test_fault_145_round_trips(network: Network, places: Places, original: Path, ways: tuple[str, ...]) -> None:
    """A tree of everything that is odd, by each way: into the mount, out of it, and after the cache is gone."""
    assert job(network, "store_times_and_names", places.inside) == job(network, "store_times_and_names", places.outside)
    wanted = describe(network, original)
    for way in ways:
        copy(network, way, original, places.inside / way)
    copy(network, "cp", places.inside / "tar", places.inside / "within")
    copy(network, "rsync", places.inside / "within", places.outside / "out")
    check_equal(network, places.outside / "out", wanted)
    drop_pages(network)
    check_equal(network, places.inside / "rsync", wanted)
    network.sync("stored")
    network.drop_cache()
    for way in (*ways, "within"):
        check_equal(network, places.inside / way, wanted)
    copy(network, "tar", places.inside / ways[-1], places.outside / "back")
    check_equal(network, places.outside / "back", wanted)


def test_tar_compares(network: Network, places: Places, library: Path) -> None:
    for place in places:
        network.run("tar", "-C", library, "-czf", place / "json.tar.gz", "json", "http", "xml")
        network.run("tar", "-C", place, "-xzpf", place / "json.tar.gz")
        network.run("tar", "-C", place, "--compare", "-zf", place / "json.tar.gz")
        network.run("rm", place / "json.tar.gz")
    same(network, *places, times=True)
    diff_trees(network, library / "json", places.inside / "json")


def test_rsync_finds_nothing_to_do(network: Network, places: Places, library: Path) -> None:
    inside, outside = places
    changed = network.work / "changed"
    network.run("cp", "-a", library / "unittest", changed)
    for place in places:
        network.run("rsync", "-aHX", f"{library / 'unittest'}/", place / "copy")
        again = network.run(
            "rsync", "-aHX", "--checksum", "--itemize-changes", f"{library / 'unittest'}/", place / "copy"
        )
        assert again.out == "", "a second run finds nothing to do"
    same(network, inside, outside, times=True)
    edit = "echo more >> case.py; rm mock.py; mkdir new; mv main.py new/; ln -s new/main.py main.py"
    network.run("sh", "-c", edit, cwd=changed)
    network.run("find", ".", "-exec", "touch", "-hd", "2001-02-03", "{}", "+", cwd=changed)
    for place in places:
        network.run("rsync", "-aH", "--delete", f"{changed}/", place / "copy")
        network.run("rsync", "-aH", "--inplace", "--no-whole-file", f"{changed}/", place / "copy")
    diff_trees(network, changed, inside / "copy")
    same(network, inside, outside, times=True)
    remove_tree(changed)


@pytest.mark.long
def test_long_library(network: Network, places: Places, library: Path) -> None:
    """A real tree of a thousand files by each way, and back from the peers."""
    wanted = describe(network, library)
    for way in WAYS:
        copy(network, way, library, places.inside / way, deadline=240)
        check_equal(network, places.inside / way, wanted)
    network.sync("stored", deadline=240)
    network.drop_cache()
    for way in WAYS:
        copy(network, "cp", places.inside / way, places.outside / way, deadline=240)
        check_equal(network, places.outside / way, wanted)
