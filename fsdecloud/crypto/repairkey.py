"""The repair key: what checks and repairs a volume, and renews its leases, without being able to read it.

Pure. JSON, in one file of mode 0600. It holds the two secrets that the agent of a mount has as well, and neither more nor
less: the deal secret (the right to store, and to renew what is stored) and the repair secret (where everything is). Whoever
has it sees how many blobs of which sizes there are and who holds them, and can have peers store more; they cannot open an
entry, read a name, delete anything, or write an anchor.

Both follow from the root secret, so a repair key holds as long as its volume: it cannot be revoked, and lost ones need not
be. Not here: the file (`cli.repairkey`).
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from blake3 import blake3

from fsdecloud.crypto.keys import CONTEXT_PREFIX, VolumeKeys
from fsdecloud.errors import MalformedError

VERSION: Final = 1
KEY_MAX: Final = 4096
"""Bytes of a repair key's file."""

_CHECK: Final = CONTEXT_PREFIX + "repair key check"

_Hex32 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    name: Annotated[str, msgspec.Meta(max_length=255)]
    volume_id: _Hex32
    network: _Hex32
    redundancy: Annotated[str, msgspec.Meta(max_length=16)]
    deal_secret: _Hex32
    repair_secret: _Hex32
    check: Annotated[str, msgspec.Meta(max_length=32)] = ""


class RepairKey(msgspec.Struct, frozen=True):
    """One repair key. Its repr shows the volume alone."""

    name: str
    """What the volume was called where the key was made."""
    volume_id: bytes
    network: bytes
    """Genesis id of its ledger network."""
    redundancy: str
    """"auto" or "k/n": of what has to be stored anew."""
    deal_secret: bytes
    repair_secret: bytes

    def __repr__(self) -> str:
        return f"RepairKey({self.name!r}, {self.volume_id.hex()})"


def make_repair_key(keys: VolumeKeys, name: str, network: bytes, redundancy: str) -> RepairKey:
    """Return the repair key of a volume."""
    return RepairKey(name, keys.volume_id, network, redundancy, keys.deal_secret, keys.repair_secret)


def encode_repair_key(key: RepairKey) -> bytes:
    """Return the bytes of its file."""
    document = _Document(
        VERSION,
        key.name,
        key.volume_id.hex(),
        key.network.hex(),
        key.redundancy,
        key.deal_secret.hex(),
        key.repair_secret.hex(),
    )
    document = msgspec.structs.replace(document, check=_checksum(document))
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def decode_repair_key(data: bytes) -> RepairKey:
    """Return a repair key. Raises MalformedError, which says nothing of what stands in it."""
    if len(data) > KEY_MAX:
        raise MalformedError(f"a repair key has at most {KEY_MAX} bytes")
    try:
        document = msgspec.json.decode(data, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise MalformedError("not a repair key") from None
    if document.version != VERSION:
        raise MalformedError(f"a repair key of version {document.version} is not readable here")
    if document.check != _checksum(msgspec.structs.replace(document, check="")):
        raise MalformedError("a repair key that is damaged")
    return RepairKey(
        document.name,
        bytes.fromhex(document.volume_id),
        bytes.fromhex(document.network),
        document.redundancy,
        bytes.fromhex(document.deal_secret),
        bytes.fromhex(document.repair_secret),
    )


def _checksum(document: _Document) -> str:
    return blake3(msgspec.json.encode(document), derive_key_context=_CHECK).hexdigest(16)
