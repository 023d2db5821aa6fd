"""What a storage peer has voted, on its disk before it signs: one small file, replaced whole for each vote. Blocking.

Two votes that may not both be signed burn the stake, and whoever has forgotten what he signed cannot tell. So a journal that is
damaged, or somebody else's, is an error and never taken for an empty one. What it cannot know of is a copy of itself: whoever
brings an older one back, with a ledger daemon that does not know the votes since, may sign against them.

    state/peers/NAME/votes    canonical MessagePack of `VoteRecord`, then 32 bytes of BLAKE3 over it
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final

import msgspec
from blake3 import blake3
from msgspec import Meta

from fsdecloud import codec
from fsdecloud.config import read_private_file, write_private_file
from fsdecloud.errors import MalformedError, StoreCorrupt, StoreError, UsageError
from fsdecloud.ledger.finality import Voted

FILE_NAME: Final = "votes"

SIZE_MAX: Final = 1024
"""Bytes of a journal; a real one has about two hundred."""

_CONTEXT: Final = "fsdecloud 2026 v1 vote journal"
_SUM_SIZE: Final = 32

Bytes32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
Height = Annotated[int, Meta(ge=0, le=(1 << 53) - 1)]


class VoteRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The last link that a peer may have signed; nothing below it is signed any more."""

    version: Annotated[int, Meta(ge=1, le=1)]
    network: Bytes32
    peer: Bytes32
    source_height: Height
    target_height: Height
    link: tuple[Bytes32, Bytes32] | None
    """Ids of source and target; None for what is only a bound to begin above."""

    @property
    def voted(self) -> Voted:
        """What follows for the next vote."""
        return Voted(self.source_height, self.target_height)


def read_journal(path: Path, network: bytes, peer: bytes) -> VoteRecord | None:
    """Return what was written last, None when nothing ever was.

    Raises StoreCorrupt for a journal that cannot be read, is damaged, or another peer's or network's.
    """
    try:
        os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise StoreCorrupt(_refusal(path, exc.strerror or str(exc))) from exc
    try:
        record = decode_journal(read_private_file(path, SIZE_MAX))
    except (UsageError, MalformedError, OSError) as exc:
        raise StoreCorrupt(_refusal(path, str(exc))) from exc
    if (record.network, record.peer) != (network, peer):
        raise StoreCorrupt(_refusal(path, "it is another peer's, or of another network"))
    return record


def write_journal(path: Path, record: VoteRecord) -> None:
    """Replace the journal, durably: when this returns, a power cut does not undo it. Raises StoreError; what is there then is
    the old record or the new one."""
    try:
        write_private_file(path, encode_journal(record))
    except (OSError, UsageError) as exc:
        raise StoreError(f"cannot write down a vote in {path}, and so do not vote: {exc}") from exc


def encode_journal(record: VoteRecord) -> bytes:
    """Return a journal's bytes."""
    body = codec.encode(record)
    return body + _sum(body)


def decode_journal(data: bytes) -> VoteRecord:
    """Return the record in a journal's bytes. Raises MalformedError unless each byte is as it was written."""
    body = data[:-_SUM_SIZE]
    if len(data) <= _SUM_SIZE or _sum(body) != data[-_SUM_SIZE:]:
        raise MalformedError("its checksum does not fit")
    return codec.decode(body, VoteRecord)


def _sum(body: bytes) -> bytes:
    return blake3(body, derive_key_context=_CONTEXT).digest()


def _refusal(path: Path, why: str) -> str:
    return (
        f"does not vote: what it voted before cannot be read in {path} ({why}); to let it vote again, make sure that no other "
        "machine votes with its key and that the ledger daemon is in step, move that file away, and start the peer again"
    )
