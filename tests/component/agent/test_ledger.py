"""The agent and the ledger daemon: anchors until they stay, and life without a ledger."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from agentworld import NETWORK, FakeTransport, open_driver, open_ledger, run, until

from fsdecloud.agent import ledgerlink, outbox
from fsdecloud.crypto import sign
from fsdecloud.errors import InvalidTransaction, LedgerUnavailable, MalformedError
from fsdecloud.ledger.transactions import NO_LINK, decode_tx, sign_anchor, tx_id
from fsdecloud.limits import ANCHOR_PAYLOAD
from fsdecloud.wire import agentapi
from fsdecloud.wire.agentapi import Empty, SubmitAnchor

SEED, DEVICE = b"s" * 32, b"t" * 32


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(ledgerlink, "RETRY_FIRST", 0.02)
    monkeypatch.setattr(ledgerlink, "RETRY_MAX", 0.02)
    monkeypatch.setattr(ledgerlink, "REGISTRY_INTERVAL", 0.0)
    monkeypatch.setattr(outbox, "RETRY", 0.02)


def anchor(sequence, salt=b"c"):
    return sign_anchor(
        NETWORK,
        SEED,
        DEVICE,
        sequence=sequence,
        commitment=salt * 32,
        previous=NO_LINK,
        lease_expiry=0,
        payload=bytes(ANCHOR_PAYLOAD),
        bits=0,
    )


async def submit(driver, sequence, salt=b"c"):
    await driver.call("submit", SubmitAnchor(anchor(sequence, salt), sequence), Empty)


def heights(driver):
    return [(notice.sequence, notice.height) for notice in driver.anchored]


def test_anchors_reach_blocks_in_order_and_survive_restarts(tmp_path):
    async def work():
        net = FakeTransport(3)
        changes = {"volume": sign.public_key(SEED)}
        async with open_driver(tmp_path, net, **changes) as driver:
            with pytest.raises(LedgerUnavailable):
                await driver.call("ledger_volume", Empty(), agentapi.LedgerVolume)
            await submit(driver, 1)
            assert (await driver.status()).outbox == 1
        # Another agent, and a ledger that was not there before.
        async with open_driver(tmp_path, net, **changes) as driver, open_ledger(tmp_path, net.registry()) as ledger:
            await driver.wait(lambda: heights(driver) == [(1, 1)])
            assert driver.anchored[0].tx == tx_id(decode_tx(anchor(1)))
            await submit(driver, 2)
            await driver.wait(lambda: heights(driver)[-1] == (2, 2))
            found = await driver.call("ledger_volume", Empty(), agentapi.LedgerVolume)
            assert (found.tx, found.height) == (anchor(2), 2)
            status = await driver.status()
            assert (status.outbox, status.ledger_height, status.ledger_pid) == (0, 2, os.getpid())
            # A reorganisation throws both out: they are sent again, oldest first.
            driver.anchored.clear()
            ledger.blocks = [[]]
            ledger.notify()
            await driver.wait(lambda: heights(driver)[-1:] == [(2, 3)])
            assert heights(driver) == [(2, None), (1, None), (1, 2), (2, 3)]
        async with open_driver(tmp_path, net, **changes) as driver:
            await driver.wait(lambda: heights(driver) == [(2, 3)])
            assert (await driver.status()).ledger_height == -1

    run(work)


def test_a_refused_anchor_is_told_and_can_be_replaced(tmp_path):
    async def work():
        net = FakeTransport(3)
        async with open_ledger(tmp_path, net.registry()) as ledger, open_driver(tmp_path, net) as driver:
            await driver.wait(lambda: driver.tips)
            with pytest.raises((MalformedError, InvalidTransaction)):
                await driver.call("submit", SubmitAnchor(b"nonsense", 1), Empty)
            await submit(driver, 5)
            await driver.wait(lambda: driver.anchored)
            assert (driver.anchored[0].height, driver.anchored[0].sequence) == (None, 5)
            assert "does not follow" in driver.anchored[0].error
            ledger.is_mining = False
            await submit(driver, 1)
            await submit(driver, 1, b"d")
            assert (await driver.status()).outbox == 1

            async def arrived():
                return anchor(1, b"d") in ledger.mempool

            await until(arrived)
            ledger.mempool = [anchor(1, b"d")]
            ledger.mine()
            await driver.wait(lambda: heights(driver)[-1] == (1, 1))
            # The same again, as a driver does that restarted before it heard of the block.
            await submit(driver, 1, b"d")
            await driver.wait(lambda: heights(driver)[-2:] == [(1, 1), (1, 1)])
            assert (await driver.status()).outbox == 0

    run(work)


def test_buried_anchors_are_forgotten(tmp_path):
    async def work():
        net = FakeTransport(3)
        async with open_ledger(tmp_path, net.registry()) as ledger, open_driver(tmp_path, net) as driver:
            await submit(driver, 1)
            await driver.wait(lambda: driver.anchored)
            ledger.blocks += [[]] * outbox.BURIED
            ledger.notify()
            await driver.wait(lambda: driver.tips[-1].height > outbox.BURIED)
            await submit(driver, 2)
            await driver.wait(lambda: heights(driver)[-1][0] == 2)
        async with open_driver(tmp_path, net) as driver:
            await driver.wait(lambda: driver.anchored)
            assert [notice.sequence for notice in driver.anchored] == [2]

    run(work)


def test_a_ledger_of_another_network_is_not_used(tmp_path):
    async def work():
        net = FakeTransport(3)
        async with (
            open_ledger(tmp_path, net.registry(), network=b"O" * 32),
            open_driver(tmp_path, net) as driver,
        ):

            async def says_so():
                try:
                    await driver.call("ledger_volume", Empty(), agentapi.LedgerVolume)
                except LedgerUnavailable as exc:
                    return "is on network" in str(exc)

            await until(says_so)
            assert not (await driver.call("registry", Empty(), agentapi.Registry)).peers

    run(work)


def test_tips_and_the_registry_follow_the_daemon(tmp_path):
    async def work():
        net = FakeTransport(4)
        async with open_driver(tmp_path, net) as driver:
            for count in (3, 4):
                async with open_ledger(tmp_path, net.registry()[:count]) as ledger:
                    await driver.wait(lambda: driver.tips and driver.tips[-1].height == 0)
                    await driver.wait_hosts(count)
                    ledger.mine()
                    await driver.wait(lambda: driver.tips[-1].height == 1)
                await driver.wait(lambda: driver.tips[-1].height == -1)
            assert (await driver.call("registry", Empty(), agentapi.Registry)).peers == net.registry()

    run(work)
