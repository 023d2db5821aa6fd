"""Peers and a client on one link that know nobody, as processes in two network namespaces with a cable between them."""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))

from agentworld import NETWORK, Driver, make_hello, run, until

from fsdecloud.cli import client as control
from fsdecloud.config import Paths
from fsdecloud.net import lan as module
from fsdecloud.net.lan import Lan
from fsdecloud.net.unix import open_rpc, stream_from_fd
from fsdecloud.peerd import setup
from fsdecloud.types import PeerId
from fsdecloud.wire.agentapi import AgentReady, Empty
from fsdecloud.wire.beacon import Beacon, encode_beacon, network_hash
from fsdecloud.wire.peerapi import PeerdStatus

DEADLINE = 40.0


def call(*command):
    subprocess.run(command, check=True, timeout=20)


@contextmanager
def space():
    """Have a network namespace; yield the words that run a program in it, and the pid that holds it."""
    holder = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo; exec sleep 600"], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline()
        inside = ["nsenter", "--net", "--target", str(holder.pid)]
        call(*inside, "ip", "link", "set", "lo", "up")
        yield inside, holder.pid
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


@pytest.fixture
def link():
    """Two machines, 10.77.0.1 and 10.77.0.2."""
    with space() as (one, _), space() as (other, pid):
        call(*one, "ip", "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", str(pid))
        for number, inside in enumerate((one, other), 1):
            call(*inside, "ip", "address", "add", f"10.77.0.{number}/24", "dev", "cable")
            call(*inside, "ip", "link", "set", "cable", "up")
        yield one, other


class Peer:
    """A peer process on one of the machines."""

    def __init__(self, base, inside, number, *, lan):
        home = base / f"peer{number}"
        self.paths = Paths(home / "config", home / "state", home / "cache", home / "run")
        self.id = setup.init_peer(self.paths, "p", 1 << 30, f"10.77.0.{number}:7711", NETWORK)
        config = setup.load_config(self.paths, "p")
        setup.save_config(self.paths, "p", replace(config, lan=lan, reserve=0))
        assert setup.load_config(self.paths, "p").lan is lan
        (self.paths.peer_state("p") / "policy.toml").write_text('admit = ["*"]\n')
        read, write = os.pipe()
        self.environment = os.environ | {"FSDECLOUD_HOME": str(home), "FSDECLOUD_LOG": "error"}
        command = [*inside, sys.executable, "-m", "fsdecloud.peerd", "run", "--name", "p", "--ready-fd", str(write)]
        self.process = subprocess.Popen(command, pass_fds=[write], env=self.environment)
        os.close(write)
        with os.fdopen(read) as ready:
            assert json.loads(ready.readline())["url"]

    def status(self):
        return control.call(self.paths.socket("peer-p"), "status", Empty(), PeerdStatus)

    def wait_tested(self, count):
        end = time.monotonic() + DEADLINE
        while self.status().tested_peers < count:
            assert time.monotonic() < end, self.status()
            time.sleep(0.05)

    def close(self):
        self.process.kill()
        self.process.wait()


def open_peer(stack, *args, **more):
    peer = Peer(*args, **more)
    stack.callback(peer.close)
    return peer


def test_peers_and_a_client_on_one_link_find_each_other(tmp_path, link):
    """Nobody was told of anybody; what the client stores is on both."""
    one, other = link

    async def client(peers):
        ours, theirs = socket.socketpair()
        command = [*other, sys.executable, "-m", "fsdecloud.agent", "--fd", str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=peers[0].environment)  # noqa: ASYNC220
        theirs.close()
        driver = Driver(tmp_path / "v", None)
        try:
            async with open_rpc(stream_from_fd(ours.detach()), driver.methods(), driver.notices()) as connection:
                driver.connection = connection
                await driver.call("hello", make_hello(tmp_path / "v", lan=True, redundancy="1/2"), AgentReady)

                async def are_found():
                    return {state.id for state in (await driver.status()).peers if state.state == "up"} == {
                        peer.id for peer in peers
                    }

                await until(are_found)
                entry = driver.stage(os.urandom(100_000))
                await driver.store()
                await driver.wait_stored([entry], 2)
            assert await trio.to_thread.run_sync(process.wait, 20) == 0
        finally:
            process.kill()
            process.wait()

    with ExitStack() as stack:
        peers = [
            open_peer(stack, tmp_path, one, 1, lan=True),
            open_peer(stack, tmp_path, other, 2, lan=True),
        ]
        for peer in peers:
            peer.wait_tested(1)
        run(client, peers, seconds=DEADLINE)
        assert all(peer.status().shards > 0 for peer in peers)


def test_it_is_off_unless_asked_for(tmp_path, link):
    one, other = link
    with ExitStack() as stack:
        silent = open_peer(stack, tmp_path, one, 1, lan=False)
        curious = open_peer(stack, tmp_path, other, 2, lan=True)
        time.sleep(module.ANSWER_PAUSE + 1)
        assert silent.status().known_peers == curious.status().known_peers == 0


def test_fault_095_a_flood_of_beacons_is_mostly_not_looked_at():
    """Ten thousand peers that are none, at once: some of them are heard of, and no more."""
    heard = []
    listener = Lan(network=NETWORK, hint=lambda *what: heard.append(what))
    others = Lan(network=b"O" * 32, hint=lambda *what: heard.append(what), peer=PeerId(b"p" * 32), port=7)

    class Flood:
        """Gives datagrams as a socket does."""

        def __init__(self, datagrams):
            self._left = iter(datagrams)

        async def recvfrom(self, _size):
            await trio.lowlevel.checkpoint()
            data = next(self._left, None)
            if data is None:
                await trio.sleep_forever()
            return data, ("10.0.0.9", 7711)

    beacons = [encode_beacon(Beacon(network_hash(NETWORK), PeerId(os.urandom(32)), 7)) for _ in range(10_000)]
    noise = [os.urandom(66), b"", encode_beacon(Beacon(network_hash(b"O" * 32), PeerId(b"p" * 32), 7))]

    async def main():
        with trio.move_on_after(5):
            await listener._listen(Flood(beacons))

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert len(heard) == module.LOOKED_AT
    heard.clear()

    async def unheard():
        with trio.move_on_after(5):
            await others._listen(Flood(noise))

    trio.run(unheard, clock=trio.testing.MockClock(autojump_threshold=0))
    assert not heard  # noise, and its own words
