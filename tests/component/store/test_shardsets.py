"""The sets of deals on disk: what both signed stays, what one did not sign can be taken back, and a crash changes neither."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsdecloud.crypto import possession
from fsdecloud.crypto.shardset import EMPTY, shards_of
from fsdecloud.errors import MalformedError, StoreCorrupt, StoreFull
from fsdecloud.store import shardsets as module
from fsdecloud.store.environment import open_environment
from fsdecloud.store.shardsets import FIRST, Revision, ShardSets
from fsdecloud.types import ShardId
from tests.unit.crypto.shardsets import Holder, naive_set

MAP = 1 << 28
DEAL, OTHER = b"d" * 32, b"o" * 32


def ids(seed, count):
    rng = random.Random(seed)
    return [ShardId(rng.randbytes(32)) for _ in range(count)]


def open_sets(path):
    return ShardSets(path, map_size=MAP)


def contents(sets, deal, **options):
    revision, found = sets.read(deal, lambda revision, get: (revision, dict(shards_of(get))), **options)
    assert naive_set(found) == revision.shard_set
    return found


def proof_of(sets, holder, **options):
    def prove(revision, get):
        return revision.shard_set.root, possession.prove(get, revision.shard_set, b"seed", 8, holder.read)

    return sets.read(DEAL, prove, **options)


def rows(path):
    with open_environment(path, MAP) as env:
        found = {name: env.database(name) for name in (b"pages", b"staged", b"removed", b"sets")}
        with env.read() as txn:
            return {name.decode(): txn.stat(database)["entries"] for name, database in found.items()}


def test_a_revision_is_valid_once_it_is_accepted(tmp_path):
    one, two = dict.fromkeys(ids(1, 300), 1000), dict.fromkeys(ids(2, 50), 7)
    with open_sets(tmp_path) as sets:
        assert (sets.valid(DEAL), sets.staged(DEAL), sets.deals(), sets.shards(DEAL)) == (FIRST, None, [], [])
        staged = sets.stage(DEAL, 1, one)
        assert staged == sets.staged(DEAL) == Revision(1, naive_set(one), b"")
        assert sets.valid(DEAL) == FIRST
        assert (contents(sets, DEAL), contents(sets, DEAL, staged=True)) == ({}, one)
    with open_sets(tmp_path) as sets:
        assert sets.accept(DEAL, 1, b"signed") == Revision(1, naive_set(one), b"signed")
        assert (sets.valid(DEAL).note, sets.staged(DEAL), sets.deals()) == (b"signed", None, [DEAL])
        sets.stage(DEAL, 5, two | dict.fromkeys(list(one)[:290]), b"ours")
        both = two | dict(list(one.items())[290:])
        assert (contents(sets, DEAL), contents(sets, DEAL, staged=True)) == (one, both)
        assert sets.staged(DEAL) == Revision(5, naive_set(both), b"ours")
    with open_sets(tmp_path) as sets:
        sets.accept(DEAL, 5, b"both")
        assert contents(sets, DEAL) == both
        assert sets.accept(DEAL, 5, b"both") == sets.valid(DEAL)
        sets.stage(DEAL, 6, dict.fromkeys(both))
        sets.accept(DEAL, 6, b"")
        assert sets.valid(DEAL).shard_set == EMPTY
    assert rows(tmp_path) == {"pages": 0, "staged": 0, "removed": 0, "sets": 1}


def test_what_was_not_signed_is_taken_back(tmp_path):
    one = dict.fromkeys(ids(3, 200), 1000)
    with open_sets(tmp_path) as sets:
        sets.discard(DEAL)
        sets.stage(DEAL, 1, one)
        sets.accept(DEAL, 1, b"")
        sets.stage(DEAL, 2, dict.fromkeys(ids(4, 500), 1))
        sets.discard(DEAL)
        assert (sets.staged(DEAL), contents(sets, DEAL)) == (None, one)
        with pytest.raises(KeyError):
            sets.accept(DEAL, 2, b"")
        with pytest.raises(KeyError):
            contents(sets, DEAL, staged=True)
        # Staged anew, nothing is left of what was staged before.
        sets.stage(DEAL, 2, dict.fromkeys(ids(5, 500), 1))
        sets.stage(DEAL, 2, {ids(6, 1)[0]: 3})
        assert contents(sets, DEAL, staged=True) == one | {ids(6, 1)[0]: 3}
        sets.accept(DEAL, 2, b"")
        assert contents(sets, DEAL) == one | {ids(6, 1)[0]: 3}


def test_an_older_revision_never_comes_back(tmp_path):
    with open_sets(tmp_path) as sets:
        sets.stage(DEAL, 4, {ids(7, 1)[0]: 1})
        with pytest.raises(KeyError):
            sets.accept(DEAL, 3, b"")
        sets.accept(DEAL, 4, b"x")
        for number in (4, 3, 0, -1):
            with pytest.raises(MalformedError, match="does not follow"):
                sets.stage(DEAL, number, {})
        for number, note in ((3, b""), (4, b"y"), (5, b"")):
            with pytest.raises(KeyError):
                sets.accept(DEAL, number, note)


def test_what_is_too_large_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHANGES_MAX", 10)
    with open_sets(tmp_path) as sets:
        for deal, changes, note in (
            (b"", {}, b""),
            (b"d" * 65, {}, b""),
            (DEAL, dict.fromkeys(ids(8, 11), 1), b""),
            (DEAL, {}, bytes(module.NOTE_MAX + 1)),
            (DEAL, {ShardId(b"short"): 1}, b""),
        ):
            with pytest.raises(MalformedError):
                sets.stage(deal, 1, changes, note)
        with pytest.raises(MalformedError):
            sets.accept(DEAL, 1, bytes(module.NOTE_MAX + 1))
        assert (sets.deals(), sets.valid(b""), sets.valid(b"d" * 1000)) == ([], FIRST, FIRST)


def test_the_shards_of_a_set_piece_by_piece(tmp_path):
    shards = dict.fromkeys(ids(9, 500), 12)
    with open_sets(tmp_path) as sets:
        sets.stage(DEAL, 1, shards)
        sets.accept(DEAL, 1, b"")
        found, last = [], b""
        while piece := sets.shards(DEAL, last, 77):
            found += piece
            last = piece[-1][0]
        assert found == sorted(shards.items())


def test_a_removed_set_goes_in_bounded_steps_and_others_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SWEEP_STEP", 10)
    shards, others = dict.fromkeys(ids(10, 2000), 1), dict.fromkeys(ids(11, 2000), 2)
    with open_sets(tmp_path) as sets:
        for deal, some in ((DEAL, shards), (OTHER, others)):
            sets.stage(deal, 1, some)
            sets.accept(deal, 1, b"")
            sets.stage(deal, 2, dict.fromkeys(ids(12, 300), 1))
        sets.remove(DEAL)
        assert (sets.valid(DEAL), sets.staged(DEAL), sets.deals()) == (FIRST, None, [OTHER])
        # The same deal may begin anew while the old pages are still there.
        sets.stage(DEAL, 1, {ids(13, 1)[0]: 4})
        steps = 0
        while sets.sweep():
            steps += 1
        assert steps >= (2000 / 48 + 300 / 48) / 10
        assert contents(sets, OTHER) == others
        assert contents(sets, DEAL, staged=True) == {ids(13, 1)[0]: 4}
        sets.remove(DEAL)
        sets.remove(OTHER)
        sets.remove(b"unknown")
    with open_sets(tmp_path) as sets:
        while sets.sweep():
            pass
    assert rows(tmp_path) == {"pages": 0, "staged": 0, "removed": 0, "sets": 0}


def test_damage_is_said_and_not_proved(tmp_path):
    with open_sets(tmp_path) as sets:
        sets.stage(DEAL, 1, dict.fromkeys(ids(14, 100), 5000))
        sets.accept(DEAL, 1, b"")
    with open_environment(tmp_path, MAP) as env:
        pages = env.database(b"pages")
        with env.write() as txn, txn.cursor(db=pages) as cursor:
            assert cursor.last()
            txn.put(cursor.key(), b"\0" * 37, db=pages)
    with open_sets(tmp_path) as sets:
        with pytest.raises(StoreCorrupt, match="shard set"):
            sets.read(DEAL, lambda revision, get: possession.plan(get, revision.shard_set, b"", 100))
        with pytest.raises(StoreCorrupt):
            sets.stage(DEAL, 2, dict.fromkeys(ids(14, 100)))
        assert sets.staged(DEAL) is None
    with open_environment(tmp_path, MAP) as env:
        rows_ = env.database(b"sets")
        with env.write() as txn:
            txn.put(DEAL, b"nonsense", db=rows_)
    with open_sets(tmp_path) as sets:
        for call in (lambda: sets.valid(DEAL), lambda: sets.stage(DEAL, 1, {}), lambda: sets.shards(DEAL)):
            with pytest.raises(StoreCorrupt, match="damaged"):
                call()


def test_a_proof_of_the_valid_revision_while_the_next_is_staged(tmp_path):
    rng = random.Random(15)
    holder = Holder([rng.randbytes(3000) for _ in range(60)])
    with open_sets(tmp_path) as sets:
        sets.stage(DEAL, 1, {shard: len(data) for shard, data in holder.data.items()})
        root = sets.accept(DEAL, 1, b"").shard_set.root
        sets.stage(DEAL, 2, dict.fromkeys(list(holder.data)[:50]))
        assert sets.read(DEAL, lambda revision, _get: revision) == sets.valid(DEAL)
        found, proof = proof_of(sets, holder)
        assert found == root
        assert possession.verify(root, b"seed", 8, proof)
        found, proof = proof_of(sets, holder, staged=True)
        assert possession.verify(found, b"seed", 8, proof)
        assert not possession.verify(root, b"seed", 8, proof)


def test_a_small_change_of_a_large_set_touches_few_pages(tmp_path):
    shards = ids(16, 10_000)
    with open_sets(tmp_path) as sets:
        sets.stage(DEAL, 1, dict.fromkeys(shards, 1))
        sets.accept(DEAL, 1, b"")
        sets.stage(DEAL, 2, {shards[0]: None, shards[1]: 5})
    assert rows(tmp_path)["staged"] <= 8


def test_fault_013_a_full_disk_changes_nothing(tmp_path):
    shards = dict.fromkeys(ids(18, 1000), 1)
    with ShardSets(tmp_path, map_size=1 << 19) as sets:
        sets.stage(DEAL, 1, shards)
        sets.accept(DEAL, 1, b"")
        sets.stage(DEAL, 2, {ids(19, 1)[0]: 1})
        with pytest.raises(StoreFull):
            sets.stage(DEAL, 3, dict.fromkeys(ids(20, 10_000), 1))
        assert (sets.valid(DEAL).number, sets.staged(DEAL).number) == (1, 2)
        assert contents(sets, DEAL, staged=True) == shards | {ids(19, 1)[0]: 1}
        sets.discard(DEAL)
        assert contents(sets, DEAL) == shards


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["stage", "stage", "accept", "discard", "remove", "sweep", "reopen"]),
        st.sampled_from([DEAL, OTHER]),
        st.dictionaries(st.integers(0, 200), st.none() | st.integers(1, 9), max_size=60),
    ),
    max_size=30,
)
NAMES = ids(17, 201)


def test_a_note_may_be_made_from_the_new_set_and_what_that_raises_stages_nothing(tmp_path):
    def refuse(_found):
        raise ValueError("not this one")

    with open_sets(tmp_path) as sets:
        staged = sets.stage(DEAL, 1, {NAMES[0]: 7}, lambda found: found.root)
        assert staged.note == staged.shard_set.root != EMPTY.root
        with pytest.raises(ValueError, match="not this one"):
            sets.stage(DEAL, 2, {NAMES[1]: 7}, refuse)
        assert sets.staged(DEAL) == staged
        assert sets.changes(DEAL) == {NAMES[0]: 7}
        assert sets.changes(OTHER) == {}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_any_history_is_that_of_two_plain_sets(tmp_path_factory, steps):
    path = tmp_path_factory.mktemp("sets")
    valid, staged = {DEAL: (0, {}), OTHER: (0, {})}, {}
    sets = open_sets(path)
    try:
        for kind, deal, change in steps:
            if kind == "stage":
                number, old = valid[deal]
                changes = {NAMES[i]: length for i, length in change.items()}
                new = {shard: length for shard, length in (old | changes).items() if length is not None}
                sets.stage(deal, number + 1, changes)
                staged[deal] = (number + 1, new)
                effective = {shard: length for shard, length in changes.items() if old.get(shard) != length}
                assert sets.changes(deal) == effective
                assert sets.lengths(deal, changes) == {shard: old[shard] for shard in changes if shard in old}
            elif kind == "accept" and deal in staged:
                sets.accept(deal, staged[deal][0], b"n")
                valid[deal] = staged.pop(deal)
            elif kind == "discard":
                sets.discard(deal)
                staged.pop(deal, None)
            elif kind == "remove":
                sets.remove(deal)
                valid[deal] = (0, {})
                staged.pop(deal, None)
            elif kind == "sweep":
                sets.sweep()
            elif kind == "reopen":
                sets.close()
                sets = open_sets(path)
            for one in (DEAL, OTHER):
                assert (sets.valid(one).number, dict(sets.shards(one))) == valid[one]
                assert sets.valid(one).shard_set == naive_set(valid[one][1])
                found = sets.staged(one)
                assert (found is not None) == (one in staged)
                if found is not None:
                    assert (found.number, contents(sets, one, staged=True)) == staged[one]
    finally:
        sets.close()
        shutil.rmtree(path)


# ---- crashes -------------------------------------------------------------------------------------------------------

CHILD = """
import random, sys
from pathlib import Path
from fsdecloud.store.shardsets import ShardSets

