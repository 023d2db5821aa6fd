"""`decloud wallet` with real ledger daemons: what was mined is paid on, shown, waited for, taken back by a reorganisation."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fsdecloud.cli.volumes import make_document, save_document
from fsdecloud.config import HOME_VARIABLE
from fsdecloud.crypto import sign, wallet
from fsdecloud.crypto.keys import VolumeKeys
from fsdecloud.ledger.network import NetworkDocument, network_id
from fsdecloud.ledger.transactions import decode_tx, sign_transfer, tx_id
from fsdecloud.store.payments import Payment, PaymentStore
from fsdecloud.wire.ledgerapi import TxFound, TxQuery
from tests.cluster.harness import Network
from tests.cluster.ledgernet import Daemon, anchor, quick_network, wait_until
from tests.cluster.test_ledger_reorg import prepare
from tests.cluster.test_voting import decloud

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "ledger"))
from chainmaker import Maker, easy_network

REWARD = 1_000_000_000
ROOT = bytes([55]) * 32
KEYS = VolumeKeys.from_root(ROOT)
STRANGER = sign.public_key(bytes([77]) * 32)


def wallet_key(index: int) -> bytes:
    return wallet.wallet_key(KEYS.wallet_secret, index)


class Home:
    """A home with the volume v, whose ledger daemon is `daemon`."""

    def __init__(self, base: Path, document: NetworkDocument, *, has_network: bool = True) -> None:
        self.document = document
        self.daemon = Daemon(base, document if has_network else None)
        self.home = self.daemon.home
        self.anchors = 0
        paths = self.daemon.paths
        save_document(paths, make_document(paths, "v", ROOT, network_id(document)))
        self.noted = PaymentStore(paths.volume_state("v") / "payments", KEYS.at_rest_key)

    def run(self, *words: str, code: int = 0) -> str:
        return decloud(self.home, "wallet", *words, code=code)

    def json(self, *words: str, code: int = 0) -> Any:
        return json.loads(self.run(*words, "--json", code=code))

    def history(self, *words: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.run("history", *words, "--json").splitlines()]

    def add_block(self) -> None:
        """Have a block mined: something is to be recorded."""
        height = self.daemon.status().height
        self.anchors += 1
        self.daemon.submit(anchor(self.document, bytes([2]) * 32, self.anchors))
        wait_until(lambda: self.daemon.status().height > height and not self.daemon.status().mempool, "a block has it")


@pytest.fixture
def homes(tmp_path: Path) -> Iterator[list[Home]]:
    """Two homes of one network, with the same volume; no daemon runs yet, and the second knows nothing of the network."""
    document = quick_network()
    made = [Home(tmp_path / "a", document), Home(tmp_path / "b", document, has_network=False)]
    try:
        yield made
    finally:
        for home in made:
            home.daemon.close()


def test_money_is_received_paid_and_shown_and_the_phrase_alone_brings_it_back(homes: list[Home]) -> None:
    a, b = homes
    a.daemon.start()
    assert a.json("balance")["confirmed"] == 0
    assert a.run("history") == "nothing has come or gone\n"
    a.add_block()
    assert a.json("balance", "--miner")["available"] == REWARD

    # Addresses: a mistyped one is not paid to.
    own = a.run("address").strip()
    assert wallet.key_of(own) == wallet_key(0)
    assert "checksum" in a.run("send", "--miner", own[:-1] + ("q" if own[-1] != "q" else "p"), "5", code=1)
    poor = a.run("send", own, "5", code=1)
    assert "can spend 0, and 5 with the fee 1 are 6; have somebody pay to it" in poor

    # From what was mined to the wallet and to the key of a deal; then on.
    a.run("send", "--miner", own, "100000")
    a.run("send", "--miner", wallet_key(20).hex(), "7")
    wait_until(lambda: a.json("balance")["confirmed"] == 100_007, "both are in a block")
    done = a.json("send", "v", wallet.address_of(STRANGER), "300", "--wait", "1")
    assert (done["amount"], done["fee"], done["left"], done["confirmations"]) == (300, 1, 99_699, 1)
    shown = a.json("balance")
    assert (shown["confirmed"], shown["outgoing"], shown["incoming"]) == (99_706, 0, 0)
    assert [key["confirmed"] for key in shown["keys"]] == [99_699] + [0] * 19 + [7]
    assert "99706 confirmed" in a.run("balance")

    # What happened, and its export.
    events = a.history()
    assert [(e["kind"], e["amount"], e["fee"], e["index"]) for e in events] == [
        ("sent", -300, 1, 0), ("received", 7, 0, 20), ("received", 100_000, 0, 0)
    ]  # fmt: skip
    assert events[0]["other"] == wallet.address_of(STRANGER)
    assert all(e["state"] == "confirmed" and e["confirmations"] > 0 and e["time"] for e in events)
    assert sum(e["amount"] - e["fee"] for e in events) == shown["confirmed"]
    mined = a.history("--miner")
    assert {e["kind"] for e in mined} == {"mined", "sent"}
    assert sum(e["amount"] - e["fee"] for e in mined) == a.json("balance", "--miner")["confirmed"]
    table = list(csv.DictReader(io.StringIO(a.run("export"))))
    assert [row["transaction"] for row in table] == [e["transaction"] for e in events]
    secret = a.home.with_name("keys")
    assert "21 keys" in a.run("export", "--keys", "--json", "--output", str(secret))
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    first = json.loads(secret.read_text().splitlines()[0])
    assert sign.public_key(bytes.fromhex(first["seed"])) == wallet_key(0)
    assert "exists already" in a.run("export", "--output", str(secret), code=1)

    # Several at once: each has its own number.
    words = ([], ["--miner"]) * 3
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "fsdecloud.cli.main", "wallet", "send", *who, STRANGER.hex(), "1", "--json"],
            env={**os.environ, HOME_VARIABLE: str(a.home)},
            stdout=subprocess.PIPE,
        )
        for who in words
    ]
    sent = [json.loads(process.communicate(timeout=60)[0]) for process in running]
    assert [process.returncode for process in running] == [0] * 6
    assert sorted(payment["nonce"] for payment in sent[::2]) == [done["nonce"] + n for n in (1, 2, 3)]
    assert len({payment["nonce"] for payment in sent[1::2]}) == 3
    wait_until(lambda: a.daemon.status().mempool == 0, "blocks have them")

    # Another machine has the same from the phrase alone; a light daemon proves the balance, and says what it cannot tell.
    b.daemon.start("--light", "--bootstrap", a.daemon.url)
    wait_until(lambda: b.daemon.status().height == a.daemon.status().height, "it has the headers")
    wait_until(lambda: b.daemon.status().provers > 0, "somebody proves")
    assert b.json("balance")["keys"] == a.json("balance")["keys"]
    assert "only the payments of this machine are known" in b.run("history")
    paid = b.json("send", STRANGER.hex(), "11", "--wait", "1")
    assert paid["nonce"] == done["nonce"] + 4
    [event] = b.history()
    assert (event["transaction"], event["state"], event["amount"]) == (paid["transaction"], "confirmed", -11)
    wait_until(lambda: a.history()[0]["transaction"] == paid["transaction"], "the other one's, too")


def test_fault_112_what_another_machine_spent_is_not_spent_again(homes: list[Home]) -> None:
    """Payments over a restart of the daemon; two with one number; replaced ones; all is right in the end."""
    a, _ = homes
    a.daemon.start()
    a.add_block()
    a.run("send", "--miner", wallet.address_of(wallet_key(0)), "1000", "--wait", "1")
    a.daemon.stop()
    a.daemon.start("--no-mine")

    # It waits, is known to wait, and cannot be spent twice.
    waiting = a.json("send", STRANGER.hex(), "600")
    assert a.json("balance")["keys"][0]["available"] == 399
    poor = a.run("send", STRANGER.hex(), "600", code=1)
    assert "it has 1000 in the ledger, of which 601 are on their way" in poor
    assert "to take the place of a payment with the fee 1 costs at least 2" in a.run(
        "send", STRANGER.hex(), "600", "--replace", waiting["transaction"], "--fee", "1", code=1
    )
    dearer = a.json("send", STRANGER.hex(), "500", "--replace", waiting["transaction"])
    assert (dearer["nonce"], dearer["fee"], dearer["left"]) == (waiting["nonce"], 2, 498)
    states = {e["transaction"]: e["state"] for e in a.history()}
    assert states.pop(dearer["transaction"]) == "pending"
    assert states.pop(waiting["transaction"]) == "failed"

    # A daemon that was killed has forgotten it; the wallet has not.
    a.daemon.kill()
    a.daemon.start("--no-mine")
    assert a.daemon.call("tx", TxQuery(tx_id_of(dearer)), TxFound).tx == b""
    assert a.json("balance")["outgoing"] == 502
    assert a.daemon.call("tx", TxQuery(tx_id_of(dearer)), TxFound).tx != b""

    # A command that was killed -9 when it had noted a payment and not submitted it: the next one does.
    seed = wallet.wallet_seed(KEYS.wallet_secret, 0)
    unsent = sign_transfer(network_id(a.document), seed, STRANGER, 10, 1, dearer["nonce"] + 1)
    a.noted.add(Payment(1, time.time_ns(), tx_id(decode_tx(unsent)), unsent, 0, b"decloud"))
    assert a.json("balance")["outgoing"] == 513

    # Another machine with the same phrase spends the same number, and a block has that.
    a.daemon.kill()
    a.daemon.start()
    other = sign_transfer(network_id(a.document), seed, STRANGER, 900, 5, dearer["nonce"])
    a.daemon.submit(other)
    wait_until(lambda: a.daemon.status().mempool == 0, "it is in a block")
    found = {e["transaction"]: e for e in a.history()}
    assert found[tx_id(decode_tx(other)).hex()]["state"] == "confirmed"
    assert found[dearer["transaction"]]["failure"] == "another payment with its number is in the ledger"
    wait_until(lambda: a.json("balance")["confirmed"] == 84, "what was noted is in a block, too")
    assert len(a.noted.unrecorded()) == 3  # all were signed here: the volume records them when it is mounted
    assert {event["kind"] for event in found.values()} == {"received", "sent"}


def tx_id_of(fields: dict[str, Any]) -> bytes:
    return bytes.fromhex(fields["transaction"])


def test_fault_100_a_payment_that_a_reorganisation_takes_back_is_pending_again(tmp_path: Path) -> None:
    make = Maker(easy_network())
    make.add(recipient=wallet_key(0))
    fork = make.tip
    payment = make.transfer(wallet.wallet_seed(KEYS.wallet_secret, 0), STRANGER, 250, 0)
    make.add([payment])
    a = Home(tmp_path / "a", make.document, has_network=False)
    prepare(a.daemon, make)
    make.tip = fork
    for _ in range(2):
        make.add()
    winner = Daemon(tmp_path / "winner")
    prepare(winner, make)
    try:
        a.daemon.start("--no-mine")
        before = a.history()
        assert [(e["kind"], e["state"], e["confirmations"]) for e in before] == [
            ("sent", "confirmed", 1), ("mined", "confirmed", 2)
        ]  # fmt: skip
        a.daemon.stop()
        winner.start("--no-mine")
        a.daemon.start("--no-mine", "--bootstrap", winner.url)
        wait_until(lambda: a.daemon.status().tip == make.tip.id, "it follows the chain with more work")
        after = a.history()
        assert [(e["kind"], e["state"], e["confirmations"], e["height"]) for e in after] == [
            ("sent", "pending", 0, None), ("mined", "confirmed", 3, 1)
        ]  # fmt: skip
        assert after[0]["transaction"] == before[0]["transaction"] == tx_id(decode_tx(payment)).hex()
        shown = a.json("balance")
        assert (shown["confirmed"], shown["outgoing"], shown["available"]) == (REWARD, 251, REWARD - 251)
    finally:
        winner.close()
        a.daemon.close()


def test_payments_of_a_mounted_volume_are_in_its_log_and_status_shows_the_money(network: Network) -> None:
    """Paid while it is mounted, paid while it is not, and the driver killed -9 in between."""
    volume = network.volume

    def log() -> list[dict[str, Any]]:
        return network.decloud("log", "--op", "payment", "--json").json_lines()

    assert network.status()["wallet"] is None
    assert "wallet" not in network.decloud("status", check=False).out
    assert log() == []
    address = network.decloud("wallet", "address", volume).out.strip()
    network.decloud("wallet", "send", "--miner", address, "5000", "--wait", "1")
    assert network.status()["wallet"] == {"confirmed": 5000, "outgoing": 0, "incoming": 0, "available": 5000}
    assert "  wallet: 5000 confirmed" in network.decloud("status", check=False).out

    first = network.decloud("wallet", "send", volume, STRANGER.hex(), "100", "--json").json()
    [line] = log()
    assert (line["amount"], line["fee"], line["recipient"]) == (100, first["fee"], wallet.address_of(STRANGER))
    assert (line["transaction"], line["program"], line["result"]) == (first["transaction"], "decloud", "ok")
    network.kill_driver()
    second = network.decloud("wallet", "send", volume, STRANGER.hex(), "200", "--wait", "1", "--json").json()
    network.mount()
    network.wait_until(lambda: len(log()) == 2, 30, "the payment that was made meanwhile is recorded")
    network.sync("anchored")
    assert [line["transaction"] for line in log()] == [first["transaction"], second["transaction"]]
    assert all(line["height"] for line in log())
    assert f"200 to {wallet.address_of(STRANGER)}, fee {second['fee']}" in network.decloud("log", "--op", "payment").out
    assert network.decloud("log", "--verify").code == 0
