"""The volume document: a volume's identity and settings, and its root secret locked in key slots.

Pure. JSON, so that a person can read it; one file of mode 0600 (`config.Paths.volume_config`). Each slot holds the root
secret, sealed with AES-256-GCM under a passphrase (Argon2id, RFC 9106) or under this machine's device key; the
associated data is the volume's identity and the slot's own parameters. A slot's checksum tells a damaged file from a
wrong passphrase; it is no protection, the seal is. Name and redundancy may be edited, everything else may not.

A passphrase is taken in Unicode form NFKD, as UTF-8, exactly as given otherwise (spaces and line ends count). Not here:
reading and writing the file, asking for the passphrase (`cli`).
"""

from __future__ import annotations

import unicodedata
from typing import Annotated, Final

import msgspec
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from fsdecloud.config import check_name
from fsdecloud.crypto.keys import CONTEXT_PREFIX, VolumeKeys, derive
from fsdecloud.errors import MalformedError, UsageError
from fsdecloud.types import VolumeId

VERSION: Final = 1
SALT_SIZE: Final = 16
NONCE_SIZE: Final = 12
SLOTS_MAX: Final = 8
"""Bounds how often Argon2 runs for one wrong passphrase."""
DOCUMENT_MAX: Final = 64 << 10
PASSPHRASE_MAX: Final = 4096
"""Bytes of a passphrase after normalising: far above any that is typed."""
WRONG_SECRET_EXIT: Final = 3
"""Exit code of a command that was given a wrong passphrase or device key."""

_DEVICE_CONTEXT: Final = CONTEXT_PREFIX + "device slot"
_CHECK_CONTEXT: Final = CONTEXT_PREFIX + "slot check"

_Hex12 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{24}\Z")]
_Hex16 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
_Hex32 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_Hex48 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{96}\Z")]


class Cost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one Argon2id run costs. The bounds keep a crafted file from asking for 64 GiB (fault 121)."""

    memory_kib: Annotated[int, msgspec.Meta(ge=8, le=512 << 10)] = 64 << 10
    iterations: Annotated[int, msgspec.Meta(ge=1, le=16)] = 3
    lanes: Annotated[int, msgspec.Meta(ge=1, le=16)] = 4


DEFAULT_COST: Final = Cost()
"""RFC 9106, section 4, second recommended option: 64 MiB, 3 passes, 4 lanes."""


class PassphraseSlot(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="passphrase"):
    """The root secret under a passphrase. All values in hexadecimal."""

    salt: _Hex16
    cost: Cost
    nonce: _Hex12
    sealed: _Hex48
    check: _Hex16


class DeviceSlot(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="device"):
    """The root secret under a machine's device key. All values in hexadecimal."""

    nonce: _Hex12
    sealed: _Hex48
    check: _Hex16


Slot = PassphraseSlot | DeviceSlot


class VolumeDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One volume as this machine knows it."""

    version: int
    name: str
    volume_id: _Hex32
    network: _Hex32
    """Genesis id of its ledger network."""
    redundancy: Annotated[str, msgspec.Meta(max_length=16)]
    """"auto" or "k/n"."""
    created: Annotated[int, msgspec.Meta(ge=0)]
    """Seconds since 1970."""
    slots: Annotated[tuple[Slot, ...], msgspec.Meta(max_length=SLOTS_MAX)] = ()
    up: Annotated[int, msgspec.Meta(ge=0, le=1 << 60)] = 0
    down: Annotated[int, msgspec.Meta(ge=0, le=1 << 60)] = 0
    """Limits of the traffic with peers, bytes per second; 0 for none, and not written then: earlier releases read the
    document of a volume without limits."""
    bootstrap: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=512)], ...], msgspec.Meta(max_length=16)] = ()
    """Addresses of peers that are asked for others; not written when there are none."""
    lan: bool = False
    budget: Annotated[int, msgspec.Meta(ge=0, le=1 << 60)] = 0
    """What storage deals may cost a month, in the smallest unit; 0: none are made. (Placed last: older documents lack it.)"""
    """Look for peers on the same link; not written when it does not."""


def new_document(
    name: str, volume_id: VolumeId, network: bytes, *, redundancy: str = "auto", created: int = 0
) -> VolumeDocument:
    """Return a document without slots: add one before it is of use. Raises UsageError for a bad name."""
    if len(volume_id) != 32 or len(network) != 32:
        raise ValueError("a volume id and a network id have 32 bytes")
    return VolumeDocument(VERSION, check_name(name), volume_id.hex(), network.hex(), redundancy, created)


def add_passphrase_slot(
    document: VolumeDocument, root: bytes, passphrase: str, salt: bytes, nonce: bytes, *, cost: Cost = DEFAULT_COST
) -> VolumeDocument:
    """Return the document with one more slot that the passphrase opens. `salt` (16) and `nonce` (12) are fresh random.

    Raises UsageError for an empty or unusable passphrase or when there are SLOTS_MAX slots, ValueError when `root` is
    not this volume's or salt or nonce have the wrong length. Takes about as long as opening.
    """
    _check_new(document, root, nonce)
    if len(salt) != SALT_SIZE:
        raise ValueError(f"a salt has {SALT_SIZE} bytes, not {len(salt)}")
    slot = PassphraseSlot(salt.hex(), cost, nonce.hex(), "", "")
    aad = _associated(document, slot)
    sealed = AESGCM(_passphrase_key(passphrase, slot)).encrypt(nonce, root, aad)
    slot = msgspec.structs.replace(slot, sealed=sealed.hex(), check=_checksum(aad, nonce + sealed))
    return msgspec.structs.replace(document, slots=(*document.slots, slot))


def add_device_slot(document: VolumeDocument, root: bytes, device_key: bytes, nonce: bytes) -> VolumeDocument:
    """Return the document with one more slot that `device_key` (32 bytes) opens. `nonce` is 12 fresh random bytes.

    Raises UsageError when there are SLOTS_MAX slots, ValueError when `root` is not this volume's or a length is wrong.
    """
    _check_new(document, root, nonce)
    slot = DeviceSlot(nonce.hex(), "", "")
    aad = _associated(document, slot)
    sealed = AESGCM(_device_key(device_key, aad, nonce)).encrypt(nonce, root, aad)
    slot = msgspec.structs.replace(slot, sealed=sealed.hex(), check=_checksum(aad, nonce + sealed))
    return msgspec.structs.replace(document, slots=(*document.slots, slot))


def open_with_passphrase(document: VolumeDocument, passphrase: str) -> bytes:
    """Return the root secret. Takes 64 MiB and about a fifth of a second for each passphrase slot: use a worker thread.

    Raises UsageError (WRONG_SECRET_EXIT) when no slot opens, UsageError when there is no passphrase slot,
    MalformedError when a slot is damaged.
    """
    slots = [slot for slot in document.slots if isinstance(slot, PassphraseSlot)]
    if not slots:
        raise UsageError(f"volume {document.name} has no passphrase; it opens with its device key or recovery phrase")
    for slot in slots:
        aad = _checked(document, slot)
        root = _opened(document, slot, _passphrase_key(passphrase, slot), aad)
        if root is not None:
            return root
    raise UsageError(f"wrong passphrase for volume {document.name}", WRONG_SECRET_EXIT)


def open_with_device(document: VolumeDocument, device_key: bytes) -> bytes:
    """Return the root secret.

    Raises UsageError (WRONG_SECRET_EXIT) when no slot opens with `device_key` (32 bytes), UsageError when there is no
    device slot or the key has another length, MalformedError when a slot is damaged.
    """
    slots = [slot for slot in document.slots if isinstance(slot, DeviceSlot)]
    if not slots:
        raise UsageError(f"volume {document.name} has no device slot; it opens with its passphrase or recovery phrase")
    if len(device_key) != 32:
        raise UsageError(f"a device key has 32 bytes, not {len(device_key)}", WRONG_SECRET_EXIT)
    for slot in slots:
        aad = _checked(document, slot)
        root = _opened(document, slot, _device_key(device_key, aad, bytes.fromhex(slot.nonce)), aad)
        if root is not None:
            return root
    raise UsageError(
        f"this machine's device key does not open volume {document.name}; use the passphrase or recovery phrase",
        WRONG_SECRET_EXIT,
    )


def encode_document(document: VolumeDocument) -> bytes:
    """Return the document as indented JSON with a final newline."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def decode_document(data: bytes) -> VolumeDocument:
    """Return the document. Raises MalformedError that names the field: unknown, missing, out of range, or damaged."""
    if len(data) > DOCUMENT_MAX:
        raise MalformedError(f"a volume document has at most {DOCUMENT_MAX} bytes, not {len(data)}")
    try:
        document = msgspec.json.decode(data, type=VolumeDocument)
        check_name(document.name)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, UsageError) as exc:
        raise MalformedError(f"not a volume document: {exc}") from exc
    if document.version != VERSION:
        raise MalformedError(
            f"the volume document has version {document.version}; this program reads version {VERSION}"
        )
    for slot in document.slots:
        _checked(document, slot)
    return document


