"""Files that a command writes where a person said: whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsdecloud.cli.newfile import new_file
from fsdecloud.errors import UsageError


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(UsageError, match="--force"), new_file(str(path), force=False):
        raise AssertionError("the body must not run")
    assert path.read_text() == "old"
    dangling = tmp_path / "link"
    dangling.symlink_to("nowhere")
    with pytest.raises(UsageError, match="--force"), new_file(str(dangling), force=False):
        raise AssertionError("the body must not run")


@pytest.mark.parametrize("force", [False, True])
def test_it_is_there_when_it_is_whole(tmp_path: Path, force: bool) -> None:
    path = tmp_path / "file"
    if force:
        path.write_text("old")
    with new_file(str(path), force=force) as file:
        file.write(b"new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def write_half(path: str, *, force: bool) -> None:
    with new_file(path, force=force) as file:
        file.write(b"ne")
        raise OSError(28, "full")


@pytest.mark.parametrize("force", [False, True])
def test_a_failure_leaves_what_was_there(tmp_path: Path, force: bool) -> None:
    path = tmp_path / "file"
    if force:
        path.write_text("old")
    with pytest.raises(OSError, match="full"):
        write_half(str(path), force=force)
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == ([("file", "old")] if force else [])
