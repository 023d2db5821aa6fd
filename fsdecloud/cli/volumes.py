"""The volumes of this home: their documents, and how their root secret is opened.

A secret comes from the device key, a file of mode 0600, a systemd credential or the terminal; never from arguments or
the environment. cryptography is imported inside the functions: most commands do not need it.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fsdecloud.config import (
    Paths,
    check_name,
    check_private_dir,
    make_private_dir,
    read_private_file,
    write_private_file,
)
from fsdecloud.errors import MalformedError, UsageError

if TYPE_CHECKING:
    from fsdecloud.crypto.slots import VolumeDocument

CREDENTIALS_VARIABLE: Final = "CREDENTIALS_DIRECTORY"

DOCUMENT_MAX: Final = 64 << 10

_KEY_SIZE: Final = 32


def list_volumes(paths: Paths) -> list[str]:
    """Return the names of the volumes that this home knows."""
    directory = paths.config / "volumes"
    return sorted(p.stem for p in directory.glob("*.json") if not p.name.startswith(".")) if directory.is_dir() else []


def load_document(paths: Paths, name: str) -> VolumeDocument:
    """Read a volume's document. Raises UsageError: no such volume, not ours alone to read, damaged."""
    path = paths.volume_config(name)
    if not os.path.lexists(path):
        known = list_volumes(paths)
        there = f"this machine has {', '.join(known)}" if known else "this machine has none"
        raise UsageError(f"there is no volume {name} ({there}): decloud init makes one, decloud recover gets one back")
    from fsdecloud.crypto.slots import decode_document

    for directory in (paths.config, path.parent):  # the device's key lies in the first
        check_private_dir(directory)
    data = read_private_file(path, DOCUMENT_MAX)
    try:
        document = decode_document(data)
    except MalformedError as exc:
        raise UsageError(f"{path} is damaged ({exc}): restore it, or remove it and use decloud recover {name}") from exc
    if document.name != name:
        raise UsageError(f"{path} is the document of volume {document.name}: it must be called {document.name}.json")
    return document


def save_document(paths: Paths, document: VolumeDocument) -> None:
    """Write a volume's document, atomically and durably."""
    from fsdecloud.crypto.slots import encode_document

    make_private_dir(paths.config)
    write_private_file(paths.volume_config(document.name), encode_document(document))


def require_new(paths: Paths, name: str) -> None:
    """Raise UsageError when there is a volume `name` already."""
    if os.path.lexists(paths.volume_config(check_name(name))):
        raise UsageError(f"there is a volume {name} already: choose another name, or decloud mount {name} DIR")


def make_document(
    paths: Paths, name: str, root: bytes, network: bytes, *, redundancy: str = "auto", passphrase: str | None = None
) -> VolumeDocument:
    """Return the document of a volume with root secret `root`, locked with the device key, or with `passphrase` if given."""
    from fsdecloud.crypto.keys import VolumeKeys
    from fsdecloud.crypto.slots import NONCE_SIZE, SALT_SIZE, add_device_slot, add_passphrase_slot, new_document

    volume_id = VolumeKeys.from_root(root).volume_id
    document = new_document(name, volume_id, network, redundancy=redundancy, created=int(time.time()))
    nonce = secrets.token_bytes(NONCE_SIZE)
    if passphrase is None:
        return add_device_slot(document, root, ensure_device_key(paths), nonce)
    return add_passphrase_slot(document, root, passphrase, secrets.token_bytes(SALT_SIZE), nonce)


def ensure_device_key(paths: Paths) -> bytes:
    """Return this machine's key, made on first use."""
    if not os.path.lexists(paths.device_key):
        write_private_file(paths.device_key, secrets.token_bytes(_KEY_SIZE))
    return read_device_key(paths)


def read_device_key(paths: Paths) -> bytes:
    """Return this machine's key. Raises UsageError when the file is missing, readable by others or not 32 bytes long."""
    key = read_private_file(paths.device_key)
    if len(key) != _KEY_SIZE:
        raise UsageError(
            f"{paths.device_key} has {len(key)} bytes, not {_KEY_SIZE}: restore it from a copy, or move it away, "
            "remove the volume's document and use decloud recover"
        )
    return key


