"""The command `decloud`: one module per command, imported when it is called.

A command's start is most of its time, so this module imports little and a command's module imports what is slow
(cryptography, rich) inside its functions. Not here: what any command does (`up`, `mount`, ...); exit codes (`run`).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Final

import click

from fsdecloud import __version__
from fsdecloud.cli.run import run

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "up": ("up", "Start everything on this machine and mount it at DIR."),
    "down": ("down", "Unmount and stop everything that `up` started."),
    "init": ("init", "Create the volume NAME."),
    "volume": ("volume", "Change a volume: set."),
    "mount": ("mount", "Mount the volume NAME at DIR."),
    "umount": ("umount", "Unmount DIR."),
    "status": ("status", "Show what is safe, what is on its way, and who holds it."),
    "unreadable": ("unreadable", "Name the files that cannot be read until a peer returns."),
    "sync": ("sync", "Wait until what was written is durable, stored or anchored."),
    "log": ("log", "Show the recorded operations of a volume."),
    "history": ("history", "Show the versions of FILE, and restore one."),
    "certify": ("certify", "Write a certificate of what FILE is, or was."),
    "verify-certificate": ("verifycertificate", "Check a certificate and its file, without any key."),
    "snapshot": ("snapshot", "The states a volume has been in: list, diff, restore, keep, forget, policy."),
    "gc": ("gc", "Have peers delete what no state of the volume needs any more."),
    "fsck": ("fsck", "Check the volume NAME while it is not mounted, and repair it."),
    "recover": ("recover", "Get the volume NAME back from its 24 words."),
    "repair-key": ("repairkey", "Make a key that repairs the volume NAME and cannot read it."),
    "repair": ("repair", "Check and repair a volume with its repair key."),
    "phrase": ("phrase", "Show the 24 words of the volume NAME."),
    "peer": ("peer", "Store shards for others: init, run, status, leave."),
    "deals": ("deals", "Show the storage deals of a volume: peers, bytes, money, ends."),
    "budget": ("budget", "Show or change what the deals of the volume NAME may cost a month."),
    "contract": ("contract", "Contracts of the ledger: check and show their text."),
    "wallet": ("wallet", "Money in the ledger: address, balance, send, history, export."),
    "ledger": ("ledger", "The ledger daemon: run, status, blocks, show, verify."),
    "mine": ("mine", "Mine for a ledger daemon on another machine."),
    "install-system": ("install_system", "Put mount helpers, units and man pages in place."),
}
"""Each command's module in this package, and what the list of commands says of it."""


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import and return the command, None if there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"fsdecloud.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="decloud", message="%(prog)s %(version)s")
def group() -> None:
    """Mount a decentralized cloud as a directory.

    `decloud up` starts a network of storage peers and a ledger on this machine, makes a volume and mounts it. The manual
    pages decloud(1) and decloud(7) say more.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `decloud` with the process's arguments and exit."""
    sys.exit(run(group, arguments, "decloud"))


if __name__ == "__main__":
    main()
