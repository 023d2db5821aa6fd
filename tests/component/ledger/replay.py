"""What a chain store holds, byte by byte, to compare one with a fresh replay of the same chain."""

from __future__ import annotations

import sys
from pathlib import Path

from fsdecloud.ledger.blocks import decode_block
from fsdecloud.ledger.chain import Switch, check_block
from fsdecloud.ledger.state import reachable_nodes
from fsdecloud.store.chain import ChainStore, open_chain

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "ledger"))

INDEXES = ("_best", "_txs", "_anchors")


def contents(store: ChainStore) -> dict[str, object]:
    """The tip, every index of the best chain, and every node of the tip's state."""
    found: dict[str, object] = {"tip": store.tip()}
    with store._env.read() as txn:
        for name in INDEXES:
            with txn.cursor(db=getattr(store, name)) as cursor:
                found[name] = list(cursor)
        with txn.cursor(db=store._accounts._accounts) as cursor:
            found["accounts"] = list(cursor)
    refs = reachable_nodes(store.node, [store.tip().state_root])
    found["state"] = {ref: store.node(ref) for ref in refs}
    return found


def replayed(store: ChainStore, path: Path) -> dict[str, object]:
    """The contents of a new store at `path` that got the same best chain, block by block, and nothing else."""
    with open_chain(path, store.document, map_size=1 << 28) as fresh:
        for _, data in store.stored_blocks():
            tip = fresh.tip()
            checked = check_block(store.document, tip, decode_block(data), fresh.node, None)
            fresh.add(checked, data, Switch(tip, (), (checked.point,)))
        return contents(fresh)