def changes(number):
    rng = random.Random(number)
    new = {rng.randbytes(32): number + 1 for _ in range(200)}
    old = random.Random(number - 2)
    return new | {old.randbytes(32): None for _ in range(150)}

if __name__ == "__main__":
    sets = ShardSets(Path(sys.argv[1]), map_size=1 << 28)
    sets.discard(b"d" * 32)
    number = sets.valid(b"d" * 32).number
    while True:
        number += 1
        sets.stage(b"d" * 32, number, changes(number - 1))
        if number % 3 == 0:
            sets.discard(b"d" * 32)
            sets.stage(b"d" * 32, number, changes(number))
        sets.accept(b"d" * 32, number, b"signed %d" % number)
        print(number, flush=True)
"""


def expected(number, changes):
    found = {}
    for i in range(1, number + 1):
        found |= changes(i if i % 3 == 0 else i - 1)
        found = {shard: length for shard, length in found.items() if length is not None}
    return found


def check_state(path, changes, *, at_least, at_most):
    with open_sets(path) as sets:
        revision = sets.valid(DEAL)
        assert at_least <= revision.number <= at_most
        assert contents(sets, DEAL) == expected(revision.number, changes)
        assert revision.note == b"signed %d" % revision.number
        if sets.staged(DEAL) is not None:
            contents(sets, DEAL, staged=True)
        sets.discard(DEAL)
        assert contents(sets, DEAL) == expected(revision.number, changes)
    assert rows(path)["staged"] == 0
    return revision.number


def test_fault_001_killed_at_any_moment_there_is_the_last_signed_revision(tmp_path):
    path = tmp_path / "sets"
    scope = {"__name__": "child"}
    exec(CHILD, scope)
    last = 0
    for round_ in range(4):
        with subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True) as child:
            seen = [int(child.stdout.readline()) for _ in range(3 + 5 * round_)]
            child.kill()
            seen += [int(line) for line in child.stdout if line.endswith("\n")]
        assert seen == list(range(last + 1, last + 1 + len(seen)))
        last = check_state(path, scope["changes"], at_least=seen[-1], at_most=seen[-1] + 1)
    assert os.listdir(tmp_path) == ["sets"]