def open_root(paths: Paths, name: str, *, credential: str = "", passfile: str = "") -> bytes:
    """Return the volume's root secret.

    A `passfile` or systemd `credential` that is named decides alone; otherwise the device key if the volume has such a
    slot, else the terminal. Raises UsageError (exit code 1) with what is wrong; without any source it fails at once.
    """
    from fsdecloud.crypto.slots import DeviceSlot, open_with_device, open_with_passphrase

    document = load_document(paths, name)
    try:
        if passfile:
            return open_with_passphrase(document, read_passphrase_file(passfile))
        if credential:
            return open_with_passphrase(document, _read_credential(credential))
        if any(isinstance(slot, DeviceSlot) for slot in document.slots):
            return open_with_device(document, read_device_key(paths))
        return open_with_passphrase(document, ask_passphrase(f"Passphrase of volume {name}: "))
    except UsageError as exc:
        raise UsageError(str(exc)) from exc
    except MalformedError as exc:
        raise UsageError(f"{paths.volume_config(name)}: {exc}") from exc


def read_passphrase_file(path: str) -> str:
    """Return the passphrase in a file of mode 0600, or from standard input for "-"; one final line end is dropped."""
    data = sys.stdin.buffer.read(DOCUMENT_MAX) if path == "-" else read_private_file(Path(path))
    return _as_passphrase(data, "standard input" if path == "-" else path)


def _read_credential(name: str) -> str:
    directory = os.environ.get(CREDENTIALS_VARIABLE)
    if not directory:
        raise UsageError(
            f"credential {name!r}: systemd gave no credentials (LoadCredential= in the unit, or passfile=FILE)"
        )
    if "/" in name or name.startswith("."):
        raise UsageError(f"{name!r} cannot be the name of a credential")
    try:
        data = Path(directory, name).read_bytes()
    except OSError as exc:
        raise UsageError(f"credential {name!r}: {exc.strerror}") from exc
    return _as_passphrase(data, f"credential {name!r}")


def _as_passphrase(data: bytes, where: str) -> str:
    try:
        text = data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as exc:
        raise UsageError(f"the passphrase from {where} is not UTF-8 text") from exc
    if not text:
        raise UsageError(f"the passphrase from {where} is empty")
    return text


def ask_passphrase(prompt: str) -> str:
    """Ask at the terminal, without echo. Raises UsageError when there is none, so that nothing waits for nobody."""
    import getpass

    if not sys.stdin.isatty():
        raise UsageError(
            "a passphrase is needed and there is no terminal to ask at: use passfile=FILE or credential=NAME"
        )
    text = getpass.getpass(prompt)
    if not text:
        raise UsageError("the passphrase is empty")
    return text


def ask_new_passphrase(name: str) -> str:
    """Ask for a new passphrase, twice."""
    first = ask_passphrase(f"New passphrase of volume {name}: ")
    if ask_passphrase("Once more: ") != first:
        raise UsageError("the two passphrases differ")
    return first


def read_phrase(path: str) -> bytes:
    """Return the root secret from a file (any mode: it is often typed by hand) or standard input for "-".

    Raises UsageError that says what is wrong with the words.
    """
    from fsdecloud.crypto.phrase import root_from_phrase

    if path == "-":
        if sys.stdin.isatty():
            print("Type the 24 words, then Enter: ", end="", file=sys.stderr, flush=True)
            data = sys.stdin.buffer.readline(DOCUMENT_MAX)
        else:
            data = sys.stdin.buffer.read(DOCUMENT_MAX)
    else:
        with open(path, "rb") as file:
            data = file.read(DOCUMENT_MAX)
    try:
        return root_from_phrase(data.decode())
    except UnicodeDecodeError as exc:
        raise UsageError(f"{path} is not a text file with 24 words") from exc


def show_phrase(name: str, root: bytes) -> str:
    """Return the 24 words, numbered in rows, with what to do with them."""
    from fsdecloud.crypto.phrase import phrase_from_root

    words = phrase_from_root(root).split()
    rows = [
        "  ".join(f"{i + 1:>2} {words[i]:<9}" for i in range(start, start + 6)).rstrip() for start in range(0, 24, 6)
    ]
    return "\n".join([
        f"The recovery phrase of volume {name}. Write it down and keep it safe:",
        "whoever has these 24 words has the volume, and without them it cannot be recovered.",
        "",
        *("    " + row for row in rows),
        "",
    ])  # fmt: skip
