"""Where everything lies on this machine.

`FSDECLOUD_HOME` puts all of it in one directory (tests, side-by-side installs); otherwise root uses /etc, /var/lib,
/var/cache and /run, and everybody else the XDG base directories (XDG Base Directory Specification 0.8: relative values
are ignored). Staged data is state, never cache: whatever is below `cache` may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import platformdirs

from fsdecloud.errors import UsageError

HOME_VARIABLE: Final = "FSDECLOUD_HOME"

_SOCKET_PATH_MAX: Final = 100
"""sun_path holds 108 bytes (unix(7)); some room is left for a temporary suffix."""


@dataclass(frozen=True, slots=True)
class Paths:
    """The four base directories and what lies in them. Nothing is created here."""

    config: Path
    state: Path
    cache: Path
    runtime: Path

    # ---- configuration and keys (mode 0700) --------------------------------------------------------------------
    @property
    def config_file(self) -> Path:
        """Settings of this machine, TOML."""
        return self.config / "config.toml"

    @property
    def device_key(self) -> Path:
        """This machine's key slot secret, 32 bytes, mode 0600."""
        return self.config / "device.key"

    def volume_config(self, name: str) -> Path:
        """The volume's key slots and settings, JSON, mode 0600."""
        return self.config / "volumes" / f"{check_name(name)}.json"

    # ---- state -----------------------------------------------------------------------------------------------------
    def volume_state(self, name: str) -> Path:
        """The volume's journal, staged segments and agent state."""
        return self.state / "volumes" / check_name(name)

    def peer_state(self, name: str) -> Path:
        """One storage peer of this machine: key, policy, shards."""
        return self.state / "peers" / check_name(name)

    @property
    def ledger_state(self) -> Path:
        """The ledger daemon's network document, node key and chain."""
        return self.state / "ledger"

    def log_file(self, daemon: str) -> Path:
        """Where a detached daemon's stderr goes."""
        return self.state / "log" / f"{daemon}.log"

    # ---- cache -----------------------------------------------------------------------------------------------------
    def volume_cache(self, name: str) -> Path:
        """The volume's clean cache; may be deleted while the volume is not mounted."""
        return self.cache / "volumes" / check_name(name)

    # ---- runtime ---------------------------------------------------------------------------------------------------
    def lock_file(self, daemon: str) -> Path:
        """Held with flock by the running daemon (`driver-NAME`, `peer-NAME`, `ledger`); holds its pid."""
        return self.runtime / f"{daemon}.lock"

    def socket(self, daemon: str) -> Path:
        """The daemon's control socket. A path too long for sun_path(7) is replaced by one below /tmp."""
        path = self.runtime / f"{daemon}.sock"
        if len(os.fsencode(path)) <= _SOCKET_PATH_MAX:
            return path
        digest = hashlib.blake2b(os.fsencode(path), digest_size=10).hexdigest()
        return Path("/tmp") / f"decloud-{os.getuid()}-{digest}" / "s"  # noqa: S108 - the directory is made 0700 and checked


def find_paths(environ: dict[str, str] | None = None) -> Paths:
    """Return this process's directories, made absolute. Raises UsageError when FSDECLOUD_HOME is relative."""
    env = dict(os.environ) if environ is None else environ
    home = env.get(HOME_VARIABLE)
    if home:
        if not os.path.isabs(home):
            raise UsageError(f"{HOME_VARIABLE} must be an absolute path, not {home!r}")
        check_text(home)
        base = Path(home)
        return Paths(base / "config", base / "state", base / "cache", base / "run")
    if os.geteuid() == 0:
        return Paths(Path("/etc/decloud"), Path("/var/lib/decloud"), Path("/var/cache/decloud"), Path("/run/decloud"))
    dirs = platformdirs.PlatformDirs("decloud", appauthor=False)
    return Paths(
        Path(dirs.user_config_dir), Path(dirs.user_state_dir), Path(dirs.user_cache_dir), Path(dirs.user_runtime_dir)
    )


def check_text(path: str) -> None:
    """Raise UsageError for a path that is not UTF-8: the programs tell each other paths as text."""
    try:
        path.encode()
    except UnicodeEncodeError as exc:
        raise UsageError(f"{path!r} is not UTF-8: use another directory") from exc


def check_name(name: str) -> str:
    """Return `name` if it can name a volume or peer: 1 to 64 of a-z A-Z 0-9 . _ -, not starting with a dot or dash."""
    if (
        not (1 <= len(name) <= 64)
        or name[0] in ".-"
        or not all(c.isascii() and (c.isalnum() or c in "._-") for c in name)
    ):
        raise UsageError(
            f"{name!r} cannot be a name: use 1 to 64 letters, digits, '.', '_' or '-', starting with none of '.-'"
        )
    return name


def make_private_dir(path: Path) -> Path:
    """Create `path` and its parents with mode 0700, durably. Raises UsageError when others may write to it, OSError."""
    parents = [path, *path.parents]
    missing = next((count for count, parent in enumerate(parents) if parent.exists()), 0)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    # What is synced in a directory is lost all the same with the directory's own name.
    for parent in parents[1 : missing + 1]:
        sync_directory(parent)
    check_private_dir(path)
    return path


def check_private_dir(path: Path) -> None:
    """Raise UsageError when somebody else could put files of their own into this directory, OSError when it is missing."""
    status = path.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise UsageError(f"{path} must belong to you and not be writable by others: chmod 700 {path}")


def write_private_file(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, mode 0600, atomically and durably.

    Raises OSError; the old contents or the new are then there, whole.
    """
    make_private_dir(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except BaseException:  # interrupted or failed, no half file may stay
        with suppress(OSError):
            os.unlink(temporary)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable. Raises OSError. Source: fsync(2)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_private_file(path: Path, limit: int = 64 << 10) -> bytes:
    """Return a secret file's bytes. Raises UsageError unless it is a regular file of ours that others cannot read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {exc.strerror}") from exc
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{path} is not a regular file")
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise UsageError(f"{path} must belong to you and be readable by nobody else: chmod 600 {path}")
        if not 0 < status.st_size <= limit:
            raise UsageError(f"{path} has {status.st_size} bytes; a key file has 1 to {limit}")
        return os.read(fd, limit)
    finally:
        os.close(fd)
