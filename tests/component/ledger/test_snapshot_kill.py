"""kill -9 at the n-th write of a daemon that begins with a snapshot: whatever n, it goes on and has what a replay gives."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from fsdecloud.ledgerd import download, history, snapshot
from fsdecloud.ledgerd.snapshot import prepare_snapshot
from fsdecloud.store.chain import open_chain

sys.path.insert(0, str(Path(__file__).parent))
from nodes import Node, connected, until_so
from replay import contents, replayed

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "ledger"))
from chainmaker import Maker, easy_network

MAP = 1 << 28
HEIGHT = 30


def chain():
    make = Maker(easy_network(finality_depth=5))
    for number in range(1, HEIGHT + 1):
        more = [make.register(bytes([number, n]) * 16, 1) for n in range(12)] if number < 6 else []
        make.add([make.anchor(bytes([2]) * 32, number), *more])
    return make


def use(path: Path) -> None:
    """What a new daemon does beside one that has the chain, in small steps. Run in a process of its own."""
    snapshot.NODES_AT_ONCE, download.CONNECT_MAX = 3, 5
    history.EXECUTE_BATCH, history.REST = 5, 0.0
    make = chain()

    async def run() -> None:
        with (
            trio.fail_after(60),
            open_chain(path, make.document, map_size=MAP) as store,
            open_chain(path.with_name("other"), make.document, map_size=MAP) as other_store,
        ):
            prepare_snapshot(store, True)
            node, other = Node(store, 1), Node(other_store, 2)
            await other.keeper.accept_chain([data for _, data in make.chain()])
            async with trio.open_nursery() as nursery, connected(node, other):
                nursery.start_soon(node.hub.sync.run)
                nursery.start_soon(node.hub.history.run)
                await until_so(lambda: (mark := store.snapshot()) is not None and mark.is_settled)
                await until_so(lambda: node.keeper.tip == make.tip)
                nursery.cancel_scope.cancel()

    trio.run(run)


def run_killed(path: Path, call: str, when: int) -> bool:
    """Run `use`, killed at its n-th write; return whether it was."""
    strace = ["strace", "-f", "-o", "/dev/null", "-e", f"trace={call}"]
    strace += ["-P", str(path / "data.mdb"), "-e", f"inject={call}:signal=KILL:when={when}"]
    result = subprocess.run(
        [*strace, sys.executable, __file__, str(path)], capture_output=True, text=True, timeout=120, check=False
    )
    if result.returncode == 0:
        return False
    assert result.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), result.stderr
    return True


WRITES = {"pwrite64": 70, "fdatasync": 17}
"""Calls of each kind that one run makes, about; the long form kills at each."""

MOMENTS = {("pwrite64", 8), ("pwrite64", 20), ("pwrite64", 34), ("fdatasync", 14)}
ALL = [(call, when) for call, count in WRITES.items() for when in range(1, count + 2)]


@pytest.mark.parametrize(
    ("call", "when"),
    [pytest.param(*moment, marks=() if moment in MOMENTS else pytest.mark.long) for moment in ALL],
)
def test_fault_116_killed_at_a_write_of_a_snapshot(tmp_path, call, when):
    path = tmp_path / "chain"
    make = chain()
    open_chain(path, make.document, map_size=MAP).close()
    was_killed = run_killed(path, call, when)
    assert was_killed or when > WRITES[call] // 2, "there are not that many writes"
    subprocess.run([sys.executable, __file__, str(path)], capture_output=True, text=True, timeout=120, check=True)
    with open_chain(path, make.document, map_size=MAP) as store:
        assert store.tip() == make.tip
        assert store.snapshot().is_settled
        assert not store.snapshot().fault
        assert contents(store) == replayed(store, tmp_path / "replayed")


if __name__ == "__main__":
    use(Path(sys.argv[1]))
