"""Volumes, policies and settings of a home on the disk; faults of keys and passphrases."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
import pytest

from fsdecloud.cli import network, settings, volume, volumes
from fsdecloud.cli.phrase import write_phrase_file
from fsdecloud.config import Paths, find_paths
from fsdecloud.crypto.phrase import phrase_from_root
from fsdecloud.errors import UsageError
from fsdecloud.wire.agentapi import Bandwidth

ROOT = bytes(range(32))
NETWORK = bytes([7] * 32)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return find_paths({"FSDECLOUD_HOME": os.fspath(tmp_path / "home")})


def make(paths: Paths, name: str = "photos", passphrase: str | None = None) -> None:
    volumes.save_document(paths, volumes.make_document(paths, name, ROOT, NETWORK, passphrase=passphrase))


def test_a_volume_opens_with_the_device_key(paths: Paths) -> None:
    make(paths)
    assert volumes.list_volumes(paths) == ["photos"]
    assert volumes.open_root(paths, "photos") == ROOT
    for file in (paths.device_key, paths.volume_config("photos")):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
        assert ROOT not in file.read_bytes()
        assert ROOT.hex().encode() not in file.read_bytes()
    with pytest.raises(UsageError, match="there is a volume photos already"):
        volumes.require_new(paths, "photos")


def test_an_unknown_volume_names_the_known_ones(paths: Paths) -> None:
    with pytest.raises(UsageError, match="this machine has none"):
        volumes.load_document(paths, "x")
    make(paths)
    with pytest.raises(UsageError, match=r"no volume x \(this machine has photos\)"):
        volumes.load_document(paths, "x")


def test_121_a_wrong_passphrase(paths: Paths, tmp_path: Path) -> None:
    make(paths, passphrase="correct horse")
    assert not paths.device_key.exists()
    file = tmp_path / "passphrase"
    file.touch(0o600)
    file.write_text("correct horse\n")
    assert volumes.open_root(paths, "photos", passfile=os.fspath(file)) == ROOT
    file.write_text("wrong\n")
    with pytest.raises(UsageError, match=r"^wrong passphrase for volume photos$") as caught:
        volumes.open_root(paths, "photos", passfile=os.fspath(file))
    assert caught.value.exit_code == 1


def test_122_one_line_end_is_dropped_and_forms_are_one(paths: Paths, tmp_path: Path) -> None:
    make(paths, passphrase=" é \"$'\\ ")
    file = tmp_path / "passphrase"
    file.touch(0o600)
    file.write_text(" e\u0301 \"$'\\ \r\n")
    assert volumes.open_root(paths, "photos", passfile=os.fspath(file)) == ROOT


@pytest.mark.parametrize(
    ("data", "says"), [(b"", "1 to"), (b"\n", "is empty"), (b"\xff\xfe", "not UTF-8"), (b"x" * 70000, "70000 bytes")]
)
def test_123_124_bad_passphrase_files(tmp_path: Path, data: bytes, says: str) -> None:
    file = tmp_path / "passphrase"
    file.touch(0o600)
    file.write_bytes(data)
    with pytest.raises(UsageError, match=says):
        volumes.read_passphrase_file(os.fspath(file))
    file.chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        volumes.read_passphrase_file(os.fspath(file))


def test_127_no_terminal_and_no_source_fails_at_once(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    make(paths, passphrase="x")
    with open(os.devnull) as null:
        monkeypatch.setattr("sys.stdin", null)
        with pytest.raises(UsageError, match="no terminal to ask at"):
            volumes.open_root(paths, "photos")


def test_a_systemd_credential(paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(paths, passphrase="from systemd")
    with pytest.raises(UsageError, match="systemd gave no credentials"):
        volumes.open_root(paths, "photos", credential="passphrase")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", os.fspath(tmp_path))
    (tmp_path / "passphrase").write_text("from systemd\n")
    assert volumes.open_root(paths, "photos", credential="passphrase") == ROOT
    for bad, says in [("missing", "No such file"), ("../etc/shadow", "cannot be the name")]:
        with pytest.raises(UsageError, match=says):
            volumes.open_root(paths, "photos", credential=bad)


def test_124_a_bad_device_key(paths: Paths) -> None:
    make(paths)
    good = paths.device_key.read_bytes()
    for data, says in [(good[:-1], "31 bytes"), (bytes(32), "does not open"), (b"", "0 bytes")]:
        paths.device_key.write_bytes(data)
        with pytest.raises(UsageError, match=says) as caught:
            volumes.open_root(paths, "photos")
        assert caught.value.exit_code == 1
    paths.device_key.unlink()
    with pytest.raises(UsageError, match=r"device\.key"):
        volumes.open_root(paths, "photos")


def test_a_document_under_another_name_or_damaged(paths: Paths) -> None:
    make(paths)
    path = paths.volume_config("photos")
    path.rename(paths.volume_config("other"))
    with pytest.raises(UsageError, match=r"must be called photos\.json"):
        volumes.load_document(paths, "other")
    paths.volume_config("other").write_bytes(b"{}")
    with pytest.raises(UsageError, match=r"is damaged .* decloud recover other"):
        volumes.load_document(paths, "other")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda words: words[:23], "24 words"),
        (lambda words: [*words[:4], "zzyzx", *words[5:]], "word 5"),
        (lambda words: [words[-1], *words[1:]], "checksum"),
    ],
)
def test_130_wrong_words(tmp_path: Path, change, says: str) -> None:
    file = tmp_path / "words"
    file.write_text("\n".join(change(phrase_from_root(ROOT).split())))
    with pytest.raises(UsageError, match=says):
        volumes.read_phrase(os.fspath(file))


def test_130_words_with_odd_spacing_and_case(tmp_path: Path) -> None:
    file = tmp_path / "words"
    write_phrase_file(os.fspath(file), ROOT)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with pytest.raises(UsageError, match="exists already"):
        write_phrase_file(os.fspath(file), ROOT)
    file.write_text("  " + file.read_text().upper().replace(" ", "\n\t "))
    assert volumes.read_phrase(os.fspath(file)) == ROOT
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not a text file"):
        volumes.read_phrase(os.fspath(file))


def test_the_shown_phrase_holds_the_words_in_order() -> None:
    words = phrase_from_root(ROOT).split()
    shown = volumes.show_phrase("photos", ROOT).partition("\n\n")[2].split()
    assert shown[1::2] == words
    assert shown[0::2] == [str(i) for i in range(1, 25)]


def test_a_policy_gains_keys_and_keeps_what_it_has(tmp_path: Path) -> None:
    from fsdecloud.peerd.setup import Policy

    path = tmp_path / "peer" / "policy.toml"
    first, second = b"\1" * 32, b"\2" * 32
    network.add_to_policy(path, first.hex())
    network.add_to_policy(path, second.hex())
    before = path.read_bytes()
    network.add_to_policy(path, second.hex())
    assert path.read_bytes() == before
    policy = Policy(path)
    assert [policy.refusal(key) == "" for key in (first, second, b"\3" * 32)] == [True, True, False]
    path.write_text('admit = ["*"]\n')
    network.add_to_policy(path, second.hex())
    assert path.read_text() == 'admit = ["*"]\n'
    path.write_text("admit = [")
    with pytest.raises(UsageError, match=r"policy\.toml"):
        network.add_to_policy(path, second.hex())


def test_what_up_remembers(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert settings.load_settings(paths) == settings.UpSettings("/home/somebody/decloud", 6)
    settings.save_settings(paths, settings.UpSettings("/mnt/x", 12))
    assert settings.load_settings(paths) == settings.UpSettings("/mnt/x", 12)
    assert b"mine_duty" not in settings.settings_file(paths).read_bytes(), "an earlier release could not read it"
    settings.save_settings(paths, settings.UpSettings("/mnt/x", 12, 25))
    assert settings.load_settings(paths).mine_duty == 25
    settings.settings_file(paths).write_text('{"directory": "/x", "peers": 0}')
    with pytest.raises(UsageError, match=r"up\.json is damaged"):
        settings.load_settings(paths)


def test_volume_set_limits_the_traffic(paths: Paths) -> None:
    volumes.save_document(paths, volumes.make_document(paths, "photos", ROOT, bytes(32)))
    before = volumes.load_document(paths, "photos")
    assert b'"up"' not in paths.volume_config("photos").read_bytes(), "an earlier release could not read it"
    assert not volume.set_bandwidth(paths, "photos", Bandwidth(up=65536))
    assert not volume.set_bandwidth(paths, "photos", Bandwidth(down=1 << 20))
    assert volumes.load_document(paths, "photos") == msgspec.structs.replace(before, up=65536, down=1 << 20)
    assert not volume.set_bandwidth(paths, "photos", Bandwidth(0, 0))
    assert volumes.load_document(paths, "photos") == before


def test_volume_set_says_how_peers_are_found(paths: Paths) -> None:
    volumes.save_document(paths, volumes.make_document(paths, "photos", ROOT, bytes(32)))
    before = volumes.load_document(paths, "photos")
    written = paths.volume_config("photos").read_bytes()
    assert b"bootstrap" not in written, "an earlier release could not read it"
    assert b"lan" not in written
    address = f"wss://192.0.2.7:7711/{bytes(32).hex()}"
    assert not volume.set_discovery(paths, "photos", (address,), "on")
    assert volumes.load_document(paths, "photos") == msgspec.structs.replace(before, bootstrap=(address,), lan=True)
    with pytest.raises(UsageError, match="which peer"):
        volume.set_discovery(paths, "photos", ("wss://192.0.2.7:7711",), None)
    assert not volume.set_discovery(paths, "photos", (), "off")
    assert volumes.load_document(paths, "photos") == msgspec.structs.replace(before, bootstrap=(address,))


def test_volume_set_changes_the_document_and_nothing_else(paths: Paths) -> None:
    volumes.save_document(paths, volumes.make_document(paths, "photos", ROOT, bytes(32)))
    before = volumes.load_document(paths, "photos")
    assert not volume.set_redundancy(paths, "photos", "4/12")
    after = volumes.load_document(paths, "photos")
    assert after == msgspec.structs.replace(before, redundancy="4/12")
    assert volumes.open_root(paths, "photos") == ROOT
    for wrong in ("12/4", "0/3", "x", "1/99"):
        with pytest.raises(UsageError, match="redundancy"):
            volume.set_redundancy(paths, "photos", wrong)
    with pytest.raises(UsageError, match="no volume"):
        volume.set_redundancy(paths, "videos", "auto")
    assert volumes.load_document(paths, "photos") == after
