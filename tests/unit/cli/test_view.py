"""What `status` makes of the daemons' answers."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from fsdecloud.cli import drivers, mounts, network, parts, peers, stake, view, walletview
from fsdecloud.cli.mounts import Mounted
from fsdecloud.cli.peers import LocalPeer
from fsdecloud.cli.run import DEGRADED, OK
from fsdecloud.cli.walletview import Holdings
from fsdecloud.config import Paths, find_paths
from fsdecloud.errors import LedgerUnavailable, RemoteError
from fsdecloud.ledger.wallet import Funds
from fsdecloud.types import BlockId, PeerId
from fsdecloud.wire.agentapi import PeerState, RecodingStatus, RepairStatus
from fsdecloud.wire.controlapi import Count, DriverStatus
from fsdecloud.wire.ledgerapi import CheckpointInfo, FinalityInfo, LedgerStatus

PEER = PeerId(bytes([1] * 32))
STATUS = DriverStatus(
    volume="photos", mountpoint="/mnt/p", read_only="", driver_pid=10, agent_pid=11, ledger_pid=12,
    dirty=Count(1, 100), staged=Count(2, 200), stored=Count(3, 300), anchored=Count(4, 400),
    written_sequence=9, durable_sequence=9, stored_sequence=9, anchored_sequence=8, anchor_height=5, ledger_height=6,
    peers=(PeerState(PEER, "wss://127.0.0.1:1/" + PEER.hex(), "up", 0, 0, 1000, 2000),), k=2, n=6, warnings=(),
    files=7, logical_bytes=1 << 20, cache_bytes=5, uploaded_bytes=6, downloaded_bytes=7, handler_errors=0, last_error="",
)  # fmt: skip
LEDGER = LedgerStatus(12, bytes(32), "net", "wss://x:1", 6, BlockId(bytes(32)), 1_700_000_000, b"\1", 0, False, 0.0, ())

KEYS = {
    "volume", "mountpoint", "read_only", "driver_pid", "agent_pid", "ledger_pid", "peers", "dirty", "staged", "stored",
    "anchored", "written_sequence", "durable_sequence", "stored_sequence", "anchored_sequence", "anchor_height",
    "ledger_height", "network", "ledger_url", "mempool", "light", "provers", "k", "n", "files", "logical_bytes", "cache_bytes",
    "uploaded_bytes", "downloaded_bytes", "handler_errors", "last_error", "problems", "agent_restarts",
    "slow_requests", "timed_out_requests", "failsafe", "gc", "incidents", "live_inodes", "kernel_inodes",
    "integrity_errors", "redundancy", "repair", "up_limit", "down_limit",
    "final_height", "anchor_final", "wallet", "deals",
}  # fmt: skip
"""The contract of `status --json`: a key is never renamed nor removed."""


class World:
    """The daemons' answers, to be changed by a test."""

    def __init__(self) -> None:
        self.driver: DriverStatus | Exception = STATUS
        self.ledger: LedgerStatus | Exception = LEDGER
        self.finality: FinalityInfo | None = None
        self.pids = {"ledger": 12, "driver-photos": 10}
        self.local = [LocalPeer("peer-1", PEER.hex(), "wss://127.0.0.1:1/x", 20)]


def answer(value: Any) -> Any:
    if isinstance(value, Exception):
        raise value
    return value


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    found = World()
    monkeypatch.setattr(drivers, "driver_status", lambda _paths, _volume: answer(found.driver))
    monkeypatch.setattr(network, "ledger_status", lambda _paths: answer(found.ledger))
    monkeypatch.setattr(stake, "look", lambda _paths: found.finality)
    monkeypatch.setattr(network, "has_network", lambda _paths: True)
    monkeypatch.setattr(parts, "running_pid", lambda _paths, daemon: found.pids.get(daemon))
    monkeypatch.setattr(peers, "local_peers", lambda _paths: found.local)
    return found


@pytest.fixture
def paths() -> Paths:
    return find_paths({"FSDECLOUD_HOME": "/nowhere"})


def test_164_the_json_object(world: World, paths: Paths) -> None:
    shown = view.as_json(view.take_view(paths, "photos"))
    assert set(shown) == KEYS
    assert json.loads(json.dumps(shown)) == shown
    assert shown["peers"] == [
        {
            "id": PEER.hex(), "name": "peer-1", "address": "wss://127.0.0.1:1/" + PEER.hex(), "pid": 20, "state": "up",
            "failures": 0, "corrupt": 0, "stored_bytes": 1000, "fetched_bytes": 2000, "evidence": [],
            "by_way_of": None,
        }
    ]  # fmt: skip
    assert shown["staged"] == {"entries": 2, "bytes": 200}
    assert shown["repair"]["under_replicated"] == 0  # type: ignore[index]
    assert (shown["read_only"], shown["last_error"], shown["problems"]) == (None, None, [])


