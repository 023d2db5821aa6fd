"""A state taken from others instead of computed: at which block, which of its nodes are missing, what makes them believed.

Pure. The state at the *pivot*, a block too deep for a reorganisation, is fetched node by node. Each is verified by its
reference, up to the root in the pivot's header, so that whoever gives it cannot lie; that the root is the right one is vouched
for by the work on top of it, and by nothing else until all blocks before it have been executed here. Before that they are
checked against their headers alone (`check_contents`). Not here: who is asked (`ledgerd.snapshot`).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from fsdecloud.errors import InvalidTransaction, MalformedError
from fsdecloud.ledger.blocks import Block, bytes_root, decode_block, ids_root
from fsdecloud.ledger.network import NetworkDocument
from fsdecloud.ledger.reasons import BadTransaction, BodyMismatch, WrongIdsRoot
from fsdecloud.ledger.state import EMPTY_ROOT, check_row, node_ref
from fsdecloud.ledger.transactions import Transaction, decode_tx, tx_id
from fsdecloud.limits import NODE_MAX_ITEMS
from fsdecloud.tree.node import LEVEL_MAX, Inner, child_upper, decode_node
from fsdecloud.types import TxId

PIVOT_MARGIN: Final = 4
"""Blocks between the finality depth and the pivot: others keep a state for some more (`keeper.PRUNE_MARGIN`), so that it can be
fetched while the tip moves on, and no reorganisation within the rules reaches it."""

PENDING_MAX: Final = 1 << 16
"""References that wait, about: 16 MiB. Past it nodes above the leaves are fetched one at a time."""


class WrongNode(MalformedError):
    """A node that is not the one its reference names: whoever sent it lies."""


def choose_pivot(tip_height: int, finality_depth: int) -> int | None:
    """Return the height of the block whose state to fetch when a chain has this tip; None when it is too short for one."""
    height = tip_height - finality_depth - PIVOT_MARGIN
    return height if height > 0 else None


@dataclass(frozen=True, slots=True)
class _Place:
    """What a node must be: its level and first key, and the bound below which its keys lie. The root may be anything."""

    level: int | None
    first: bytes
    upper: bytes | None


class TreeWalk:
    """Which nodes of one state tree are still to be looked at, whether they are at hand or not.

    Lowest levels first, so that few references wait whatever the size of the tree. Each node's place below its parent is
    checked, so that no tree is without end. **Invariant:** a reference that was taken is waited for until `put` or
    `give_back`, and the tree is whole when `is_done`.
    """

    def __init__(self, root: bytes) -> None:
        self._places: dict[bytes, _Place] = {}
        self._waiting: list[tuple[int, bytes]] = []
        """A heap of (level, reference)."""
        self.count = 0
        """Nodes that were put."""
        if root != EMPTY_ROOT:
            self._add(root, _Place(None, b"", None))

    @property
    def is_done(self) -> bool:
        """Whether all nodes of the tree were put."""
        return not self._places

    @property
    def is_waiting(self) -> bool:
        """Whether `take` would return something."""
        return bool(self._waiting)

    def take(self, most: int) -> tuple[bytes, ...]:
        """Return up to `most` references of nodes to get, at least one if any waits."""
        taken: list[bytes] = []
        room = PENDING_MAX - len(self._places)
        while self._waiting and len(taken) < most:
            if self._waiting[0][0] > 0:  # it brings others
                if taken and room < NODE_MAX_ITEMS:
                    break
                room -= NODE_MAX_ITEMS
            taken.append(heapq.heappop(self._waiting)[1])
        return tuple(taken)

    def give_back(self, refs: Iterable[bytes]) -> None:
        """Let references that were taken be taken again; those that were put meanwhile do not matter."""
        for ref in refs:
            if ref in self._places:
                self._push(ref)

    def put(self, ref: bytes, data: bytes) -> None:
        """Take the encoded node of a reference that was taken. Nothing changes when it raises.

        Raises WrongNode when `data` is not what `ref` names. Any other MalformedError says that the tree itself is none that
        the rules can make, which is no fault of whoever sent the node.
        """
        if node_ref(data) != ref:
            raise WrongNode("a state node that is not the one asked for")
        place = self._places[ref]
        node = decode_node(data)
        if place.level is not None and (
            node.level != place.level
            or node.keys[0] != place.first
            or (place.upper is not None and node.keys[-1] >= place.upper)
        ):
            raise MalformedError("a state node does not fit its place below its parent")
        if isinstance(node, Inner):
            if len(node.refs[0]) != len(ref):
                raise MalformedError("a state node with references of another length")
            if any(child in self._places for child in node.refs) or len(set(node.refs)) != len(node.refs):
                raise MalformedError("a state node that stands in two places")
        else:
            for key, value in zip(node.keys, node.values, strict=True):
                check_row(key, value)
        del self._places[ref]
        self.count += 1
        if isinstance(node, Inner):
            for index, child in enumerate(node.refs):
                self._add(child, _Place(node.level - 1, node.keys[index], child_upper(node, index, place.upper)))

    def _add(self, ref: bytes, place: _Place) -> None:
        self._places[ref] = place
        self._push(ref)

    def _push(self, ref: bytes) -> None:
        level = self._places[ref].level
        heapq.heappush(self._waiting, (LEVEL_MAX if level is None else level, ref))


def match_nodes(refs: Iterable[bytes], nodes: Iterable[bytes]) -> dict[bytes, bytes]:
    """Return the nodes of an answer by their references. Raises WrongNode for one that was not asked for."""
    wanted = set(refs)
    found: dict[bytes, bytes] = {}
    for data in nodes:
        ref = node_ref(data)
        if ref not in wanted:
            raise WrongNode("a state node that nobody asked for")
        found[ref] = data
    return found


@dataclass(frozen=True, slots=True)
class Contents:
    """A block that is what its header says, and not executed."""

    block: Block
    transactions: tuple[Transaction, ...]
    ids: tuple[TxId, ...]


def check_contents(document: NetworkDocument, data: bytes) -> Contents:
    """Return an encoded block whose header is known to be valid, its body checked against that: bytes, ids, size and the form
    of the transactions. Signatures and the state are not looked at.

    Raises BodyMismatch, MalformedBlock or BlockTooBig for a body that is not the header's, BadTransaction or WrongIdsRoot when
    the header itself commits to what no rule allows.
    """
    block = decode_block(data, document.block_max)
    if bytes_root(block.transactions) != block.header.bytes_root:
        raise BodyMismatch("its transactions are not those its header commits to")
    transactions: list[Transaction] = []
    for index, encoded in enumerate(block.transactions):
        try:
            transactions.append(decode_tx(encoded, document.transaction_max))
        except InvalidTransaction as exc:
            raise BadTransaction(index, exc) from exc
    ids = tuple(map(tx_id, transactions))
    if ids_root(ids) != block.header.ids_root:
        raise WrongIdsRoot("the root over its transactions' ids is not the header's")
    return Contents(block, tuple(transactions), ids)
