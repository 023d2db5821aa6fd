"""The tree against a dictionary: any history gives the content's own root, and costs what changed."""

from __future__ import annotations

import random
from bisect import bisect_left

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from fsdecloud.errors import MalformedError
from fsdecloud.limits import (
    NODE_MAX,
    NODE_MAX_ITEMS,
    NODE_MIN,
    NODE_TARGET,
    TREE_KEY_MAX,
    TREE_VALUE_MAX,
)
from fsdecloud.tree.diff import diff, replaced, walk
from fsdecloud.tree.lookup import leaf_at, lookup, missing, missing_range, prefix_end, scan, scan_prefix
from fsdecloud.tree.node import ITEM_OVERHEAD, Inner, Leaf, NodeMissing, decode_node, encode_node
from fsdecloud.tree.proof import check_keys, check_proof, prove, prove_keys
from fsdecloud.tree.update import LIGHT_ITEM, update, update_steps

BORDER_KEY = bytes(range(32))


def ref_of(encoded: bytes) -> bytes:
    return blake3(encoded).digest()


class Nodes:
    """Encoded nodes by reference, with counts of what was asked."""

    def __init__(self):
        self.store: dict[bytes, bytes] = {}
        self.gets = 0
        self.puts: list[bytes] = []

    def get(self, ref):
        self.gets += 1
        if ref not in self.store:
            raise NodeMissing(ref)
        return decode_node(self.store[ref])

    def put(self, encoded):
        ref = ref_of(encoded)
        self.store[ref] = encoded
        self.puts.append(ref)
        return ref

    def update(self, root, changes):
        return update(self.get, self.put, BORDER_KEY, root, changes)

    def build(self, items):
        return self.update(b"", sorted(items.items()))


def simple_root(items):
    """The border rule in its plainest form: the root of `items`, and all encoded nodes by reference."""
    nodes = {}
    level, current = 0, sorted(items.items())
    while current:
        cut, count, size_so_far, above = 0, 0, 0, []
        for position, (key, value) in enumerate(current):
            size = len(key) + len(value) + ITEM_OVERHEAD
            count += 1
            size_so_far += size
            draw = int.from_bytes(blake3(bytes([level]) + key, key=BORDER_KEY).digest()[:4], "big")
            is_chosen = size_so_far >= NODE_MIN and draw * NODE_TARGET < max(size, LIGHT_ITEM) << 32
            is_last = position == len(current) - 1
            if is_chosen or is_last or count == NODE_MAX_ITEMS or size_so_far >= NODE_MAX:
                keys, contents = zip(*current[cut : position + 1], strict=True)
                encoded = encode_node(Inner(level, keys, contents) if level else Leaf(keys, contents))
                nodes[ref_of(encoded)] = encoded
                above.append((keys[0], ref_of(encoded)))
                cut, count, size_so_far = position + 1, 0, 0
        if len(above) == 1:
            return above[0][1], nodes
        level, current = level + 1, above
    return b"", nodes


def make_items(count, seed=0, key_size=24, value_size=60):
    rng = random.Random(seed)
    return {rng.randbytes(key_size): rng.randbytes(value_size) for _ in range(count)}


def apply(items, changes):
    result = dict(items)
    for key, value in changes:
        if value is None:
            result.pop(key, None)
        else:
            result[key] = value
    return result