def test_164_the_same_keys_when_nothing_is_mounted(world: World, paths: Paths) -> None:
    shown = view.as_json(view.take_view(paths, None))
    assert set(shown) == KEYS
    assert shown["volume"] is None
    assert shown["ledger_height"] == 6
    assert shown["dirty"] == {"entries": 0, "bytes": 0}


def test_a_light_ledger_daemon_is_shown_with_those_that_prove(world: World, paths: Paths) -> None:
    world.ledger = msgspec.structs.replace(LEDGER, light=True, provers=3)
    found = view.take_view(paths, "photos")
    assert "ledger height 6, 0 waiting, light with 3 full nodes of 0 nodes, pid 12" in view.as_lines(found)
    assert found.problems == []
    shown = view.as_json(found)
    assert (shown["light"], shown["provers"]) == (True, 3)
    world.ledger = msgspec.structs.replace(LEDGER, light=True)
    alone = view.take_view(paths, "photos")
    assert alone.exit_code == DEGRADED
    assert "no full one is connected" in alone.problems[0]


@pytest.mark.parametrize(
    ("height", "anchored_at", "is_final", "says"),
    [
        (4, 5, False, "  final up to block 4; the last anchor, in block 5, is not final yet"),
        (5, 5, True, "  final up to block 5; the last anchor, in block 5, is final"),
        (5, -1, None, "  final up to block 5"),
    ],
)
def test_what_is_final_is_shown(
    world: World, paths: Paths, height: int, anchored_at: int, is_final: bool | None, says: str
) -> None:
    point = CheckpointInfo(height, bytes(32))
    world.finality = FinalityInfo(6, 2, point, point, point, 3, 3, 0, 0, 3, 1, None, (), 0)
    world.driver = state(anchor_height=anchored_at)
    found = view.take_view(paths, "photos")
    assert says in view.as_lines(found)
    shown = view.as_json(found)
    assert (shown["final_height"], shown["anchor_final"]) == (height, is_final)
    world.ledger = msgspec.structs.replace(LEDGER, light=True, provers=1)
    assert view.as_json(view.take_view(paths, "photos"))["final_height"] is None


def test_058_under_replicated_blobs_are_shown(world: World, paths: Paths) -> None:
    repair = RepairStatus(blobs=9, degraded=4, endangered=3, unreadable=1, waiting=2, repaired_blobs=5, audits_failed=1)
    world.driver = state(repair=repair)
    found = view.take_view(paths, "photos")
    assert found.exit_code == DEGRADED
    text = "\n".join(view.as_lines(found))
    assert "repair: 5 of 9 blobs whole, 4 under-replicated, 2 wait for a peer, 5 repaired" in text
    assert "warning: under-replicated 4 blobs, 3 of them need repair" in text
    assert "warning: 1 blobs have too few shards" in text
    shown = view.as_json(found)["repair"]
    assert isinstance(shown, dict)
    assert (shown["under_replicated"], shown["repaired_blobs"], shown["waiting"]) == (4, 5, 2)


def test_how_far_coding_anew_is_is_shown(world: World, paths: Paths) -> None:
    recoding = RecodingStatus(2, 6, 12, 3 << 20, 4, 5, 1 << 20, "6 peers are needed", True)
    world.driver = state(repair=RepairStatus(blobs=17, recoding=recoding))
    found = view.take_view(paths, "photos")
    assert found.exit_code == OK
    line = next(line for line in view.as_lines(found) if "re-coding" in line)
    assert line.endswith(
        "to 2/6: 12 blobs (3.00 MiB) still stored otherwise, 5 blobs (1.00 MiB) done, 4 wait: 6 peers are needed"
    )
    shown = view.as_json(found)["repair"]
    assert isinstance(shown, dict)
    assert shown["recoding"] == {
        "redundancy": "2/6",
        "counted": True,
        "blobs": 12,
        "bytes": 3 << 20,
        "waiting": 4,
        "done_blobs": 5,
        "done_bytes": 1 << 20,
        "last_error": "6 peers are needed",
    }
    recoding = msgspec.structs.replace(recoding, blobs=0, bytes=0, waiting=0)
    world.driver = state(repair=RepairStatus(blobs=17, recoding=recoding))
    assert any("5 blobs (1.00 MiB) done, none left" in line for line in view.as_lines(view.take_view(paths, "photos")))
    world.driver = state(repair=RepairStatus(blobs=17))
    assert view.as_json(view.take_view(paths, "photos"))["repair"]["recoding"] is None  # type: ignore[index]


def test_058_a_peer_that_went_a_moment_ago_is_no_alarm(world: World, paths: Paths) -> None:
    world.driver = state(repair=RepairStatus(blobs=9, away=4))
    found = view.take_view(paths, "photos")
    assert found.exit_code == OK
    assert "repair: 5 of 9 blobs whole, 4 whole again when their peers are back" in "\n".join(view.as_lines(found))


