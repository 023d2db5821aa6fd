"""Copies into the mount, within it, back out, and back from the peers alone: nothing about any file is different."""

from __future__ import annotations

from pathlib import Path

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


def check_equal(network: Network, one: Path, other: Path) -> None:
    """Compare everything: by our own listing, by find, getfattr and sha256sum."""
    there, here = (job(network, "describe_tree", path, deadline=120) for path in (one, other))
    assert len(here) > 300
    different = [(a, b) for a, b in zip(there, here, strict=False) if a != b]
    assert (len(there), different[:3]) == (len(here), [])
    script = (
        r"find . \( -type d -printf '%p %M %n %U %G %T@ %l\n' \) -o -printf '%p %M %n %U %G %s %T@ %l\n' | sort | sha256sum;"
        "find . -print0 | sort -z | xargs -0 getfattr -h -d -m - --absolute-names 2>&1 | sha256sum;"
        "find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum"
    )
    said = [network.run("sh", "-c", script, cwd=path, environment={"LC_ALL": "C"}).out for path in (one, other)]
    assert said[0] == said[1]


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
    for way in ways:
        copy(network, way, original, places.inside / way)
    copy(network, "cp", places.inside / "tar", places.inside / "within")
    copy(network, "rsync", places.inside / "within", places.outside / "out")
    check_equal(network, places.outside / "out", original)
    drop_pages(network)
    check_equal(network, places.inside / "rsync", original)
    network.sync("stored")
    network.drop_cache()
    for way in (*ways, "within"):
        check_equal(network, places.inside / way, original)
    copy(network, "tar", places.inside / ways[-1], places.outside / "back")
    check_equal(network, places.outside / "back", original)


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
    for way in WAYS:
        copy(network, way, library, places.inside / way, deadline=240)
        check_equal(network, places.inside / way, library)
    network.sync("stored", deadline=240)
    network.drop_cache()
    for way in WAYS:
        copy(network, "cp", places.inside / way, places.outside / way, deadline=240)
        check_equal(network, places.outside / way, library)
