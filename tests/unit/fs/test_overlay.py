"""The overlay against a dictionary: freezes, late values, failed commits, scans."""

from __future__ import annotations

from blake3 import blake3
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fsdecloud.fs.keys import prefix_end
from fsdecloud.fs.overlay import Overlay
from fsdecloud.tree.node import Node, NodeMissing, decode_node
from fsdecloud.tree.update import update

KEYS = st.sampled_from([bytes([a, b]) for a in b"CDI" for b in range(12)])
BORDER = bytes(32)


class OverlayMachine(RuleBasedStateMachine):
    """Every read of the overlay equals the model's, whatever commit is in progress."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: dict[bytes, Node] = {}
        self.overlay = Overlay(self._get, b"")
        self.model: dict[bytes, bytes] = {}
        self.at_freeze: dict[bytes, bytes] = {}
        self.frozen_generation = -1
        self.journal: dict[bytes, bytes | None] = {}
        self.journaled_before: dict[bytes, bytes | None] = {}
        self.committed: dict[bytes, bytes] = {}

    def _get(self, ref: bytes) -> Node:
        try:
            return self.nodes[ref]
        except KeyError:
            raise NodeMissing(ref) from None

    def _put(self, data: bytes) -> bytes:
        ref = blake3(data).digest()
        self.nodes[ref] = decode_node(data)
        return ref

    @rule(key=KEYS, value=st.binary(min_size=1, max_size=8))
    def put(self, key: bytes, value: bytes) -> None:
        self.overlay.put(key, value)
        self.model[key] = value

    @rule(key=KEYS)
    def delete(self, key: bytes) -> None:
        self.overlay.put(key, None)
        self.model.pop(key, None)

    @rule()
    @precondition(lambda self: not self.overlay.is_committing)
    def freeze(self) -> None:
        self.frozen_generation = self.overlay.freeze()
        self.at_freeze = dict(self.model)
        self.journaled_before, self.journal = self.journal, {}

    @rule(key=KEYS, value=st.binary(min_size=1, max_size=8))
    @precondition(lambda self: self.overlay.is_committing)
    def late_value(self, key: bytes, value: bytes) -> None:
        """A value of the frozen generation is part of its commit; a newer one hides it from readers."""
        hidden = key in self.overlay.current
        self.overlay.put_at(self.frozen_generation, key, value)
        self.at_freeze[key] = value
        if not hidden:
            self.model[key] = value
        assert self.overlay.get_at(self.frozen_generation, key) == value

    @rule()
    @precondition(lambda self: self.overlay.is_committing)
    def commit(self) -> None:
        """The transaction that makes the root durable takes along what the journal lacks."""
        self.journal.update(self.overlay.take_unjournaled())
        root = update(self._get, self._put, BORDER, self.overlay.root, list(self.overlay.frozen.items()))
        self.overlay.commit(root)
        self.committed = dict(self.at_freeze)
        self.journaled_before = {}  # truncated up to the freeze
        assert dict(Overlay(self._get, root).scan(b"\0", b"\xff")) == self.at_freeze

    @rule()
    @precondition(lambda self: self.overlay.is_committing)
    def thaw(self) -> None:
        self.overlay.thaw()
        self.journal = self.journaled_before | self.journal

    @rule()
    def journal_now(self) -> None:
        """Replaying the journal's rows over the committed tree gives what readers see."""
        self.journal.update(self.overlay.take_unjournaled())
        replayed = dict(self.committed)
        for key, value in (self.journaled_before | self.journal).items():
            if value is None:
                replayed.pop(key, None)
            else:
                replayed[key] = value
        assert replayed == self.model

    @rule(keys=st.lists(KEYS, max_size=4))
    def give_back(self, keys: list[bytes]) -> None:
        taken = [key for key, _value in self.overlay.take_unjournaled()]
        self.overlay.restore_unjournaled(taken + keys)

    @invariant()
    def reads_agree(self) -> None:
        for key in self.model:
            assert self.overlay.get(key) == self.model[key]
        assert dict(self.overlay.scan(b"\0", b"\xff")) == self.model
        part = {key: value for key, value in self.model.items() if key.startswith(b"D")}
        assert list(self.overlay.scan_prefix(b"D")) == sorted(part.items())
        assert self.overlay.get(b"absent") is None


OverlayMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=40)
TestOverlay = OverlayMachine.TestCase


def test_prefix_end_carries() -> None:
    assert prefix_end(b"D\x00\xff\xff") == b"D\x01"
    assert prefix_end(b"D") == b"E"
