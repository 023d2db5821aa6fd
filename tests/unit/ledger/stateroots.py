"""Prints what becomes of histories under the interpreter that runs this: python tests/unit/ledger/stateroots.py FILE

FILE is a JSON list of histories, each {"network": hex, "now": Unix seconds, "blocks": [hex, ...]}. A line for each block:
its id, the root of the state after it and the work up to it, or why it is refused; after each history its best tip and a digest
of all nodes of its states. Two versions of Python that print the same agree about the chain (fault 117). It needs the ledger's
own dependencies and nothing else.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

sys.path[:0] = [str(Path(__file__).parents[3]), str(Path(__file__).parent)]
from fast import Fast, outcome  # noqa: E402 - beside this file


def lines(histories: list[dict]) -> Iterator[str]:
    """Yield the lines about histories."""
    for history in histories:
        ledger = Fast(bytes.fromhex(history["network"]))
        for block in history["blocks"]:
            point, why = outcome(ledger, bytes.fromhex(block), history["now"])
            yield " ".join(why) if point is None else f"{point.id.hex()} {point.state_root.hex()} {point.work.hex()}"
        nodes = blake3(b"".join(ref + data for ref, data in sorted(ledger.nodes.items()))).hexdigest()
        yield f"tip {ledger.tip.id.hex()} nodes {nodes}"


if __name__ == "__main__":
    print(f"# {sys.version.split()[0]}")
    for line in lines(json.loads(Path(sys.argv[1]).read_text())):
        print(line)
