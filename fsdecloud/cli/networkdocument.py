"""`decloud ledger new-network|show-network`: make a ledger network's document, and read one.

Not here: what the parameters mean for a block (`ledger`, fsdecloud-ledger(7)), and joining a network (`decloud ledger run`).
"""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from fsdecloud.cli.newfile import new_file
from fsdecloud.cli.output import clean, emit, emit_json, rfc3339, table
from fsdecloud.config import find_paths
from fsdecloud.errors import MalformedError, UsageError

if TYPE_CHECKING:
    from fsdecloud.ledger.network import NetworkDocument


@dataclass(frozen=True, slots=True)
class Parameter:
    """One field of the document as an option: its bounds, and what to say about it. Units stand in `metavar`."""

    field: str
    metavar: str
    least: int
    most: int
    text: str
    default: str
    """Of a public network, and of an embedded one where that differs."""


WORK_MAX: Final = 1 << 128
"""More hashes than anybody has: a larger --first-work is a slip of the hand."""

PARAMETERS: Final = (
    Parameter("interval", "SECONDS", 1, 3600, "Time between blocks that the difficulty aims at", "60; 2"),
    Parameter(
        "half_life",
        "SECONDS",
        60,
        1 << 24,
        "Active time ahead of schedule after which the difficulty doubles; at least 8 intervals",
        "360 intervals; 300 intervals",
    ),
    Parameter("first_work", "HASHES", 1, WORK_MAX, "What block 1 costs", "16777216; 65536"),
    Parameter(
        "easiest_work",
        "HASHES",
        1,
        WORK_MAX,
        "What a block costs at least, however slow they come",
        "1048576; 16384, or the first work",
    ),
    Parameter("subsidy", "UNITS", 0, 1 << 40, "New money in a block", "1000000000"),
    Parameter("halving", "BLOCKS", 0, 1 << 32, "After how many blocks the subsidy halves, 0: never", "2100000; 0"),
    Parameter("minimum_fee", "UNITS", 0, 1 << 40, "Least fee of what has no work stamp", "1000; 1"),
    Parameter("stamp_bits", "BITS", 0, 40, "Zero bits of the stamp that stands for a fee: 2^BITS hashes", "20; 14"),
    Parameter(
        "finality_depth", "BLOCKS", 1, 1 << 20, "How many blocks no node replaces without a person's word", "100"
    ),
    Parameter(
        "checkpoint_interval",
        "BLOCKS",
        0,
        1 << 16,
        "From one checkpoint that stake votes about to the next, 0: none",
        "10; 0",
    ),
    Parameter("unbond_delay", "BLOCKS", 0, 1 << 24, "For how long a stake that leaves stays locked", "20160; 0"),
    Parameter("least_bond", "UNITS", 0, 1 << 50, "What one peer bonds at least", "100000000000; 0"),
    Parameter(
        "least_stake", "UNITS", 0, 1 << 60, "Stake of all with less than which nothing is final", "1000000000000; 0"
    ),
    Parameter(
        "storage_share",
        "THOUSANDTHS",
        0,
        1000,
        "Part of the subsidy that goes into the pool for proven storage",
        "100; 0",
    ),
    Parameter(
        "storage_levy",
        "THOUSANDTHS",
        0,
        1000,
        "Part of what contracts pay for storage that burns; the payee has up to as much out of the pool",
        "100; 0",
    ),
    Parameter("future_limit", "SECONDS", 1, 86400, "How far a block may be ahead of a node's clock", "7200"),
    Parameter("block_max", "BYTES", 8192, 1 << 20, "Size of a block at most", "1048576"),
    Parameter("transaction_max", "BYTES", 4096, 1 << 16, "Size of a transaction at most", "65536"),
)
"""The parameters with an option each, in the order of the document; targets are said as the work that they stand for."""


def _parameter_options(function: Any) -> Any:
    for parameter in reversed(PARAMETERS):
        function = click.option(
            f"--{parameter.field.replace('_', '-')}",
            metavar=parameter.metavar,
            type=click.IntRange(parameter.least, parameter.most),
            help=f"{parameter.text} (default: {parameter.default}).",
        )(function)
    return function


@click.command("new-network")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--name", default="decloud", show_default=True, help="What people call it: 1 to 64 ASCII characters.")
@click.option("--embedded", is_flag=True, help="Begin with the defaults for one machine or household: the second ones.")
@_parameter_options
@click.option(
    "--mine-when-idle/--no-mine-when-idle",
    default=None,
    help="Whether blocks are mined with nothing to record (default: yes; with --embedded no).",
)
@click.option("--genesis-time", metavar="SECONDS", type=click.IntRange(0), help="Since 1970 (default: now).")
@click.option("--salt", metavar="HEX", help="64 hexadecimal digits that make it another network (default: random).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def new_network_command(
    file: Path,
    name: str,
    embedded: bool,
    mine_when_idle: bool | None,
    genesis_time: int | None,
    salt: str | None,
    as_json: bool,
    **chosen: int | None,
) -> None:
    """Make a ledger network and write its document to FILE, which must not exist yet.

    The document's hash is the network's id: nothing in it can be changed later. Give FILE to all who shall be in the
    network; the first one runs `decloud ledger run --network FILE --mine`.
    """
    document = plan_network(
        name,
        _salt(salt),
        int(time.time()) if genesis_time is None else genesis_time,
        is_embedded=embedded,
        mine_when_idle=mine_when_idle,
        chosen={field: value for field, value in chosen.items() if value is not None},
    )
    from fsdecloud.ledger.network import encode_network

    _write_new(file, encode_network(document))
    if as_json:
        emit_json(network_fields(document) | {"file": os.path.abspath(file)})
    else:
        _show(document)


