"""A network of machines for tests: a client with the mount, peers and ledger daemons, each in a network namespace of its own.

The programs are the real ones and so are their TCP connections; `tests.network.wire` is what lies between the machines. What
`tests.cluster.harness.Network` guarantees holds here too: whatever happens, no process, mount, namespace or file is left.

    client      the mount, its agent, and this machine's ledger daemon (which does not mine)
    ledger      the daemon that mines
    registry    the peers' ledger daemon (they share a home, hence one daemon)
    peer-1 ...  a storage peer each, in a /24 of its own
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fsdecloud.config import HOME_VARIABLE, Paths, find_paths, make_private_dir, write_private_file
from fsdecloud.ledgerd.setup import init_ledger
from fsdecloud.net.address import parse_url
from fsdecloud.peerd.setup import init_peer
from tests.cluster.harness import DECLOUD, ROOT, Network, Result, Status
from tests.cluster.ledgernet import quick_network

CLIENT: Final = "client"
LEDGER: Final = "ledger"
REGISTRY: Final = "registry"
START_DEADLINE: Final = 60.0
PORT: Final = 7711
QUOTA: Final = 1 << 30


def peer_name(number: int) -> str:
    """Return the name of a peer's machine, counted from 1."""
    return f"peer-{number}"


@dataclass
class Machine:
    """One namespace."""

    name: str
    addresses: tuple[str, ...]
    space: Path
    """Its namespace, for nsenter(1)."""

    @property
    def address(self) -> str:
        """The first address, without the length of the network's."""
        return self.addresses[0].partition("/")[0]


@dataclass
class Daemon:
    """One program on a machine; it may be started again."""

    name: str
    machine: Machine
    module: str
    arguments: tuple[str, ...]
    home: Path
    process: subprocess.Popen[bytes] | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self.process is not None and self.process.poll() is None


