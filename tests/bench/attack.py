"""How much longer honest requests take while a peer is attacked: percentiles of one honest client, quiet and under each attack.

    python -m tests.bench.attack [--seconds 10] [--rate 100] [--json FILE]

The peer is a process on one core; the honest client and the attackers are others on the other core, the client with a higher
priority, so that what is measured is the peer and not who gets the processor of the attackers' machine. Attackers come from
another loopback address. Each attack is followed by a quiet turn: ratios are to the mean of the quiet turns around it.

Attacks: `malformed` (connect, say one thing that is not allowed, be thrown out, again), `handshakes` (connections that stop
in the middle, again and again), `half-open` (as many as fit), `requests` (a stranger asks as fast as it may), `forwards`
(for peers that nobody knows), `frames` (empty fragments without an end), `deaf` (asks for shards and never reads).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import trio
import trio.lowlevel

from fsdecloud.limits import MIB
from fsdecloud.net.address import Address, parse_url
from fsdecloud.net.pool import open_pool
from fsdecloud.types import PeerId, ShardId
from fsdecloud.wire import peer as wire
from fsdecloud.wire.forwarding import make_forward
from tests.component.peerd.hostile import hostile, raw
from tests.component.peerd.process import DEAL_SEED, NETWORK, peer_process, shard

ATTACKER: Final = "127.0.0.66"
SHARD: Final = 4096
LARGE: Final = 512 << 10
SHARDS: Final = 64
LARGE_NUMBER: Final = 1000
WORKERS: Final = 16
"""What one attacker does at once."""


async def be_honest(address: Address, seconds: float, rate: float) -> list[float]:
    """Get small shards, `rate` a second and each when it is due, whatever became of the last; return each one's seconds."""
    took: list[float] = []
    async with open_pool(network=NETWORK, deal_seed=lambda _peer: DEAL_SEED) as pool:
        await pool.get(address, shard(0, SHARD)[0])

        async def one(number: int, due: float) -> None:
            await pool.get(address, shard(number % SHARDS, SHARD)[0])
            took.append(trio.current_time() - due)

        async with trio.open_nursery() as nursery:
            start = trio.current_time()
            for number in range(int(seconds * rate)):
                due = start + number / rate
                await trio.sleep_until(due)
                nursery.start_soon(one, number, due)
    return took


# ---- attacks -------------------------------------------------------------------------------------------------------
async def malformed(address: Address) -> None:
    """Be thrown out."""
    async with hostile(address) as client:
        await client.greet(address, NETWORK, None)
        await client.send_frame(b"\xdd\xff\xff\xff\xff")
        await client.wait_closed()


async def handshakes(address: Address) -> None:
    """Begin TLS and leave."""
    stream = await trio.open_tcp_stream(address.host, address.port)
    await stream.send_all(b"\x16\x03\x01\x02\x00")
    await trio.aclose_forcefully(stream)


async def half_open(address: Address) -> None:
    """Stay at the first half of a request."""
    async with raw(address) as stream:
        await stream.send_all(b"GET /")
        while await stream.receive_some():
            pass


async def requests(address: Address) -> None:
    """Ask for what is not there."""
    async with open_pool(network=NETWORK) as pool:
        while True:
            await pool.has(address, [ShardId(os.urandom(32)) for _ in range(8)])


async def forwards(address: Address) -> None:
    """Have it look for peers that are not there."""
    put = wire.Put(0, (wire.Shard(bytes(32), memoryview(bytes(64 << 10))),))
    async with open_pool(network=NETWORK) as pool:
        while True:
            make = make_forward(
                put, network=NETWORK, target=PeerId(os.urandom(32)), nonce=os.urandom(32), hops=3, patience=1000,
                deal_seed=None, owner=b"", now=0,
            )  # fmt: skip
            await pool.forward(address, make, MIB)


async def frames(address: Address) -> None:
    """Begin a message and never end it."""
    async with hostile(address) as client:
        await client.greet(address, NETWORK, None)
        await client.stream.send_all(b"\x02\x80abcd")
        while True:
            await client.stream.send_all(b"\x00\x80abcd" * 1000)


