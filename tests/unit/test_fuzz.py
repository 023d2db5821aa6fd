"""The targets of the fuzzer (tests/fuzz, run by hand) hold what they say for its seeds and some changes of them."""

import ast
import random
from pathlib import Path

import pytest

import fsdecloud
from tests.fuzz import targets
from tests.fuzz.seeds import KINDS, mutate, seeds
from tests.fuzz.targets import TARGETS, run_one

NAMES = list(TARGETS)
SEEDS = list(seeds(random.Random(1)))


def name_of(data):
    return NAMES[int.from_bytes(data[:2], "big")]


def test_seeds_and_what_is_nearly_one_raise_nothing_undeclared():
    rng = random.Random(2)
    for data in SEEDS:
        for _ in range(2):
            run_one(name_of(data), data[2:])
            data = mutate(data, rng) or data


def test_a_seed_of_every_message_is_understood():
    understood = {name_of(data) for data in SEEDS if name_of(data) in KINDS and run_one(name_of(data), data[2:])}
    messages = {name for name in KINDS if name.startswith(("message", "peer", "gossip"))}
    assert messages <= understood
    assert len(understood - messages) >= 8, understood


@pytest.mark.parametrize("package", ["wire", "fs", "ledger", "swarm", "tree"])
def test_every_decoder_is_a_target(package):
    source = Path(targets.__file__).read_text()
    for path in sorted((Path(fsdecloud.__file__).parent / package).glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef) or not node.name.startswith(("decode_", "verify_")):
                continue
            if any(argument.arg == "data" for argument in node.args.args):
                assert node.name in source, f"{path}: {node.name}"
