"""Somebody with a repair key keeps a volume whole while its owner is away, and the owner finds what they did."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from gcworld import KEYS, NETWORK, World, content, make_world, run, until

from fsdecloud.agent import arranging, auditor, leases, peers, repair, stack, standin
from fsdecloud.agent.standin import open_standin
from fsdecloud.crypto import seal
from fsdecloud.crypto.keys import RepairKeys, VolumeKeys
from fsdecloud.crypto.repairkey import decode_repair_key, encode_repair_key, make_repair_key
from fsdecloud.errors import FsdecloudError, UsageError
from fsdecloud.fs.manifest import open_owners_part
from fsdecloud.ledger.transactions import decode_tx
from fsdecloud.net.nursery import open_background
from fsdecloud.swarm.repair import Policy

HASTY = Policy(urgent_grace=0.2, grace=0.2, gone_after=0.2)
FILES = {f"large-{i}": content(i, 900_000) for i in range(4)} | {"small": content(9, 3000)}


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr(stack, "POLICY", HASTY)
    monkeypatch.setattr(repair, "GATHER", 0.02)
    monkeypatch.setattr(repair, "FIND_PATIENCE", 1.0)
    monkeypatch.setattr(auditor, "PULSE", 0.1)
    monkeypatch.setattr(peers, "PROBE_IDLE", 0.1)
    monkeypatch.setattr(peers, "PROBE_URGENT", 0.05)
    monkeypatch.setattr(leases, "FIRST", 1e6)
    monkeypatch.setattr(standin, "PATIENCE", 10.0)
    monkeypatch.setattr(standin, "RETRY", 0.05)
    make_world(tmp_path / "unused", monkeypatch)  # for its patience
    return World(tmp_path / "world", monkeypatch, peers=10)


def repair_key(keys=KEYS):
    """Return a key as it comes out of its file."""
    return decode_repair_key(encode_repair_key(make_repair_key(keys, "v", NETWORK, "auto")))


async def stand_in(world, key=None):
    """Check and repair once, on another machine; return the report."""
    reports = []

    async def nobody(_peer):
        return b""

    async with open_background() as nursery:
        path = world.paths.socket("ledger")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        await nursery.start(world.ledger.serve, path)
        transport = world.transport.open(None, nobody)
        directory = world.base / "elsewhere"
        async with open_standin(key or repair_key(), directory, path, transport, HASTY) as other:
            await other.run(reports.append, watch=False)
    return reports[-1]


async def fill(world):
    for name, data in FILES.items():
        await world.write(name, data)
    await world.anchor()
    await until(world.is_stored)


async def check(world):
    for name, data in FILES.items():
        assert await world.read(name) == data


def holders(world, shard):
    return [peer for peer in world.transport.peers.values() if shard in peer.shards and not peer.is_down]


def large_shards(world):
    """Return the ids of the files' shards, as opposed to small copies."""
    return {s for peer in world.transport.peers.values() for s, data in peer.shards.items() if len(data) > 100_000}


def test_the_owner_finds_what_a_stand_in_made_while_they_were_away(world):
    async def work():
        async with world.open():
            await fill(world)
        world.drop_cache()
        everybody = list(world.transport.peers.values())
        shards = large_shards(world)
        before = {shard: holders(world, shard) for shard in shards}
        for peer in everybody[:4]:
            peer.is_down = True
        lost = {shard for shard in shards if not holders(world, shard)}
        assert lost
        report = await stand_in(world)
        repaired = report.status.repair
        assert (repaired.degraded, repaired.unreadable) == (0, 0)
        assert repaired.repaired_shards >= len(lost)
        assert report.renewed_shards >= len(shards) - len(lost)
        assert all(holders(world, shard) for shard in shards)
        again = (await stand_in(world)).status.repair
        assert (again.repaired_shards, again.degraded) == (0, 0)
        # Of what was there before, too little stays: the owner has to find what was made since.
        for shard in shards - lost:
            for peer in before[shard]:
                if len([p for p in everybody if not p.is_down]) > 2:
                    peer.is_down = True
        async with world.open():
            await check(world)

            async def found():
                state = world.agent.repairer.status()
                return state.unreadable == 0 and state.blobs and not state.is_surveying

            await until(found)
            for peer in everybody:
                peer.is_down = False
            await world.anchor()
            # Garbage is collected as ever, and nothing of this is any.
            await world.write("more", content(77, 900_000))
            await world.anchor()
            assert (await world.collect()).error == ""
            await world.anchor()
            assert (await world.collect()).error == ""
            await world.check_everything()
            await check(world)

    run(work)