async def deaf(address: Address) -> None:
    """Ask for large shards and take nothing."""
    async with hostile(address) as client:
        session = await client.greet(address, NETWORK, None)
        for _ in range(16):
            get = wire.Get(session.next_number(), shard(LARGE_NUMBER, LARGE)[0], 0, 0)
            await client.send_frame(session.request(get))
        await trio.sleep_forever()


ATTACKS: Final[dict[str, Callable[[Address], Awaitable[None]]]] = {
    "malformed": malformed,
    "handshakes": handshakes,
    "half-open": half_open,
    "requests": requests,
    "forwards": forwards,
    "frames": frames,
    "deaf": deaf,
}


async def attack(address: Address, name: str) -> None:
    """Do one thing again and again until killed, WORKERS of it at once."""

    async def again() -> None:
        while True:
            with suppress(Exception):  # an attacker goes on, whatever the peer says
                await ATTACKS[name](address)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for _ in range(WORKERS):
            nursery.start_soon(again)


# ---- processes -----------------------------------------------------------------------------------------------------
def as_client(url: str, seconds: float, rate: float) -> None:
    """Print the latencies of an honest client as JSON."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.nice(-10)
    print(json.dumps(trio.run(be_honest, parse_url(url), seconds, rate)))


def as_attacker(url: str, name: str) -> None:
    """Attack until killed, from another address than the client's."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    trio.open_tcp_stream = partial(trio.open_tcp_stream, local_address=ATTACKER)
    trio.run(attack, parse_url(url), name)


def measure(url: str, options: argparse.Namespace) -> list[float]:
    """Run an honest client and return its latencies."""
    arguments = ("client", url, str(options.seconds), str(options.rate))
    told = subprocess.run([sys.executable, "-m", __spec__.name, *arguments], stdout=subprocess.PIPE, check=True)
    return [float(value) for value in json.loads(told.stdout)]


def measure_under(name: str, url: str, options: argparse.Namespace) -> list[float]:
    """The same while somebody attacks."""
    attacker = subprocess.Popen([sys.executable, "-m", __spec__.name, "attack", url, name], stderr=subprocess.DEVNULL)
    try:
        time.sleep(2.0)
        found = measure(url, options)
        if attacker.poll() is not None:
            raise SystemExit(f"the attack {name} ended by itself")
        return found
    finally:
        attacker.kill()
        attacker.wait()


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value, in milliseconds, below which a share of them is."""
    return 1000 * sorted(values)[min(int(share * len(values)), len(values) - 1)]


async def fill(address: Address) -> None:
    """Store what is asked for."""
    async with open_pool(network=NETWORK, deal_seed=lambda _peer: DEAL_SEED) as pool:
        await pool.put(address, [shard(i, SHARD) for i in range(SHARDS)])
        await pool.put(address, [shard(LARGE_NUMBER, LARGE)])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="bench.attack", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each turn (default 10)")
    parser.add_argument("--rate", type=float, default=100.0, help="honest requests a second (default 100)")
    parser.add_argument("--attacks", default=",".join(ATTACKS), help=f"of {', '.join(ATTACKS)}")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="decloud-bench-") as directory, peer_process(Path(directory)) as peer:
        os.sched_setaffinity(peer.process.pid, {min(os.sched_getaffinity(0))})
        url = str(peer.address)
        trio.run(fill, peer.address)
        quiet = measure(url, options)
        print("attack        p50 ms  quiet  ratio   p99 ms  quiet  ratio   peer MiB")
        for name in options.attacks.split(","):
            under, before = measure_under(name, url, options), quiet
            time.sleep(2.0)
            quiet = measure(url, options)
            row = {}
            for share in (0.5, 0.99):
                now = percentile(under, share)
                base = statistics.mean(percentile(turn, share) for turn in (before, quiet))
                row.update({f"p{100 * share:.0f}": now, f"p{100 * share:.0f}_quiet": base})
            row["resident_mib"] = peer.resident() / MIB
            rows[name] = row
            shown = [
                f"{row[p]:8.2f} {row[p + '_quiet']:6.2f} {row[p] / row[p + '_quiet']:6.2f}" for p in ("p50", "p99")
            ]
            print(f"{name:12}{'  '.join(shown)} {row['resident_mib']:9.0f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["client", url, seconds, rate]:
            as_client(url, float(seconds), float(rate))
        case ["attack", url, name]:
            as_attacker(url, name)
        case _:
            main()