# ---- the root is the content's --------------------------------------------------------------------------------------
# Keys from a small space so that changes hit; values of very different sizes so that every border rule takes part.
key_strategy = st.integers(0, 1500).map(lambda n: blake3(n.to_bytes(2, "big")).digest(length=2 + n % 40))
value_strategy = st.one_of(
    st.none(),
    st.none(),
    st.tuples(st.sampled_from([0, 1, 9, 60, 60, 60, 300, 2000, 4096, 20000]), st.integers(0, 3)).map(
        lambda t: bytes([t[1]]) * t[0]
    ),
)
batch_strategy = st.dictionaries(key_strategy, value_strategy, max_size=60).map(lambda d: sorted(d.items()))


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2000), st.integers(0, 5), st.lists(batch_strategy, min_size=1, max_size=5))
def test_any_history_gives_the_root_of_the_content(count, seed, batches):
    nodes = Nodes()
    rng = random.Random(seed)
    sizes = [0, 5, 60, 60, 60, 700, 4096] if seed else [0]
    items = {}
    for number in rng.sample(range(1501), min(count, 1501)):
        items[blake3(number.to_bytes(2, "big")).digest(length=2 + number % 40)] = bytes(rng.choice(sizes))
    root = nodes.build(items)
    assert root == simple_root(items)[0]
    for batch in batches:
        before = items
        items = apply(items, batch)
        nodes.puts.clear()
        old_root, root = root, nodes.update(root, batch)
        expected, expected_nodes = simple_root(items)
        assert root == expected
        # Exactly the new nodes were put, each once, and the last one is the root.
        assert sorted(nodes.puts) == sorted(set(nodes.puts))
        assert set(nodes.puts) <= set(expected_nodes)
        assert set(expected_nodes) <= set(nodes.store)
        if nodes.puts and root not in dict(walk(nodes.get, old_root)):
            assert nodes.puts[-1] == root
        assert dict(scan(nodes.get, root, b"", None)) == items
        changed = [
            (key, before.get(key), items.get(key))
            for key in sorted({*before, *items})
            if before.get(key) != items.get(key)
        ]
        assert list(diff(nodes.get, old_root, root)) == changed
        assert {ref for ref, _ in walk(nodes.get, root)} == set(expected_nodes)


@pytest.mark.parametrize("size", [0, 60, 3000])
def test_shrinking_to_nothing_and_growing_back(size):
    items = make_items(1200, value_size=size)
    nodes = Nodes()
    root = nodes.build(items)
    rng = random.Random(5)
    keys = list(items)
    rng.shuffle(keys)
    left = dict(items)
    for count in (1, 500, 400, 290, 5, 1, 1, 1, 1):
        gone, keys = keys[:count], keys[count:]
        nodes.puts.clear()
        root = nodes.update(root, sorted((key, None) for key in gone))
        for key in gone:
            del left[key]
        expected, expected_nodes = simple_root(left)
        assert root == expected
        assert set(nodes.puts) <= set(expected_nodes)
    assert root == b""
    assert nodes.build(items) == simple_root(items)[0]


@pytest.mark.parametrize("keep", ["first", "last", "middle"])
def test_deleting_all_but_one_end_of_a_tall_tree(keep):
    """The top must come down through levels that have one node left, whichever it is, without a useless node put."""
    items = make_items(9000, key_size=60, value_size=0)
    keys = sorted(items)
    nodes = Nodes()
    root = nodes.build(items)
    assert nodes.get(root).level >= 2
    for left in (1, 30, 100, 2000):
        kept = {"first": keys[:left], "last": keys[-left:], "middle": keys[4000 : 4000 + left]}[keep]
        nodes.puts.clear()
        new_root = nodes.update(root, [(key, None) for key in keys if key not in set(kept)])
        expected, expected_nodes = simple_root(dict.fromkeys(kept, b""))
        assert new_root == expected
        assert set(nodes.puts) <= set(expected_nodes)


