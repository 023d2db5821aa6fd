"""What the explorer's pages are made of: right, bounded, and nothing but text."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import msgspec
import pytest
import trio

from fsdecloud.crypto import sign
from fsdecloud.crypto.wallet import address_of
from fsdecloud.ledger.blocks import encode_block
from fsdecloud.ledger.transactions import decode_tx, tx_id
from fsdecloud.ledgerd import explorer as module
from fsdecloud.ledgerd.explorer import Explorer
from fsdecloud.ledgerd.hub import Hub
from fsdecloud.ledgerd.keeper import Keeper
from fsdecloud.net.http import PageRequest, Refusal
from fsdecloud.store.chain import open_chain

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "ledger"))
from chainmaker import BOND, GENESIS_TIME, INTERVAL, MINER, MINER_KEY, TWO, Maker, Voting, easy_network

VOLUME = bytes([2]) * 32
VOLUME_KEY = sign.public_key(VOLUME)
ALICE_KEY = sign.public_key(bytes([3]) * 32)
PEER = bytes([4]) * 32
PEER_KEY = sign.public_key(PEER)
NOW = GENESIS_TIME + 100_000
HOSTILE = "<script>alert(1)</script>"


class World:
    def __init__(self, make, keeper):
        self.make, self.keeper = make, keeper
        self.hub = Hub(keeper, bytes(32), bytes(32))
        self.explorer = Explorer(keeper, self.hub, None)

    async def add(self, *transactions):
        checked = self.make.add(list(transactions))
        await self.keeper.accept(encode_block(checked.block))
        return checked

    async def get(self, path, **query):
        page = await self.explorer.answer(PageRequest(path, query))
        assert page.kind == "application/json"
        return msgspec.json.decode(page.body)

    async def refused(self, path, **query):
        with pytest.raises(Refusal) as caught:
            await self.explorer.answer(PageRequest(path, query))
        return caught.value.status


def explorer_test(tmp_path, work, **changes):
    make = Maker(easy_network(**changes))

    async def run():
        with trio.fail_after(30), open_chain(tmp_path / "c", make.document, map_size=1 << 28) as store:
            await work(World(make, Keeper(store, lambda: NOW)))

    trio.run(run)


def test_the_pages_own_files_need_nobody_else(tmp_path):
    """No address of another server, no inline script or style, nothing that makes markup of text."""

    async def work(world):
        texts = {}
        for path in ("/", "/explorer.css", "/explorer.js", "/icon.svg"):
            page = await world.explorer.answer(PageRequest(path))
            texts[path] = page.body.decode()
            outside = re.findall(r"(?:https?|wss?):[^\s\"'`]*", texts[path])
            assert [a for a in outside if a not in ("http://www.w3.org/2000/svg", "ws://${location.host}/live")] == []
        assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=|javascript:", texts["/"])
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", texts["/explorer.js"]
        )
        assert "@import" not in texts["/explorer.css"]

    explorer_test(tmp_path, work)


def test_an_empty_chain(tmp_path):
    async def work(world):
        found = await world.get("/api/overview")
        assert (found["height"], found["network_rate"], found["mining"], found["daemons"]) == (0, None, False, 0)
        assert found["network"] == {
            "name": "test", "id": world.keeper.network.hex(), "interval": 2, "finality_depth": 100, "mines_when_idle": False
        }  # fmt: skip
        assert await world.get("/api/blocks") == {"blocks": []}
        assert (await world.get("/api/mempool"))["list"] == []
        assert (await world.get("/api/peers"))["peers"] == []
        assert await world.refused("/api/block/0") == 404
        assert await world.refused("/api/block/1") == 404
        key = await world.get(f"/api/key/{ALICE_KEY.hex()}")
        assert (key["balance"], key["peer"], key["volume"], key["anchors"]) == ("0", None, None, [])

    explorer_test(tmp_path, work)


def test_blocks_transactions_and_keys(tmp_path):
    async def work(world):
        make = world.make
        first = await world.add(make.anchor(VOLUME, 1), make.register(PEER, 1, HOSTILE))
        anchor = make.anchor(VOLUME, 2, previous=None)
        paid = make.transfer(MINER, ALICE_KEY, 1 << 21, 0, fee=7)
        second = await world.add(anchor, paid, make.operate(PEER, VOLUME, 1))
        waiting = make.anchor(VOLUME, 3)
        world.keeper.submit(waiting)

        overview = await world.get("/api/overview")
        assert (overview["height"], overview["tip"]) == (2, second.point.id.hex())
        assert overview["mempool"] == {"count": 1, "bytes": len(waiting)}
        assert int(overview["work"]) == int.from_bytes(second.point.work)
        assert overview["difficulty"] == "16"

        blocks = (await world.get("/api/blocks"))["blocks"]
        assert [block["height"] for block in blocks] == [2, 1]
        assert blocks[0]["bytes"] == len(encode_block(second.block))
        assert (blocks[0]["transactions"], blocks[0]["miner"]) == (4, MINER_KEY.hex())
        assert [b["height"] for b in (await world.get("/api/blocks", before="2", count="1"))["blocks"]] == [1]

        block = await world.get("/api/block/2")
        assert block == await world.get(f"/api/block/{second.point.id.hex()}")
        assert (block["parent"], block["next"], block["confirmations"]) == (first.point.id.hex(), None, 1)
        assert (await world.get("/api/block/1"))["next"] == second.point.id.hex()
        assert block["state_root"] == second.point.state_root.hex()
        assert [tx["kind"] for tx in block["list"]] == ["coinbase", "anchor", "transfer", "operate"]
        assert [tx["fee"] for tx in block["list"]] == ["0", "0", "7", "0"]

        for data, height, index in ((anchor, 2, 1), (waiting, None, None)):
            identity = tx_id(decode_tx(data)).hex()
            tx = await world.get(f"/api/tx/{identity}")
            assert (tx["kind"], tx["bytes"], tx["height"], tx["index"]) == ("anchor", len(data), height, index)
            assert tx["confirmations"] == (1 if height else 0)
            assert {field["name"]: field["value"] for field in tx["fields"]}[
                "payload"
            ] == "1024 bytes, encrypted for the owner"
            assert await world.get("/api/search", q=identity) == {"kind": "tx", "id": identity}

        alice = await world.get(f"/api/key/{ALICE_KEY.hex()}")
        assert alice["balance"] == str(1 << 21)
        volume = await world.get(f"/api/key/{VOLUME_KEY.hex()}")
        assert (volume["volume"]["sequence"], volume["volume"]["height"]) == (2, 2)
        assert [anchor["height"] for anchor in volume["anchors"]] == [2, 1]
        peer = await world.get(f"/api/key/{PEER_KEY.hex()}")
        assert (peer["peer"]["url"], peer["operator"]) == (HOSTILE, VOLUME_KEY.hex())
        peers = await world.get("/api/peers")
        assert (peers["count"], peers["capacity"]) == (1, str(1 << 30))
        assert (peers["peers"][0]["url"], peers["peers"][0]["height"]) == (HOSTILE, 1)
        assert (peers["peers"][0]["time"], peers["peers"][0]["price"]) == (first.point.time, "0")
        assert (peers["checkpoint"], peers["interval"], peers["peers"][0]["stake"]) == (None, 0, None)

        address = address_of(ALICE_KEY)
        assert (await world.get(f"/api/key/{address}")) == await world.get(f"/api/key/{ALICE_KEY.hex()}")
        assert (await world.get("/api/search", q=address.upper())) == {"kind": "key", "id": ALICE_KEY.hex()}
        assert await world.refused("/api/search", q=address[:-1] + "!") == 400

        for query, kind, identity in (
            (" 2 ", "block", "2"),
            (second.point.id.hex().upper(), "block", second.point.id.hex()),
            *((key.hex(), "key", key.hex()) for key in (MINER_KEY, ALICE_KEY, PEER_KEY, VOLUME_KEY)),
        ):
            assert await world.get("/api/search", q=query) == {"kind": kind, "id": identity}

    explorer_test(tmp_path, work)


def test_a_peers_stake_and_its_last_vote(tmp_path):
    make = Voting()
    make.epoch(*TWO)

    async def run():
        with trio.fail_after(40), open_chain(tmp_path / "c", make.document, map_size=1 << 28) as store:
            world = World(make, Keeper(store, lambda: NOW))
            for _, data in make.chain():
                await world.keeper.accept(data)
            found = await world.get("/api/peers")
            assert (found["interval"], found["checkpoint"]) == (INTERVAL, make.tip.height - INTERVAL)
            voted = [peer["stake"] for peer in found["peers"]]
            assert [stake["last_vote"] for stake in voted] == [make.tip.height - INTERVAL] * 2 + [None]
            assert voted[0] == {
                "amount": str(BOND), "votes": True, "last_vote": voted[0]["last_vote"], "release": None, "burned": False
            }  # fmt: skip

    trio.run(run)


def test_a_block_that_was_left_is_shown_as_such(tmp_path):
    async def work(world):
        genesis = world.make.tip
        left = await world.add()
        world.make.tip = genesis
        for _ in range(2):
            checked = world.make.add(recipient=ALICE_KEY)
            await world.keeper.accept(encode_block(checked.block))
        block = await world.get(f"/api/block/{left.point.id.hex()}")
        assert (block["is_best"], block["confirmations"], block["next"]) == (False, 0, None)

    explorer_test(tmp_path, work)


@pytest.mark.parametrize(
    ("path", "query", "status"),
    [
        ("/nothing", {}, 404),
        ("/api", {}, 404),
        ("/api/block/", {}, 404),
        ("/api/block/../../etc/passwd", {}, 404),
        ("/api/block/-1", {}, 404),
        ("/api/block/" + "9" * 15, {}, 404),
        ("/api/block/" + "9" * 16, {}, 400),
        ("/api/block/" + "0" * 64, {}, 404),
        ("/api/block/" + "g" * 64, {}, 400),
        ("/api/tx/" + "0" * 64, {}, 404),
        ("/api/tx/12", {}, 400),
        ("/api/key/" + "0" * 62, {}, 400),
        ("/api/key/" + "0" * 65, {}, 404),
        ("/api/blocks", {"count": "0"}, 400),
        ("/api/blocks", {"count": "101"}, 400),
        ("/api/blocks", {"count": "-1"}, 400),
        ("/api/blocks", {"count": "\u0661"}, 400),
        ("/api/blocks", {"before": "x"}, 400),
        ("/api/search", {}, 400),
        ("/api/search", {"q": "0"}, 404),
        ("/api/search", {"q": "77"}, 404),
        ("/api/search", {"q": "f" * 64}, 404),
        ("/api/search", {"q": HOSTILE}, 400),
    ],
)
def test_fault_119_what_makes_no_sense_is_refused(tmp_path, path, query, status):
    async def work(world):
        await world.add()
        assert await world.refused(path, **query) == status
        assert (await world.get("/api/overview"))["height"] == 1

    explorer_test(tmp_path, work)


def test_lists_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TXS_MAX", 3)
    monkeypatch.setattr(module, "PEERS_MAX", 2)
    monkeypatch.setattr(module, "SUMMARIES_MAX", 2)

    async def work(world):
        make = world.make
        await world.add(*(make.register(bytes([n]) * 32, 1) for n in range(20, 25)))
        for sequence in range(1, 6):
            world.keeper.submit(make.anchor(VOLUME, sequence))
        block = await world.get("/api/block/1")
        assert (block["transactions"], len(block["list"])) == (6, 3)
        pool = await world.get("/api/mempool")
        assert (pool["count"], len(pool["list"])) == (5, 3)
        peers = await world.get("/api/peers")
        assert (peers["count"], len(peers["peers"])) == (5, 2)
        for _ in range(3):
            await world.add()
        assert [block["height"] for block in (await world.get("/api/blocks"))["blocks"]] == [4, 3, 2, 1]
        assert len(world.explorer._summaries) == 2

    explorer_test(tmp_path, work)


def test_the_hash_rate_of_the_network_is_what_the_blocks_stand_for(tmp_path):
    async def work(world):
        for _ in range(5):
            await world.add()
        found = await world.get("/api/overview")
        assert found["network_rate"] == pytest.approx(16 / 2, rel=0.05)

    explorer_test(tmp_path, work)


def test_live_messages_follow_changes_and_a_slow_page_gets_the_newest(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LIVE_PAUSE", 0.0)

    class Socket:
        """Takes a message when the test says so."""

        def __init__(self):
            self.sender, self.receiver = trio.open_memory_channel(0)

        async def send(self, text):
            await self.sender.send(msgspec.json.decode(text))

    async def work(world):
        socket = Socket()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.explorer.live, socket)
            assert (await socket.receiver.receive())["height"] == 0
            await world.add()
            assert (await socket.receiver.receive())["height"] == 1
            world.keeper.submit(world.make.anchor(VOLUME, 1))
            assert (await socket.receiver.receive())["mempool"]["count"] == 1
            for _ in range(5):  # nobody takes the first of these for a while
                await world.add()
            assert (await socket.receiver.receive())["height"] <= 6
            assert (await socket.receiver.receive())["height"] == 6
            nursery.cancel_scope.cancel()

    explorer_test(tmp_path, work)
