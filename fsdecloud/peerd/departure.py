"""What a peer announces about its own future: that it leaves for good, or is away for some time.

Either way it admits no new shards and says why, in its answers and in the registry (a capacity of 0); what it holds can be
read and deleted until the owners have moved it. Kept in `state/peers/NAME/departure.toml`, so that a restart changes
nothing. Called only from the trio thread.
"""

from __future__ import annotations

import time
import tomllib
from pathlib import Path
from typing import Final

from fsdecloud.config import sync_directory, write_private_file
from fsdecloud.errors import StoreError, UsageError
from fsdecloud.wire.peer import LEAVING, MAINTENANCE

MAINTENANCE_MAX: Final = 30 * 24 * 3600
"""Seconds; who is away for longer leaves."""


class Departure:
    """Whether, and since when, one peer leaves or is about to be away."""

    def __init__(self, path: Path) -> None:
        """Read what was announced. Raises UsageError when the file is damaged."""
        self._path = path
        self.since = 0
        """Seconds since 1970, 0 when nothing is announced."""
        self.until = 0
        """When it will be back, 0 when it leaves for good."""
        self.shards = 0
        """How many shards were wanted when it was announced; 0: not known."""
        try:
            values = tomllib.loads(path.read_text("utf-8"))
            self.since, self.until = int(values["since"]), int(values["until"])
            self.shards = int(values.get("shards", 0))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise UsageError(f"{path}: {exc}; remove it to stay") from exc

    @property
    def reason(self) -> str:
        """Why new shards are refused, "" while they are not."""
        if not self.since:
            return ""
        if not self.until:
            return LEAVING
        return f"{MAINTENANCE} until {self.until}" if time.time() < self.until else ""

    def leave(self, shards: int = 0) -> None:
        """Announce, durably, that this peer leaves for good, with so many shards to be moved. Raises StoreError."""
        if not self.since or self.until:
            self._set(int(time.time()), 0, shards)

    def pause(self, seconds: int) -> None:
        """Announce, durably, that it will be away. Raises UsageError, StoreError."""
        if not 0 < seconds <= MAINTENANCE_MAX:
            raise UsageError(f"maintenance takes at most {MAINTENANCE_MAX // 86400} days; for longer, leave")
        if self.since and not self.until:
            raise UsageError("this peer leaves; decloud peer stay takes that back")
        now = int(time.time())
        self._set(now, now + seconds)

    def stay(self) -> None:
        """Take everything back. Raises StoreError."""
        try:
            self._path.unlink(missing_ok=True)
            sync_directory(self._path.parent)
        except OSError as exc:
            raise StoreError(f"cannot remove {self._path}: {exc.strerror}") from exc
        self.since = self.until = self.shards = 0

    def _set(self, since: int, until: int, shards: int = 0) -> None:
        try:
            write_private_file(self._path, f"since = {since}\nuntil = {until}\nshards = {shards}\n".encode())
        except OSError as exc:
            raise StoreError(f"cannot write {self._path}: {exc.strerror}") from exc
        self.since, self.until, self.shards = since, until, shards
