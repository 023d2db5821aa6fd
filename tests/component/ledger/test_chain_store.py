"""The chain store: indexes follow the best chain, a crash leaves a whole block, old states go, damage is named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fsdecloud.crypto import sign
from fsdecloud.errors import StoreCorrupt
from fsdecloud.ledger import chain, verify
from fsdecloud.ledger.blocks import block_id, decode_header
from fsdecloud.ledger.reasons import ChainDamaged
from fsdecloud.ledger.state import State, StateNodes
from fsdecloud.ledger.transactions import decode_tx, tx_id
from fsdecloud.store.chain import ChainStore, open_chain

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "ledger"))
from chainmaker import Maker, easy_network

VOLUME = bytes([2]) * 32
VOLUME_KEY = sign.public_key(VOLUME)
ALICE_KEY = sign.public_key(bytes([3]) * 32)
MAP = 1 << 28


def store_in(path: Path, make: Maker) -> ChainStore:
    return open_chain(path, make.document, map_size=MAP)


def put(store: ChainStore, make: Maker, checked: chain.CheckedBlock) -> None:
    """Store a block and follow it if it is better, as the daemon does."""
    tip = store.tip()
    switch = chain.plan_switch(store.point, tip, checked.point, None) if _leads(store, tip, checked.point) else None
    store.add(checked, make.blocks[checked.point.id], switch)


def _leads(store: ChainStore, tip: chain.Point, point: chain.Point) -> bool:
    return chain.is_better(point, tip) and (point.parent == tip.id or store.point(point.parent) is not None)


def test_blocks_and_indexes(tmp_path):
    make = Maker()
    with store_in(tmp_path / "c", make) as store:
        assert store.tip() == make.tip
        first = make.anchor(VOLUME, 1)
        put(store, make, make.add([first]))
        put(store, make, make.add([make.anchor(VOLUME, 2), make.register(bytes([4]) * 32, 1)]))
        assert store.tip() == make.tip
        assert store.best_at(2) == make.tip.id
        assert store.best_at(3) is None
        assert store.best_at(-1) is None
        assert store.best_at(0) == make.network
        identity = tx_id(decode_tx(first))
        assert store.find_tx(identity) == (first, 1, 1)
        assert [height for _, height in store.anchors(VOLUME_KEY, 0, 10)] == [1, 2]
        assert [height for _, height in store.anchors(VOLUME_KEY, 2, 10)] == [2]
        assert store.anchors(bytes(32), 1, 10) == ()
        assert store.blocks_from(0, 10, 1 << 20) == tuple(data for _, data in make.chain())
        assert len(store.blocks_from(1, 10, 10)) == 1
        assert store.headers_after([bytes(32), make.network], 10)[0] == store.header(store.best_at(1))
        assert store.headers_after([bytes(32)], 10) == ()
        state = State(StateNodes(store.node).get, store.tip().state_root)
        assert state.volume(VOLUME_KEY).sequence == 2
    with store_in(tmp_path / "c", make) as store:
        assert store.tip() == make.tip
    with open_chain(tmp_path / "c", map_size=MAP) as store:
        assert store.document == make.document


@pytest.mark.parametrize("depth", [1, 2, 6, 100])
def test_100_a_reorganisation_leaves_no_trace_of_the_old_branch(tmp_path, depth):
    make = Maker()
    with store_in(tmp_path / "c", make) as store:
        put(store, make, make.add([make.anchor(VOLUME, 1)]))
        fork = make.tip
        left = []
        for number in range(depth):
            anchor = make.anchor(VOLUME, number + 2, commitment=bytes([9]) * 32 if number == depth - 1 else None)
            left.append(anchor)
            put(store, make, make.add([anchor]))
        assert len(store.anchors(VOLUME_KEY, 1, 256)) == depth + 1
        make.tip = fork
        other = make.anchor(VOLUME, 2, lease_expiry=5)
        put(store, make, make.add([other], recipient=ALICE_KEY))
        for _ in range(depth):
            put(store, make, make.add(recipient=ALICE_KEY))
        assert store.tip() == make.tip
        assert [data for data, _ in store.anchors(VOLUME_KEY, 2, 256)] == [other]
        assert all(store.find_tx(tx_id(decode_tx(anchor))) is None for anchor in left)
        assert store.find_tx(tx_id(decode_tx(other))) is not None
        points = list(verify.verify_chain(make.document, store.stored_blocks()))
        assert points[-1] == store.tip()
        state = State(StateNodes(store.node).get, store.tip().state_root)
        assert state.account(ALICE_KEY).balance == (depth + 1) * make.document.subsidy


def test_prune_keeps_what_a_reorganisation_needs(tmp_path):
    make = Maker()
    with store_in(tmp_path / "c", make) as store:
        for number in range(1, 21):
            put(store, make, make.add([make.anchor(VOLUME, number)]))
        side = make.points[make.points[make.tip.parent].parent]
        best = make.tip
        make.tip = side
        put(store, make, make.add(recipient=ALICE_KEY))
        assert store.tip() == best
        assert store.prune(3) > 0
        for point in (best, make.points[best.parent], side, make.tip):
            state = State(StateNodes(store.node).get, point.state_root)
            assert state.volume(VOLUME_KEY) is not None
        assert store.prune(3) == 0
        old = make.points[store.best_at(2)]
        assert store.node(old.state_root) is None
        make.tip = best
        put(store, make, make.add([make.anchor(VOLUME, 21)]))


def test_115_another_network_or_no_chain_is_refused(tmp_path):
    make = Maker()
    store_in(tmp_path / "c", make).close()
    with pytest.raises(StoreCorrupt, match="another network"):
        store_in(tmp_path / "c", Maker(easy_network(salt=bytes([1]) * 32)))
    with pytest.raises(StoreCorrupt, match="no chain"):
        open_chain(tmp_path / "empty", map_size=MAP)


def test_invalid_blocks_are_remembered_but_not_without_end(tmp_path, monkeypatch):
    from fsdecloud.store import chain as module

    monkeypatch.setattr(module, "_INVALID_MAX", 3)
    make = Maker()
    with store_in(tmp_path / "c", make) as store:
        for number in range(5):
            store.mark_invalid(number.to_bytes(32), f"reason {number}")
        kept = [n for n in range(5) if store.invalid_reason(n.to_bytes(32)) is not None]
        assert kept == [0, 1, 2], "those that cost most work: an id below a target is the proof of it"
        assert store.invalid_reason((1).to_bytes(32)) == "reason 1"


def test_one_flipped_byte_on_the_disk_is_named(tmp_path):
    make = Maker()
    with store_in(tmp_path / "c", make) as store:
        for number in range(1, 6):
            put(store, make, make.add([make.anchor(VOLUME, number)]))
    stored = make.chain()
    for height, where in ((2, 0.95), (4, 0.5), (5, 0.1)):
        piece = stored[height - 1][1]
        start = int(len(piece) * where) - 20
        flip(tmp_path / "c" / "data.mdb", piece[start : start + 40])
        with open_chain(tmp_path / "c", map_size=MAP) as store, pytest.raises(ChainDamaged) as caught:
            list(verify.verify_chain(make.document, store.stored_blocks()))
        assert caught.value.height == height
        flip(
            tmp_path / "c" / "data.mdb",
            piece[start : start + 20] + bytes([piece[start + 20] ^ 1]) + piece[start + 21 : start + 40],
        )
    with open_chain(tmp_path / "c", map_size=MAP) as store:
        assert list(verify.verify_chain(make.document, store.stored_blocks()))[-1].height == 5


def flip(path: Path, piece: bytes) -> None:
    """Flip a bit in the middle of every copy of `piece`."""
    data = bytearray(path.read_bytes())
    position = data.find(piece)
    assert position >= 0
    while position >= 0:
        data[position + 20] ^= 1
        position = data.find(piece, position + 40)
    path.write_bytes(data)


CHILD = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from chainmaker import Maker
from test_chain_store import put, store_in
make = Maker()
with store_in(Path(sys.argv[1]), make) as store:
    for number in range(1, 400):
        checked = make.add([make.anchor(bytes([2]) * 32, number)])
        if store.point(checked.point.id) is None:
            put(store, make, checked)
            print(number, flush=True)
"""


