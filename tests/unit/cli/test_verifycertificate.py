"""The command that verifies certificates: files, headers, blocks to trust, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3

from fsdecloud.cli.certify import in_snapshot
from fsdecloud.cli.run import run
from fsdecloud.cli.verifycertificate import PIECE, check_file, command, parse_checkpoints
from fsdecloud.errors import CertificateError, UsageError
from fsdecloud.ledger.certificate import encode_certificate, verify_certificate
from fsdecloud.ledger.headerfile import MAGIC, encode_row
from fsdecloud.ledger.network import encode_network
from tests.unit.ledger.test_certificate import CONTENT, World, make_world


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


class Desk:
    """Somebody with some files, no ledger and no key."""

    def __init__(self, directory: Path, world: World) -> None:
        self.directory = directory
        self.write("document", encode_network(world.document))
        self.write("headers", MAGIC + b"".join(map(encode_row, world.certificate.headers)))
        self.write("whole", encode_certificate(world.certificate))
        self.write("short", encode_certificate(world.short))
        self.write("file", CONTENT)

    def write(self, name: str, data: bytes) -> None:
        (self.directory / name).write_bytes(data)

    def verify(self, certificate: str, file: str, *options: str) -> int:
        names = [str(self.directory / name) for name in (certificate, file)]
        return run(command, [*names, "--network", str(self.directory / "document"), *options], "decloud")


@pytest.fixture
def desk(tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("FSDECLOUD_HOME", str(tmp_path / "home"))
    return Desk(tmp_path, world)


def test_with_the_document_alone(desk: Desk, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert desk.verify("whole", "file") == 0
    out = capsys.readouterr().out
    assert "/minutes/monday.txt" in out
    assert "another's block 4 tells" in out
    assert desk.verify("whole", "file", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is True
    assert (found["height"], found["tied_to"], found["path"]) == (4, None, "/minutes/monday.txt")


def test_with_headers_or_a_block_to_trust(desk: Desk, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    headers = str(desk.directory / "headers")
    assert desk.verify("short", "file", "--headers", headers) == 0
    assert "which is known here" in capsys.readouterr().out
    assert desk.verify("short", "file", "--checkpoint", f"4:{world.ids[4].hex()}", "--json") == 0
    assert json.loads(capsys.readouterr().out)["tied_to"] == world.ids[4].hex()
    assert desk.verify("whole", "file", "--checkpoint", f"7:{world.ids[7].hex()}") == 0
    assert desk.verify("short", "file") == 2
    assert "give the network's headers" in capsys.readouterr().err
    assert desk.verify("short", "file", "--checkpoint", "4:" + "00" * 32) == 2
    desk.write("cut", (desk.directory / "headers").read_bytes()[:-1])
    assert desk.verify("short", "file", "--headers", str(desk.directory / "cut")) == 2


def test_any_changed_byte_of_the_file_fails(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    for at in range(len(CONTENT)):
        desk.write("changed", CONTENT[:at] + bytes((CONTENT[at] ^ 1,)) + CONTENT[at + 1 :])
        assert desk.verify("whole", "changed") == 2
    assert "its BLAKE3 is" in capsys.readouterr().err
    for changed, reason in (
        (CONTENT[:-1], "it has 25 bytes, 26"),
        (CONTENT + b"\0", "longer than"),
        (b"", "it has 0 bytes"),
    ):
        desk.write("changed", changed)
        assert desk.verify("whole", "changed", "--json") == 2
        found = json.loads(capsys.readouterr().out)
        assert found["ok"] is False
        assert reason in found["error"]


def test_what_is_missing_or_no_certificate(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert desk.verify("none", "file") == 2
    assert desk.verify("whole", "none") == 2
    assert desk.verify("file", "file") == 2
    assert "no certificate" in capsys.readouterr().err
    names = [str(desk.directory / name) for name in ("whole", "file")]
    assert run(command, names, "decloud") == 1
    assert "--network DOCUMENT" in capsys.readouterr().err
    assert run(command, [*names, "--network", names[1]], "decloud") == 1


def test_a_large_file_is_read_a_piece_at_a_time(tmp_path: Path, world: World) -> None:
    data = bytes(PIECE) * 2 + b"x"
    path = tmp_path / "large"
    path.write_bytes(data)
    verdict = verify_certificate(world.certificate, world.document)
    check_file(str(path), replace(verdict, content=blake3(data).digest(), size=len(data)))
    with pytest.raises(CertificateError, match="longer"):
        check_file("/dev/zero", verdict)


def test_blocks_to_trust() -> None:
    assert parse_checkpoints((f"7:{'ab' * 32}", f"8:{'cd' * 32}")) == {7: bytes([0xAB]) * 32, 8: bytes([0xCD]) * 32}
    for text in (
        "",
        "7",
        "7:",
        "7:abcd",
        f"x:{'ab' * 32}",
        f"-1:{'ab' * 32}",
        f"7:{'zz' * 32}",
        f"{'9' * 20}:{'ab' * 32}",
    ):
        with pytest.raises(UsageError, match="HEIGHT:ID"):
            parse_checkpoints((text,))
    with pytest.raises(UsageError, match="cannot both"):
        parse_checkpoints((f"7:{'ab' * 32}", f"7:{'cd' * 32}"))


def test_a_path_below_snapshots_says_which_one() -> None:
    assert in_snapshot(b"/a/b", "7") == (b"/a/b", "7")
    assert in_snapshot(b"/.snapshots/2026-11-22T18.30.05Z-000007/a/b", None) == (b"/a/b", "2026-11-22T18.30.05Z-000007")
    assert in_snapshot(b"/.snapshots/label", None) == (b"/.snapshots/label", None)
    assert in_snapshot(b"/a/.snapshots/x/y", None) == (b"/a/.snapshots/x/y", None)
    with pytest.raises(UsageError, match="leave --at out"):
        in_snapshot(b"/.snapshots/label/a", "7")


def test_verifying_needs_no_driver_and_no_agent() -> None:
    """What a verifier trusts is small: no import of the pure part leads to what has keys or acts."""
    code = (
        "import sys, fsdecloud.ledger.certificate, fsdecloud.ledger.headerfile\n"
        "acting = tuple(f'fsdecloud.{name}' for name in ('driver', 'agent', 'net', 'store')) + ('trio', 'lmdb')\n"
        "bad = [module for module in sys.modules if module.startswith(acting)]\n"
        "sys.exit(str(bad) if bad else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_whole_is_as_small_as_the_manual_says(world: World) -> None:
    bare = msgspec.structs.replace(world.short, path=None)
    header = sum(map(len, bare.headers))
    assert 3000 < len(encode_certificate(bare)) - header < 4000
    assert 180 < header / len(bare.headers) < 210