def test_a_stand_in_follows_the_owner_and_finds_again_what_it_made(world):
    async def work():
        async with world.open():
            await fill(world)
        everybody = list(world.transport.peers.values())
        everybody[0].is_down = everybody[1].is_down = True
        first = await stand_in(world)
        assert first.status.repair.degraded == 0
        everybody[0].is_down = everybody[1].is_down = False
        async with world.open():  # everything is where the owner left it: nothing has to be found
            await world.remove("large-0")
            await world.write("new", content(50, 900_000))
            await world.anchor()
            await until(world.is_stored)
        everybody[0].is_down = everybody[1].is_down = True
        second = await stand_in(world)
        assert second.sequence > first.sequence
        assert second.status.repair.degraded == 0
        # Only what is new had to be made: the rest was found where it was stored last time.
        assert second.status.repair.repaired_shards <= 2 * 2 + 2

    run(work)


def test_a_repair_key_opens_nothing_but_places(world):
    async def work():
        async with world.open():
            await fill(world)

        key = repair_key()
        derived = RepairKeys.from_secret(key.repair_secret)
        secrets = [key.deal_secret, key.repair_secret, derived.placement_secret, derived.map_seal_secret,
                   derived.map_border_secret, derived.payload_key]  # fmt: skip
        anchors = [decode_tx(tx) for block in world.ledger.blocks for tx in block]
        assert anchors
        for anchor in anchors:
            owners = open_owners_part(KEYS.ledger_payload_key, anchor.payload)
            for secret in secrets:
                with pytest.raises(FsdecloudError):
                    open_owners_part(secret, anchor.payload)
            sealed = next(
                peer.shards[owners.manifest.id]
                for peer in world.transport.peers.values()
                if owners.manifest.id in peer.shards
            )
            assert seal.open_ref(owners.manifest, seal.Kind.MANIFEST, sealed, limit=1 << 20)
            for secret in secrets:  # no secret that one has is the key, nor gives it
                with pytest.raises(FsdecloudError):
                    seal.open_entry(secret, seal.Kind.MANIFEST, sealed, limit=1 << 20)
                assert secret not in (KEYS.seal_secret, KEYS.grant_secret, KEYS.ledger_seed, KEYS.at_rest_key)
        assert "secret" not in repr(key)
        assert key.repair_secret.hex() not in repr(key)

    run(work)


def test_a_key_of_another_volume_is_told_so(world):
    async def work():
        async with world.open():
            await fill(world)
        other = repair_key(VolumeKeys.from_root(b"\x07" * 32))
        wrong = type(other)(
            other.name, KEYS.volume_id, other.network, other.redundancy, other.deal_secret, other.repair_secret
        )
        with pytest.raises(UsageError, match="no part for this repair key"):
            await stand_in(world, wrong)

    run(work)


def test_a_stand_in_follows_an_owner_who_changes_the_redundancy(world, monkeypatch):
    """It repairs what was coded anew, and codes nothing anew itself, whatever its key says."""
    monkeypatch.setattr(arranging, "GATHER", 0.02)
    monkeypatch.setattr(arranging, "RETRY", 0.2)
    monkeypatch.setattr(arranging, "REPAIR_PAUSE", 0.01)

    async def work():
        async with world.open():
            await world.volume.set_redundancy("1/3")
            await fill(world)
            old = large_shards(world)
        report = await stand_in(world)
        assert report.status.repair.degraded == 0
        assert large_shards(world) == old
        async with world.open():
            await world.volume.set_redundancy("3/7")

            async def is_recoded():
                found = world.agent.arranger.status()
                return found.is_counted and (found.n, found.blobs) == (7, 0)

            await until(is_recoded)
            await world.anchor()
        coded = large_shards(world) - old
        assert len(coded) == 7 * 4
        for peer in [p for p in world.transport.peers.values() if coded & p.shards.keys()][:3]:
            peer.is_down = True
            peer.shards.clear()
        report = await stand_in(world)
        assert report.status.repair.degraded == 0
        assert report.status.repair.repaired_shards
        assert all(holders(world, shard) for shard in coded)
        assert large_shards(world) - old == coded, "the same shards as before"
        world.drop_cache()
        async with world.open():
            await check(world)

    run(work)
