"""`install-system`: everything in place, nothing of anybody else's touched, and the units are ones systemd takes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fsdecloud.cli import install_system
from fsdecloud.cli.run import run

MOUNT_NAMESPACE = (
    "ProtectSystem ProtectHome ProtectKernelTunables ProtectKernelModules ProtectKernelLogs ProtectControlGroups ProtectProc "
    "ProcSubset ProtectHostname PrivateTmp PrivateDevices PrivateIPC PrivateMounts ReadWritePaths ReadOnlyPaths "
    "InaccessiblePaths TemporaryFileSystem RootDirectory BindPaths BindReadOnlyPaths DynamicUser MountFlags MountAPIVFS"
)
"""Any of them gives a unit its own mount namespace, where its FUSE mount would be seen by nobody else."""


def install(prefix: Path, *arguments: str) -> int:
    return run(install_system.command, ["--prefix", os.fspath(prefix), *arguments], "decloud")


def files(prefix: Path) -> dict[str, str]:
    """Return every file and link below `prefix` with its content or target."""
    return {
        os.fspath(path.relative_to(prefix)): os.readlink(path) if path.is_symlink() else path.read_text()
        for path in sorted(prefix.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def test_install_twice_and_uninstall(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert install(tmp_path, "--dry-run") == 0
    assert files(tmp_path) == {}
    assert "would install" in capsys.readouterr().out
    assert install(tmp_path) == 0
    first = files(tmp_path)
    programs = Path(sys.executable).parent
    assert first["sbin/mount.decloud"] == first["sbin/mount.fuse.decloud"] == os.fspath(programs / "mount.decloud")
    assert first["sbin/umount.decloud"] == first["sbin/umount.fuse.decloud"] == os.fspath(programs / "umount.decloud")
    pages = {name.removeprefix("usr/local/share/man/") for name in first if name.startswith("usr/local/share/man/")}
    eighth = ("decloud-ledgerd", "decloud-peerd", "fsck.decloud", "mount.decloud", "umount.decloud")
    assert pages == {
        "man1/decloud.1",
        "man5/fsdecloud-certificate.5",
        "man7/decloud.7",
        "man7/fsdecloud-durability.7",
        "man7/fsdecloud-gossip.7",
        "man5/fsdecloud-contract.5",
        "man7/fsdecloud-ledger.7",
        "man7/fsdecloud-protocol.7",
        *(f"man8/{name}.8" for name in eighth),
    }
    assert install(tmp_path) == 0
    assert files(tmp_path) == first
    assert install(tmp_path, "--uninstall", "--dry-run") == 0
    assert files(tmp_path) == first
    assert install(tmp_path, "--uninstall") == 0
    assert files(tmp_path) == {}
    assert install(tmp_path, "--uninstall") == 0


def test_what_is_not_ours_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = tmp_path / "sbin" / "mount.decloud"
    theirs.parent.mkdir()
    theirs.write_text("#!/bin/sh\n")
    assert install(tmp_path) == 1
    assert files(tmp_path) == {"sbin/mount.decloud": "#!/bin/sh\n"}
    assert "belong to something else; nothing was changed" in capsys.readouterr().err
    assert install(tmp_path, "--uninstall") == 1
    assert files(tmp_path) == {"sbin/mount.decloud": "#!/bin/sh\n"}


def test_an_older_version_of_ours_is_replaced(tmp_path: Path) -> None:
    assert install(tmp_path) == 0
    wanted = files(tmp_path)
    unit = tmp_path / "usr/local/lib/systemd/system/decloud-peerd.service"
    unit.write_text(unit.read_text().replace("Restart=on-failure", "Restart=no"))
    link = tmp_path / "sbin/mount.decloud"
    link.unlink()
    link.symlink_to("/old/venv/bin/mount.decloud")
    assert install(tmp_path) == 0
    assert files(tmp_path) == wanted


@pytest.mark.parametrize("where", ["/home/u/venv/bin", "/root/venv/bin"])
def test_a_sandboxed_unit_sees_programs_in_a_home(where: str) -> None:
    items = {item.path.name: item.text for item in install_system.plan_install(Path("/"), Path(where))}
    for unit in ("decloud-ledgerd.service", "decloud-peerd.service"):
        assert "ProtectHome=read-only" in items[unit]
        assert "-/root" not in items[unit]
        assert f"ExecStart={where}/decloud " in items[unit]


def test_installed_pages_stay_clean(tmp_path: Path) -> None:
    assert install(tmp_path) == 0
    for page in (tmp_path / "usr/local/share/man").rglob("*.[1578]"):
        done = subprocess.run(
            ["mandoc", "-T", "lint", "-W", "warning", page], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (0, "")


@pytest.fixture
def units(tmp_path: Path) -> Path:
    assert install(tmp_path) == 0
    directory = tmp_path / "usr/local/lib/systemd/system"
    shutil.copy(directory / "decloud@.service", directory / "decloud@photos.service")
    return directory


def test_systemd_takes_the_units(units: Path) -> None:
    names = sorted(name.name for name in units.iterdir() if name.name != "decloud@.service")
    assert {"decloud-ledgerd.service", "decloud-peerd.service", "decloud@photos.service", "mnt-decloud.mount"} == set(
        names
    )
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(f"./{name}" for name in names)],
        cwd=units, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize(("unit", "most"), [("decloud-ledgerd", 25), ("decloud-peerd", 25), ("decloud@photos", 60)])
def test_the_units_are_sandboxed(units: Path, unit: str, most: int) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={most}", "--no-pager", f"./{unit}.service"],
        cwd=units, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-500:]


def test_p17_nothing_hides_the_mount(units: Path) -> None:
    settings = set(re.findall(r"^(\w+)=", (units / "decloud@.service").read_text(), re.MULTILINE))
    assert not settings & set(MOUNT_NAMESPACE.split())
    assert "Type=notify" in (units / "decloud@.service").read_text()