@dataclass
class Lab(Network):
    """The machines, and one volume that is mounted on the client."""

    peers: int = 6
    announced: dict[int, str] = field(default_factory=dict)
    """Peers that are to be found by another host name than their address."""
    only_v6: frozenset[int] = frozenset()
    """Peers without an IPv4 address."""
    redundancy: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.machines: dict[str, Machine] = {}
        self.daemons: dict[str, Daemon] = {}
        self.logs_dir = make_private_dir(self.home / "state" / "log")
        with open(self.logs_dir / "wire.log", "ab") as log:
            self.wire = subprocess.Popen(
                [sys.executable, "-m", "tests.network.wire"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env=self.environment,
                cwd=ROOT,
            )
        self.document = quick_network()
        self.add_machine(CLIENT, "10.0.100.1/8", "fd00::100:1/64")
        self.add_machine(LEDGER, "10.0.101.1/8")
        self.add_machine(REGISTRY, "10.0.102.1/8")
        for number in range(1, self.peers + 1):
            addresses = (f"fd00::{number}:1/64",) if number in self.only_v6 else (f"10.0.{number}.1/8",)
            self.add_machine(peer_name(number), *addresses)

    # ---- the wire --------------------------------------------------------------------------------------------------
    def tell(self, **order: Any) -> dict[str, Any]:
        """Give the wire an order (`tests.network.wire`) and return its answer."""
        assert self.wire.stdin is not None
        assert self.wire.stdout is not None
        self.wire.stdin.write(json.dumps(order).encode() + b"\n")
        self.wire.stdin.flush()
        line = self.wire.stdout.readline()
        if not line:
            raise AssertionError(f"the wire broke:\n{(self.logs_dir / 'wire.log').read_text()[-3000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def add_machine(self, name: str, *addresses: str) -> Machine:
        """Connect one more machine."""
        found = self.tell(do="machine", name=name, addresses=list(addresses))["fd"]
        self.machines[name] = Machine(name, addresses, Path(f"/proc/{self.wire.pid}/fd/{found}"))
        return self.machines[name]

    @property
    def peer_names(self) -> list[str]:
        """The machines with a peer."""
        return [peer_name(number) for number in range(1, self.peers + 1)]

    def rule(self, senders: str | Iterable[str], receivers: str | Iterable[str], **rule: Any) -> None:
        """Set what happens to packets in this direction (`tests.network.wire.Rule`); without any, nothing does."""
        one = [senders] if isinstance(senders, str) else list(senders)
        other = [receivers] if isinstance(receivers, str) else list(receivers)
        self.tell(do="rule", **{"from": one, "to": other}, **rule)

    def between(self, one: str | Iterable[str], other: str | Iterable[str], **rule: Any) -> None:
        """The same in both directions."""
        self.rule(one, other, **rule)
        self.rule(other, one, **rule)

    def everywhere(self, **rule: Any) -> None:
        """The same between all machines."""
        self.rule(self.machines, self.machines, **rule)

    def heal(self) -> None:
        """Let everything through."""
        self.tell(do="clear")

    @contextmanager
    def cut(self, one: str | Iterable[str], other: str | Iterable[str]) -> Iterator[None]:
        """Drop everything between these machines, without a word, for the length of the body."""
        self.between(one, other, cut=True)
        try:
            yield
        finally:
            self.between(one, other)

    # ---- programs --------------------------------------------------------------------------------------------------
    def enter(self, machine: str) -> tuple[str, ...]:
        """Return the command that runs another one on a machine. Mounts stay visible everywhere."""
        return ("nsenter", f"--net={self.machines[machine].space}")

    def decloud(
        self,
        *args: str | Path,
        deadline: float = 60.0,
        text: str = "",
        check: bool = True,
        home: Path | None = None,
    ) -> Result:
        """Run `decloud ARGS` on the client."""
        environment = {HOME_VARIABLE: str(home or self.home)}
        command = (*self.enter(CLIENT), DECLOUD, *args)
        return self.run(*command, deadline=deadline, text=text, check=check, environment=environment)

    def home_of(self, name: str) -> Path:
        """Return the home of a machine's programs; that of the peers is one."""
        return self.home if name == CLIENT else self.base / (LEDGER if name == LEDGER else "peers")

    def paths_of(self, name: str) -> Paths:
        """Return where the files of a machine's programs are."""
        return find_paths({HOME_VARIABLE: str(self.home_of(name))})

    def start_daemon(self, name: str) -> Daemon:
        """Start a daemon, for the first time or again, and wait until it serves."""
        return self.start_daemons([name])[0]

    def start_daemons(self, names: Iterable[str]) -> list[Daemon]:
        """Start several at once."""
        waiting = [(name, self._launch(self.daemons[name])) for name in names]
        for name, reader in waiting:
            with open(reader, "rb") as ready:
                line = ready.readline()
            facts = self.daemons[name].facts = json.loads(line or b"{}")
            if "error" in facts or not line:
                raise AssertionError(f"{name} does not start: {facts}{self.logs()}")
        return [self.daemons[name] for name, _ in waiting]

    def _launch(self, daemon: Daemon) -> int:
        """Start the program; return where it says that it serves."""
        name = daemon.name
        assert not daemon.is_running, name
        reader, writer = os.pipe()
        with open(self.logs_dir / f"{name}.log", "ab") as log:
            program = (sys.executable, "-P", "-m", daemon.module, "run", *daemon.arguments)
            daemon.process = subprocess.Popen(
                [*self.enter(daemon.machine.name), *program, "--ready-fd", str(writer)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[writer],
                start_new_session=True,
                env={**self.environment, HOME_VARIABLE: str(daemon.home)},
                cwd="/",
            )
        os.close(writer)
        return reader

    def stop_daemon(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End a daemon and wait until it has; after SIGTERM it has to end well."""
        process = self.daemons[name].process
        assert process is not None
        process.send_signal(number)
        code = process.wait(30)
        assert number != signal.SIGTERM or code == 0, f"{name} ended with {code}{self.logs()}"

    def kill_daemons(self, names: Iterable[str]) -> None:
        """Kill daemons, all at once."""
        chosen = [self.daemons[name].process for name in names]
        for process in chosen:
            assert process is not None
            process.kill()
        for process in chosen:
            assert process is not None
            process.wait(30)

    def set_up_peer(self, number: int) -> str:
        """Set a peer up on its machine and return its name."""
        name = peer_name(number)
        machine = self.machines[name]
        paths = self.paths_of(name)
        host = f"[{machine.address}]" if ":" in machine.address else machine.address
        init_peer(paths, name, QUOTA, f"{host}:{PORT}", self.network_id)
        state = paths.peer_state(name)
        if number in self.announced:
            config = state / "peer.toml"
            write_private_file(config, f'{config.read_text()}announce = "{self.announced[number]}"\n'.encode())
        write_private_file(state / "policy.toml", b'admit = ["*"]\n')
        arguments = ("--name", name)
        self.daemons[name] = Daemon(name, machine, "fsdecloud.peerd", arguments, self.home_of(name))
        return name

    def up(self, deadline: float = 90.0) -> Status:
        """Start everything and mount a new volume."""
        bootstrap: tuple[str, ...] = ()
        for name in (LEDGER, REGISTRY, CLIENT):
            paths = self.paths_of(name)
            self.network_id = init_ledger(paths, self.document)
            mine = ("--mine",) if name == LEDGER else ("--no-mine",)
            listen = ("--listen", f"{self.machines[name].address}:{PORT}")
            arguments = (*listen, *mine, *bootstrap)
            key = name if name == LEDGER else f"{name}-ledger"
            self.daemons[key] = Daemon(key, self.machines[name], "fsdecloud.ledgerd", arguments, self.home_of(name))
            url = str(self.start_daemon(key).facts["url"])
            bootstrap = (*bootstrap, "--bootstrap", url)
        self.start_daemons([self.set_up_peer(number) for number in range(1, self.peers + 1)])
        self.wait_until(lambda: self.registered() >= self.peers, deadline, "all peers are registered")
        self.decloud("init", "docs", "--redundancy", self.redundancy, "--phrase-file", self.work / "words")
        self.decloud("mount", "docs", self.mountpoint, deadline=deadline)
        return self.status()

    def registered(self) -> int:
        """Return how many peers the client's ledger daemon knows."""
        from fsdecloud.cli.client import Client
        from fsdecloud.wire.agentapi import Empty, Registry

        with Client(self.paths_of(CLIENT).socket("ledger")) as client:
            return len(client.call("registry", Empty(), Registry).peers)

    # ---- looking ---------------------------------------------------------------------------------------------------
    def id_of(self, name: str) -> str:
        """Return a peer's id."""
        return str(self.daemons[name].facts["id"])

    def state_of(self, name: str, status: Status | None = None) -> str:
        """Return a peer's state as `status` shows it, "" while it does not."""
        rows = (status or self.status()).peers
        return next((str(row["state"]) for row in rows if row["id"] == self.id_of(name)), "")

    def wait_states(self, names: Sequence[str], state: str, deadline: float) -> Status:
        """Wait until `status` shows all these peers so."""
        return self.wait_status(
            lambda status: all(self.state_of(name, status) == state for name in names),
            deadline,
            f"{', '.join(names)} are {state}",
        )

    def wait_whole(self, deadline: float = 120.0) -> Status:
        """Wait until everything that was written is stored and no blob lacks a shard."""

        def is_whole(status: Status) -> bool:
            repair = status["repair"]
            is_stored = status["stored_sequence"] >= status["written_sequence"]
            return is_stored and not any(
                repair[name] for name in ("under_replicated", "away", "contained", "surveying")
            )

        return self.wait_status(is_whole, deadline, "every blob has all its shards")

    def endpoint(self, name: str) -> tuple[str, int]:
        """Return host and port under which a peer is registered."""
        address = parse_url(str(self.daemons[name].facts["url"]))
        return address.host, address.port

    def opened(self, machine: str = CLIENT) -> dict[str, int]:
        """Return how often a machine tried to open a connection to each other one."""
        found: dict[str, int] = self.tell(do="count")["opened"].get(machine, {})
        return found

    def mend(self) -> None:
        """Connect everything, start what does not run, mount, and wait until all peers are up and have everything."""
        self.heal()
        self.start_daemons([name for name, daemon in self.daemons.items() if not daemon.is_running])
        if not self.is_mounted:
            self.mount()
        self.wait_states(self.peer_names, "up", 90)
        self.wait_whole()

    # ---- the end ---------------------------------------------------------------------------------------------------
    def close(self) -> list[str]:
        """Stop everything; what does not end well is named."""
        if self.wire.poll() is None:
            self.heal()
        return super().close()

    def stop_programs(self) -> list[str]:
        """Stop the client first, then the daemons; name what does not end well."""
        left = super().stop_programs()
        for name, daemon in reversed(self.daemons.items()):
            if daemon.is_running and daemon.process is not None:
                daemon.process.terminate()
                try:
                    code = daemon.process.wait(30)
                except subprocess.TimeoutExpired:
                    left.append(f"{name} does not end")
                    continue
                if code:
                    left.append(f"{name} ended with {code}")
        assert self.wire.stdin is not None
        assert self.wire.stdout is not None
        self.wire.stdin.close()
        self.wire.stdout.close()
        self.wire.wait(20)
        return left