def test_116_sigkill_while_connecting_blocks(tmp_path):
    """Whatever the moment: what was acknowledged is there, the state is that of its tip, and it goes on."""
    path = tmp_path / "c"
    here = Path(__file__).parent
    acknowledged = 0
    for round_ in range(4):
        environment = {**os.environ, "PYTHONPATH": str(here)}
        args = [sys.executable, "-c", CHILD, str(path), str(here.parents[1] / "unit" / "ledger")]
        with subprocess.Popen(args, stdout=subprocess.PIPE, env=environment) as child:
            assert child.stdout is not None
            for line in child.stdout:
                acknowledged = int(line)
                if acknowledged >= 12 * (round_ + 1):
                    break
            child.send_signal(signal.SIGKILL)
            rest = child.stdout.read().split()
            acknowledged = int(rest[-1]) if rest else acknowledged
        make = Maker()
        with store_in(path, make) as store:
            tip = store.tip()
            assert tip.height in (acknowledged, acknowledged + 1)
            assert list(verify.verify_chain(make.document, store.stored_blocks()))[-1] == tip
            assert len(store.anchors(VOLUME_KEY, 1, 400)) == tip.height
            assert State(StateNodes(store.node).get, tip.state_root).volume(VOLUME_KEY).sequence == tip.height


def test_headers_of_the_best_chain_by_height(tmp_path):
    make = Maker()
    with store_in(tmp_path / "c", make) as store:
        assert store.headers_from(1, 10) == ()
        for _ in range(5):
            put(store, make, make.add())
        headers = store.headers_from(1, 10)
        assert [block_id(decode_header(data)) for data in headers] == [store.best_at(height) for height in range(1, 6)]
        assert store.headers_from(0, 2) == headers[:2]
        assert store.headers_from(4, 1) == headers[3:4]
        assert store.headers_from(6, 1) == ()