def test_the_right_edge_of_a_tall_tree():
    """The last node of a level may have a single child: it can be all that is left, and it is not all that there is."""
    items = make_items(9000, key_size=60, value_size=0)
    keys = sorted(items)
    nodes = Nodes()
    root = nodes.build(items)
    assert nodes.get(root).level == 2
    last_inner = [node for _, node in walk(nodes.get, root) if node.level == 1][-1]
    assert len(last_inner.keys) > 1

    # Everything below the last inner node but one item: the first node touched is its parent's first, not its level's.
    first = last_inner.keys[0]
    left = {key: b"" for key in keys if key <= first}
    assert nodes.update(root, [(key, None) for key in keys if key > first]) == simple_root(left)[0]

    # Its first leaf alone stays, then the tree before it goes: from a tree of three levels to that leaf.
    left = {key: b"" for key in keys if key < last_inner.keys[1]}
    root = nodes.update(root, [(key, None) for key in keys if key not in left])
    assert [len(node.keys) for _, node in walk(nodes.get, root) if node.level == 1][-1] == 1
    nodes.puts.clear()
    assert nodes.update(root, [(key, None) for key in keys if key < first]) == last_inner.refs[0]
    assert nodes.puts == []


def test_nothing_changes_nothing_is_put():
    items = make_items(2000)
    nodes = Nodes()
    root = nodes.build(items)
    nodes.puts.clear()
    key, value = next(iter(items.items()))
    assert nodes.update(root, []) == root
    assert nodes.update(root, [(key, value)]) == root
    assert nodes.update(root, [(b"absent", None)]) == root
    assert nodes.update(b"", [(b"absent", None)]) == b""
    assert nodes.update(b"", []) == b""
    assert nodes.puts == []


def test_the_last_of_equal_keys_counts_and_unsorted_changes_are_refused():
    nodes = Nodes()
    root = nodes.update(b"", [(b"a", b"1"), (b"a", None), (b"b", b"2"), (b"b", b"3")])
    assert list(scan(nodes.get, root, b"", None)) == [(b"b", b"3")]
    for changes in (
        [(b"b", b""), (b"a", b"")],
        [(b"", b"")],
        [(bytes(TREE_KEY_MAX + 1), b"")],
        [(b"a", bytes(TREE_VALUE_MAX + 1))],
    ):
        with pytest.raises(ValueError, match="tree"):
            nodes.update(root, changes)
    largest = {b"\xff" * TREE_KEY_MAX: bytes(TREE_VALUE_MAX), b"a": bytes(TREE_VALUE_MAX)}
    assert dict(scan(nodes.get, nodes.build(largest), b"", None)) == largest


def test_a_small_change_to_a_large_tree_is_cheap():
    items = make_items(30000)
    nodes = Nodes()
    root = nodes.build(items)
    height = nodes.get(root).level + 1
    keys = sorted(items)
    rng = random.Random(3)
    gets = puts = 0
    for _ in range(100):
        nodes.gets = 0
        nodes.puts.clear()
        root2 = nodes.update(root, [(rng.choice(keys), b"new value")])
        gets += nodes.gets
        puts += len(nodes.puts)
        nodes.gets = 0
        assert len(list(diff(nodes.get, root, root2))) == 1
        assert nodes.gets <= 2 * height + 6
    assert gets <= 100 * (height * (height + 1) / 2 + 3)
    assert puts <= 100 * (height + 1)


def test_nodes_have_about_the_target_size():
    for size in (100, 400, 1500):
        nodes = Nodes()
        root = nodes.build(make_items(8 << 20 >> (size.bit_length() + 1), value_size=size))
        leaves = [len(nodes.store[ref]) for ref, node in walk(nodes.get, root) if isinstance(node, Leaf)]
        assert NODE_TARGET * 0.65 < sum(leaves) / len(leaves) < NODE_TARGET * 1.35
        assert max(leaves) < NODE_MAX + size + 1024


def test_keys_ground_to_be_borders_neither_make_giant_nodes_nor_a_tall_tree():
    """Whoever may choose keys and knows the border key (as in the ledger) cannot hurt the tree."""

    def is_border(key, level):
        return (
            int.from_bytes(blake3(bytes([level]) + key, key=BORDER_KEY).digest()[:4], "big")
            < (LIGHT_ITEM << 32) // NODE_TARGET
        )

    numbers = [n.to_bytes(4, "big") for n in range(60000)]
    always = [key for key in numbers if is_border(key, 0)]
    never = [key for key in numbers if not is_border(key, 0)][:6000]
    for keys in (always, never):
        nodes = Nodes()
        root = nodes.build(dict.fromkeys(keys, b""))
        counts = [len(node.keys) for _, node in walk(nodes.get, root)]
        assert max(counts) <= NODE_MAX_ITEMS
        assert nodes.get(root).level <= 2


