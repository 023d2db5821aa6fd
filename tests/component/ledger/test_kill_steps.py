"""kill -9 at the n-th write of a daemon that connects blocks, reorganises and prunes: whatever n, the store is at a block."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from fsdecloud.ledger.blocks import claimed_id
from fsdecloud.ledgerd import keeper as keeping
from fsdecloud.ledgerd.keeper import Keeper
from fsdecloud.store.chain import open_chain

sys.path.insert(0, str(Path(__file__).parent))
from replay import contents, replayed

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "ledger"))
from chainmaker import GENESIS_TIME, Maker, easy_network

VOLUMES = [bytes([n]) * 32 for n in (2, 3)]
MAP = 1 << 28


def history():
    """A chain of ten blocks, and one of nine that leaves it after the third: a reorganisation of depth seven."""
    make = Maker(easy_network(finality_depth=8))
    for number in range(1, 4):
        make.add([make.anchor(VOLUMES[0], number)])
    fork = make.tip
    for number in range(4, 11):
        make.add([make.anchor(VOLUMES[0], number)])
    first = [data for _, data in make.chain()]
    make.tip = fork
    for number in range(1, 10):
        make.add([make.anchor(VOLUMES[1], number)])
    return make, first, [data for _, data in make.chain()][3:]


def use(path: Path) -> None:
    """What a daemon does with blocks as they come: one by one, then many at once. Run in a process of its own."""
    keeping.PRUNE_EVERY, keeping.PRUNE_MARGIN = 4, 0
    make, first, second = history()

    async def run() -> None:
        with open_chain(path, make.document, map_size=MAP) as store:
            keeper = Keeper(store, lambda: GENESIS_TIME + 100_000)
            for data in first:
                await keeper.accept(data)
                print(keeper.tip.id.hex(), flush=True)
            for blocks in (second[:4], second[4:]):
                await keeper.accept_chain(blocks)
                print(keeper.tip.id.hex(), flush=True)

    trio.run(run)


def run_killed(path: Path, call: str, when: int) -> tuple[bool, list[bytes]]:
    """Run `use`, killed at its n-th write; return whether it was, and the tips that it reported."""
    strace = ["strace", "-f", "-o", "/dev/null", "-e", f"trace={call}"]
    strace += ["-P", str(path / "data.mdb"), "-e", f"inject={call}:signal=KILL:when={when}"]
    result = subprocess.run(
        [*strace, sys.executable, __file__, str(path)], capture_output=True, text=True, timeout=120, check=False
    )
    if result.returncode == 0:
        return False, []
    assert result.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), result.stderr
    return True, [bytes.fromhex(line) for line in result.stdout.split()]


def check(path: Path, tips: list[bytes], scratch: Path) -> None:
    """The store is at the last tip that was reported, or at the one after it, and is what a replay of its chain gives."""
    make, first, second = history()
    order = [make.network, *map(claimed_id, first), claimed_id(second[-1])]
    with open_chain(path, make.document, map_size=MAP) as store:
        reached = order.index(tips[-1]) if tips else 0
        assert store.tip().id in order[reached : reached + 2]
        assert contents(store) == replayed(store, scratch)


WRITES = {"pwrite64": 36, "writev": 33, "fdatasync": 13}
"""Calls of each kind that one run makes; the long form kills at each, and once after the last."""

MOMENTS = {("pwrite64", 20), ("pwrite64", 34), ("writev", 28), ("fdatasync", 12)}
ALL = [(call, when) for call, count in WRITES.items() for when in range(1, count + 2)]


@pytest.mark.parametrize(
    ("call", "when"),
    [pytest.param(*moment, marks=() if moment in MOMENTS else pytest.mark.long) for moment in ALL],
)
def test_fault_116_killed_at_a_write(tmp_path, call, when):
    path = tmp_path / "chain"
    open_chain(path, history()[0].document, map_size=MAP).close()
    was_killed, tips = run_killed(path, call, when)
    assert was_killed or when > WRITES[call] - 4, "there are not that many writes"
    if was_killed:
        check(path, tips, tmp_path / "replayed")
    # It goes on where it was.
    result = subprocess.run(
        [sys.executable, __file__, str(path)], capture_output=True, text=True, timeout=120, check=True
    )
    check(path, [bytes.fromhex(line) for line in result.stdout.split()], tmp_path / "again")


if __name__ == "__main__":
    use(Path(sys.argv[1]))
