"""Ledger daemons as they run: they sync, agree, survive a partition and kill -9, rest when there is nothing to record."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from fsdecloud.config import HOME_VARIABLE
from fsdecloud.crypto import sign
from fsdecloud.errors import InvalidTransaction, RemoteError
from fsdecloud.ledger.network import decode_network, encode_network, network_id
from fsdecloud.ledger.reasons import ChainDamaged
from fsdecloud.ledger.transactions import decode_tx, sign_operate, sign_register, sign_transfer, tx_id
from fsdecloud.ledgerd.setup import chain_path, load_config, save_config
from fsdecloud.ledgerd.verify import offline_verify
from fsdecloud.wire.agentapi import Empty, Registry
from fsdecloud.wire.ledgerapi import (
    Account,
    BlockList,
    BlockQuery,
    KeyQuery,
    NetworkInfo,
    TxFound,
    TxQuery,
    VolumeAnchor,
)
from tests.cluster.harness import DECLOUD
from tests.cluster.ledgernet import Daemon, agree, anchor, quick_network, wait_until

VOLUME = bytes([2]) * 32
OTHER = bytes([3]) * 32


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[list[Daemon]]:
    """Three daemons of one network, not started; the second and third know nothing of it yet."""
    document = quick_network()
    made = [Daemon(tmp_path / "a", document), Daemon(tmp_path / "b"), Daemon(tmp_path / "c")]
    try:
        yield made
    finally:
        for daemon in made:
            daemon.close()


def document_of(daemon: Daemon) -> object:
    return decode_network(daemon.call("network", Empty(), NetworkInfo).document)


def test_three_daemons_sync_from_genesis_and_agree(daemons: list[Daemon]) -> None:
    a, b, c = daemons
    a.start()
    document = document_of(a)
    for sequence in range(1, 6):
        a.submit(anchor(document, VOLUME, sequence))
        wait_until(lambda s=sequence: a.status().height >= s, "a block for each anchor")
    b.start("--bootstrap", a.url, "--no-mine")
    c.start("--bootstrap", b.url, "--no-mine")
    wait_until(lambda: agree(a, b, c), "all three have one tip")
    # A transaction given to the last reaches the only miner, and its block everybody.
    seed = bytes([5]) * 32
    registered = c.submit(sign_register(network_id(document), seed, "wss://127.0.0.1:7000", 1 << 30, 1, bits=4))
    wait_until(lambda: a.status().height == 6 and agree(a, b, c), "the registration is in a block everywhere")
    for daemon in daemons:
        [peer] = daemon.call("registry", Empty(), Registry).peers
        assert (peer.id, peer.capacity, peer.sequence, peer.operator) == (sign.public_key(seed), 1 << 30, 1, b"")
        found = daemon.call("tx", TxQuery(registered.id), TxFound)
        assert (found.height, found.index, found.confirmations) == (6, 1, 1)
        latest = daemon.call("volume", KeyQuery(sign.public_key(VOLUME)), VolumeAnchor)
        assert decode_tx(latest.tx).sequence == 5
        assert len(daemon.anchors(VOLUME)) == 5
        assert len(daemon.call("blocks", BlockQuery(0, 256), BlockList).blocks) == 6
    rewards = [daemon.call("account", KeyQuery(sign.public_key(key_of(daemon))), Account).balance for daemon in daemons]
    assert rewards == [6 * document.subsidy, 0, 0]
    paid = sign_transfer(network_id(document), key_of(a), sign.public_key(VOLUME), 1000, 5, 0)
    b.submit(paid)
    wait_until(lambda: a.status().height == 7 and agree(a, b, c), "the transfer is in a block everywhere")
    assert c.call("account", KeyQuery(sign.public_key(VOLUME)), Account) == Account(1000, 0)
    c.submit(sign_operate(network_id(document), seed, VOLUME, 1, bits=4))
    wait_until(lambda: a.status().height == 8 and agree(a, b, c), "the declaration is in a block everywhere")
    for daemon in daemons:
        [peer] = daemon.call("registry", Empty(), Registry).peers
        assert peer.operator == sign.public_key(VOLUME)
    for daemon in daemons:
        daemon.stop()
        verified = offline_verify(daemon.paths)
        assert verified.height == 8


def key_of(daemon: Daemon) -> bytes:
    return (daemon.paths.ledger_state / "node.key").read_bytes()


def test_100_reorganisation_after_a_partition(daemons: list[Daemon]) -> None:
    """Two sides mine on; when they meet, the one with more work stays, and what the other had recorded alone comes back."""
    a, b, c = daemons
    a.start()
    document = document_of(a)
    b = daemons[1] = Daemon(b.home, document)
    b.start()
    for sequence in range(1, 4):
        a.submit(anchor(document, VOLUME, sequence, mark=1))
        wait_until(lambda s=sequence: a.status().height >= s, "a block on one side")
    lonely = [anchor(document, OTHER, sequence) for sequence in (1, 2)]
    for number, tx in enumerate(lonely, 1):
        b.submit(tx)
        wait_until(lambda n=number: b.status().height >= n, "a block on the other side")
    both = anchor(document, VOLUME, 1, mark=2)
    assert b.status().tip != a.status().tip
    b.stop()
    b.start("--bootstrap", a.url, "--no-mine")  # or both mine what comes back, and the longer chain may be either
    wait_until(lambda: agree(a, b) and len(a.anchors(OTHER)) == 2, "one chain, with what the losing side had recorded")
    c.start("--bootstrap", b.url, "--no-mine")
    wait_until(lambda: agree(a, b, c), "a newcomer gets the same chain")
    for daemon in daemons:
        assert daemon.anchors(OTHER) == lonely
        assert [decode_tx(tx).commitment[-1] for tx in daemon.anchors(VOLUME)] == [1, 1, 1]
        with pytest.raises(InvalidTransaction, match="WrongPredecessor"):
            daemon.submit(both)
        daemon.stop()
        offline_verify(daemon.paths)


def test_116_kill_9_and_restart(daemons: list[Daemon]) -> None:
    a, b, _ = daemons
    a.start()
    document = document_of(a)
    b.start("--bootstrap", a.url, "--no-mine")
    sent: list[bytes] = []
    for turn in range(3):
        for _ in range(4):
            sent.append(anchor(document, VOLUME, len(sent) + 1))
            a.submit(sent[-1])
        sequence = len(sent)
        wait_until(lambda s=sequence: a.status().height >= s - 2, "blocks are being mined")
        before = a.status()
        miners = a.children()
        a.kill()
        wait_until(lambda m=miners: not any(map(alive, m)), "the mining process ends with its daemon")
        if turn == 1:
            b.kill()
        a.start()
        after = a.status()
        assert after.height >= before.height, "what was reported is there"
        assert after.url == before.url, "it is found again at the same address"
        if turn == 1:
            b.start("--no-mine")
        recorded = len(a.anchors(VOLUME))
        for tx in sent[recorded:]:  # the outbox sends again what the mempool lost; the other daemon may still have it
            a.submit(tx)
        wait_until(lambda s=sequence: a.status().height >= s, "everything is recorded")
    wait_until(lambda: agree(a, b), "the other found it again and agrees")
    assert b.anchors(VOLUME) == a.anchors(VOLUME)
    for daemon in (a, b):
        daemon.stop()
        assert offline_verify(daemon.paths).height == sequence


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_one_flipped_byte_is_named_with_height_and_reason(daemons: list[Daemon]) -> None:
    a = daemons[0]
    a.start()
    document = document_of(a)
    for sequence in range(1, 5):
        a.submit(anchor(document, VOLUME, sequence))
        wait_until(lambda s=sequence: a.status().height >= s, "a block for each anchor")
    blocks = a.call("blocks", BlockQuery(1, 256), BlockList).blocks
    a.stop()
    progress: list[tuple[int, int]] = []
    assert offline_verify(a.paths, lambda done, total: progress.append((done, total))).height == 4
    assert progress[-1] == (4, 4)
    file = chain_path(a.paths) / "data.mdb"
    whole = file.read_bytes()
    for height, where in ((1, 0.9), (3, 0.5), (4, 0.1)):
        start = int(len(blocks[height - 1]) * where)
        piece = blocks[height - 1][start : start + 32]
        damaged = bytearray(whole)
        position = damaged.find(piece)
        while position >= 0:
            damaged[position + 16] ^= 4
            position = damaged.find(piece, position + 32)
        file.write_bytes(damaged)
        with pytest.raises(ChainDamaged, match=f"block {height}: [A-Z][A-Za-z]+: .{{10}}") as caught:
            offline_verify(a.paths)
        assert caught.value.height == height
    file.write_bytes(whole)
    assert offline_verify(a.paths).height == 4


def test_mines_only_when_there_is_something_to_record(daemons: list[Daemon]) -> None:
    a = daemons[0]
    a.start()
    document = document_of(a)
    assert a.children() == [], "no mining process before there is work"
    a.submit(anchor(document, VOLUME, 1))
    wait_until(lambda: a.status().height == 1, "one block")
    wait_until(lambda: not a.status().mining, "at rest again")
    ticks = a.cpu_ticks()
    begun = time.monotonic()
    while time.monotonic() - begun < 2:  # an observation, not a wait: nothing may happen in this time
        time.sleep(0.5)
    assert a.status().height == 1
    assert (a.cpu_ticks() - ticks) / os.sysconf("SC_CLK_TCK") < 0.1
    [miner] = a.children()
    spent = Path(f"/proc/{miner}/stat").read_text().rpartition(")")[2].split()
    time.sleep(0.2)
    assert Path(f"/proc/{miner}/stat").read_text().rpartition(")")[2].split()[11:13] == spent[11:13]


def test_a_transaction_is_refused_with_its_reason(daemons: list[Daemon]) -> None:
    a = daemons[0]
    a.start("--no-mine")
    document = document_of(a)
    for tx, reason in (
        (b"junk", "MalformedTransaction"),
        (anchor(document, VOLUME, 2), "WrongPredecessor"),
        (sign_transfer(network_id(document), VOLUME, VOLUME, 1, 1, 0), "NotEnoughMoney"),
    ):
        with pytest.raises(InvalidTransaction, match=reason):
            a.submit(tx)
    good = anchor(document, VOLUME, 1)
    assert a.submit(good) == a.submit(good)
    found = a.call("tx", TxQuery(tx_id(decode_tx(good))), TxFound)
    assert (found.tx, found.height) == (good, None)
    with pytest.raises((RemoteError, Exception), match="32 bytes"):
        a.call("account", KeyQuery(b"short"), Account)


def test_it_says_why_it_cannot_start(daemons: list[Daemon], tmp_path: Path) -> None:
    a, b, c = daemons
    code, text = b.fail()
    assert code != 0
    assert "no ledger network" in text
    code, text = b.fail("--bootstrap", "http://nowhere")
    assert "not an address" in text
    a.start()
    code, text = Daemon(a.home).fail()
    assert f"already running (pid {a.facts['pid']})" in text
    wrong = a.url.split("?network=")[0] + "?network=" + "00" * 32
    code, text = b.fail("--bootstrap", wrong)
    assert "is in network" in text
    host, _, _ = a.url.partition(str(a.facts["url"]).split("/")[3])
    code, text = b.fail("--bootstrap", host + "11" * 32)
    assert "not 1111" in text
    port = a.url.split("/")[2]
    a.stop()
    code, text = b.fail("--bootstrap", f"wss://{port}/")
    assert "cannot connect" in text
    file = tmp_path / "network"
    file.write_bytes(b"junk")
    code, text = c.fail("--network", str(file))
    assert "not a network document" in text
    file.write_bytes(encode_network(quick_network()))
    c.start("--network", str(file))
    c.stop()
    code, text = c.fail("--bootstrap", a.url)
    assert "another" in text
    with open(chain_path(a.paths) / "data.mdb", "r+b") as data:
        data.truncate(5000)
    code, text = a.fail()
    assert "damaged" in text
    assert "Traceback" not in a.log.read_text()


def decloud(daemon: Daemon, *args: str) -> subprocess.CompletedProcess[str]:
    """Run `decloud ledger peers` in the home of a daemon."""
    environment = {**os.environ, HOME_VARIABLE: str(daemon.home)}
    return subprocess.run(
        [DECLOUD, "ledger", "peers", *args], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_who_is_connected_and_who_is_shut_out(daemons: list[Daemon]) -> None:
    """Nobody on this machine can be shut out, so what the last run remembered says who is."""
    a, b, _ = daemons
    end = int(time.time()) + 3600
    save_config(a.paths, msgspec.structs.replace(load_config(a.paths), bans=(("203.0.113.5", end), ("192.0.2.1", 9))))
    a.start()
    b.start("--bootstrap", a.url, "--no-mine")
    wait_until(lambda: a.status().peers != (), "they are connected")
    [peer] = json.loads(decloud(a, "--json").stdout)["peers"]
    assert (peer["inbound"], peer["url"]) == (True, b.url)
    assert b.url in decloud(a).stdout
    [ban] = json.loads(decloud(a, "--bans", "--json").stdout)["bans"]
    assert ban["address"] == "203.0.113.5", "the other one is over"
    assert "203.0.113.5" in decloud(a, "--bans").stdout
    wrong = decloud(a, "--unban", "203.0.113.6")
    assert wrong.returncode == 1
    assert "203.0.113.6 is not shut out" in wrong.stderr
    assert decloud(a, "--unban", "").returncode == 1
    assert "nobody is shut out" in decloud(a, "--unban", "203.0.113.5:7713").stdout
    assert decloud(a, "--unban", "all", "--json").returncode == 0
    a.stop()
    assert load_config(a.paths).bans == ()
