"""`decloud install-system`: what pip cannot place: mount helpers, units, manual pages.

Everything installed carries a mark or is a link to our own programs, so that nothing of anybody else's is ever overwritten
or removed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

import fsdecloud
from fsdecloud.cli.output import emit, note
from fsdecloud.cli.run import USAGE
from fsdecloud.errors import UsageError

MARK: Final = "fsdecloud: installed by decloud install-system"

UNIT_PROGRAM: Final = "/usr/bin/decloud"
"""How the shipped units call us; replaced by where we really are."""

UNIT_DIRECTORY: Final = "usr/local/lib/systemd/system"
MAN_DIRECTORY: Final = "usr/local/share/man"

LINKS: Final = {
    "sbin/mount.decloud": "mount.decloud",
    "sbin/mount.fuse.decloud": "mount.decloud",
    "sbin/umount.decloud": "umount.decloud",
    "sbin/umount.fuse.decloud": "umount.decloud",
    "sbin/fsck.decloud": "fsck.decloud",
    "sbin/fsck.fuse.decloud": "fsck.decloud",
    "usr/local/bin/decloud": "decloud",
}
"""Where a helper is looked for, and our program that it is. mount(8) and fsck(8) search /sbin, whatever PATH says."""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to place: a link (`target`) or a file (`text`)."""

    path: Path
    target: str = ""
    text: str = ""


def data_directory(kind: str) -> Path:
    """Return where our `systemd` or `man` files lie: in the source tree, or where the wheel put them."""
    tree = Path(fsdecloud.__file__).resolve().parent.parent / kind
    return tree if tree.is_dir() else Path(sys.prefix) / "share" / "fsdecloud" / kind


def plan_install(prefix: Path, programs: Path) -> list[Item]:
    """Return everything to place below `prefix`; `programs` is the directory of our own programs."""
    items = [Item(prefix / path, target=str(programs / name)) for path, name in LINKS.items()]
    for unit in sorted(data_directory("systemd").iterdir()):
        text = unit.read_text("utf-8").replace(UNIT_PROGRAM, str(programs / "decloud"))
        items.append(Item(prefix / UNIT_DIRECTORY / unit.name, text=f"# {MARK}\n{_fit_to(text, programs)}"))
    for page in sorted(data_directory("man").iterdir()):
        section = page.suffix[1:]
        items.append(
            Item(prefix / MAN_DIRECTORY / f"man{section}" / page.name, text=f'.\\" {MARK}\n{page.read_text("utf-8")}')
        )
    return items


def _fit_to(text: str, programs: Path) -> str:
    """Let a sandboxed unit see our programs when they lie below a home directory."""
    if programs.parts[1:2] in (("home",), ("root",)):
        text = text.replace("ProtectHome=yes", "ProtectHome=read-only").replace(" -/root", "")
    return text


def state_of(item: Item) -> str:
    """Return "missing", "same", "ours" (another version) or "foreign"."""
    if not os.path.lexists(item.path):
        return "missing"
    if item.target:
        if not item.path.is_symlink():
            return "foreign"
        there = os.readlink(item.path)
        return "same" if there == item.target else "ours" if Path(there).name == Path(item.target).name else "foreign"
    if item.path.is_symlink() or not item.path.is_file():
        return "foreign"
    text = item.path.read_text("utf-8", "replace")
    return "same" if text == item.text else "ours" if MARK in text.partition("\n")[0] else "foreign"


def _place(item: Item) -> None:
    item.path.parent.mkdir(parents=True, exist_ok=True)
    temporary = item.path.with_name(f".{item.path.name}.{os.getpid()}.tmp")
    if item.target:
        temporary.symlink_to(item.target)
    else:
        temporary.write_text(item.text, "utf-8")
        temporary.chmod(0o644)
    temporary.replace(item.path)


@click.command("install-system")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--uninstall", is_flag=True, help="Remove what was installed.")
@click.option(
    "--prefix", metavar="DIR", default="/", show_default=True, help="Install below DIR instead of the root directory."
)
def command(dry_run: bool, uninstall: bool, prefix: str) -> int:
    """Put the mount helpers, the systemd units and the manual pages in place, so that `mount -t decloud NAME DIR` and a line
    in fstab work. Needs root unless --prefix says otherwise."""
    root = Path(os.path.abspath(prefix))
    programs = Path(sys.executable).parent
    missing = [name for name in set(LINKS.values()) if not (programs / name).exists()]
    if missing:
        raise UsageError(f"{programs} lacks {', '.join(missing)}: install the package with pip first")
    items = plan_install(root, programs)
    if prefix == "/" and os.geteuid() != 0 and not dry_run:
        raise UsageError("install-system needs root: sudo decloud install-system")
    foreign = [item.path for item in items if state_of(item) == "foreign"]
    if foreign and not uninstall:
        names = ", ".join(map(str, foreign))
        raise UsageError(f"{names} belong to something else; nothing was changed")
    for item in items:
        _handle(item, dry_run=dry_run, uninstall=uninstall)
    if root == Path("/") and not dry_run and Path("/run/systemd/system").is_dir():
        subprocess.run(["systemctl", "daemon-reload"], check=False)
    if foreign:
        note(f"left alone, not ours: {', '.join(map(str, foreign))}")
        return USAGE
    return 0


def _handle(item: Item, *, dry_run: bool, uninstall: bool) -> None:
    state = state_of(item)
    what = f"{item.path} -> {item.target}" if item.target else str(item.path)
    if uninstall:
        if state in ("same", "ours"):
            emit(f"{'would remove' if dry_run else 'removed'} {item.path}")
            if not dry_run:
                item.path.unlink()
    elif state == "same":
        emit(f"in place {what}")
    else:
        verb = "install" if state == "missing" else "update"
        emit(f"would {verb} {what}" if dry_run else f"{verb}{'ed' if verb == 'install' else 'd'} {what}")
        if not dry_run:
            _place(item)
