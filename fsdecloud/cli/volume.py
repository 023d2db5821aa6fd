"""`decloud volume set NAME`: change what a volume was made with."""

from __future__ import annotations

import click
import msgspec

from fsdecloud.cli import client, drivers, parts, volumes
from fsdecloud.cli.output import emit, emit_json
from fsdecloud.config import Paths, check_name, find_paths
from fsdecloud.errors import UsageError
from fsdecloud.units import format_rate, parse_rate
from fsdecloud.wire.agentapi import Bandwidth, Empty, WantedRedundancy


@click.group("volume", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Change a volume."""


@command.command("set")
@click.argument("name", metavar="NAME")
@click.option(
    "--redundancy", metavar="K/N|auto", help="Store everything with it: new data at once, old data by and by."
)
@click.option("--up", metavar="RATE", help="Send at most so many bytes a second to peers; 0 for no limit.")
@click.option("--down", metavar="RATE", help="Fetch at most so many bytes a second from peers; 0 for no limit.")
@click.option(
    "--peer", "bootstrap", metavar="ADDRESS", multiple=True, help="Ask this peer for others; may be given again."
)
@click.option("--lan", type=click.Choice(["on", "off"]), help="Look for peers on the same link.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def set_command(
    name: str,
    redundancy: str | None,
    up: str | None,
    down: str | None,
    bootstrap: tuple[str, ...],
    lan: str | None,
    as_json: bool,
) -> None:
    """Change the volume NAME; a mounted one takes the change up at once."""
    if (redundancy, up, down, lan) == (None, None, None, None) and not bootstrap:
        raise UsageError(
            "nothing to set: name --redundancy K/N (or auto), --up RATE, --down RATE, --peer ADDRESS or --lan"
        )
    paths = find_paths()
    wanted = Bandwidth(
        parse_rate(up, "--up") if up is not None else None, parse_rate(down, "--down") if down is not None else None
    )
    is_mounted = False
    if redundancy is not None:
        is_mounted = set_redundancy(paths, check_name(name), redundancy)
    if wanted != Bandwidth():
        is_mounted = set_bandwidth(paths, check_name(name), wanted)
    if bootstrap or lan is not None:
        is_mounted = set_discovery(paths, check_name(name), bootstrap, lan)
    if as_json:
        found: dict[str, object] = {"redundancy": redundancy, "up": wanted.up, "down": wanted.down}
        found |= {"bootstrap": list(bootstrap) or None, "lan": None if lan is None else lan == "on"}
        chosen = {key: value for key, value in found.items() if value is not None}
        emit_json({"volume": name, **chosen, "mounted": is_mounted})
        return
    later = "" if is_mounted else " once it is mounted"
    if redundancy is not None:
        emit(f"volume {name}: stored with redundancy {redundancy}{later}, what is there already by and by")
    if bootstrap or lan is not None:
        emit(f"volume {name}: peers are looked for in this way from the next mount on")
    for what, rate in (("sending to", wanted.up), ("fetching from", wanted.down)):
        if rate is not None:
            emit(f"volume {name}: {what} peers has {'a limit of ' * bool(rate)}{format_rate(rate)}{later}")


def set_bandwidth(paths: Paths, name: str, wanted: Bandwidth) -> bool:
    """Write the limits into the volume's document and tell a running driver; returns whether there is one.

    Raises UsageError, and what the driver raises: they hold from the next mount on then.
    """
    document = volumes.load_document(paths, name)
    up = document.up if wanted.up is None else wanted.up
    down = document.down if wanted.down is None else wanted.down
    volumes.save_document(paths, msgspec.structs.replace(document, up=up, down=down))
    if parts.running_pid(paths, drivers.PREFIX + name) is None:
        return False
    client.call(paths.socket(drivers.PREFIX + name), "bandwidth", wanted, Empty, timeout=20.0)
    return True


def set_discovery(paths: Paths, name: str, bootstrap: tuple[str, ...], lan: str | None) -> bool:
    """Write into the volume's document how peers are found; returns whether it is mounted, which changes nothing for it.

    Raises UsageError for what is no address, or names no peer.
    """
    from fsdecloud.net.address import parse_bootstrap

    document = volumes.load_document(paths, name)
    if bootstrap:
        known = tuple(str(address) for address in parse_bootstrap(bootstrap))
        document = msgspec.structs.replace(document, bootstrap=known)
    if lan is not None:
        document = msgspec.structs.replace(document, lan=lan == "on")
    volumes.save_document(paths, document)
    return parts.running_pid(paths, drivers.PREFIX + name) is not None


def set_redundancy(paths: Paths, name: str, redundancy: str) -> bool:
    """Write it into the volume's document and tell a running driver; returns whether there is one.

    Raises UsageError for a redundancy that is none, and what the driver raises: it holds from the next mount on then.
    """
    from fsdecloud.swarm.policy import parse_redundancy

    parse_redundancy(redundancy)
    document = volumes.load_document(paths, name)
    volumes.save_document(paths, msgspec.structs.replace(document, redundancy=redundancy))
    if parts.running_pid(paths, drivers.PREFIX + name) is None:
        return False
    client.call(paths.socket(drivers.PREFIX + name), "redundancy", WantedRedundancy(redundancy), Empty, timeout=20.0)
    return True