def _check_new(document: VolumeDocument, root: bytes, nonce: bytes) -> None:
    if len(document.slots) >= SLOTS_MAX:
        raise UsageError(f"volume {document.name} already has {SLOTS_MAX} key slots")
    if VolumeKeys.from_root(root).volume_id.hex() != document.volume_id:
        raise ValueError("the root secret is not this volume's")
    if len(nonce) != NONCE_SIZE:
        raise ValueError(f"a nonce has {NONCE_SIZE} bytes, not {len(nonce)}")


def _associated(document: VolumeDocument, slot: Slot) -> bytes:
    """Return the volume's identity and the slot's parameters, each of fixed width, as associated data."""
    identity = bytes((VERSION,)) + bytes.fromhex(document.volume_id) + bytes.fromhex(document.network)
    if isinstance(slot, DeviceSlot):
        return b"device    " + identity
    numbers = (slot.cost.memory_kib, slot.cost.iterations, slot.cost.lanes)
    return b"passphrase" + identity + bytes.fromhex(slot.salt) + b"".join(n.to_bytes(4, "big") for n in numbers)


def _checksum(aad: bytes, stored: bytes) -> str:
    return blake3(aad + stored, derive_key_context=_CHECK_CONTEXT).digest(16).hex()


def _checked(document: VolumeDocument, slot: Slot) -> bytes:
    """Return the slot's associated data once its checksum agrees. Raises MalformedError."""
    aad = _associated(document, slot)
    if _checksum(aad, bytes.fromhex(slot.nonce + slot.sealed)) != slot.check:
        raise MalformedError(
            f"key slot {document.slots.index(slot) + 1} of volume {document.name} is damaged: restore the file from a "
            "copy, or recover the volume with its recovery phrase"
        )
    return aad


def _opened(document: VolumeDocument, slot: Slot, key: bytes, aad: bytes) -> bytes | None:
    try:
        root = AESGCM(key).decrypt(bytes.fromhex(slot.nonce), bytes.fromhex(slot.sealed), aad)
    except InvalidTag:
        return None
    if VolumeKeys.from_root(root).volume_id.hex() != document.volume_id:
        raise MalformedError(f"a key slot of volume {document.name} holds the secret of another volume")
    return root


def _passphrase_key(passphrase: str, slot: PassphraseSlot) -> bytes:
    try:
        data = unicodedata.normalize("NFKD", passphrase).encode()
    except UnicodeEncodeError as exc:
        raise UsageError("the passphrase is not valid Unicode text") from exc
    if not data:
        raise UsageError("the passphrase is empty")
    if len(data) > PASSPHRASE_MAX:
        raise UsageError(f"the passphrase has {len(data)} bytes; at most {PASSPHRASE_MAX} are taken")
    try:
        return Argon2id(
            salt=bytes.fromhex(slot.salt),
            length=32,
            iterations=slot.cost.iterations,
            lanes=slot.cost.lanes,
            memory_cost=slot.cost.memory_kib,
        ).derive(data)
    except ValueError as exc:  # less than 8 KiB for each lane, which RFC 9106 forbids
        raise MalformedError(f"a key slot's cost is impossible: {exc}") from exc
    except MemoryError as exc:
        raise UsageError(f"opening the key slot takes {slot.cost.memory_kib} KiB of memory, which is not free") from exc


def _device_key(device_key: bytes, aad: bytes, nonce: bytes) -> bytes:
    return derive(device_key, _DEVICE_CONTEXT, aad + nonce)
