"""Reading the mount table without touching any mount."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fsdecloud.cli.mounts import Mounted, check_mountpoint, find_our_mount, mount_at, mount_below, read_mounts
from fsdecloud.errors import UsageError

TABLE = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
36 22 0:45 / /home/u/my\040cloud rw,nosuid,nodev shared:2 - fuse.decloud decloud:photos rw,user_id=0
37 22 0:46 / /mnt/auto rw shared:3 - autofs systemd-1 rw
38 37 0:47 / /mnt/auto ro,relatime shared:4 - fuse.decloud home rw
39 36 0:48 / /home/u/my\040cloud/inner rw - tmpfs tmpfs rw
""".strip("\n")


def test_160_octal_escapes_and_fields() -> None:
    mounts = read_mounts(TABLE)
    assert len(mounts) == 5
    assert mounts[1] == Mounted("0:45", "/home/u/my cloud", "fuse.decloud", "decloud:photos")
    assert mounts[1].is_ours
    assert mounts[1].volume == "photos"
    assert mounts[3].volume == "home"
    assert [mount.read_only for mount in mounts] == [False, False, False, True, False]


def test_topmost_and_innermost() -> None:
    mounts = read_mounts(TABLE)
    auto = mount_at("/mnt/auto", mounts)
    assert auto is not None
    assert auto.kind == "fuse.decloud"
    assert mount_at("/mnt", mounts) is None
    for path, expected in [
        ("/home/u/my cloud/a/b", "/home/u/my cloud"),
        ("/home/u/my cloud", "/home/u/my cloud"),
        ("/home/u/my clouds", "/"),
        ("/home/u/my cloud/inner/x", "/home/u/my cloud/inner"),
    ]:
        found = mount_below(path, mounts)
        assert found is not None
        assert found.mountpoint == expected


def test_136_each_wrong_mount_point_has_its_own_message(tmp_path: Path) -> None:
    file, full, empty = tmp_path / "file", tmp_path / "full", tmp_path / "empty"
    file.touch()
    empty.mkdir()
    full.mkdir()
    (full / "x").touch()
    for path, says in [
        (tmp_path / "missing", "does not exist"),
        (file, "not a directory"),
        (full, "is not empty"),
        (file / "below", "cannot be used"),
        (Path("/proc"), "already mounted"),
    ]:
        with pytest.raises(UsageError, match=says):
            check_mountpoint(os.fspath(path))
    assert check_mountpoint(os.fspath(empty)) == os.path.realpath(empty)
    assert check_mountpoint(os.fspath(full), nonempty=True) == os.path.realpath(full)
    link = tmp_path / "link"
    link.symlink_to(empty)
    assert check_mountpoint(os.fspath(link)) == os.path.realpath(empty)


def test_a_path_outside_any_volume(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not in a mounted volume"):
        find_our_mount(os.fspath(tmp_path))
