"""The program's own rules with the face of the second implementation (`naive.Ledger`). Nothing but the rules is imported."""

from __future__ import annotations

import sys
from pathlib import Path

from fsdecloud.errors import InvalidBlock
from fsdecloud.ledger import chain, finality, reasons
from fsdecloud.ledger.blocks import block_id, decode_block
from fsdecloud.ledger.network import decode_network
from fsdecloud.ledger.state import State, StateNodes
from fsdecloud.tree.lookup import scan
from fsdecloud.types import BlockId

sys.path.insert(0, str(Path(__file__).parent))
import naive


class Fast:
    """The program's own implementation."""

    def __init__(self, document):
        self.document = decode_network(document)
        self.tip = chain.genesis_point(self.document)
        self.points = {self.tip.id: self.tip}
        self.nodes = {}

    def add(self, data, now=None):
        """Take an encoded block and return its point, or raise naive.Refused."""
        try:
            block = decode_block(data)
            identity = BlockId(block_id(block.header))
            if identity in self.points:
                return self.points[identity]
            parent = self.points.get(block.header.parent)
            if parent is None:
                raise reasons.UnknownParent
            checked = chain.check_block(self.document, parent, block, self.nodes.get, now)
        except reasons.BadTransaction as exc:
            raise naive.Refused("BadTransaction", type(exc.reason).__name__) from None
        except InvalidBlock as exc:
            raise naive.Refused(type(exc).__name__) from None
        self.points[identity] = checked.point
        self.nodes.update(checked.nodes)
        if chain.is_better(checked.point, self.tip):
            chain.plan_switch(self.points.get, self.tip, checked.point, None)
            self.tip = checked.point
        return checked.point

    def finality(self, point):
        """Return the checkpoints after a block."""
        return finality.read_finality(self.document, point, self.nodes.get)

    def state(self, point):
        """Return the state after a block."""
        return State(StateNodes(self.nodes.get).get, point.state_root)

    def rows(self, point):
        """Return all rows of the state after a block."""
        state = self.state(point)
        return dict(scan(state._get, state._root, b"", None)) if state._root else {}


def outcome(ledger, data, now):
    """Return what became of a block: its entry or point, and why it was refused."""
    try:
        return ledger.add(data, now), ()
    except naive.Refused as exc:
        return None, exc.reasons
