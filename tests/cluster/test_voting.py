"""Storage peers that bond stake through the command line and vote by themselves: real ledger daemons, real peers, kill -9."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fsdecloud.cli.client import Client
from fsdecloud.cli.stake import NO_CHECKPOINTS
from fsdecloud.config import HOME_VARIABLE
from fsdecloud.crypto import sign
from fsdecloud.crypto.wallet import address_of
from fsdecloud.errors import RemoteError
from fsdecloud.ledger.blocks import decode_block
from fsdecloud.ledger.network import NetworkDocument
from fsdecloud.ledger.staking import is_conflict
from fsdecloud.ledger.transactions import Vote, decode_tx
from fsdecloud.ledgerd.setup import load_network
from fsdecloud.peerd.setup import load_seed
from fsdecloud.wire.agentapi import Empty, Registry
from fsdecloud.wire.ledgerapi import (
    Account,
    BlockList,
    BlockQuery,
    FinalityInfo,
    FinalityQuery,
    KeyQuery,
    StakeInfo,
)
from fsdecloud.wire.peerapi import PeerdStatus
from tests.cluster.ledgernet import DEADLINE, Daemon, agree, anchor, quick_network, wait_until
from tests.cluster.test_ledger_reorg import OTHER, prepare

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "ledger"))
from chainmaker import TWO, Voting

VOLUME = bytes([2]) * 32
INTERVAL = 4
STAKE = 2000
NETWORK = (
    "--embedded --first-work 1024 --easiest-work 1024 --stamp-bits 4",
    "--finality-depth 8 --unbond-delay 64 --least-bond 1000",
)


def decloud(home: Path, *args: str, code: int = 0) -> str:
    """Run a command in a home; return what it printed, or its error when one is expected."""
    done = subprocess.run(
        [sys.executable, "-m", "fsdecloud.cli.main", *args],
        env={**os.environ, HOME_VARIABLE: str(home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, (args, done.stdout, done.stderr)
    return done.stderr if code else done.stdout


class Peer:
    """A storage peer process in the home of a ledger daemon."""

    def __init__(self, ledger: Daemon, name: str) -> None:
        self.ledger, self.name = ledger, name
        self.process: subprocess.Popen[bytes] | None = None
        self.log = ledger.home.with_name(f"peer-{name}.log")
        decloud(ledger.home, "peer", "init", name, "--listen", "127.0.0.1:0", "--quota", "64M")
        self.id = sign.public_key(load_seed(ledger.paths, name))

    def start(self) -> None:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fsdecloud.peerd", "run", "--name", self.name],
                env={**os.environ, HOME_VARIABLE: str(self.ledger.home)},
                stderr=log,
            )

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(60)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def status(self) -> PeerdStatus:
        with Client(self.ledger.paths.socket(f"peer-{self.name}")) as client:
            return client.call("status", Empty(), PeerdStatus)

    def is_up(self) -> bool:
        """Whether it answers: a socket is left behind by a kill."""
        try:
            return self.status().pid > 0
        except RemoteError:
            return False

    def stake(self) -> StakeInfo | None:
        return finality(self.ledger, self.id).stake

    def balance(self) -> int:
        found: Account = self.ledger.call("account", KeyQuery(self.id), Account)
        return found.balance


class World:
    """Two ledger daemons, of which the first mines what there is to record, and three peers."""

    def __init__(self, base: Path) -> None:
        file = base / "network"
        genesis = ["--genesis-time", str(int(time.time()) - 3600)]
        decloud(base, "ledger", "new-network", str(file), *" ".join(NETWORK).split(), *genesis, "--checkpoint-interval",
                str(INTERVAL), "--least-stake", str(3 * STAKE))  # fmt: skip
        self.daemons = [Daemon(base / "a"), Daemon(base / "b")]
        self.peers: list[Peer] = []
        self.sequence = 0
        a, b = self.daemons
        try:
            a.start("--network", str(file))
            b.start("--bootstrap", a.url, "--no-mine")
            document = load_network(a.paths)
            assert document is not None
            self.document: NetworkDocument = document
            for ledger, name in ((a, "p1"), (a, "p2"), (b, "p3")):
                self.peers.append(Peer(ledger, name))
                self.peers[-1].start()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for one in (*self.peers, *self.daemons):
            one.close()

    def add(self) -> None:
        """Have something recorded, and wait until a block has it."""
        self.sequence += 1
        a = self.daemons[0]
        a.submit(anchor(self.document, VOLUME, self.sequence))
        wait_until(lambda: len(a.anchors(VOLUME)) >= self.sequence, "a block for an anchor")

    def drive(self, condition: Any, what: str) -> None:
        """Mine until it is so, more slowly the longer it takes: voters need a moment for each checkpoint."""
        end, pause = time.monotonic() + 2 * DEADLINE, 0.02
        while not condition():
            assert time.monotonic() < end, f"still not after {self.daemons[0].status().height} blocks: {what}"
            self.add()
            time.sleep(pause)
            pause = min(1.0, 1.2 * pause)

    def votes(self, daemon: Daemon) -> list[Vote]:
        """All that a daemon's chain has."""
        found: list[Vote] = []
        height = 1
        while blocks := daemon.call("blocks", BlockQuery(height, 256), BlockList).blocks:
            for data in blocks:
                found += [tx for tx in map(decode_tx, decode_block(data).transactions) if isinstance(tx, Vote)]
            height += len(blocks)
        return found


