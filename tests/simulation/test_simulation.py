"""Three hundred networks, each from its seed: whatever happens to them, the promises hold; and each check has teeth."""

import dataclasses
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fsdecloud.swarm import evidence, hostmap, placement, repair
from fsdecloud.swarm.bucket import TokenBucket
from fsdecloud.swarm.groups import HostFacts
from fsdecloud.swarm.policy import Redundancy
from fsdecloud.types import PeerId
from tests.simulation.scenario import BAD, Broken, Profile, Simulation
from tests.simulation.world import DAY, GIB, HOUR, Conduct, blob_id

ROOT = Path(__file__).parents[2]

CALM = Profile(
    peers=20,
    groups=20,
    wanted=Redundancy(4, 12),
    blobs=12,
    blob_bytes=GIB,
    days=1.5,
    is_beyond=False,
    churn=math.inf,
    lifetimes=math.inf,
    correlated=0.0,
    partitions=0,
    bad=0,
    full=0.0,
    joins=0,
)


@pytest.fixture(autouse=True)
def _no_log():
    """Hundreds of peers come and go, and each would be logged."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def simulate(seed=0, *, rules=None, **changes):
    return Simulation(seed, profile=dataclasses.replace(CALM, **changes), rules=rules)


def stored(simulation, until=0.5 * HOUR):
    """Run until all blobs are stored."""
    profile = simulation.profile
    for number in range(profile.blobs):
        simulation.world.at(60.0, simulation.volume.store, blob_id(simulation.world.seed, number), profile.blob_bytes)
    simulation.world.run(until)
    assert len(simulation.volume.rows) == profile.blobs
    return simulation


def settle(simulation, days=4.0):
    simulation.world.run(simulation.world.now + days * DAY)
    simulation.check_bytes()
    simulation.check_traffic()
    simulation.check_groups()
    simulation.check_rest()
    return simulation


# ---- every seed ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(300))
def test_faults_053_054_057_058_060_069_073_076_seed(seed):
    Simulation(seed).run()


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1000, 3000))
def test_more_seeds(seed):
    Simulation(seed).run()


@pytest.mark.long
@pytest.mark.parametrize("seed", range(60))
def test_longer_and_larger_seeds(seed):
    Simulation(seed, is_long=True).run()


# ---- replay ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", [1, 11])
def test_the_same_seed_gives_the_same_trace_in_any_process(seed):
    here = Simulation(seed).run().world
    assert Simulation(seed).run().world.trace == here.trace
    for hash_seed in ("1",):
        done = subprocess.run(
            [sys.executable, "-m", "tests.simulation", str(seed)],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines() == [*here.trace, f"trace {here.digest()}"]
    assert Simulation(seed + 1).run().world.digest() != here.digest()


def test_a_failing_seed_says_how_to_see_it_again(monkeypatch):
    monkeypatch.setattr(repair, "due_shards", lambda _health, _policy: ())
    with pytest.raises(Broken, match=r"seed 7, trace [0-9a-f]{32}; again: python -m tests\.simulation 7\n") as first:
        broken(7)
    with pytest.raises(Broken) as second:
        broken(7)
    assert str(first.value) == str(second.value)


def broken(seed):
    simulation = stored(simulate(seed))
    for peer in list(simulation.network.peers.values())[:16]:
        simulation.network.kill(peer)
        simulation.world.run(simulation.world.now + 2 * DAY)
        simulation.check_bytes()


# ---- single faults ---------------------------------------------------------------------------------------------------
def test_fault_057_a_full_peer_is_left_alone():
    """Six hosts, two of them full, for 2/6: what they refuse waits, and nothing is sent to them in vain meanwhile."""
    simulation = simulate(peers=6, groups=6, wanted=Redundancy(2, 6), blobs=4)
    for peer in list(simulation.network.peers.values())[:2]:
        peer.capacity = GIB // 4
    simulation.start()
    simulation.world.run(2 * DAY)
    volume = simulation.volume
    assert len(volume.pending) == len(volume.acked) == 4
    before = volume.actions
    simulation.world.run(4 * DAY)
    assert volume.actions == before
    for peer in simulation.network.peers.values():
        peer.capacity = 100 * GIB
    simulation.world.run(5 * DAY)
    assert not volume.pending


@pytest.mark.parametrize("seed", range(4))
def test_fault_058_a_lost_store_is_made_good(seed):
    simulation = stored(simulate(seed))
    peer = next(peer for peer in simulation.network.peers.values() if peer.store)
    lost = len(peer.store)
    simulation.network.lose_store(peer)
    simulation.volume.sample_from_now(peer.id)
    simulation.world.run(simulation.world.now + 12 * HOUR)
    assert sum(made for _, _, made, _ in simulation.volume.repairs) == lost
    assert not simulation.volume.evidence.is_distrusted(peer.id)
    settle(simulation)


@pytest.mark.parametrize("seed", range(4))
def test_fault_060_all_that_may_fail_fails_at_once(seed):
    simulation = stored(simulate(seed))
    hosts = list(simulation.network.peers.values())
    for peer in simulation.world.random.sample(hosts, 8):
        simulation.network.kill(peer)
    settle(simulation)
    assert not simulation.lost
    assert all(simulation.volume.health(blob).is_whole for blob in simulation.volume.rows)


def test_fault_064_a_storm_keeps_to_the_rate():
    """30 % of the hosts die at once: what has to be moved takes as long as the rate says, and is all made."""
    rules = repair.Policy()
    simulation = stored(simulate(peers=46, groups=46, wanted=Redundancy(10, 30), blobs=24))
    for peer in simulation.world.random.sample(list(simulation.network.peers.values()), 14):
        simulation.network.kill(peer)
    died = simulation.world.now
    settle(simulation)
    repairs = simulation.volume.repairs
    moved = sum(bytes_moved for *_, bytes_moved in repairs)
    made = sum(shards for _, _, shards, _ in repairs)
    assert made == sum(map(len, simulation.failures.values()))
    assert repairs[-1][0] - died - rules.gone_after >= (moved - rules.burst) / rules.rate - 120
    assert moved <= made * (GIB / 10 + 1) * 2.5  # many of a blob's shards at once: k + 1 for each would be eleven
    assert all(simulation.volume.health(blob).is_whole for blob in simulation.volume.rows)


@pytest.mark.parametrize("conduct", BAD)
@pytest.mark.parametrize("seed", range(2))
def test_faults_069_073_074_bad_peers_are_found_and_replaced(seed, conduct):
    """Whoever does not give what it has signed for has no shard that counts after a day and a half; and gets no new ones."""
    simulation = stored(simulate(seed, blobs=30))
    peer = max(simulation.network.peers.values(), key=lambda peer: len(peer.store))
    simulation.network.turn(peer, conduct)
    simulation.volume.sample_from_now(peer.id)
    simulation.world.run(simulation.world.now + 36 * HOUR)
    volume = simulation.volume
    assert simulation.failures
    if conduct is not Conduct.MOODY:  # now and then it is in the mood
        assert volume.evidence.is_distrusted(peer.id)
        assert all(peer.id not in volume.places(blob).values() for blob in volume.rows)
        assert all(simulation.whole(blob) == 12 for blob in volume.rows)
    simulation.check_bytes()


def test_fault_074_a_peer_cannot_tell_a_sample_from_a_read():
    """Both are the same request for a whole shard; whatever serves the one serves the other."""
    simulation = stored(simulate(blobs=6))
    volume, requests = simulation.volume, simulation.network.requests
    peer = next(peer for peer in volume.members if simulation.network.peers[peer].store)
    requests.clear()
    for _ in range(40):
        volume._sample(peer)
    samples = set(requests)
    requests.clear()
    for blob in volume.rows:
        for index, holder in volume.places(blob).items():
            if holder == peer:
                volume._get(peer, volume.shard(blob, index), 1)
    assert samples == set(requests)


def test_short_absences_cost_nothing():
    """Who is back within a quarter of an hour is waited for, as long as enough others are there."""
    simulation = stored(simulate())
    hosts = list(simulation.network.peers.values())
    for number in range(60):
        peer = hosts[number % len(hosts)]
        at = simulation.world.now + 60 + number * 1200
        simulation.world.at(at, simulation._set_up, peer, False)
        simulation.world.at(at + 800, simulation._set_up, peer, True)
    settle(simulation)
    assert not simulation.volume.repairs
    assert simulation.volume.map.epoch == 1


def test_fault_053_an_outage_of_our_own_line_costs_nothing():
    """Eight hours without any peer: when they are back, one after the other as they are asked, nothing has to be made again."""
    simulation = stored(simulate())
    hosts = list(simulation.network.peers.values())
    simulation.network.cut(hosts, is_cut=True)
    simulation.world.run(simulation.world.now + 8 * HOUR)
    simulation.network.cut(hosts, is_cut=False)
    settle(simulation)
    assert not simulation.volume.repairs
    assert simulation.volume.map.epoch == 1


@pytest.mark.parametrize("seed", range(3))
def test_fault_054_stopped_one_by_one_and_resumed_in_another_order(seed):
    simulation = stored(simulate(seed, partitions=1))
    hosts = list(simulation.network.peers.values())
    simulation.world.random.shuffle(hosts)
    for number, peer in enumerate(hosts):
        simulation.world.at(simulation.world.now + number * 30, simulation._set_up, peer, False)
    simulation.world.random.shuffle(hosts)
    for number, peer in enumerate(hosts):
        simulation.world.at(simulation.world.now + 20 * HOUR + number * 30, simulation._set_up, peer, True)
    simulation.world.run(simulation.world.now + 20 * HOUR)
    assert simulation.volume.map.epoch == 1  # when all others are away too, it is our own network that fails
    settle(simulation)
    assert all(simulation.volume.health(blob).is_whole for blob in simulation.volume.rows)


# ---- teeth: what is broken on purpose does not pass ------------------------------------------------------------------
def seeds_break(seeds, match, **changes):
    for seed in seeds:
        try:
            (simulate(seed, **changes) if changes else Simulation(seed)).run()
        except Broken as exc:
            if match in str(exc):
                return
    pytest.fail(f"no seed notices: {match}")


STRIKES = {"lifetimes": 0.25, "days": 2.5, "peers": 34, "groups": 34}


def test_teeth_bytes(monkeypatch):
    monkeypatch.setattr(repair, "due_shards", lambda _health, _policy: ())
    seeds_break(range(6), "is lost, though only", **STRIKES | {"days": 6.0})


def test_teeth_movement(monkeypatch):
    rank = placement.rank_hosts
    monkeypatch.setattr(
        placement, "rank_hosts", lambda secret, blob, *rest: rank(bytes([rest[0].epoch]) + secret[1:], blob, *rest)
    )
    seeds_break(range(4), "shards moved on", joins=4)


def test_teeth_load(monkeypatch):
    count = hostmap.slot_counts
    monkeypatch.setattr(
        hostmap, "slot_counts", lambda facts, *rest: count({p: HostFacts(1, f.group) for p, f in facts.items()}, *rest)
    )
    seeds_break(range(0, 8, 4), "blobs,", joins=1, peers=40, groups=41)


def test_the_load_was_looked_at():
    checked = [Simulation(seed).run().weighed_hosts for seed in range(0, 32, 4)]
    assert sum(hosts > 0 for hosts in checked) >= 2


def test_teeth_rate(monkeypatch):
    monkeypatch.setattr(TokenBucket, "take", lambda *_: 0.0)
    seeds_break(range(4), "than the rate allows", **STRIKES)


def test_teeth_bytes_per_lost_shard(monkeypatch):
    due = repair.due_shards

    def all_at_once(health, policy):
        return tuple(range(health.n)) if due(health, policy) else ()

    monkeypatch.setattr(repair, "due_shards", all_at_once)
    seeds_break(range(4), "and none was away", **STRIKES)


def test_teeth_short_absences():
    simulation = stored(simulate(rules=repair.Policy(grace=60, urgent_grace=60, gone_after=60)))
    peer = next(peer for peer in simulation.network.peers.values() if peer.store)
    simulation.network.set_up(peer, is_up=False)
    simulation.world.run(simulation.world.now + 800)
    assert simulation.volume.repairs


def test_teeth_fault_076_groups_of_the_ranking(monkeypatch):
    monkeypatch.setattr(placement, "_spread", lambda order, _marks: order)
    seeds_break(range(3), "share a group", peers=30, groups=15)


def test_teeth_fault_076_groups_of_what_is_made_again(monkeypatch):
    choose = repair.choose_places
    monkeypatch.setattr(repair, "choose_places", lambda *arguments: choose(*arguments[:6]))
    seeds_break(range(12), "though its group has one", **STRIKES | {"groups": 15})


def test_teeth_rest(monkeypatch):
    due = repair.due_shards
    monkeypatch.setattr(repair, "due_shards", lambda health, policy: due(health, policy) or (0,))
    monkeypatch.setattr(repair.Health, "is_whole", property(lambda _health: False))
    monkeypatch.setattr(evidence.Evidence, "has_lost", lambda *_: True)
    monkeypatch.setattr(repair, "next_due", lambda _health, _policy: 6 * HOUR)
    seeds_break(range(2), "nothing happens any more", peers=14, groups=14, joins=2, partitions=1)


def test_teeth_made_whole(monkeypatch):
    monkeypatch.setattr(repair, "choose_places", lambda *_: {})
    seeds_break(range(6), "there are peers for more", **STRIKES | {"days": 0.7})


def test_peers_are_told_apart():
    simulation = Simulation(3)
    assert len({PeerId(peer) for peer in simulation.network.peers}) == simulation.profile.peers
