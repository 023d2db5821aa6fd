"""Where the fuzzer begins: a value of every message and row, the golden vectors, and changes that keep their shape.

The decoder is C and shows the fuzzer no branches, so bytes that are merely changed seldom get past it: most changes are made to
the tree of values that the bytes stand for.
"""

import json
from pathlib import Path

import msgspec

from fsdecloud import codec
from fsdecloud.agent import rows
from fsdecloud.crypto import bao
from fsdecloud.fs import chunks, history, inode, manifest
from fsdecloud.ledger import blocks, certificate, network, transactions
from fsdecloud.swarm import addressbook, hostmap
from fsdecloud.tree import node
from fsdecloud.wire import announcements, gossip, grants, receipts, work
from fsdecloud.wire import peer as wire
from tests.fuzz.targets import PEER, TARGETS, structs

VECTORS = Path(__file__).parents[1] / "vectors"

KINDS = {
    "announcement": announcements.Announcement,
    "receipt": receipts.Receipt,
    "receipt's term": receipts.Receipt,
    "grant": grants.Grant,
    "gossip": gossip.Message,
    "work of a miner": work.FromMiner,
    "work of a daemon": work.FromDaemon,
    "transaction": transactions.Transaction,
    "block": blocks.Block,
    "header": blocks.Header,
    "certificate": certificate.Certificate,
    "network": network.NetworkDocument,
    "host map": hostmap.HostMap,
    "address book": addressbook._Stored,
    "chunk": chunks.Chunk,
    "inode": inode.InodeValue,
    "superblock": inode.Superblock,
    "manifest": manifest.Manifest,
    "anchor payload": manifest.AnchorPayload,
    "repair payload": manifest.RepairPayload,
    "entry row": rows.EntryRow,
    "blob row": rows.BlobRow,
    "tree node": node.Leaf | node.Inner,
    "proof": bao.Proof,
    "peer request": wire.Request,
    "peer answer": wire.Answer,
    "batches": history.Batches,
} | {f"message {name}": kind for name, kind in structs().items()}


def values(info, rng):
    """Return a value that a type allows, from its declaration."""
    match info:
        case msgspec.inspect.StructType():
            return info.cls(*(values(field.type, rng) for field in info.fields))
        case msgspec.inspect.IntType():
            low = info.ge if info.ge is not None else 0
            high = info.le if info.le is not None else (1 << 40)
            return min(high, low + rng.choice([0, 1, 2, 100, 1 << 20]))
        case msgspec.inspect.BytesType() | msgspec.inspect.MemoryViewType():
            low = info.min_length or rng.choice([0, 32])
            return rng.choice([bytes(low), bytes(PEER)[:low].ljust(low, b"p")])[: info.max_length]
        case msgspec.inspect.StrType():
            return rng.choice(["x" * (info.min_length or 0), f"wss://192.0.2.1:7711/{PEER.hex()}"])[: info.max_length]
        case msgspec.inspect.BoolType():
            return rng.random() < 0.5
        case msgspec.inspect.FloatType():
            return 0.5
        case msgspec.inspect.NoneType():
            return None
        case msgspec.inspect.EnumType():
            return rng.choice(list(info.cls))
        case msgspec.inspect.LiteralType():
            return rng.choice(info.values)
        case msgspec.inspect.VarTupleType() | msgspec.inspect.ListType():
            count = (info.min_length or 0) + rng.choice([0, 1, 2])
            return tuple(values(info.item_type, rng) for _ in range(count))
        case msgspec.inspect.TupleType():
            return tuple(values(item, rng) for item in info.item_types)
        case msgspec.inspect.UnionType():
            return values(rng.choice(info.types), rng)
        case msgspec.inspect.DictType():
            return {values(info.key_type, rng): values(info.value_type, rng)}
        case _:
            return None


def _hex_strings(value):
    if isinstance(value, str):
        try:
            yield bytes.fromhex(value)
        except ValueError:
            return
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _hex_strings(item)


def seeds(rng):
    """Yield inputs (the target's number in two bytes, then its bytes): some of each type, and the vectors."""
    names = list(TARGETS)
    vectors = [
        data for path in VECTORS.glob("*.json") for data in _hex_strings(json.loads(path.read_text())) if len(data) > 8
    ]
    for number, name in enumerate(names):
        head = number.to_bytes(2, "big")
        if name in KINDS:
            info = msgspec.inspect.type_info(KINDS[name])
            for _ in range(3 if name.startswith("message") else 20):
                yield head + codec.encode(values(info, rng))
        else:
            for data in vectors:
                yield head + data
                yield head + len(data).to_bytes(2, "big") + data
            for kind in (wire.Request, wire.Answer, wire.Hello, wire.Challenge, wire.Welcome):
                data = codec.encode(values(msgspec.inspect.type_info(kind), rng))
                yield head + len(data).to_bytes(2, "big") + data


# ---- changes -------------------------------------------------------------------------------------------------------
ATOMS = (
    None, True, False, 0, 1, -1, 2, 127, 128, 255, 256, (1 << 31), (1 << 53) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
    -(1 << 63), 0.0, float("nan"), float("inf"), b"", bytes(31), bytes(32), bytes(33), bytes(PEER), bytes(64), "", "\0", "é",
    "\x1b[2J", "a" * 300, "wss://[::1]:1/", (), ((),), {}, {"a": 1},
)  # fmt: skip


def change(value, rng):
    """Return a value with one place changed."""
    if isinstance(value, list | tuple) and value and rng.random() < 0.85:
        items = list(value)
        at = rng.randrange(len(items))
        action = rng.random()
        if action < 0.7:
            items[at] = change(items[at], rng)
        elif action < 0.8:
            items.insert(at, items[rng.randrange(len(items))])
        elif action < 0.9:
            del items[at]
        else:
            other = rng.randrange(len(items))
            items[at], items[other] = items[other], items[at]
        return items
    if isinstance(value, bool) or value is None or rng.random() < 0.3:
        return rng.choice(ATOMS)
    if isinstance(value, int):
        return value + rng.choice([-1, 1, -256, 256, 1 << 32]) if rng.random() < 0.7 else -value
    if isinstance(value, bytes):
        data = bytearray(value or b"\0")
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(data) * (2 if rng.random() < 0.1 else 1)
    if isinstance(value, str):
        return value + rng.choice(["/", "\n", "0", "?network="])
    return rng.choice(ATOMS)


def mutate(data, rng):
    """Return input with the value that it stands for changed; None when it stands for none."""
    head, body = data[:2], data[2:]
    start = 0
    if rng.random() < 0.5 and len(body) > 2:  # the first of the pieces
        length = int.from_bytes(body[:2], "big")
        if 0 < length <= len(body) - 2:
            start = 2
    piece = body[start : start + int.from_bytes(body[:2], "big")] if start else body
    try:
        changed = msgspec.msgpack.encode(change(msgspec.msgpack.decode(piece), rng))
    except (msgspec.DecodeError, msgspec.EncodeError, OverflowError, RecursionError, ValueError, TypeError):
        return None
    if start:
        if len(changed) > 0xFFFF:
            return None
        return head + len(changed).to_bytes(2, "big") + changed + body[2 + len(piece) :]
    return head + changed