def finality(daemon: Daemon, peer: bytes = b"") -> FinalityInfo:
    found: FinalityInfo = daemon.call("finality", FinalityQuery(peer), FinalityInfo)
    return found


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_peers_bond_vote_and_make_blocks_final(world: World) -> None:
    """And one that is killed -9 again and again goes on, and never signs two votes that conflict."""
    a, b = world.daemons
    first, second, third = world.peers

    # Errors say what to do.
    wait_until(lambda: all(len(d.call("registry", Empty(), Registry).peers) == 3 for d in (a, b)), "all registered")
    assert "name one with --peer" in decloud(a.home, "ledger", "bond", "5", code=1)
    poor = decloud(a.home, "ledger", "bond", str(STAKE), "--peer", "p1", code=1)
    assert "NotEnoughMoney" in poor
    assert f"decloud wallet send {address_of(first.id)} AMOUNT" in poor
    assert "NotBonded" in decloud(b.home, "ledger", "unbond", code=1)

    # Money, stake, votes.
    for peer in world.peers:
        decloud(a.home, "wallet", "send", "--miner", peer.id.hex(), str(2 * STAKE))
        wait_until(lambda peer=peer: peer.balance() == 2 * STAKE, "its money is in a block")
    for peer, option in ((first, ("--peer", "p1")), (second, ("--peer", "p2")), (third, ())):
        decloud(peer.ledger.home, "ledger", "bond", str(STAKE), *option)
        wait_until(lambda peer=peer: (found := peer.stake()) is not None and found.amount == STAKE, "it has a stake")
    assert first.balance() == STAKE - world.document.minimum_fee
    world.drive(lambda: finality(a).final.height > 0, "a block is final")
    wait_until(lambda: finality(b).final == finality(a).final, "the other daemon says the same")

    # Killed at whatever point it is: two thirds of the stake go on without it, and it goes on after its start.
    for _ in range(2):
        for _ in range(INTERVAL):
            world.add()
        first.kill()
        before = finality(a).final.height
        world.drive(lambda before=before: finality(a).final.height > before, "the others go on")
        reached = finality(a).newest.height
        first.start()
        wait_until(first.is_up, "it serves again")
        world.drive(lambda reached=reached: first.status().last_vote > reached, "it votes again")
    votes = world.votes(a)
    assert {vote.peer for vote in votes} == {peer.id for peer in world.peers}
    assert len(votes) >= 10
    assert not any(is_conflict(*pair) for pair in itertools.combinations(votes, 2))
    assert not any(peer.status().last_error for peer in world.peers)

    # What people see of it.
    wait_until(lambda: agree(a, b), "both have one tip")
    shown = json.loads(decloud(b.home, "ledger", "finality", "--json"))
    assert shown["final"] == {"height": finality(a).final.height, "id": finality(a).final.id.hex()}
    assert (shown["interval"], shown["front"], shown["bonded"], shown["voter_count"]) == (INTERVAL, *[3 * STAKE] * 2, 3)
    [own] = shown["peers"]
    assert (own["name"], own["id"], own["stake"], own["votes"]) == ("p3", third.id.hex(), STAKE, True)
    assert own["last_vote"] == max(vote.target_height for vote in votes if vote.peer == third.id)
    assert f"final up to block {shown['final']['height']} of " in decloud(b.home, "ledger", "finality")
    assert json.loads(decloud(b.home, "peer", "status", "--json"))["stake"] == STAKE
    assert f"  stake: {STAKE} bonded; last vote for block {third.status().last_vote}\n" in decloud(
        b.home, "peer", "status"
    )
    status = subprocess.run(
        [sys.executable, "-m", "fsdecloud.cli.main", "status", "--json"],
        env={**os.environ, HOME_VARIABLE: str(b.home)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert json.loads(status.stdout)["final_height"] == shown["final"]["height"]

    # A stake that leaves.
    decloud(b.home, "ledger", "unbond")
    wait_until(lambda: (found := third.stake()) is not None and found.release > 0, "its stake leaves")
    assert "StakeLocked" in decloud(b.home, "ledger", "bond", str(STAKE), code=1)
    assert "leaves, paid back at block" in decloud(b.home, "ledger", "finality")


def test_in_a_network_without_checkpoints_one_sentence_says_so(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "home", quick_network())
    try:
        daemon.start()
        decloud(daemon.home, "peer", "init", "a", "--listen", "127.0.0.1:0", "--quota", "64M")
        shown = decloud(daemon.home, "ledger", "finality")
        assert shown == f"{NO_CHECKPOINTS}\n"
        assert json.loads(decloud(daemon.home, "ledger", "finality", "--json"))["final"] is None
        for words in (["bond", "1000"], ["unbond"]):
            assert NO_CHECKPOINTS in decloud(daemon.home, "ledger", *words, code=1)
    finally:
        daemon.close()


def test_fault_101_more_work_does_not_take_back_a_final_block(tmp_path: Path) -> None:
    """A chain with many more blocks that parted before the final one and has no votes is met: the node stays where it is, and
    who had that chain follows the votes."""
    make = Voting()
    make.epoch()
    fork = make.tip
    for _ in range(4):
        make.epoch(*TWO)
    final = make.finality().final
    assert final.height > fork.height
    honest = Daemon(tmp_path / "honest")
    prepare(honest, make)
    tip = make.tip
    make.tip = fork
    while make.tip.height < tip.height + 12:
        make.add(recipient=OTHER)
    miner = Daemon(tmp_path / "miner")
    prepare(miner, make)
    daemons = (honest, miner)
    try:
        miner.start("--no-mine")
        honest.start("--no-mine", "--bootstrap", miner.url)
        assert int.from_bytes(miner.status().work) > int.from_bytes(honest.status().work)
        wait_until(lambda: miner.status().tip == tip.id, "the other goes over to what the stake made final")
        assert honest.status().tip == tip.id
        assert finality(honest).final.id == final.id
        for daemon in daemons:
            daemon.stop()
    finally:
        for daemon in daemons:
            daemon.close()
