"""The ledger daemon's chain on a disk that is full, and under system calls that fail: at a block or at the one before."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

import pytest

from fsdecloud.crypto import sign
from fsdecloud.errors import StoreError, StoreFull
from fsdecloud.ledger import chain, verify
from fsdecloud.ledger.state import State, StateNodes
from fsdecloud.store.chain import ChainStore, open_chain
from tests.power.test_full_and_failing_lmdb import MOMENTS, fill, run_with_faults

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "ledger"))
from chainmaker import Maker

SEED = bytes([2]) * 32
KEY = sign.public_key(SEED)
MAP = 1 << 28


def add(store: ChainStore, make: Maker, checked: chain.CheckedBlock) -> None:
    """Store a block and move to it, as the daemon does."""
    switch = chain.plan_switch(store.point, store.tip(), checked.point, None)
    store.add(checked, make.blocks[checked.point.id], switch)


def check_chain(store: ChainStore) -> None:
    """The whole chain is there, with its indexes and its state."""
    height = store.tip().height
    points = list(verify.verify_chain(store.document, store.stored_blocks()))
    assert [point.height for point in points if point.height] == list(range(1, height + 1))
    state = State(StateNodes(store.node).get, store.tip().state_root)
    assert [at for _data, at in store.anchors(KEY, 1, height + 5)] == list(range(1, height + 1))
    assert (state.volume(KEY).sequence if height else 0) == height


def test_fault_013_a_ledger_on_a_full_disk(small_disk):
    make = Maker()
    with open_chain(small_disk / "ledger", make.document, map_size=MAP) as store:
        add(store, make, make.add([make.anchor(SEED, 1)]))
        fill(small_disk / "filler")
        for number in range(2, 500):
            before = make.tip
            checked = make.add([make.anchor(SEED, number)])
            try:
                add(store, make, checked)
            except StoreFull:
                break
        else:
            raise AssertionError("it was never full")
        assert store.tip() == before
        check_chain(store)
        (small_disk / "filler").unlink()
        add(store, make, checked)
        check_chain(store)
    with open_chain(small_disk / "ledger", map_size=MAP) as store:
        assert store.tip() == make.tip
        check_chain(store)


def use(base: Path) -> None:
    """Run in a process of its own, under strace. A block that could not be stored is tried again, as when it is sent again."""
    logging.disable()
    make = Maker()
    done, errors = [], []
    store = open_chain(base / "ledger", map_size=MAP)
    for number in range(1, 13):
        checked = make.add([make.anchor(SEED, number)])
        for _ in range(5):
            try:
                add(store, make, checked)
            except StoreError as exc:
                errors.append((str(exc), isinstance(exc, StoreFull)))
                if "earlier write failed" in str(exc):  # only a new start knows what the disk holds
                    store.close()
                    store = open_chain(base / "ledger", map_size=MAP)
            else:
                done.append(number)
                break
        else:
            break
    print(json.dumps([{"ledger": done}, errors]))
    sys.stdout.flush()
    os._exit(0)  # killed: nothing is tidied up


@pytest.mark.parametrize("when", [*MOMENTS, *(pytest.param(str(n), marks=pytest.mark.long) for n in range(8, 40, 3))])
@pytest.mark.parametrize(("calls", "code"), [("fdatasync", "EIO"), ("pwrite64", "EIO"), ("pwrite64", "EDQUOT")])
def test_fault_015_a_ledger_whose_calls_fail(tmp_path, calls, code, when):
    open_chain(tmp_path / "ledger", Maker().document, map_size=MAP).close()
    done, errors = run_with_faults(tmp_path, calls, code, when, __name__)
    assert errors or when not in MOMENTS, "the fault was never met"  # there are not that many calls
    assert all(is_full == (code == "EDQUOT") for text, is_full in errors if "earlier write failed" not in text), errors
    if "+" not in when:
        assert done["ledger"] == list(range(1, 13)), "one failure is got over"
    with open_chain(tmp_path / "ledger", map_size=MAP) as store:
        assert store.tip().height - max(done["ledger"], default=0) in (0, 1)
        check_chain(store)


if __name__ == "__main__":
    use(Path(sys.argv[1]))
