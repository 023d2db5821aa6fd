"""What a ledger daemon does besides keeping the chain: mine, give out work, show pages. Blocking.

state/ledger/ledgerd.toml  what a person wrote down; the command line goes before it
state/ledger/work.token    the token of the work protocol: 64 hexadecimal digits, made when it is first needed
"""

from __future__ import annotations

import ipaddress
import re
import secrets
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from fsdecloud.config import Paths, read_private_file, write_private_file
from fsdecloud.errors import UsageError
from fsdecloud.ledgerd.crew import WORKERS_MAX, CrewPlan
from fsdecloud.ledgerd.miner import NICE
from fsdecloud.net.address import parse_endpoint
from fsdecloud.units import parse_percent
from fsdecloud.wire.work import TOKEN_SIZE

NICE_MAX: Final = 19
_FILE_MAX: Final = 64 << 10


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """ledgerd.toml as it is written."""

    ledger: Literal["full", "light"] | None = None
    snapshot: bool | None = None
    mine: bool | None = None
    mine_workers: Annotated[int, Meta(ge=0, le=WORKERS_MAX)] = 1
    mine_duty: int | str = 100
    mine_nice: Annotated[int, Meta(ge=0, le=NICE_MAX)] = NICE
    work: int | str = ""
    explorer: int | str = ""


DEFAULT_CREW: Final = CrewPlan()


@dataclass(frozen=True, slots=True)
class Settings:
    """All but the network."""

    mine: bool | None = None
    """None: mine unless the network mines idly."""
    crew: CrewPlan = DEFAULT_CREW
    work: str = ""
    """HOST:PORT where miners of other machines connect; empty: nowhere."""
    explorer: str = ""
    """HOST:PORT of the pages; empty: there are none."""
    light: bool = False
    """Keep headers only."""
    snapshot: bool | None = None
    """Let a new chain begin with a state from others; None: as it was."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the command line says, None where it says nothing; forms as in ledgerd.toml."""

    workers: int | None = None
    duty: str | None = None
    nice: int | None = None
    work: str | None = None
    explorer: str | None = None
    light: bool | None = None
    snapshot: bool | None = None


NO_WISHES: Final = Wishes()


def settings_file(paths: Paths) -> Path:
    """Return where a person writes settings down."""
    return paths.ledger_state / "ledgerd.toml"


def load_settings(paths: Paths, wishes: Wishes, *, mine: bool | None = None, was_light: bool = False) -> Settings:
    """Return the settings: the command line, else the file, else what was (`was_light`), else the defaults.

    Raises UsageError for what cannot be meant.
    """
    path = settings_file(paths)
    found = _read(path)
    try:
        settings = Settings(
            mine=found.mine if mine is None else mine,
            crew=CrewPlan(found.mine_workers, parse_percent(str(found.mine_duty), "mine_duty"), found.mine_nice),
            work=parse_port("work", str(found.work)),
            explorer=parse_loopback("explorer", str(found.explorer)),
            light=was_light if found.ledger is None else found.ledger == "light",
            snapshot=found.snapshot,
        )
    except UsageError as exc:
        raise UsageError(f"{path}: {exc}") from exc
    return _check_light(_with_wishes(settings, wishes))


def _check_light(settings: Settings) -> Settings:
    if settings.light:
        for what, is_wished in (
            ("mine", settings.mine),
            ("give out work", settings.work),
            ("show pages", settings.explorer),
            ("take a snapshot", settings.snapshot),
        ):
            if is_wished:
                raise UsageError(f"a light ledger daemon cannot {what}: it has no blocks; leave that or --light out")
    return settings


def _with_wishes(settings: Settings, wishes: Wishes) -> Settings:
    crew = settings.crew
    if wishes.workers is not None:
        crew = replace(crew, workers=_within("--mine-workers", wishes.workers, WORKERS_MAX))
    if wishes.duty is not None:
        crew = replace(crew, duty=parse_percent(wishes.duty, "--mine-duty"))
    if wishes.nice is not None:
        crew = replace(crew, nice=_within("--mine-nice", wishes.nice, NICE_MAX))
    settings = replace(settings, crew=crew, light=settings.light if wishes.light is None else wishes.light)
    if wishes.snapshot is not None:
        settings = replace(settings, snapshot=wishes.snapshot)
    if wishes.work is not None:
        settings = replace(settings, work=parse_port("--work", wishes.work))
    if wishes.explorer is not None:
        settings = replace(settings, explorer=parse_loopback("--explorer", wishes.explorer))
    return settings


def _within(what: str, number: int, most: int) -> int:
    if not 0 <= number <= most:
        raise UsageError(f"{what} cannot be {number}: from 0 to {most}")
    return number


def _read(path: Path) -> _File:
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_MAX + 1)
    except FileNotFoundError:
        return _File()
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {exc.strerror}") from exc
    if len(data) > _FILE_MAX:
        raise UsageError(f"{path} is larger than {_FILE_MAX} bytes")
    try:
        return msgspec.convert(tomllib.loads(data.decode()), _File)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as exc:
        raise UsageError(f"{path}: {exc}") from exc


def parse_port(what: str, text: str) -> str:
    """Return HOST:PORT of [HOST:]PORT, the host 127.0.0.1 unless it is named; empty for nothing. Raises UsageError."""
    if text in ("", "off"):
        return ""
    try:
        endpoint = f"127.0.0.1:{text}" if re.fullmatch("[0-9]+", text, re.ASCII) else text
        parse_endpoint(endpoint)
    except UsageError as exc:
        raise UsageError(f"{what} cannot be {text!r}: write PORT or HOST:PORT, such as 7790 or 127.0.0.1:7790") from exc
    return endpoint


def parse_loopback(what: str, text: str) -> str:
    """Return HOST:PORT as `parse_port` does, where HOST is this machine's own. Raises UsageError for any other."""
    endpoint = parse_port(what, text)
    if endpoint and not is_loopback(parse_endpoint(endpoint)[0]):
        raise UsageError(
            f"{what} cannot be {text!r}: the pages are for this machine alone (127.0.0.1, [::1] or localhost); "
            "from another one, ssh -L PORT:127.0.0.1:PORT brings them"
        )
    return endpoint


def is_loopback(host: str) -> bool:
    """Whether a host is this machine and reached from nowhere else."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def token_file(paths: Paths) -> Path:
    """Return where the token of the work protocol lies."""
    return paths.ledger_state / "work.token"


def ensure_token(paths: Paths) -> bytes:
    """Return the daemon's token, 32 bytes, made the first time. Raises UsageError as `read_token` does."""
    path = token_file(paths)
    if not path.exists():
        write_private_file(path, secrets.token_hex(TOKEN_SIZE).encode() + b"\n")
    return read_token(path)


def read_token(path: Path) -> bytes:
    """Return the token in a file. Raises UsageError unless it is 64 hexadecimal digits that only its owner may read."""
    text = read_private_file(path).strip()
    if not re.fullmatch(rb"[0-9a-fA-F]{%d}" % (2 * TOKEN_SIZE), text):
        raise UsageError(
            f"{path} is not a token: {2 * TOKEN_SIZE} hexadecimal digits, as work.token of the daemon has them"
        )
    return bytes.fromhex(text.decode("ascii"))
