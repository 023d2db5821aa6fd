"""`decloud phrase NAME`: show the 24 words again."""

from __future__ import annotations

import os

import click

from fsdecloud.cli import volumes
from fsdecloud.cli.output import emit
from fsdecloud.config import find_paths
from fsdecloud.errors import UsageError


def write_phrase_file(path: str, root: bytes) -> None:
    """Write the 24 words to a new file of mode 0600. Raises UsageError when the file exists."""
    from fsdecloud.crypto.phrase import phrase_from_root

    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError as exc:
        raise UsageError(f"{path} exists already: the phrase goes to a new file only") from exc
    with open(fd, "w", encoding="ascii") as file:
        file.write(phrase_from_root(root) + "\n")
        file.flush()
        os.fsync(fd)


@click.command("phrase")
@click.argument("name", metavar="NAME")
@click.option(
    "--passphrase-file", metavar="FILE", help="File, mode 0600, with the volume's passphrase; - is standard input."
)
@click.option("--output", metavar="FILE", help="Write the words to a new file of mode 0600 instead of showing them.")
def command(name: str, passphrase_file: str | None, output: str | None) -> None:
    """Show the 24 words of the volume NAME.

    Whoever has the words has the volume: they are its root secret. They go to standard output, nowhere else.
    """
    root = volumes.open_root(find_paths(), name, passfile=passphrase_file or "")
    if output is not None:
        write_phrase_file(output, root)
        emit(f"the recovery phrase of volume {name} is in {output}")
    else:
        emit(volumes.show_phrase(name, root))