def state(**change: Any) -> DriverStatus:
    return msgspec.structs.replace(STATUS, **change)


@pytest.mark.parametrize(
    ("driver", "code", "says"),
    [
        (STATUS, 0, "everything on all peers (D2), going to the ledger"),
        (state(anchored_sequence=9), 0, "everything anchored in block 5 (D3)"),
        (state(stored_sequence=8), 3, "everything durable here (D1), going to the peers"),
        (state(stored_sequence=8, durable_sequence=8), 3, "writing"),
        (
            state(peers=(msgspec.structs.replace(STATUS.peers[0], state="corrupt"),)),
            4,
            "warning: peer peer-1 is corrupt",
        ),
        (state(warnings=("fewer than 3 peers",)), 4, "warning: fewer than 3 peers"),
        (state(agent_pid=0), 4, "warning: the agent is not running"),
        (
            state(read_only="another machine\x1b writes"),
            4,
            "warning: the volume turned read-only: another machine\\x1b writes",
        ),
        (RemoteError("gone"), 4, "photos: driver pid 10 does not answer"),
    ],
)
def test_exit_codes_and_text(world: World, paths: Paths, driver: Any, code: int, says: str) -> None:
    world.driver = driver
    seen = view.take_view(paths, "photos")
    text = "\n".join(view.as_lines(seen))
    assert says in text
    assert "\x1b" not in text
    assert seen.exit_code == code


def test_a_mount_that_was_asked_to_be_read_only_is_no_problem(
    world: World, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.driver = state(read_only="mounted with -o ro")
    mount = Mounted("0:45", "/mnt/p", "fuse.decloud", "decloud:photos", read_only=True)
    monkeypatch.setattr(mounts, "read_mounts", lambda: [mount])
    seen = view.take_view(paths, "photos")
    assert seen.exit_code == 0
    assert view.as_lines(seen)[0] == "photos at /mnt/p (read-only: mounted with -o ro)"


def test_a_ledger_daemon_that_is_gone_or_silent(world: World, paths: Paths) -> None:
    world.ledger = LedgerUnavailable("no answer")
    seen = view.take_view(paths, "photos")
    assert seen.exit_code == 4
    assert view.as_json(seen)["ledger_pid"] == 12
    assert "ledger pid 12 does not answer" in view.as_lines(seen)
    del world.pids["ledger"]
    seen = view.take_view(paths, "photos")
    assert "the ledger daemon is not running" in seen.problems


def test_a_local_peer_that_died_is_down_whatever_the_agent_still_thinks(world: World, paths: Paths) -> None:
    world.local = [LocalPeer("peer-1", PEER.hex(), "", None), LocalPeer("peer-2", "02" * 32, "", None)]
    seen = view.take_view(paths, "photos")
    assert [(row["name"], row["state"], row["pid"]) for row in seen.peers] == [
        ("peer-1", "down", None),
        ("peer-2", "down", None),
    ]
    assert seen.exit_code == 4


def test_status_says_what_redundancy_was_asked_for_and_what_new_data_gets(world: World, paths: Paths) -> None:
    for asked, shown in (
        ("auto", "redundancy 2/6 (auto)"),
        ("2/6", "redundancy 2/6,"),
        ("4/12", "redundancy 2/6 (4/12)"),
    ):
        world.driver = msgspec.structs.replace(STATUS, redundancy=asked)
        found = view.take_view(paths, "photos")
        assert view.as_json(found)["redundancy"] == asked
        assert any(shown in line for line in view.as_lines(found))


def test_the_limits_are_shown_where_there_are_any(world: World, paths: Paths) -> None:
    assert not any("limits" in line for line in view.as_lines(view.take_view(paths, "photos")))
    world.driver = msgspec.structs.replace(world.driver, up_limit=512 << 10)
    found = view.take_view(paths, "photos")
    assert "  limits: up 512 KiB/s, down no limit" in view.as_lines(found)
    assert view.as_json(found)["up_limit"] == 512 << 10
    assert view.as_json(found)["down_limit"] is None


def test_money_is_shown_where_there_is_any(world: World, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = view.take_view(paths, "photos")
    assert view.as_json(shown)["wallet"] is None
    assert not any("wallet" in line for line in view.as_lines(shown))
    key = bytes(32)
    funds = Funds(key, 100, 0, 1, outgoing=30, incoming=5, waiting=())
    monkeypatch.setattr(walletview, "look", lambda *_: Holdings(6, bytes(32), (funds, funds), is_light=False))
    shown = view.take_view(paths, "photos")
    assert view.as_json(shown)["wallet"] == {"confirmed": 200, "outgoing": 60, "incoming": 10, "available": 140}
    assert "  wallet: 200 confirmed, pending: 60 going and 10 coming, 140 can be spent now" in view.as_lines(shown)
