"""Which records `decloud log` shows, and that following shows each of them once."""

from __future__ import annotations

import datetime
import itertools

import pytest

from fsdecloud import codec
from fsdecloud.cli import log
from fsdecloud.cli.logfilter import LogFilter, is_within, parse_moment, parse_operation, parse_user
from fsdecloud.cli.run import run
from fsdecloud.config import find_paths
from fsdecloud.errors import UsageError
from fsdecloud.fs.history import parse_span
from fsdecloud.fs.records import Operation, Record
from fsdecloud.wire.controlapi import LogLine, LogPage

SECOND = 10**9
NOW = 1_700_000_000 * SECOND


def record(
    operation: Operation = Operation.WRITE, path: bytes = b"/a/b", path2: bytes = b"", *, time: int = NOW, uid: int = 1000,
    program: bytes = b"vim",
) -> Record:  # fmt: skip
    return Record(time, operation, 5, path, path2, uid, program, 0, 0)


@pytest.mark.parametrize(
    ("path", "top", "is_in"),
    [
        (b"/a/b", b"/a/b", True), (b"/a/b", b"/a", True), (b"/a/b", b"/a/", True), (b"/ab", b"/a", False),
        (b"/a", b"/a/b", False), (b"/a/b", b"/", True), (b"/", b"/", True), (b"", b"/a", False), (b"#7/x", b"/a", False),
    ],
)  # fmt: skip
def test_within(path: bytes, top: bytes, is_in: bool) -> None:
    assert is_within(path, top) is is_in


def test_filters_are_all_met_and_any_of_one_kind_will_do() -> None:
    assert LogFilter().matches(record())
    assert LogFilter(path=b"/a").matches(record())
    assert not LogFilter(path=b"/b").matches(record())
    assert LogFilter(path=b"/b").matches(record(Operation.RENAME, path2=b"/b/c"))
    assert not LogFilter(path=b"/b").matches(record(Operation.SYMLINK, path2=b"/b/c")), "a target is no path"
    assert LogFilter(programs=frozenset((b"vim", b"cp"))).matches(record(program=b"cp"))
    assert not LogFilter(programs=frozenset((b"vim",))).matches(record(program=b"vi"))
    assert LogFilter(users=frozenset((0, 1000))).matches(record(uid=0))
    assert not LogFilter(users=frozenset((0,))).matches(record())
    assert not LogFilter(operations=frozenset((Operation.READ,))).matches(record())
    both = LogFilter(operations=frozenset((Operation.WRITE,)), users=frozenset((0,)))
    assert both.matches(record(uid=0))
    assert not both.matches(record())


def test_the_ends_of_a_time_are_in_it() -> None:
    wanted = LogFilter(since=NOW, until=NOW + 5)
    assert [wanted.matches(record(time=NOW + step)) for step in (-1, 0, 5, 6)] == [False, True, True, False]


def at(*parts: int) -> int:
    return int(datetime.datetime(*parts, tzinfo=datetime.UTC).timestamp())


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("2026-11-22", at(2026, 11, 22), at(2026, 11, 22, 23, 59, 59)),
        ("2026-11-22T18", at(2026, 11, 22, 18), at(2026, 11, 22, 18, 59, 59)),
        ("2026-11-22T18:30", at(2026, 11, 22, 18, 30), at(2026, 11, 22, 18, 30, 59)),
        ("2026-11-22T18:30:05Z", at(2026, 11, 22, 18, 30, 5), at(2026, 11, 22, 18, 30, 5)),
    ],
)
def test_a_time_is_all_of_what_it_names(text: str, first: int, last: int) -> None:
    assert parse_span(text) == (first, last)
    assert parse_moment(text, NOW, is_end=False, what="--since") == first * SECOND
    assert parse_moment(text, NOW, is_end=True, what="--until") == last * SECOND + SECOND - 1


def test_a_time_may_be_how_long_ago() -> None:
    assert parse_moment("90m", NOW, is_end=False, what="--since") == NOW - 5400 * SECOND
    for text in ("yesterday", "", "-5", "2026-13-01", "2026-11-22T25"):
        with pytest.raises(UsageError, match="--since cannot be"):
            parse_moment(text, NOW, is_end=False, what="--since")


def test_names_of_operations_and_users() -> None:
    assert parse_operation("rename") == Operation.RENAME
    with pytest.raises(UsageError, match="one of mount, unmount, create"):
        parse_operation("burn")
    assert parse_user("1000", lambda _name: None) == 1000
    assert parse_user("ann", {"ann": 7}.get) == 7
    with pytest.raises(UsageError, match="give the number"):
        parse_user("bob", {"ann": 7}.get)


# ---- following -----------------------------------------------------------------------------------------------------
class Driver:
    """Batches that grow; the last one is open. Stands for a client, a connection, and what is behind it."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.calls = 0

    def __call__(self, *_arguments: object, **_options: object) -> Driver:
        return self

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def call(self, _method: str, query: object, _result: object, **_options: object) -> LogPage:
        self.calls += 1
        index = query.batch
        if index >= len(self.batches):
            return LogPage((), -1)
        lines = tuple(LogLine(row, 0, -1, b"") for row in self.batches[index])
        return LogPage(lines, index + 1 if index + 1 < len(self.batches) else -1)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    monkeypatch.setattr(log.client, "Client", driver)
    return driver


def rows(first: int, count: int) -> list[bytes]:
    return [codec.encode(number) for number in range(first, first + count)]


def test_following_shows_each_record_once_whatever_grows(driver: Driver) -> None:
    found: list[bytes] = []
    lines = log.follow_log(find_paths(), "v")

    def take() -> None:
        found.extend(line.record for line in itertools.takewhile(lambda line: line is not None, lines))

    take()
    assert found == []
    driver.batches = [rows(0, 3)]
    take()
    assert found == rows(0, 3)
    take()
    assert found == rows(0, 3), "nothing new"
    driver.batches = [rows(0, 5)]
    take()
    assert found == rows(0, 5), "the last batch grew"
    driver.batches = [rows(0, 7), rows(7, 2), rows(9, 1)]
    take()
    assert found == rows(0, 10), "it grew and others came behind it"
    calls = driver.calls
    take()
    assert driver.calls == calls + 1, "what was seen is not asked for again"


def test_reading_ends_and_a_driver_that_repeats_itself_is_told(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.batches = [rows(0, 2), rows(2, 2)]
    assert [line.record for line in log.read_log(find_paths(), "v")] == rows(0, 4)
    monkeypatch.setattr(driver, "call", lambda *_a, **_o: LogPage((), 0))
    with pytest.raises(UsageError, match="repeats"):
        list(log.read_log(find_paths(), "v"))


def test_verify_takes_no_filter() -> None:
    assert run(log.command, ["--verify", "--op", "read"], "decloud") == 1
