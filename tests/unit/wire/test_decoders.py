"""Whatever bytes come, every decoder of wire/ returns a value or raises what it says, and takes memory in proportion."""

import contextlib
import importlib
import pkgutil
import tracemalloc

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fsdecloud.wire
from fsdecloud import codec
from fsdecloud.errors import FsdecloudError, MalformedError, RemoteProtocolError, SealError
from fsdecloud.limits import KIB, MESSAGE_MAX, MIB
from fsdecloud.types import PeerId
from fsdecloud.wire import gossip, grants, receipts, rpc
from fsdecloud.wire import peer as wire


def structs():
    """Return every message type of wire/, by its full name."""
    found = {}
    for module in pkgutil.iter_modules(fsdecloud.wire.__path__):
        for value in vars(importlib.import_module(f"fsdecloud.wire.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, msgspec.Struct) and value is not msgspec.Struct:
                found[f"{value.__module__.rpartition('.')[2]}.{value.__name__}"] = value
    return found


STRUCTS = structs()
DECODERS = {
    "peer.Request": lambda data: codec.decode_loose(data, wire.Request),
    "peer.Answer": lambda data: codec.decode_loose(data, wire.Answer),
    "receipt": receipts.verify_receipt,
    "grant": lambda data: grants.verify_grant(
        data, network=bytes(32), peer=PeerId(bytes(32)), deal=bytes(32), owner=bytes(32), now=0
    ),
    "gossip": gossip.decode_message,
    "rpc frames": lambda data: rpc.FrameReader(MESSAGE_MAX).feed(data),
    "rpc error": rpc.body_to_error,
}
DECLARED = {
    "receipt": (MalformedError, SealError),
    "grant": (MalformedError, SealError),
    "gossip": RemoteProtocolError,
    "rpc frames": RemoteProtocolError,
    "rpc error": (),
}
"""What each may raise; the others: MalformedError."""

atoms = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=70)
    | st.sampled_from([bytes(32), bytes(64)])
)
trees = st.recursive(
    atoms, lambda t: st.lists(t, max_size=10) | st.dictionaries(st.text(max_size=2), t, max_size=3), max_leaves=20
)


