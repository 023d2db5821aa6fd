"""What `decloud up` remembers in the home: where it mounted, how many peers it started, and how much may be mined."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final

import msgspec

from fsdecloud.config import Paths, write_private_file
from fsdecloud.errors import UsageError

VOLUME: Final = "cloud"
"""The volume that `decloud up` makes."""

DEFAULT_PEERS: Final = 6
PEERS_MAX: Final = 200


class UpSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The last `decloud up`."""

    directory: str
    peers: Annotated[int, msgspec.Meta(ge=1, le=PEERS_MAX)] = DEFAULT_PEERS
    mine_duty: Annotated[int, msgspec.Meta(ge=1, le=100)] | None = None
    """Percent of one core that mining may use; None: as the ledger daemon's own settings say."""
    priced: bool = False
    """Whether its peers are paid."""


def default_directory() -> str:
    """Return ~/decloud."""
    return os.path.join(os.path.expanduser("~"), "decloud")


def settings_file(paths: Paths) -> Path:
    """Return where the settings lie."""
    return paths.state / "up.json"


def load_settings(paths: Paths) -> UpSettings:
    """Return what was remembered, or the defaults. Raises UsageError for a damaged file."""
    path = settings_file(paths)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return UpSettings(default_directory())
    try:
        return msgspec.json.decode(data, type=UpSettings)
    except msgspec.DecodeError as exc:
        raise UsageError(f"{path} is damaged ({exc}): remove it and name DIR and --peers again") from exc


def save_settings(paths: Paths, settings: UpSettings) -> None:
    """Remember."""
    write_private_file(settings_file(paths), msgspec.json.encode(settings) + b"\n")
