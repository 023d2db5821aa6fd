"""`decloud contract`: what is said of good and bad texts."""

import json

import pytest
from click.testing import CliRunner

from fsdecloud.cli.contract import command
from fsdecloud.contracts.library import STANDARD, standard_text
from fsdecloud.errors import UsageError


def run(*arguments):
    return CliRunner().invoke(command, list(arguments), catch_exceptions=False)


@pytest.mark.parametrize("name", STANDARD)
def test_standard_contracts_are_good_by_name_and_as_files(tmp_path, name):
    path = tmp_path / "text"
    path.write_text(standard_text(name))
    for file in (name, str(path)):
        found = json.loads(run("check", file, "--json").output)
        assert (found["name"], found["id"], found["is_standard"]) == (name, STANDARD[name], True)
        assert found["nodes"] > 3
    assert "good" in run("check", name).output


def test_what_is_shown_is_the_same_contract(tmp_path):
    path = tmp_path / "shown"
    path.write_text(run("show", "escrow").output)
    assert json.loads(run("check", str(path), "--json").output)["id"] == STANDARD["escrow"]
    assert json.loads(run("show", "escrow", "--json").output)["text"].rstrip() == path.read_text().rstrip()


def test_what_is_wrong_is_said_with_its_place(tmp_path):
    path = tmp_path / "bad"
    path.write_text("contract x\n\nparty a\n\nmain {\n    pay 5 from a to nobody\n    close\n}\n")
    with pytest.raises(UsageError, match="nobody"):
        run("check", str(path))
    path.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="UTF-8"):
        run("check", str(path))
    path.write_bytes(b"#" * (1 << 20))
    with pytest.raises(UsageError, match="at most"):
        run("check", str(path))
    with pytest.raises(FileNotFoundError):
        run("check", str(tmp_path / "none"))
