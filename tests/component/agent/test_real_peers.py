"""The agent as a process of its own, with six storage peers as processes: kill -9 and flipped bits on either side."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parent))

from agentworld import NETWORK, Driver, make_hello, open_ledger, run, until

from fsdecloud.config import Paths
from fsdecloud.errors import NotEnoughPeers
from fsdecloud.net.unix import open_rpc, stream_from_fd
from fsdecloud.peerd import setup
from fsdecloud.wire import agentapi
from fsdecloud.wire.agentapi import AgentReady, Empty

PEERS = 6


class Peers:
    """Six peerd processes on loopback."""

    def __init__(self, base):
        self.base = base
        self.environment = os.environ | {"FSDECLOUD_HOME": str(base), "FSDECLOUD_LOG": "error"}
        self.paths = Paths(base / "config", base / "state", base / "cache", base / "run")
        self.processes = {}
        self.registry = {}

    def start(self, names):
        started = []
        for name in names:
            peer = setup.init_peer(self.paths, name, 1 << 30, "127.0.0.1:0", NETWORK)
            (self.paths.peer_state(name) / "policy.toml").write_text('admit = ["*"]\n')
            read, write = os.pipe()
            command = [sys.executable, "-m", "fsdecloud.peerd", "run", "--name", name, "--ready-fd", str(write)]
            self.processes[name] = subprocess.Popen(command, pass_fds=[write], env=self.environment)
            os.close(write)
            started.append((name, peer, read))
        for name, peer, read in started:
            with os.fdopen(read) as ready:
                facts = json.loads(ready.readline())
            self.registry[name] = agentapi.RegistryPeer(peer, facts["url"], 1 << 30)

    def kill(self, name):
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def close(self):
        for name in list(self.processes):
            self.kill(name)

    def flip(self, name):
        """Change bytes all over what the peer stores."""
        for path in self.paths.peer_state(name).rglob("*.seg"):
            data = bytearray(path.read_bytes())
            for at in range(0, len(data), 4096):
                data[at] ^= 0xFF
            path.write_bytes(data)


@pytest.fixture
def peers(tmp_path):
    with ExitStack() as stack:
        peers = Peers(tmp_path / "peers")
        stack.callback(peers.close)
        peers.start([f"peer{i}" for i in range(PEERS)])
        yield peers


@asynccontextmanager
async def open_agent(path, environment):
    """Run the agent process, and the driver's side of it."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "fsdecloud.agent", "--fd", str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)  # noqa: ASYNC220 - at once
    theirs.close()
    driver = Driver(path, None)
    try:
        async with open_rpc(stream_from_fd(ours.detach()), driver.methods(), driver.notices()) as connection:
            driver.connection = connection
            ready = await driver.call("hello", make_hello(path), AgentReady)
            assert ready.pid == process.pid
            yield driver, process
        assert await trio.to_thread.run_sync(process.wait, 20) in (0, -signal.SIGKILL)
    finally:
        process.kill()
        process.wait()


def test_060_062_069_peers_and_agent_may_die_and_lie(tmp_path, peers):
    volume = tmp_path / "volume"
    data = [os.urandom(1 << 20) for _ in range(12)] + [os.urandom(3000 + i) for i in range(400)]

    async def work():
        registry = tuple(peers.registry.values())
        async with open_ledger(volume, registry):
            async with open_agent(volume, peers.environment) as (driver, agent):
                await driver.wait_hosts(PEERS)
                entries = [driver.stage(item) for item in data]
                await driver.store(flush=False)
                await driver.wait(lambda: driver.stored)
                agent.send_signal(signal.SIGKILL)  # while most of it is under way
                await driver.connection.wait_closed()
                locations = driver.locations
            async with open_agent(volume, peers.environment) as (driver, agent):
                driver.locations = locations
                await driver.store()
                await driver.wait_stored(entries, PEERS)
                commit = await driver.call("commit_map", Empty(), agentapi.MapCommit)
                assert len(commit.map_root) == 64
                peers.flip("peer0")
                peers.flip("peer1")
                for entry, item in zip(entries, data, strict=True):
                    assert await driver.fetch(entry) == item
                liars = {peers.registry[name].id for name in ("peer0", "peer1")}
                states = (await driver.status()).peers
                assert {s.id for s in states if s.state == "corrupt"} <= liars
                assert {s.id for s in states if s.state == "corrupt"}
        # Two honest peers and no ledger are enough for an agent that starts anew.
        for name in ("peer0", "peer1", "peer2", "peer3"):
            peers.kill(name)
        async with open_agent(volume, peers.environment) as (driver, agent):
            for entry, item in zip(entries[::7], data[::7], strict=True):
                assert await driver.fetch(entry) == item
            peers.kill("peer4")
            with trio.fail_after(5), pytest.raises(NotEnoughPeers):
                await driver.fetch(entries[1])
            peers.start(["peer2"])

            async def is_back():
                try:
                    return await driver.fetch(entries[1]) == data[1]
                except NotEnoughPeers:
                    return False

            await until(is_back)

    run(work, seconds=60)


def test_fault_048_a_peer_that_stops_is_read_and_written_around(tmp_path, peers):
    """SIGSTOP: its system still takes what is sent to it, and nothing is ever answered."""
    volume = tmp_path / "volume"
    data = [os.urandom(300_000) for _ in range(40)]

    async def work():
        async with (
            open_ledger(volume, tuple(peers.registry.values())),
            open_agent(volume, peers.environment) as (driver, _),
        ):
            await driver.wait_hosts(PEERS)
            entries = [driver.stage(item) for item in data[:20]]
            await driver.store()
            await driver.wait_stored(entries, PEERS)
            await driver.fetch(entries[0])  # connections for reading are open
            stopped = peers.processes["peer2"]
            stopped.send_signal(signal.SIGSTOP)
            try:
                with trio.fail_after(40):
                    for entry, item in zip(entries, data, strict=False):
                        assert await driver.fetch(entry) == item
                    later = [driver.stage(item) for item in data[20:]]
                    await driver.store(later)
                    await driver.wait_stored(later, 4)  # all may be anchored
            finally:
                stopped.send_signal(signal.SIGCONT)
            await driver.wait_stored(later, PEERS)

    run(work, seconds=100)