def test_steps_come_between_nodes():
    items = make_items(5000)
    nodes = Nodes()
    steps = update_steps(nodes.get, nodes.put, BORDER_KEY, b"", sorted(items.items()))
    count, worst, last = 0, 0, 0
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            root = stop.value
            break
        count += 1
        worst, last = max(worst, len(nodes.puts) - last), len(nodes.puts)
    assert root == simple_root(items)[0]
    assert count >= len(nodes.puts) - 3
    assert worst <= 3


# ---- reading --------------------------------------------------------------------------------------------------------
def test_lookup_and_scan():
    items = make_items(5000)
    keys = sorted(items)
    nodes = Nodes()
    root = nodes.build(items)
    rng = random.Random(9)
    for key in rng.sample(keys, 300):
        assert lookup(nodes.get, root, key) == items[key]
        assert lookup(nodes.get, root, key + b"\0") is None
        assert lookup(nodes.get, root, key[:-1]) is None
    assert lookup(nodes.get, root, b"") is None
    assert lookup(nodes.get, b"", b"x") is None
    assert list(scan(nodes.get, b"", b"", None)) == []
    points = [b"", keys[0], keys[-1], b"\xff" * 30, *rng.sample(keys, 8), *(rng.randbytes(3) for _ in range(8))]
    for start in points:
        for stop in [None, *points]:
            low = bisect_left(keys, start)
            high = len(keys) if stop is None else bisect_left(keys, stop)
            assert list(scan(nodes.get, root, start, stop)) == [(key, items[key]) for key in keys[low:high]]
    for prefix in (b"", b"\x17", b"\xff", b"\xff\xff", keys[77][:2]):
        assert [key for key, _ in scan_prefix(nodes.get, root, prefix)] == [
            key for key in keys if key.startswith(prefix)
        ]
    assert prefix_end(b"a\xff\xff") == b"b"
    assert prefix_end(b"\xff") is None


def test_a_scan_reads_only_what_it_yields():
    nodes = Nodes()
    root = nodes.build(make_items(20000))
    height = nodes.get(root).level + 1
    nodes.gets = 0
    assert next(scan(nodes.get, root, b"\x80", None))[0] >= b"\x80"
    assert nodes.gets == height


def test_missing_names_what_must_be_fetched_level_by_level():
    items = make_items(20000)
    whole = Nodes()
    root = whole.build(items)
    height = whole.get(root).level + 1
    wanted = sorted(random.Random(4).sample(sorted(items), 50))

    for ask, check in (
        (
            lambda nodes: missing(nodes.get, root, wanted),
            lambda nodes: [lookup(nodes.get, root, key) for key in wanted],
        ),
        (
            lambda nodes: missing_range(nodes.get, root, b"\x20", b"\x28"),
            lambda nodes: list(scan(nodes.get, root, b"\x20", b"\x28")),
        ),
    ):
        partial = Nodes()
        with pytest.raises(NodeMissing):
            check(partial)
        rounds = 0
        while refs := ask(partial):
            assert len(refs) == len(set(refs))
            for ref in refs:
                assert ref not in partial.store
                partial.store[ref] = whole.store[ref]
            rounds += 1
        assert rounds == height
        assert check(partial) == check(whole)
        assert len(partial.store) < len(whole.store) / 4
    assert missing(whole.get, root, []) == []
    assert missing(whole.get, b"", wanted) == []
    assert missing_range(whole.get, root, b"b", b"a") == []


