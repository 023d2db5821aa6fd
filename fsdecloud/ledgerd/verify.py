"""`decloud ledger verify`: recompute the whole stored chain from genesis, beside a running daemon or without. Blocking."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fsdecloud.config import Paths
from fsdecloud.errors import UsageError
from fsdecloud.ledger.chain import Point, genesis_point
from fsdecloud.ledger.network import NetworkDocument, network_id
from fsdecloud.ledger.reasons import ChainDamaged, StoredBlockDiffers
from fsdecloud.ledger.verify import verify_chain, verify_headers, verify_pruned
from fsdecloud.ledgerd.setup import chain_path, light_path, load_config, load_network
from fsdecloud.store.chain import ChainStore, open_chain
from fsdecloud.types import BlockId


def _points(store: ChainStore, document: NetworkDocument) -> Iterator[Point]:
    """Yield the point of each block, verified: of pruned ones by their headers, of the rest as far as states are kept."""
    first = store.first_body()
    if first == 1:
        yield from verify_chain(document, store.stored_blocks())
        return
    point = genesis_point(document)
    for point in verify_headers(document, store.stored_headers(first - 1)):
        yield point
    yield from verify_pruned(document, point, store.stored_blocks(), store.node)


@dataclass(frozen=True, slots=True)
class Verified:
    """A chain that verifies."""

    network: bytes
    height: int
    tip: BlockId
    state_root: bytes


def offline_verify(paths: Paths, progress: Callable[[int, int], None] = lambda _done, _total: None) -> Verified:
    """Verify every block of this machine's chain: form, links, work, times, signatures, transactions, state roots, and that
    the index names just these blocks. Of pruned blocks, and all of a light daemon's, the headers; of those just after pruned
    ones what needs no state. `progress` is called with (blocks done, blocks in all).

    Raises ChainDamaged (height and reason), StoreCorrupt, or UsageError when there is no chain here.
    """
    document = load_network(paths)
    is_light = load_config(paths).light
    path = light_path(paths) if is_light else chain_path(paths)
    if document is None or not path.exists():
        raise UsageError(f"there is no chain below {paths.ledger_state}")
    with open_chain(path, document) as store:
        tip = store.tip()
        last = None
        points = verify_headers(document, store.stored_headers(tip.height)) if is_light else _points(store, document)
        for point in points:
            if store.point(point.id) != point:
                raise ChainDamaged(point.height, StoredBlockDiffers("its index entry is not what its bytes say"))
            last = point
            progress(point.height, tip.height)
        if tip.height and (last is None or last.height < tip.height):
            raise ChainDamaged(tip.height, StoredBlockDiffers("the best chain ends before its tip"))
        final = last if last is not None else tip
        return Verified(network_id(document), final.height, final.id, final.state_root)
