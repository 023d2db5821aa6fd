"""decloud-ledgerd(8) says what the code does: the work protocol's messages and limits, the explorer's limits."""

import re
import typing
from pathlib import Path

import pytest

from fsdecloud.ledgerd import crew, miner, remote, shares, workserver
from fsdecloud.limits import CONNECT_TIMEOUT
from fsdecloud.net import http
from fsdecloud.wire import work

PAGE = (Path(__file__).parents[3] / "man" / "decloud-ledgerd.8").read_text()
SECTIONS = dict(re.findall(r"^\.(?:Sh|Ss) ([^\n]+)\n(.*?)(?=^\.Sh|^\.Ss|\Z)", PAGE, re.MULTILINE | re.DOTALL))
MESSAGES = (*typing.get_args(work.FromMiner), *typing.get_args(work.FromDaemon))


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_every_message_is_described_with_its_fields(kind: type) -> None:
    fields = ", ".join(kind.__struct_fields__)
    assert f".It {kind.__name__} ({kind.__struct_config__.tag}): {fields}".rstrip() + "\n" in PAGE


def test_no_other_message_is_described() -> None:
    assert set(re.findall(r"^\.It (\w+) \(\d+\):", PAGE, re.MULTILINE)) == {kind.__name__ for kind in MESSAGES}


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("DESCRIPTION", f"and {crew.WORKERS_MAX} at most"),
        ("DESCRIPTION", f"from 0 to 19; {miner.NICE} by default"),
        ("Mining", f"for no longer than {'one' if miner.CREDIT == 1 else miner.CREDIT} second"),
        ("The work protocol", f"\n.Ql {work.SUBPROTOCOL} .\n"),
        ("The work protocol", f"more than {work.MESSAGE_MAX} bytes"),
        ("The work protocol", f"within {CONNECT_TIMEOUT:g} seconds"),
        ("The work protocol", f"version is {work.VERSION}."),
        ("The work protocol", f"\n.Ql {work._PROOF_CONTEXT.decode()}\n"),
        ("The work protocol", f"at most {work.NAME_MAX} characters"),
        ("The work protocol", f"stands for {work.SHARE_WORK_MIN}\nhashes at least"),
        ("The work protocol", f"at most {work.REASON_MAX} characters"),
        ("The work protocol", f"serves {workserver.MINERS_MAX} miners"),
        ("The work protocol", f"reads {workserver.SHARE_RATE:g} shares a second"),
        ("The work protocol", f"silence {workserver.SHARE_BURST:g} at once"),
        ("The work protocol", f"after {workserver.WRONG_MAX} wrong ones"),
        ("The work protocol", f"about {shares.SHARE_EVERY:g} seconds"),
        ("The work protocol", f"takes {remote.JOB_RATE:g} jobs a second"),
        ("The work protocol", f"silence {remote.JOB_BURST:g} at once"),
        ("The work protocol", f"up to {remote.DELAY_MAX:g} seconds"),
        ("The work protocol", f"of {remote.STABLE:g} seconds"),
        ("EXPLORER", f"at most {http.HEAD_MAX} bytes"),
        ("EXPLORER", f"{http.REQUEST_RATE:g} requests a second and {http.REQUEST_BURST:g} at once"),
        ("EXPLORER", f"over {http.CONNECTIONS_MAX} connections,\n{http.LIVE_MAX} of them"),
        ("EXPLORER", f"within {http.HEAD_TIMEOUT:g} seconds, and its answer be taken within {http.SEND_TIMEOUT:g}"),
    ],
)
def test_the_numbers_are_those_of_the_code(section: str, words: str) -> None:
    assert words in SECTIONS[section]


def test_the_verdicts_are_described() -> None:
    for number, word in ((0, "it counts"), (1, "it solved the block"), (2, "its job was over"), (3, "it is wrong")):
        assert f"{number}, {word}" in PAGE
    assert [verdict.value for verdict in work.Verdict] == [0, 1, 2, 3]
