"""`decloud ledger new-network` and `show-network`: every parameter is an option; what comes out is a network or an error."""

from __future__ import annotations

import json
import os

import msgspec
import pytest

from fsdecloud.cli import networkdocument as nd
from fsdecloud.cli.main import group
from fsdecloud.cli.run import run
from fsdecloud.config import find_paths
from fsdecloud.errors import UsageError
from fsdecloud.ledger import network, work

SALT = "ab" * 32


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FSDECLOUD_HOME", str(tmp_path / "home"))
    return tmp_path


def decloud(capsys, *arguments):
    code = run(group, ["ledger", *map(str, arguments)], "decloud")
    output = capsys.readouterr()
    return code, output.out, output.err


def test_what_is_made_can_be_shown_and_is_the_network_that_was_asked_for(home, capsys):
    chosen = {p.field: min(p.most, p.least + 100 + n) for n, p in enumerate(nd.PARAMETERS)}
    chosen |= {"interval": 3, "stamp_bits": 5, "first_work": 5000, "easiest_work": 300}
    chosen |= {"checkpoint_interval": 7, "unbond_delay": 900, "least_bond": 2000, "least_stake": 2001}
    options = [word for field, value in chosen.items() for word in (f"--{field.replace('_', '-')}", value)]
    extra = ("--name", "mine", "--salt", SALT, "--genesis-time", 1_700_000_000, "--no-mine-when-idle")
    file = home / "net"
    code, out, _ = decloud(capsys, "new-network", *options, *extra, "--json", file)
    assert code == 0
    made = json.loads(out)
    document = network.decode_network(file.read_bytes())
    assert made["network"] == network.network_id(document).hex()
    assert made["file"] == str(file)
    for field, value in chosen.items():
        assert made[field] == value
        if not field.endswith("_work"):
            assert getattr(document, field) == value
    assert work.work_of(document.first_target) == 5000
    assert (document.version, document.name, document.salt.hex(), document.mine_when_idle) == (4, "mine", SALT, False)
    code, out, _ = decloud(capsys, "show-network", "--json", file)
    assert code == 0
    assert json.loads(out) == {name: value for name, value in made.items() if name != "file"}
    code, out, _ = decloud(capsys, "show-network", file)
    assert made["network"] in out
    for parameter in nd.PARAMETERS:
        assert f"{chosen[parameter.field]}" in out
        assert parameter.text in out


@pytest.mark.parametrize("preset", [(), ("--embedded",)])
def test_the_defaults_are_the_presets(home, capsys, preset):
    file = home / "net"
    assert decloud(capsys, "new-network", *preset, "--salt", SALT, "--genesis-time", 5, file)[0] == 0
    made = network.decode_network(file.read_bytes())
    expected = network.embedded_network if preset else network.public_network
    assert made == expected("decloud", bytes.fromhex(SALT), 5)
    for parameter in nd.PARAMETERS:  # and the help says so
        value = nd.network_fields(made)[parameter.field]
        stated = parameter.default.split("; ")[-1 if preset else 0].split(",")[0]
        factor = made.interval if stated.endswith(" intervals") else 1
        assert value == int(stated.removesuffix(" intervals")) * factor


def test_every_field_is_an_option_with_the_bounds_of_the_document():
    types = {field.name: field.type for field in msgspec.inspect.type_info(network.NetworkDocument).fields}
    for parameter in nd.PARAMETERS:
        if not parameter.field.endswith("_work"):
            assert (parameter.least, parameter.most) == (types[parameter.field].ge, types[parameter.field].le)
    named = {p.field.replace("_work", "_target") for p in nd.PARAMETERS}
    assert named | {"version", "name", "salt", "genesis_time", "mine_when_idle"} == set(types)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--half-life", 60), "half-life"),
        (("--first-work", 5, "--easiest-work", 6), "cost 5 hashes"),
        (("--halving", 1 << 32), "money"),
        (("--transaction-max", 9000, "--block-max", 8192), "larger than a block"),
        (("--name", ""), "1 to 64"),
        (("--name", "x" * 65), "1 to 64"),
        (("--name", "a\x1b[2J"), "printed"),
        (("--name", "\u00e9"), "ASCII"),
        (("--salt", "\x1bab"), "64 hexadecimal"),
        (("--genesis-time", 1 << 41), "36812"),
        (("--interval", 0), "range"),
    ],
)
def test_what_does_not_go_together_is_said_and_nothing_is_written(home, capsys, options, words):
    code, out, err = decloud(capsys, "new-network", *options, home / "net")
    assert (code, out) == (1, "")
    assert words in err
    assert "\x1b" not in err
    assert not (home / "net").exists()


def test_a_shorter_interval_and_a_smaller_first_block_take_the_rest_with_them():
    def plan(**chosen):
        return nd.plan_network("n", bytes(32), 1, is_embedded=False, mine_when_idle=None, chosen=chosen)

    assert plan(interval=5).half_life == 1800
    assert plan(interval=5, half_life=99).half_life == 99
    assert work.work_of(plan(first_work=9).easiest_target) == 9


def test_nothing_is_overwritten_and_a_full_disk_leaves_nothing(home, capsys, monkeypatch):
    file = home / "net"
    file.write_bytes(b"mine")
    code, _, err = decloud(capsys, "new-network", file)
    assert (code, file.read_bytes()) == (1, b"mine")
    assert "exists" in err

    def full(_descriptor):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = decloud(capsys, "new-network", home / "other")
    assert code == 1
    assert "No space" in err
    assert not (home / "other").exists()


def test_what_is_no_network_is_not_shown(home, capsys):
    for data in (b"", b"junk", bytes(5000)):
        (home / "net").write_bytes(data)
        code, out, err = decloud(capsys, "show-network", home / "net")
        assert (code, out) == (1, "")
        assert "not a network document" in err
    code, _, err = decloud(capsys, "show-network", home / "nowhere")
    assert code == 1
    assert "cannot read" in err
    code, _, err = decloud(capsys, "show-network")
    assert code == 1
    assert "belongs to no ledger network" in err


def test_this_homes_network_is_shown(home, capsys):
    from fsdecloud.ledgerd.setup import init_ledger

    document = network.embedded_network("old", bytes(32), 1)
    init_ledger(find_paths(), document)
    code, out, _ = decloud(capsys, "show-network", "--json")
    assert code == 0
    assert (json.loads(out)["version"], json.loads(out)["network"]) == (4, network.network_id(document).hex())


def test_usage_errors_are_ours():
    with pytest.raises(UsageError):
        nd.plan_network("", bytes(32), 1, is_embedded=False, mine_when_idle=None, chosen={})