@st.composite
def near(draw, kind):
    """Bytes that are nearly a message of this type: its shape, with fields that may be anything."""
    tag = kind.__struct_config__.tag
    fields = [draw(trees) for _ in kind.__struct_fields__]
    data = bytearray(msgspec.msgpack.encode([tag, *fields] if tag is not None else fields))
    for _ in range(draw(st.integers(0, 2))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


some_bytes = st.binary(max_size=200) | trees.map(msgspec.msgpack.encode)
candidates = some_bytes | st.sampled_from(sorted(STRUCTS)).flatmap(lambda name: near(STRUCTS[name]))


@given(candidates)
def test_faults_079_and_085_any_bytes_are_understood_or_malformed(data):
    for kind in STRUCTS.values():
        with contextlib.suppress(MalformedError):
            codec.decode_loose(data, kind)
    for name, decode in DECODERS.items():
        with contextlib.suppress(*_declared(name)):
            decode(data)


def _declared(name):
    declared = DECLARED.get(name, MalformedError)
    return declared if isinstance(declared, tuple) else (declared,)


@given(candidates)
def test_what_is_decoded_encodes_to_what_decodes_to_the_same(data):
    for kind in STRUCTS.values():
        try:
            value = codec.decode_loose(data, kind)
        except MalformedError:
            continue
        again = codec.encode(value)
        assert codec.encode(codec.decode(again, kind)) == again


@given(st.sampled_from(sorted(STRUCTS)), st.data())
def test_values_that_every_type_allows_survive(name, data):
    kind = STRUCTS[name]
    value = data.draw(values(kind))
    assert codec.encode(codec.decode(codec.encode(value), kind)) == codec.encode(value)


def values(kind):
    """A strategy for a struct's values, from its declaration."""
    info = msgspec.inspect.type_info(kind)
    return _values(info)


def _values(info):
    match info:
        case msgspec.inspect.StructType():
            return st.tuples(*(_values(field.type) for field in info.fields)).map(lambda t, c=info.cls: c(*t))
        case msgspec.inspect.IntType():
            low = info.ge if info.ge is not None else -(2**63)
            return st.integers(low, info.le if info.le is not None else 2**63)
        case msgspec.inspect.BytesType():
            return st.binary(
                min_size=info.min_length or 0, max_size=min(info.max_length or 40, 40 + (info.min_length or 0))
            )
        case msgspec.inspect.MemoryViewType():
            return st.binary(max_size=40).map(memoryview)
        case msgspec.inspect.StrType():
            return st.text(max_size=min(info.max_length or 10, 10))
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.NoneType():
            return st.none()
        case msgspec.inspect.FloatType():
            return st.just(0.5)
        case msgspec.inspect.EnumType():
            return st.sampled_from(info.cls)
        case msgspec.inspect.LiteralType():
            return st.sampled_from(info.values)
        case msgspec.inspect.VarTupleType():
            low = info.min_length or 0
            return st.lists(_values(info.item_type), min_size=low, max_size=low + 2).map(tuple)
        case msgspec.inspect.TupleType():
            return st.tuples(*map(_values, info.item_types))
        case msgspec.inspect.UnionType():
            return st.one_of(*map(_values, info.types))
        case msgspec.inspect.DictType():
            return st.dictionaries(_values(info.key_type), _values(info.value_type), max_size=2)
    raise AssertionError(f"no strategy for {info}")


def bombs(kind):
    """Yield messages of a type in which one field claims to be larger than it is, or is as large as a message can be."""
    tag = kind.__struct_config__.tag
    count = len(kind.__struct_fields__) + (tag is not None)
    head = bytes((0x90 | count,)) if count < 16 else b"\xdc" + count.to_bytes(2, "big")
    if tag is not None:
        head += bytes((tag,))
    # what comes before the field, so that the decoder gets as far as it does
    for skipped in range(len(kind.__struct_fields__)):
        for good in (b"\x00", b"\xc4\x20" + bytes(32), b"\xc4\x00"):
            start = head + good * skipped
            for claim in (
                b"\xdd\xff\xff\xff\xff",
                b"\xdf\xff\xff\xff\xff",
                b"\xc6\xff\xff\xff\xff",
                b"\xdb\xff\xff\xff\xff",
            ):
                yield start + claim
                yield start + claim + b"\x90" * 1000
    yield b"\x91" * (64 * KIB)
    yield head + b"\x91" * (64 * KIB)


PROPORTION = 64
"""Bytes of memory for a byte of a message: an empty array of one byte becomes a tuple's slot and, at worst, an object."""


def peak(decode, data):
    """Return how much memory decoding took at its height."""
    tracemalloc.start()
    try:
        with contextlib.suppress(FsdecloudError):
            decode(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", sorted(STRUCTS))
def test_fault_079_no_claim_of_length_is_believed(name):
    kind = STRUCTS[name]

    def decode(data):
        with pytest.raises(MalformedError):
            codec.decode_loose(data, kind)

    decode(b"\xc1")  # the decoder itself is made once
    for data in bombs(kind):
        assert peak(decode, data) < 64 * KIB + PROPORTION * len(data), data[:40]


@pytest.mark.parametrize("name", sorted(DECODERS))
@pytest.mark.parametrize(
    "data",
    [
        b"\xdd" + (MIB).to_bytes(4, "big") + b"\x90" * MIB,
        b"\x93\x0c\x00\xdd" + (MIB).to_bytes(4, "big") + b"\xc4\x00" * MIB,
        b"\x93\x0a\x00\xdd" + (MIB).to_bytes(4, "big") + b"\x92\xc4\x00\xc4\x00" * (MIB // 3),
        b"\x96\x01\xc4\x00\xc4\x00\x00\xdd"
        + (MIB // 4).to_bytes(4, "big")
        + b"\x92\xc4\x00\x00" * (MIB // 4)
        + b"\xc4\x00",
        b"\x91" * MIB,
        bytes(MIB),
        b"\xff" * MIB,
    ],
    ids=["arrays", "ids", "shards", "receipt", "depth", "zeros", "ones"],
)
def test_fault_079_memory_is_in_proportion_to_what_was_sent(name, data):
    decode = DECODERS[name]
    with contextlib.suppress(FsdecloudError):
        decode(b"\xc1")
    assert peak(decode, data) < 64 * KIB + PROPORTION * len(data)
