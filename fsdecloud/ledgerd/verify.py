"""`decloud ledger verify`: recompute the whole stored chain from genesis, beside a running daemon or without. Blocking."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fsdecloud.config import Paths
from fsdecloud.errors import UsageError
from fsdecloud.ledger.network import network_id
from fsdecloud.ledger.reasons import ChainDamaged, StoredBlockDiffers
from fsdecloud.ledger.verify import verify_chain
from fsdecloud.ledgerd.setup import chain_path, load_network
from fsdecloud.store.chain import open_chain
from fsdecloud.types import BlockId


@dataclass(frozen=True, slots=True)
class Verified:
    """A chain that verifies."""

    network: bytes
    height: int
    tip: BlockId
    state_root: bytes


def offline_verify(paths: Paths, progress: Callable[[int, int], None] = lambda _done, _total: None) -> Verified:
    """Verify every block of this machine's chain: form, links, work, times, signatures, transactions, state roots, and that
    the index names just these blocks. `progress` is called with (blocks done, blocks in all).

    Raises ChainDamaged (height and reason), StoreCorrupt, or UsageError when there is no chain here.
    """
    document = load_network(paths)
    if document is None or not chain_path(paths).exists():
        raise UsageError(f"there is no chain below {paths.ledger_state}")
    with open_chain(chain_path(paths), document) as store:
        tip = store.tip()
        last = None
        for point in verify_chain(document, store.stored_blocks()):
            if store.point(point.id) != point:
                raise ChainDamaged(point.height, StoredBlockDiffers("its index entry is not what its bytes say"))
            last = point
            progress(point.height, tip.height)
        if tip.height and (last is None or last.height < tip.height):
            raise ChainDamaged(tip.height, StoredBlockDiffers("the best chain ends before its tip"))
        final = last if last is not None else tip
        return Verified(network_id(document), final.height, final.id, final.state_root)