@click.command("show-network")
@click.argument("file", metavar="FILE", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show_network_command(file: Path | None, as_json: bool) -> None:
    """Show the parameters of the ledger network whose document is FILE, or else of this home's network."""
    from fsdecloud.ledgerd.setup import load_network, read_network_file

    document = load_network(find_paths()) if file is None else read_network_file(file)
    if document is None:
        raise UsageError(
            "this home belongs to no ledger network yet: name a FILE that decloud ledger new-network wrote"
        )
    if as_json:
        emit_json(network_fields(document))
    else:
        _show(document)


def plan_network(
    name: str, salt: bytes, genesis_time: int, *, is_embedded: bool, mine_when_idle: bool | None, chosen: dict[str, int]
) -> NetworkDocument:
    """Return the document of a network with these parameters, the others by default. `chosen` has the names of PARAMETERS.

    Raises UsageError for parameters that do not go together.
    """
    import msgspec

    from fsdecloud.ledger.network import (
        TIME_MAX,
        decode_network,
        embedded_network,
        encode_network,
        public_network,
        target_of,
    )
    from fsdecloud.ledger.work import work_of

    if not 1 <= len(name) <= 64:
        raise UsageError(f"a network's name has 1 to 64 characters, not {len(name)}")
    if genesis_time > TIME_MAX:
        raise UsageError(f"the genesis time {genesis_time} is beyond {TIME_MAX}, the year 36812")
    preset = (embedded_network if is_embedded else public_network)(name, salt, genesis_time)
    changes: dict[str, Any] = dict(chosen)
    if "interval" in changes:
        changes.setdefault("half_life", max(60, preset.half_life // preset.interval * changes["interval"]))
    if changes.get("checkpoint_interval") == 0:
        changes = {"unbond_delay": 0, "least_bond": 0, "least_stake": 0} | changes
    first_work = changes.pop("first_work", work_of(preset.first_target))
    easiest_work = changes.pop("easiest_work", min(first_work, work_of(preset.easiest_target)))
    if first_work < easiest_work:
        raise UsageError(f"block 1 cannot cost {first_work} hashes when a block costs {easiest_work} at least")
    changes |= {"first_target": target_of(first_work), "easiest_target": target_of(easiest_work)}
    if mine_when_idle is not None:
        changes["mine_when_idle"] = mine_when_idle
    try:
        return decode_network(encode_network(msgspec.structs.replace(preset, **changes)))
    except MalformedError as exc:
        raise UsageError(f"no such network can be: {exc}") from exc


def network_fields(document: NetworkDocument) -> dict[str, object]:
    """Return the object of `show-network --json`."""
    import msgspec

    from fsdecloud.ledger.network import network_id
    from fsdecloud.ledger.work import work_of

    fields = msgspec.structs.asdict(document) | {
        "salt": document.salt.hex(),
        "genesis_time": rfc3339(document.genesis_time),
        "first_target": document.first_target.hex(),
        "easiest_target": document.easiest_target.hex(),
    }
    work = {"first_work": work_of(document.first_target), "easiest_work": work_of(document.easiest_target)}
    return {"network": network_id(document).hex(), **fields, **work}


def _write_new(file: Path, data: bytes) -> None:
    """Write a file that does not exist yet, whole or not at all. Raises UsageError."""
    try:
        with new_file(str(file)) as output:
            output.write(data)
    except OSError as exc:
        raise UsageError(f"cannot write {file}: {exc.strerror}") from exc


def _show(document: NetworkDocument) -> None:
    fields = network_fields(document)
    emit(f"network {fields['network']}")
    rows = [["name", clean(document.name), f"document of version {document.version}"]]
    rows.append(["genesis_time", str(fields["genesis_time"]), "When it began"])
    rows += [[p.field, str(fields[p.field]), f"{p.text} ({p.metavar.lower()})"] for p in PARAMETERS]
    rows.append(
        [
            "mine_when_idle",
            "yes" if document.mine_when_idle else "no",
            "Whether blocks are mined with nothing to record",
        ]
    )
    for line in table(rows):
        emit(line)


def _salt(text: str | None) -> bytes:
    if text is None:
        return secrets.token_bytes(32)
    try:
        salt = bytes.fromhex(text)
    except ValueError:
        salt = b""
    if len(salt) != 32:
        raise UsageError(f"{clean(text)!r} is no salt: 64 hexadecimal digits")
    return salt
