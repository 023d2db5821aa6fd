"""Golden vectors of shard sets and possession proofs (fsdecloud-protocol(7)): formats that two machines must agree on.

`python -m tests.unit.crypto.test_possession_vectors` prints the file anew, for a format that was changed on purpose.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from blake3 import blake3

from fsdecloud.crypto.possession import challenge, verify
from tests.unit.crypto.shardsets import Holder

FILE = Path(__file__).parents[2] / "vectors" / "possession.json"

ABOUT = (
    "Sets of shards and proofs that they are there. Shard i (from 0) of a case is the BLAKE3 output of the text 'shard i',"
    " as many bytes of it as 'lengths' says. Bytes are in hexadecimal; each case has this proof and no other."
)

CASES = {
    "no shards": ([], "", 3),
    "one shard of one byte": ([1], "00", 1),
    "one shard of one leaf": ([1024], "01", 2),
    "two leaves": ([1025], "02", 1),
    "two shards": ([300, 400], "03", 1),
    "a dozen": ([1, 1000, 1024, 1025, 2048, 2049, 3000, 4096, 5000, 7777, 8192, 10000], "aa" * 32, 3),
    "three pages": (list(range(1, 101)), "ff00", 4),
}


def shard(i: int, length: int) -> bytes:
    return blake3(b"shard %d" % i).digest(length=length)


def case(name: str) -> dict[str, object]:
    lengths, seed, samples = CASES[name]
    holder = Holder([shard(i, length) for i, length in enumerate(lengths)])
    return {
        "name": name,
        "lengths": lengths,
        "root": holder.set.root.hex(),
        "leaves": holder.set.leaves,
        "height": holder.set.height,
        "seed": seed,
        "samples": samples,
        "challenge": challenge(bytes.fromhex(seed), holder.set.leaves, samples),
        "proof": holder.prove(bytes.fromhex(seed), samples).hex(),
    }


@pytest.mark.parametrize("vector", json.loads(FILE.read_bytes())["cases"], ids=lambda v: v["name"])
def test_sets_and_proofs_are_what_they_were(vector):
    assert case(vector["name"]) == vector
    seed, proof = bytes.fromhex(vector["seed"]), bytes.fromhex(vector["proof"])
    assert verify(bytes.fromhex(vector["root"]), seed, vector["samples"], proof)


def test_every_case_is_in_the_file():
    assert [vector["name"] for vector in json.loads(FILE.read_bytes())["cases"]] == list(CASES)


if __name__ == "__main__":
    print(json.dumps({"about": ABOUT, "cases": [case(name) for name in CASES]}, indent=1))
