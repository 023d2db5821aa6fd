"""Which blocks of the best chain changed which accounts: what a history of payments is read from.

Blocking; part of the chain store (`store.chain`), in its environment and in its transactions, so that it is never ahead of the
chain or behind it. What a block changes is known once it was executed, and kept for blocks of all branches: a reorganisation
takes one block's rows out and puts another one's in without executing anything. Databases:

    touched   block id -> (public key, change of its balance) of each account that it wrote     every executed block
    accounts  public key + height -> change of its balance                                      of the best chain
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

from fsdecloud import codec
from fsdecloud.errors import MalformedError, StoreCorrupt
from fsdecloud.store.environment import Environment, Transaction

T = TypeVar("T")

_HEIGHT: Final = 8
"""Bytes of a height in a key."""


class AccountIndex:
    """The two databases; the caller's transaction is the one in which the chain itself changes."""

    def __init__(self, environment: Environment) -> None:
        self._path = environment.path
        self._touched = environment.database(b"touched")
        self._accounts = environment.database(b"accounts")

    def put(self, txn: Transaction, identity: bytes, changes: Sequence[tuple[bytes, int]]) -> None:
        """Take what a block that was executed does to accounts."""
        txn.put(identity, codec.encode(changes), db=self._touched)

    def enter(self, txn: Transaction, height: int, identity: bytes) -> bool:
        """Take a block into the best chain; return False if it is not known what it changes."""
        changes = self._changes_of(txn, identity)
        for key, change in changes or ():
            txn.put(key + height.to_bytes(_HEIGHT), codec.encode(change), db=self._accounts)
        return changes is not None

    def leave(self, txn: Transaction, height: int, identity: bytes) -> None:
        """Take a block out of the best chain."""
        for key, _ in self._changes_of(txn, identity) or ():
            txn.delete(key + height.to_bytes(_HEIGHT), db=self._accounts)

    def drop(self, txn: Transaction, identity: bytes) -> None:
        """Forget what a block changes; it is not in the best chain, or has been taken out of it."""
        txn.delete(identity, db=self._touched)

    def changes(self, txn: Transaction, key: bytes, below: int, count: int) -> Iterator[tuple[int, int]]:
        """Yield (height, change of the balance) of the blocks below a height that wrote an account, the newest first. Raises
        StoreCorrupt, as all that reads here."""
        with txn.cursor(db=self._accounts) as cursor:
            last = key + max(below, 0).to_bytes(_HEIGHT)
            found = cursor.prev() if cursor.set_range(last) else cursor.last()
            while found and count > 0 and cursor.key()[:-_HEIGHT] == key:
                yield int.from_bytes(cursor.key()[-_HEIGHT:]), self._decode(cursor.value(), int)
                found = cursor.prev()
                count -= 1

    def _changes_of(self, txn: Transaction, identity: bytes) -> list[tuple[bytes, int]] | None:
        data = txn.get(identity, db=self._touched)
        return None if data is None else self._decode(data, list[tuple[bytes, int]])

    def _decode(self, data: bytes, kind: type[T]) -> T:
        try:
            return codec.decode(data, kind)
        except MalformedError as exc:
            raise StoreCorrupt(
                f"{self._path} is damaged: what is known of accounts does not decode ({exc}); stop the daemon and run "
                "`decloud ledger rebuild`"
            ) from exc
