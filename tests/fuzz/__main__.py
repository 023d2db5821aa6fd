"""Fuzz the decoders: `python -m tests.fuzz [libFuzzer's options]`, with atheris (the extra `fuzz`), guided by coverage.

    python -m tests.fuzz -max_total_time=600 -rss_limit_mb=2048

Stops at the first finding, says which target it is, and leaves its input in a file: `python -m tests.fuzz FILE` runs it again.
"""

import random
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["fsdecloud", "wsproto"]):
    from tests.fuzz.targets import TARGETS, run_one

from tests.fuzz.seeds import mutate, seeds

NAMES = list(TARGETS)
STRUCTURED = 0.7
"""Part of the changes that are made to the value and not to the bytes."""

FRESH = 0.3
"""Part of the inputs that begin with a seed of any target: those that run the same lines of Python, as all plain messages do,
would else be one to the fuzzer, and most of them forgotten."""

POOL = list(seeds(random.Random(0)))


def one_input(data):
    """Run the target that the first two bytes choose."""
    if len(data) >= 2:
        name = NAMES[int.from_bytes(data[:2], "big") % len(NAMES)]
        try:
            run_one(name, data[2:])
        except BaseException:  # whatever it is, it is the find; atheris reports it
            print(f"target: {name}", file=sys.stderr)
            raise


def change(data, max_size, seed):
    """Change an input: libFuzzer calls it."""
    rng = random.Random(seed)
    if rng.random() < FRESH:
        data = rng.choice(POOL)
        for _ in range(rng.choice([1, 1, 2, 3])):
            data = mutate(data, rng) or data
        return data[:max_size]
    if rng.random() < STRUCTURED and len(data) > 2:
        found = mutate(bytes(data), rng)
        if found is not None and len(found) <= max_size:
            return found
    return atheris.Mutate(data, max_size)


def main():
    """Fuzz until libFuzzer's options end it."""
    arguments = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="decloud-fuzz-") as directory:
        if all(item.startswith("-") for item in arguments):
            for number, data in enumerate(POOL):
                (Path(directory) / f"{number:05}").write_bytes(data)
            arguments.append(directory)
        atheris.Setup([sys.argv[0], *arguments], one_input, custom_mutator=change)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
