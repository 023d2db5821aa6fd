"""Is a stored chain what its first block promises: every rule, from genesis on, with nothing taken on trust.

Pure. Not here: where the blocks come from (`store.chain`), and who asks (`ledgerd.verify`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from fsdecloud.errors import InvalidBlock
from fsdecloud.ledger.blocks import decode_block, decode_header
from fsdecloud.ledger.chain import Point, check_block, check_header, genesis_point
from fsdecloud.ledger.network import NetworkDocument
from fsdecloud.ledger.reasons import ChainDamaged, StoredBlockDiffers
from fsdecloud.ledger.state import reachable_nodes
from fsdecloud.tree.node import NodeMissing
from fsdecloud.types import BlockId

_SWEEP_ABOVE: Final = 4096
"""State nodes in memory (about 40 MiB) past which those of older states are dropped."""


def verify_headers(document: NetworkDocument, headers: Iterable[bytes], now: int | None = None) -> Iterator[Point]:
    """Verify the headers from height 1 on and yield the point of each: work, difficulty, times, links.

    Raises ChainDamaged with the height and the reason of the first difference.
    """
    point = genesis_point(document)
    for data in headers:
        try:
            point = check_header(document, point, decode_header(data), now)
        except InvalidBlock as exc:
            raise ChainDamaged(point.height + 1, exc) from exc
        yield point


def verify_pruned(
    document: NetworkDocument,
    start: Point,
    blocks: Iterable[tuple[BlockId | None, bytes]],
    read_node: Callable[[bytes], bytes | None],
) -> Iterator[Point]:
    """Verify the blocks after `start`, whose state need not be known, and yield the point of each: in full where the state
    before it is at hand (`read_node`), else that header and body belong together and every signature.

    Raises ChainDamaged.
    """
    point = start
    for identity, data in blocks:
        try:
            block = decode_block(data, document.block_max)
            try:
                after = check_block(document, point, block, read_node, None).point
            except NodeMissing:  # body and signatures are checked before any state is read
                after = check_header(document, point, block.header, None)
            if identity is not None and after.id != identity:
                raise StoredBlockDiffers(f"it is block {after.id.hex()}, known as {identity.hex()}")
        except InvalidBlock as exc:
            raise ChainDamaged(point.height + 1, exc) from exc
        point = after
        yield point


def verify_chain(
    document: NetworkDocument, blocks: Iterable[tuple[BlockId | None, bytes]], now: int | None = None
) -> Iterator[Point]:
    """Verify the blocks from height 1 on and yield the point of each: work, difficulty, times, links, body roots,
    signatures, every transaction, rewards, state roots.

    Each item is the id under which the block is known (None: by its place alone) and its bytes. Raises ChainDamaged with
    the height and the reason of the first difference.
    """
    point = genesis_point(document)
    nodes: dict[bytes, bytes] = {}
    sweep_above = _SWEEP_ABOVE
    for identity, data in blocks:
        height = point.height + 1
        try:
            block = decode_block(data, document.block_max)
            checked = check_block(document, point, block, nodes.get, now)
            if identity is not None and checked.point.id != identity:
                raise StoredBlockDiffers(f"it is block {checked.point.id.hex()}, known as {identity.hex()}")
        except InvalidBlock as exc:
            raise ChainDamaged(height, exc) from exc
        point = checked.point
        nodes.update(checked.nodes)
        if len(nodes) > sweep_above:
            live = reachable_nodes(nodes.get, (point.state_root,))
            nodes = {ref: nodes[ref] for ref in live}
            sweep_above = max(_SWEEP_ABOVE, 2 * len(nodes))
        yield point
