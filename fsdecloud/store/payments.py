"""The payments of one volume's wallet on this machine: noted before the ledger hears of them, until they are recorded.

Blocking. One file for each, sealed with the volume's at-rest key, so that nothing tells whose the keys in the ledger are; its
name says nothing either. Whoever pays adds the file first and submits then: so a crash in between leaves a payment that is
known, and either reaches the ledger by the next command or is seen to have failed. A mounted volume's driver records what is in
`new` and moves the file to `recorded`; a volume that is not mounted has it recorded by the next mount.

`lock` is held by whoever pays, so that two do not sign the same nonce and nothing is recorded that is just being refused.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from fsdecloud import codec
from fsdecloud.config import make_private_dir, read_private_file, sync_directory, write_private_file
from fsdecloud.crypto.keys import CONTEXT_PREFIX, derive
from fsdecloud.crypto.rows import SALT_SIZE, open_rows, seal_rows
from fsdecloud.errors import FsdecloudError, MalformedError, SealError, StoreCorrupt
from fsdecloud.store.lockfile import LockFile, acquire_lock
from fsdecloud.store.segments import store_error

KEPT_MAX: Final = 4096
"""Recorded payments that are kept; the oldest of more are forgotten. The ledger knows them all."""

_FILE_MAX: Final = 8 << 10
_TABLE: Final = b"payment"
_NAME_CONTEXT: Final = CONTEXT_PREFIX + "payment file name"


class Payment(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One payment that was signed here."""

    version: int
    time: int
    """Nanoseconds since 1970."""
    id: bytes
    """The transaction's id."""
    tx: bytes
    """The encoded transfer."""
    uid: int
    """Who asked for it."""
    program: bytes


class PaymentStore:
    """The payments in one directory, which is made when the first one is added."""

    def __init__(self, directory: Path, at_rest_key: bytes) -> None:
        self._directory = directory
        self._new, self._recorded = directory / "new", directory / "recorded"
        self._key = at_rest_key

    def lock(self) -> LockFile:
        """Take the lock. Raises StoreLocked while somebody else pays, StoreError."""
        return acquire_lock(self._directory / "lock")

    def add(self, payment: Payment) -> None:
        """Note a payment, durably, before it is submitted; again is harmless. Raises StoreError."""
        salt = os.urandom(SALT_SIZE)
        data = salt + seal_rows(self._key, salt, 0, [codec.encode(payment)], table=_TABLE)[0]
        path = self._new / self._name(payment.id)
        try:
            make_private_dir(self._directory)
            write_private_file(path, data)
        except OSError as exc:
            raise store_error(exc, f"cannot write {path}") from exc

    def remove(self, identity: bytes) -> None:
        """Forget a payment that was not recorded, since the ledger refuses it. Raises StoreError."""
        path = self._new / self._name(identity)
        try:
            path.unlink(missing_ok=True)
            if self._new.is_dir():
                sync_directory(self._new)
        except OSError as exc:
            raise store_error(exc, f"cannot remove {path}") from exc

    def unrecorded(self) -> list[Payment]:
        """Return those that are not recorded yet, oldest first. Raises StoreError, StoreCorrupt."""
        return self._load(self._new)

    def all(self) -> list[Payment]:
        """Return all, oldest first. Raises as `unrecorded`."""
        return sorted(self._load(self._recorded) + self._load(self._new), key=lambda payment: payment.time)

    def mark_recorded(self, identity: bytes) -> None:
        """Note, durably, that a payment is recorded. Raises StoreError."""
        name = self._name(identity)
        try:
            make_private_dir(self._recorded)
            os.replace(self._new / name, self._recorded / name)
            sync_directory(self._recorded)
            sync_directory(self._new)
        except OSError as exc:
            raise store_error(exc, f"cannot move {self._new / name}") from exc
        self._forget_oldest()

    # ---- inner -----------------------------------------------------------------------------------------------------
    def _name(self, identity: bytes) -> str:
        return derive(self._key, _NAME_CONTEXT, identity).hex()[:32]

    def _load(self, directory: Path) -> list[Payment]:
        if not directory.is_dir():
            return []
        try:
            paths = [path for path in directory.iterdir() if not path.name.startswith(".")]
        except OSError as exc:
            raise store_error(exc, f"cannot read {directory}") from exc
        found = []
        for path in paths:
            with suppress(FileNotFoundError):
                found.append(self._open(path))
        return sorted(found, key=lambda payment: payment.time)

    def _open(self, path: Path) -> Payment:
        if not path.exists():  # it was moved since the directory was read
            raise FileNotFoundError(path)
        try:
            data = read_private_file(path, _FILE_MAX)
            row = open_rows(self._key, data[:SALT_SIZE], 0, [data[SALT_SIZE:]], table=_TABLE)[0]
            return codec.decode(row, Payment)
        except (SealError, MalformedError) as exc:
            raise StoreCorrupt(f"{path} is damaged ({exc}): move it away; the ledger still knows the payment") from exc
        except OSError as exc:
            raise store_error(exc, f"cannot read {path}") from exc
        except FsdecloudError:
            if not path.exists():
                raise FileNotFoundError(path) from None
            raise

    def _forget_oldest(self) -> None:
        with suppress(OSError):
            files = sorted(self._recorded.iterdir(), key=lambda path: path.stat().st_mtime)
            for path in files[:-KEPT_MAX]:
                path.unlink()
