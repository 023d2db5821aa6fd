"""The notation of fsdecloud-ledger(7) for the second implementation (`naive`): encodings, hashes, list roots, signatures."""

from functools import cache

from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

AMOUNT = 2**62 - 1
DOMAIN = b"fsdecloud transaction v1"


class Refused(Exception):
    """Why: the names of the reasons, the outermost first."""

    def __init__(self, *reasons):
        super().__init__(": ".join(reasons))
        self.reasons = reasons


class Malformed(Exception):
    """Not an encoding."""


# ---- notation ----------------------------------------------------------------------------------------------------------
def H(context, data):
    return blake3(data, derive_key_context="fsdecloud 2026 v1 " + context).digest()


def pack(value):
    """MessagePack in its shortest form."""
    if value is True:
        return b"\xc3"
    if value is False:
        return b"\xc2"
    if isinstance(value, int):
        return pack_number(value)
    if isinstance(value, bytes):
        return pack_length(len(value), {1: 0xC4, 2: 0xC5, 4: 0xC6}) + value
    if isinstance(value, str):
        text = value.encode()
        if len(text) < 32:
            return bytes([0xA0 + len(text)]) + text
        return pack_length(len(text), {1: 0xD9, 2: 0xDA, 4: 0xDB}) + text
    items = b"".join(pack(item) for item in value)
    if len(value) < 16:
        return bytes([0x90 + len(value)]) + items
    return pack_length(len(value), {2: 0xDC, 4: 0xDD}) + items


def pack_number(value):
    if -32 <= value < 0:
        return value.to_bytes(1, "big", signed=True)
    if 0 <= value < 128:
        return bytes([value])
    if value < 0:
        width = next(w for w in (1, 2, 4, 8) if value >= -(1 << (8 * w - 1)))
        return bytes([{1: 0xD0, 2: 0xD1, 4: 0xD2, 8: 0xD3}[width]]) + value.to_bytes(width, "big", signed=True)
    return pack_length(value, {1: 0xCC, 2: 0xCD, 4: 0xCE, 8: 0xCF})


def pack_length(length, marks):
    width = next(w for w in sorted(marks) if length < 1 << (8 * w))
    return bytes([marks[width]]) + length.to_bytes(width, "big")


def unpack(data):
    """The value of an encoding; Malformed when it is not one, or not the shortest."""
    value, end = unpack_from(data, 0)
    if end != len(data) or pack(value) != data:
        raise Malformed
    return value


def unpack_from(data, at):
    def take(count):
        nonlocal at
        if at + count > len(data):
            raise Malformed
        at += count
        return data[at - count : at]

    mark = take(1)[0]
    if mark < 0x80:
        return mark, at
    if mark >= 0xE0:
        return mark - 256, at
    if mark in (0xC2, 0xC3):
        return mark == 0xC3, at
    if 0xCC <= mark <= 0xD3:
        return int.from_bytes(take(1 << (mark & 3)), "big", signed=mark >= 0xD0), at
    if 0xC4 <= mark <= 0xC6:
        return take(int.from_bytes(take(1 << (mark - 0xC4)), "big")), at
    if 0xA0 <= mark < 0xC0 or 0xD9 <= mark <= 0xDB:
        length = mark - 0xA0 if mark < 0xC0 else int.from_bytes(take(1 << (mark - 0xD9)), "big")
        try:
            return take(length).decode(), at
        except UnicodeDecodeError:
            raise Malformed from None
    if 0x90 <= mark < 0xA0 or mark in (0xDC, 0xDD):
        length = mark - 0x90 if mark < 0xA0 else int.from_bytes(take(2 << (mark - 0xDC)), "big")
        items = []
        for _ in range(length):
            item, at = unpack_from(data, at)
            items.append(item)
        return items, at
    raise Malformed


def list_root(strings):
    hashes = [H("merkle leaf", s) for s in strings]
    while len(hashes) > 1:
        pairs = [hashes[i : i + 2] for i in range(0, len(hashes), 2)]
        hashes = [H("merkle node", b"".join(pair)) if len(pair) == 2 else pair[0] for pair in pairs]
    return H("merkle root", len(strings).to_bytes(8, "big") + b"".join(hashes))


P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P


@cache
def is_somebodys(key):
    """Whether a key is a canonical encoding of a point whose order does not divide 8: three doublings are not neutral."""
    y = int.from_bytes(key, "little") & (2**255 - 1)
    if y >= P:
        return False
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    if x * x % P != square:
        return False
    for _ in range(3):
        t = D * x * x * y * y % P
        x, y = 2 * x * y * pow(1 + t, -1, P) % P, (y * y + x * x) * pow(1 - t, -1, P) % P
    return (x, y) != (0, 1)


def is_signed(key, message, signature, domain=DOMAIN):
    if len(signature) != 64 or len(key) != 32 or not is_somebodys(key):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, bytes([len(domain)]) + domain + message)
    except InvalidSignature:
        return False
    return True
