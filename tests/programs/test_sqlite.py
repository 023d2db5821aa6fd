"""SQLite keeps its promises in the mount: whatever is killed, the database is whole and holds what was committed."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster import cleanup
from tests.cluster.harness import Network
from tests.programs.support import Places, job

MODES = ("delete", "wal")
WRITERS = 2


class Database:
    """A database in the mount with its writers; what they were promised is noted on a plain disk."""

    def __init__(self, network: Network, places: Places, mode: str) -> None:
        self._network = network
        self._path = places.inside / f"{mode}.db"
        self._noted = [places.outside / f"{mode}-{writer}" for writer in range(WRITERS)]
        self._said = places.outside / f"{mode}-said"
        self.writers: list[subprocess.Popen[bytes]] = []
        assert job(network, "database_make", self._path, mode) == mode

    def start(self) -> None:
        """Start all writers."""
        self.writers = [self.start_one(number) for number in range(WRITERS)]

    def start_one(self, writer: int) -> subprocess.Popen[bytes]:
        """Start one writer."""
        command = (sys.executable, "-m", "tests.programs.jobs", "database_write", self._path, str(writer))
        return self._network.start(*command, self._noted[writer], log=self._said)

    def acknowledged(self) -> int:
        """Return how many transactions were, of all writers."""
        return sum(path.read_bytes().count(b"\n") for path in self._noted if path.exists())

    def wait_for_more(self, count: int) -> None:
        """Wait until so many more are acknowledged."""
        wanted = self.acknowledged() + count

        def ready() -> bool:
            for writer in self.writers:
                assert writer.poll() is None, self._said.read_text()
            return self.acknowledged() >= wanted

        self._network.wait_until(ready, 60, f"{wanted} transactions")

    def check(self) -> None:
        """Fail unless the database is whole and has every acknowledged transaction and none by half."""
        found = job(self._network, "database_check", self._path, WRITERS, *self._noted)
        assert (found["integrity"], found["wrong"]) == (["ok"], []), (self._path.name, found)
        said = self._network.run("sqlite3", self._path, "pragma integrity_check; pragma journal_mode;")
        assert said.out.splitlines() == ["ok", self._path.stem]


def kill(network: Network, process: subprocess.Popen[bytes]) -> None:
    """SIGKILL, and wait."""
    cleanup.send_signal(process.pid, 9)
    network.wait_for_exit(process, 30, "a killed writer")


def writers_killed(network: Network, places: Places, mode: str, rounds: int) -> None:
    chooser = random.Random(mode)
    database = Database(network, places, mode)
    for turn in range(rounds):
        database.start()
        database.wait_for_more(chooser.randrange(10, 40))
        victim = turn % WRITERS
        kill(network, database.writers[victim])
        database.writers[victim] = database.start_one(victim)  # the other one goes on and takes over the locks
        database.wait_for_more(chooser.randrange(10, 40))
        for writer in database.writers:
            kill(network, writer)
        database.check()


def driver_killed(network: Network, places: Places, rounds: int) -> None:
    chooser = random.Random(rounds)
    databases = [Database(network, places, mode) for mode in MODES]
    for _ in range(rounds):
        for database in databases:
            database.start()
        for database in databases:
            database.wait_for_more(chooser.randrange(5, 50))
        network.kill_driver()
        for database in databases:
            for writer in database.writers:
                network.wait_for_exit(writer, 30, "a writer whose mount is gone")
        network.up()
        for database in databases:
            database.check()


@pytest.mark.parametrize("mode", ["delete", "wal", "truncate"])
def test_as_on_a_plain_disk(network: Network, places: Places, mode: str) -> None:
    there, here = (network.worker("database", place / "test.db", mode, deadline=120) for place in places)
    assert here["integrity"] == "ok"
    assert there == here
    assert there["journal"] == mode


@pytest.mark.parametrize("mode", MODES)
def test_writers_killed(network: Network, places: Places, mode: str) -> None:
    writers_killed(network, places, mode, 1)


def test_driver_killed(network: Network, places: Places) -> None:
    driver_killed(network, places, 2)


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
def test_long_writers_killed(network: Network, places: Places, mode: str) -> None:
    writers_killed(network, places, mode, 15)


@pytest.mark.long
def test_long_driver_killed(network: Network, places: Places) -> None:
    driver_killed(network, places, 15)


def test_wal_index_is_shared_memory(network: Network, places: Places) -> None:
    """While one connection reads an old snapshot, another commits: both go by the mapped -shm file."""
    path: Path = places.inside / "shared.db"
    script = (
        "import sqlite3, subprocess, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "db.execute('pragma journal_mode=wal')\n"
        "db.execute('create table t(x)')\n"
        "db.execute('begin'); print(db.execute('select count(*) from t').fetchone())\n"
        "other = 'import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute(\"insert into t values(1)\"); c.commit()'\n"
        "subprocess.run([sys.executable, '-c', other, sys.argv[1]], check=True)\n"
        "print(db.execute('select count(*) from t').fetchone()); db.execute('commit')\n"
        "print(db.execute('select count(*) from t').fetchone())\n"
        "print('-shm' in open('/proc/self/maps').read())\n"
    )
    result = network.run(sys.executable, "-c", script, path)
    assert result.out.split() == ["(0,)", "(0,)", "(1,)", "True"]