def test_an_update_can_be_repeated_after_fetching_what_it_misses():
    items = make_items(3000)
    whole = Nodes()
    root = whole.build(items)
    changes = sorted((key, None) for key in list(items)[:40])
    expected = whole.update(root, changes)
    partial = Nodes()
    while True:
        try:
            assert partial.update(root, changes) == expected
            break
        except NodeMissing as exc:
            partial.store[exc.ref] = whole.store[exc.ref]


def test_walk_skips_what_is_known():
    nodes = Nodes()
    items = make_items(5000)
    root = nodes.build(items)
    root2 = nodes.update(root, [(min(items), b"x")])
    seen = {ref for ref, _ in walk(nodes.get, root)}
    new = [ref for ref, _ in walk(nodes.get, root2, is_known=seen.__contains__)]
    assert new[0] == root2
    assert len(new) <= nodes.get(root).level + 2
    assert list(walk(nodes.get, root, is_known=seen.__contains__)) == []


# ---- proofs ---------------------------------------------------------------------------------------------------------
@given(st.integers(0, 1500), st.integers(0, 1500), st.integers(0, 3), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_the_nodes_that_a_change_replaces(before, after, seed, changed):
    nodes = Nodes()
    items, other = make_items(before, seed), make_items(after, seed)
    for key in list(other)[:: max(1, len(other) // (changed + 1))][:changed]:
        other[key] = b"changed"
    old, new = nodes.build(items), nodes.build(other)
    found = list(replaced(nodes.get, old, new))
    assert len(found) == len(set(found))
    assert set(found) == {ref for ref, _ in walk(nodes.get, old)} - {ref for ref, _ in walk(nodes.get, new)}


def test_a_small_change_replaces_few_nodes_and_reads_few():
    nodes = Nodes()
    root = nodes.build(make_items(20_000))
    key = sorted(make_items(20_000))[777]
    other = nodes.update(root, [(key, b"new")])
    nodes.gets = 0
    found = list(replaced(nodes.get, root, other))
    assert 2 <= len(found) <= 6
    assert nodes.gets <= 20


def test_proofs_of_presence_and_absence():
    items = make_items(4000)
    keys = sorted(items)
    nodes = Nodes()
    root = nodes.build(items)
    rng = random.Random(2)
    for key in [*rng.sample(keys, 30), *(rng.randbytes(24) for _ in range(30)), b"\0", b"\xff" * 30]:
        proof = prove(nodes.get, root, key)
        assert check_proof(ref_of, root, key, proof) == items.get(key)
        for wrong in (proof[:-1], (*proof, proof[-1]), proof[::-1] if len(proof) > 1 else ()):
            with pytest.raises(MalformedError):
                check_proof(ref_of, root, key, wrong)
        damaged = bytearray(proof[-1])
        damaged[rng.randrange(len(damaged))] ^= 1
        with pytest.raises(MalformedError):
            check_proof(ref_of, root, key, (*proof[:-1], bytes(damaged)))
    assert check_proof(ref_of, b"", b"x", prove(nodes.get, b"", b"x")) is None
    with pytest.raises(MalformedError):
        check_proof(ref_of, b"", b"x", (proof[0],))
    with pytest.raises(MalformedError):
        check_proof(ref_of, root, b"x", [b""] * 100)


def test_one_proof_of_several_keys_shows_all_of_them_and_nothing_else():
    rng = random.Random(7)
    items = {rng.randbytes(24): rng.randbytes(rng.randrange(200)) for _ in range(3000)}
    nodes = Nodes()
    root = nodes.build(items)
    for count in (1, 2, 9):
        keys = [*rng.sample(sorted(items), count), rng.randbytes(24), b"\0"]
        proof = prove_keys(nodes.get, root, keys)
        assert len(proof) == len(set(proof))
        assert check_keys(ref_of, root, keys, proof) == tuple(map(items.get, keys))
        assert check_keys(ref_of, root, keys, proof[::-1]) == tuple(map(items.get, keys))
        stranger = next(node for node in nodes.store.values() if node not in proof)
        wrongs = [(*proof, stranger), (*proof, proof[0])]
        wrongs += [proof[:place] + proof[place + 1 :] for place in range(len(proof))]
        for wrong in wrongs:
            with pytest.raises(MalformedError):
                check_keys(ref_of, root, keys, wrong)
        with pytest.raises(MalformedError):
            check_keys(ref_of, nodes.update(root, [(keys[0], b"another value")]), keys, proof)
    assert check_keys(ref_of, b"", [b"x", b"y"], prove_keys(nodes.get, b"", [b"x", b"y"])) == (None, None)
    with pytest.raises(MalformedError):
        check_keys(ref_of, b"", [b"x"], (proof[0],))
    with pytest.raises(MalformedError):
        check_keys(ref_of, root, [b"x"], [b""] * 100)


def test_the_root_of_a_given_content_never_changes():
    """Ledgers and volumes that exist depend on the border rule and the encoding: these roots are part of the format."""
    items = {
        blake3(n.to_bytes(4, "big")).digest(): blake3(n.to_bytes(4, "big")).digest(length=n % 300) for n in range(4000)
    }
    assert Nodes().build(items).hex() == "387aed83b5597a4608b3ce8c6585a58ca410675e0012e4347bd54a1f040682dc"
    assert Nodes().build({b"key": b"value"}).hex() == "2eb6a64e9256e5603ad43187e6e9d498c376a17ef8b687ca0f03771962249917"


@given(
    st.integers(0, 2**32),
    st.integers(0, 600).map(lambda n: n.to_bytes(2, "big")),
    st.none() | st.integers(0, 600).map(lambda n: n.to_bytes(2, "big")),
)
@settings(max_examples=40)
def test_a_diff_of_a_range_is_that_part_of_the_diff(seed, start, stop):
    chance = random.Random(seed)
    nodes = Nodes()
    items = {n.to_bytes(2, "big"): chance.randbytes(chance.randrange(300)) for n in range(600) if chance.random() < 0.7}
    a = nodes.build(items)
    keys = sorted(chance.sample([n.to_bytes(2, "big") for n in range(600)], chance.randrange(60)))
    b = nodes.update(a, [(key, chance.choice([None, b"new"])) for key in keys])
    wanted = [row for row in diff(nodes.get, a, b) if start <= row[0] and (stop is None or row[0] < stop)]
    assert list(diff(nodes.get, a, b, start, stop)) == wanted
    nodes.gets = 0
    assert list(diff(nodes.get, a, b, keys[0] if keys else b"", keys[0] if keys else b"")) == []
    assert nodes.gets < 12


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_what_is_missing_can_be_gone_round(seed):
    """Whatever nodes are missing: `leaf_at` leads past them to all rows that can be had, and to no others."""
    noise = random.Random(seed)
    items = {b"%06d" % noise.randrange(10**6): noise.randbytes(noise.randrange(200)) for _ in range(1500)}
    nodes = Nodes()
    root = nodes.build(items)
    whole = dict(nodes.store)
    absent = set(noise.sample(sorted(whole), noise.randrange(1, 6)))
    nodes.store = {ref: data for ref, data in whole.items() if ref not in absent}
    wanted = {}
    for key, value in items.items():
        try:
            if lookup(nodes.get, root, key) is not None:
                wanted[key] = value
        except NodeMissing:
            continue
    found, key = {}, b""
    while key is not None:
        ref, above = leaf_at(nodes.get, root, key)
        assert (ref in absent) == bool(ref)
        if not ref:
            found.update(scan(nodes.get, root, key, above))
        assert above is None or above > key
        key = above
    assert found == wanted
    assert leaf_at(nodes.get, b"", b"x") == (b"", None)
