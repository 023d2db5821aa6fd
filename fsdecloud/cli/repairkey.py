"""`decloud repair-key NAME`: make a key with which another machine checks and repairs a volume, and cannot read it."""

from __future__ import annotations

import os

import click

from fsdecloud.cli import volumes
from fsdecloud.cli.output import emit
from fsdecloud.config import find_paths
from fsdecloud.errors import UsageError


@click.command("repair-key")
@click.argument("name", metavar="NAME")
@click.option("--output", metavar="FILE", required=True, help="Write the key to a new file of mode 0600.")
@click.option(
    "--passphrase-file", metavar="FILE", help="File, mode 0600, with the volume's passphrase; - is standard input."
)
def command(name: str, output: str, passphrase_file: str | None) -> None:
    """Write the repair key of the volume NAME to a new file.

    With it `decloud repair` keeps the volume whole from an always-on machine. It cannot read, delete or write the volume; it
    can have peers store more under the volume's name. It cannot be revoked.
    """
    from fsdecloud.crypto.keys import VolumeKeys
    from fsdecloud.crypto.repairkey import encode_repair_key, make_repair_key

    paths = find_paths()
    document = volumes.load_document(paths, name)
    keys = VolumeKeys.from_root(volumes.open_root(paths, name, passfile=passphrase_file or ""))
    key = make_repair_key(keys, name, bytes.fromhex(document.network), document.redundancy)
    try:
        fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError as exc:
        raise UsageError(f"{output} exists already: the key goes to a new file only") from exc
    with open(fd, "wb") as file:
        file.write(encode_repair_key(key))
        file.flush()
        os.fsync(fd)
    emit(f"the repair key of volume {name} is in {output}; elsewhere: decloud repair --key FILE --watch")
