"""Environments: damaged, missing, foreign or full files give one clear error, never a crash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time

import lmdb
import pytest

from fsdecloud.errors import StoreCorrupt, StoreError, StoreFull, UsageError
from fsdecloud.store import environment
from fsdecloud.store.environment import open_environment

MAP = 1 << 28


def fill(path, count=2000):
    with open_environment(path, MAP) as env:
        db = env.database(b"a")
        for start in range(0, count, 500):
            with env.write() as txn:
                for i in range(start, start + 500):
                    txn.put(b"%08d" % i, bytes(200), db=db)


def test_write_read_undo(tmp_path):
    with open_environment(tmp_path / "e", MAP) as env:
        db = env.database(b"a")
        with env.write() as txn:
            txn.put(b"k", b"v", db=db)
        with pytest.raises(ZeroDivisionError), env.write() as txn:
            txn.put(b"k", b"%d" % (txn.delete(b"k", db=db) // 0), db=db)
        with env.read() as txn:
            assert txn.get(b"k", db=db) == b"v"
        assert env.used_bytes() > 0
    assert oct((tmp_path / "e").stat().st_mode & 0o777) == "0o700"
    assert oct((tmp_path / "e" / "data.mdb").stat().st_mode & 0o777) == "0o600"


@pytest.mark.parametrize("size", [0, 1, 2039, 2040, 2041, 4080, 4096, 1 << 20, (1 << 20) + 1])
def test_42_value_sizes(tmp_path, size):
    with open_environment(tmp_path / "e", MAP) as env:
        db = env.database(b"a")
        with env.write() as txn:
            txn.put(b"k", b"x" * size, db=db)
        with env.read() as txn:
            assert txn.get(b"k", db=db) == b"x" * size


def damage(name, path):
    data = path / "data.mdb"
    with open(data, "r+b") as file:
        if name == "empty":
            file.truncate(0)
        elif name == "cut in the header":
            file.truncate(100)
        elif name == "one page":
            file.truncate(4096)
        elif name == "two pages":
            file.truncate(8192)
        elif name == "half":
            file.truncate(data.stat().st_size // 2)
        elif name == "one byte short":
            file.truncate(data.stat().st_size - 1)
        elif name == "zeroed":
            file.write(bytes(data.stat().st_size))
        elif name == "one meta page zeroed":
            file.write(bytes(4096))
        elif name == "random":
            file.write(os.urandom(data.stat().st_size))
        elif name == "pages zeroed":
            file.seek(8192)
            file.write(bytes(data.stat().st_size - 8192))
        elif name == "pages random":
            file.seek(8192)
            file.write(os.urandom(data.stat().st_size - 8192))


@pytest.mark.parametrize(
    "name",
    ["empty", "cut in the header", "one page", "two pages", "half", "one byte short", "zeroed", "one meta page zeroed",
     "random", "pages zeroed", "pages random", "removed"],
)  # fmt: skip
def test_20_a_damaged_data_file_is_refused(tmp_path, name):
    path = tmp_path / "e"
    fill(path)
    if name == "removed":
        (path / "data.mdb").unlink()
    else:
        damage(name, path)
    before = (path / "data.mdb").read_bytes() if name != "removed" else None
    # In a process of its own: a mistake here is a SIGBUS.
    code = (
        "import sys; from pathlib import Path\n"
        "from fsdecloud.errors import StoreCorrupt\n"
        "from fsdecloud.store.environment import open_environment\n"
        "try:\n"
        "    with open_environment(Path(sys.argv[1]), 1 << 28) as env:\n"
        "        db = env.database(b'a')\n"
        "        with env.read() as txn:\n"
        "            for _ in txn.cursor(db): pass\n"
        "except StoreCorrupt as exc:\n"
        "    print(exc); sys.exit(9)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert result.returncode == 9, result
    assert str(path) in result.stdout
    if before is not None:
        assert (path / "data.mdb").read_bytes() == before


@pytest.mark.parametrize("left", [b"", bytes(100), bytes(4096), bytes(8192), bytes(8191)])
def test_11_an_environment_that_was_only_being_made_is_made_anew(tmp_path, left):
    """A power cut before the mark was durable: nothing was committed, so nothing is refused."""
    (tmp_path / "data.mdb").write_bytes(left)
    with open_environment(tmp_path, MAP) as env:
        env.database(b"a")
    with open_environment(tmp_path, MAP):
        pass
    # A larger file is somebody's data, mark or not.
    fill(tmp_path / "e")
    (tmp_path / "e" / "format").unlink()
    damage("zeroed", tmp_path / "e")
    with pytest.raises(StoreCorrupt):
        open_environment(tmp_path / "e", MAP)


def test_a_file_that_ends_in_pages_never_written_opens(tmp_path):
    """A transaction may take pages at the end of the file and free them again before anything is written there."""
    path = tmp_path / "e"
    with open_environment(path, MAP) as env:
        db = env.database(b"a")
        with env.write() as txn:
            for i in range(100):
                txn.put(b"%d" % i, bytes(3000), db=db)
            for i in range(100):
                txn.delete(b"%d" % i, db=db)
    with open_environment(path, MAP) as env:
        db = env.database(b"a")
        with env.read() as txn:
            assert txn.stat(db)["entries"] == 0


def test_31_a_newer_format_is_refused(tmp_path):
    fill(tmp_path / "e", 500)
    (tmp_path / "e" / "format").write_bytes(b"fsdecloud 7\n")
    with pytest.raises(StoreCorrupt, match=r"format 7, this release knows 1"):
        open_environment(tmp_path / "e", MAP)


def test_27_a_directory_that_others_may_write_to_is_refused(tmp_path):
    path = tmp_path / "e"
    path.mkdir()
    path.chmod(0o770)
    with pytest.raises(UsageError, match="chmod"):
        open_environment(path, MAP)


def test_35_a_full_map_undoes_the_transaction(tmp_path):
    with open_environment(tmp_path / "e", 1 << 20) as env:
        db = env.database(b"a")
        with env.write() as txn:
            txn.put(b"first", b"1", db=db)
        with pytest.raises(StoreFull, match="full"), env.write() as txn:
            txn.cursor(db).putmulti([(b"%d" % i, bytes(4096)) for i in range(1000)])
        with env.read() as txn:
            assert txn.stat(db)["entries"] == 1
        with env.write() as txn:
            txn.put(b"second", b"2", db=db)


def test_39_a_forked_child_may_not_use_it(tmp_path):
    env = open_environment(tmp_path / "e", MAP)
    db = env.database(b"a")
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            env.write()
        except StoreError:
            env.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    with env.write() as txn:
        txn.put(b"k", b"v", db=db)
    env.close()


def test_23_a_remote_file_system_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "file_system_type", lambda path: 0x6969)
    with pytest.raises(StoreError, match="NFS"):
        open_environment(tmp_path / "e", MAP)
    open_environment(tmp_path / "e", MAP, remote_allowed=True).close()


def test_23_the_type_of_a_file_system_is_found(tmp_path):
    assert environment.file_system_type(environment.Path("/proc")) == 0x9FA0


def test_22_odd_paths(tmp_path):
    target = tmp_path / "a b" / "x"
    target.mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a b")
    path = tmp_path / "link" / ".." / "link" / "x" / os.fsdecode(b"\xff\xfe")
    if shutil.disk_usage(tmp_path).free:
        with open_environment(path, MAP) as env:
            env.database(b"a")


def test_a_second_open_in_one_process_is_an_error(tmp_path):
    with open_environment(tmp_path / "e", MAP), pytest.raises(StoreError):
        open_environment(tmp_path / "e", MAP)


def test_errors_of_lmdb_inside_the_block_are_ours(tmp_path):
    with open_environment(tmp_path / "e", MAP) as env:
        db = env.database(b"a")
        with pytest.raises(StoreError) as caught, env.write() as txn:
            txn.put(b"k" * 600, b"", db=db)  # fault 41
        assert isinstance(caught.value.__cause__, lmdb.Error)


def test_closing_waits_for_the_write_transaction_of_another_thread(tmp_path):
    """Else neither the thread could end its transaction nor the library the wait for it."""
    env = open_environment(tmp_path / "e", MAP)
    db = env.database(b"a")
    begun, closing, outcomes = threading.Event(), threading.Event(), []

    def write(key):
        try:
            with env.write() as txn:
                begun.set()
                closing.wait(60)
                time.sleep(0.1)  # the other thread is in close() by now; were it not, the test would pass all the same
                txn.put(key, b"v", db=db)
            outcomes.append(None)
        except StoreError as exc:
            outcomes.append(exc)  # kept with its traceback, as whoever passes it on to another thread does

    def close():
        closing.set()
        env.close()

    threads = [threading.Thread(target=write, args=(b"k",), daemon=True), threading.Thread(target=close, daemon=True)]
    threads[0].start()
    assert begun.wait(60)
    threads[1].start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    write(b"too late")
    assert outcomes[0] is None
    assert isinstance(outcomes[1], StoreError)
    with open_environment(tmp_path / "e", MAP) as env:
        db = env.database(b"a")
        with env.read() as txn:
            assert txn.get(b"k", db=db) == b"v"
