"""Frames of the local sockets: any cut, any bytes, every error class."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdecloud import errors
from fsdecloud.errors import FsdecloudError, InvalidBlock, MalformedError, RemoteError, RemoteProtocolError, UsageError
from fsdecloud.wire.rpc import Frame, FrameKind, FrameReader, body_to_error, encode_frame, error_to_body

frames = st.builds(
    Frame, st.integers(0, 2**63), st.sampled_from(FrameKind), st.text(max_size=64), st.binary(max_size=300)
)


@given(st.lists(frames, max_size=8), st.lists(st.integers(1, 50), min_size=1))
def test_frames_survive_any_cut(sent, sizes):
    data = b"".join(map(encode_frame, sent))
    reader, got, position, turn = FrameReader(), [], 0, 0
    while position < len(data):
        size = sizes[turn % len(sizes)]
        got += reader.feed(data[position : position + size])
        position += size
        turn += 1
    assert got == sent
    assert reader.is_between_frames


@given(st.binary(max_size=200))
def test_fault_120_any_bytes_give_frames_or_a_protocol_error(data):
    with contextlib.suppress(RemoteProtocolError):
        FrameReader(100).feed(data)


def test_fault_79_a_length_bomb_is_refused_before_its_bytes_come():
    with pytest.raises(RemoteProtocolError, match="4294967295 bytes"):
        FrameReader().feed(b"\xff\xff\xff\xff")


def test_too_large_a_frame_is_our_own_mistake():
    with pytest.raises(MalformedError, match="at most"):
        encode_frame(Frame(1, FrameKind.REQUEST, "m", bytes(5 << 20)))


def all_errors(kind=FsdecloudError):
    yield kind
    for sub in kind.__subclasses__():
        if sub.__module__ == "fsdecloud.errors":
            yield from all_errors(sub)


@pytest.mark.parametrize("kind", set(all_errors()), ids=lambda k: k.__name__)
def test_every_error_arrives_as_itself(kind):
    got = body_to_error(error_to_body(kind("why, exactly")))
    assert type(got) is kind
    assert "why, exactly" in str(got)


def test_a_usage_error_keeps_its_exit_code():
    assert body_to_error(error_to_body(UsageError("no", 32))).exit_code == 32


def test_a_subclass_arrives_as_its_nearest_known_class():
    class BadWork(InvalidBlock):
        pass

    assert type(body_to_error(error_to_body(BadWork("low")))) is InvalidBlock


def test_an_unknown_error_is_a_remote_error():
    body = error_to_body(RemoteError("x")).replace(b"RemoteError", b"NotAnErrorX")
    assert "NotAnErrorX: x" in str(body_to_error(body))
    assert type(body_to_error(b"\xc1")) is RemoteProtocolError
    assert errors.RemoteError is RemoteError
