"""What people can show of a real volume: certificates, the log, the versions of a file. One network for all of it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.harness import Network

MIB = 1 << 20


@dataclass
class Evidence:
    """A volume with a file of two versions, and a second home that has nothing but the network's document."""

    network: Network
    first: bytes
    second: bytes
    sequence: int
    """The snapshot with the first version."""
    made: dict
    """What `certify` said of the second."""

    @property
    def file(self) -> Path:
        return self.network.mountpoint / "docs" / "plan"

    def put(self, data: bytes, name: str = "data") -> Path:
        path = self.network.work / name
        path.write_bytes(data)
        return path

    def elsewhere(self, *args: str | Path, check: bool = True):
        """Run `decloud` in the other home."""
        return self.network.decloud(*args, home=self.network.base / "elsewhere", check=check)

    def document(self) -> Path:
        return self.put((self.network.home / "state" / "ledger" / "network").read_bytes(), "document")

    def verify(self, certificate: Path, data: bytes, *options: str | Path, check: bool = True):
        document = self.document()
        return self.elsewhere(
            "verify-certificate", certificate, self.put(data), "--network", document, "--json", *options, check=check
        )


@pytest.fixture(scope="module")
def evidence() -> Iterator[Evidence]:
    with Network(peers=3) as network:
        network.up()
        noise = random.Random(4)
        first, second = noise.randbytes(2 * MIB + 77), b"plan B\n" * 1000
        one, two = network.work / "one", network.work / "two"
        one.write_bytes(first)
        two.write_bytes(second)
        mount = network.mountpoint
        network.run("sh", "-c", 'mkdir $0/docs && cp "$1" $0/docs/plan && echo x > $0/docs/planned', mount, one)
        network.sync("anchored")
        rows = network.decloud("snapshot", "list", network.volume, "--json").json_lines()
        network.run("sh", "-c", 'dd if="$1" of=$0/docs/plan status=none', mount, two)
        network.sync("anchored")
        made = network.decloud("certify", mount / "docs" / "plan", "--json").json()
        yield Evidence(network, first, second, rows[-1]["sequence"], made)


def test_a_certificate_verifies_where_there_is_only_the_document_and_the_headers(evidence: Evidence) -> None:
    network, certificate, made = evidence.network, evidence.network.work / "plan.certificate", evidence.made
    assert Path(made["certificate"]).name == certificate.name
    assert made["path"] is None
    assert made["state_height"] < made["height"]
    alone = evidence.verify(certificate, evidence.second).json()
    assert alone["ok"] is True
    assert (alone["tied_to"], alone["content"], alone["bytes"]) == (None, made["content"], len(evidence.second))
    headers = network.work / "headers"
    network.decloud("ledger", "headers", headers)
    tied = evidence.verify(certificate, evidence.second, "--headers", headers).json()
    assert tied["tied_to"]
    assert tied["block"] == made["block"]
    block = network.decloud("ledger", "blocks", "--first", str(made["height"]), "--count", "1", "--json").json()
    trusted = evidence.verify(certificate, evidence.second, "--checkpoint", f"{block['height']}:{block['id']}").json()
    assert trusted["tied_to"] == block["id"]
    at_home = network.decloud("verify-certificate", certificate, evidence.put(evidence.second), "--json").json()
    assert at_home["tied_to"], "the chain of this home's ledger daemon"
    for data in (evidence.first, evidence.second[:-1], evidence.second + b"\n", b"Q" + evidence.second[1:]):
        refused = evidence.verify(certificate, data, check=False)
        assert refused.code == 2
        assert refused.json()["ok"] is False
    raw = certificate.read_bytes()
    assert b"docs" not in raw
    assert b"plan" not in raw
    for at in range(0, len(raw), len(raw) // 5):
        damaged = evidence.put(raw[:at] + bytes((raw[at] ^ 1,)) + raw[at + 1 :], "damaged")
        assert evidence.verify(damaged, evidence.second, check=False).code == 2
    again = network.decloud("certify", evidence.file, check=False)
    assert again.code == 1
    assert "--force" in again.err


def test_a_certificate_of_what_it_was(evidence: Evidence) -> None:
    network, certificate = evidence.network, evidence.network.work / "old"
    options = ("--at", str(evidence.sequence), "--show-path", "--short", "--to", certificate, "--json")
    made = network.decloud("certify", evidence.file, *options).json()
    assert (made["state_sequence"], made["path"]) == (evidence.sequence, "/docs/plan")
    assert made["work"] is None
    headers = network.work / "short-headers"
    network.decloud("ledger", "headers", headers)
    found = evidence.verify(certificate, evidence.first, "--headers", headers).json()
    assert (found["ok"], found["path"], found["state_sequence"]) == (True, "/docs/plan", evidence.sequence)
    refused = evidence.verify(certificate, evidence.first, check=False)
    assert refused.code == 2
    assert "give the network's headers" in refused.json()["error"]
    directory = network.decloud("certify", evidence.file.parent, "--to", network.work / "no", check=False)
    assert directory.code == 1
    assert "no regular file" in directory.err
    assert not (network.work / "no").exists()


def test_statements_are_alone_and_the_whole_record_still_verifies(evidence: Evidence) -> None:
    network = evidence.network
    network.sync("anchored")
    assert network.decloud("log", network.volume, "--verify", "--json").json()["records"] > 0
    lines = network.decloud("log", network.volume, "--op", "certify", "--json").json_lines()
    statements = [line for line in lines if not line["path"]]
    assert evidence.made["sequence"] in {statement["sequence"] for statement in statements}
    everything = network.decloud("log", network.volume, "--json").json_lines()
    for statement in statements:
        beside = [line for line in everything if line["sequence"] == statement["sequence"]]
        assert beside == [statement], "nothing else is in its anchor"
    assert {line["path"] for line in lines if line["path"]} == {"/docs/plan"}


def test_the_log_with_filters(evidence: Evidence) -> None:
    network, plan = evidence.network, evidence.file

    def paths(*options: str | Path) -> list[tuple[str, str]]:
        found = network.decloud("log", network.volume, "--json", *options).json_lines()
        return [(line["operation"], line["path"]) for line in found]

    everything = paths()
    assert ("write", "/docs/planned") in everything
    of_plan = paths("--path", plan)
    assert of_plan == paths("--path", "/docs/plan")
    assert ("write", "/docs/plan") in of_plan
    assert {path for _operation, path in of_plan if path} == {"/docs/plan"}
    assert set(paths("--path", plan.parent)) > set(of_plan)
    assert {operation for operation, _ in paths("--op", "write", "--op", "mkdir")} == {"write", "mkdir"}
    assert paths("--op", "write", "--program", "nosuch") == []
    assert paths("--op", "write", "--program", "dd", "--path", plan) == [("write", "/docs/plan")]
    assert ("write", "/docs/plan") in paths("--user", "0")
    assert paths("--user", "4242") == []
    assert paths("--since", "1d")[: len(everything)] == everything
    assert paths("--until", "1d") == []
    write = network.decloud("log", network.volume, "--op", "write", "--program", "dd", "--json").json_lines()[0]
    since = network.decloud("log", network.volume, "--json", "--since", write["time"][:19] + "Z").json_lines()
    assert write in since
    assert all(line["time"] >= write["time"][:19] for line in since)
    assert "mkdir" not in {line["operation"] for line in since if line["path"] == "/docs"}
    assert network.decloud("log", network.volume, "--op", "burn", check=False).code == 1


def test_the_log_followed(evidence: Evidence) -> None:
    network = evidence.network
    output = network.work / "followed"
    process = network.start_decloud("log", network.volume, "--follow", "--json", "--path", "/followed", log=output)

    def seen() -> list[tuple[str, str]]:
        whole = [line for line in output.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [(row["operation"], row["path"]) for row in map(json.loads, whole)]

    try:
        for number in range(3):
            network.run("sh", "-c", "mkdir -p $0/followed && : > $0/followed/$1", network.mountpoint, str(number))
            network.wait_until(
                lambda number=number: ("create", f"/followed/{number}") in seen(), 60, "the log shows what is new"
            )
            if number:
                network.sync("anchored")  # the same records move from memory into batches and anchors meanwhile
        found = [row for row in seen() if row[0] in ("create", "mkdir")]
        assert found == [("mkdir", "/followed"), *(("create", f"/followed/{number}") for number in range(3))]
    finally:
        process.terminate()
        network.wait_for_exit(process, 20, "following ends")


def test_the_versions_of_a_file_and_one_of_them_back(evidence: Evidence) -> None:
    network = evidence.network
    directory = network.mountpoint / "versions"
    file, copy = directory / "file", directory / "copy"
    network.run("sh", "-c", 'mkdir $0 && cp "$1" $0/file', directory, network.work / "one")
    network.sync("anchored")
    network.run("sh", "-c", 'dd if="$1" of=$0/file status=none', directory, network.work / "two")
    network.sync("anchored")
    versions = network.decloud("history", file, "--json").json_lines()
    assert [row["bytes"] for row in versions] == [len(evidence.first), len(evidence.second)]
    assert [(row["program"], row["operation"]) for row in versions] == [("cp", "write"), ("dd", "write")]
    old = str(versions[0]["sequence"])
    assert "uid 0 dd (write)" in network.decloud("history", file).out
    refused = network.decloud("history", file, "--restore", old, check=False)
    assert refused.code == 1
    assert "--force" in refused.err
    network.decloud("history", file, "--restore", old, "--to", copy)
    network.run("cmp", network.work / "one", copy)
    network.run("cmp", network.work / "two", file)
    network.decloud("history", file, "--restore", old, "--force")
    network.run("cmp", network.work / "one", file)
    last = network.decloud("history", file, "--json").json_lines()[-1]
    assert (last["bytes"], last["operation"], last["program"]) == (len(evidence.first), "restore", "decloud")
    network.sync("anchored")
    network.run("rm", copy)
    network.sync("anchored")
    gone = network.decloud("history", copy, "--json").json_lines()
    assert [row["operation"] for row in gone] == ["restore", "remove"]
    assert (gone[-1]["bytes"], gone[-1]["program"]) == (None, "rm")
    assert network.decloud("history", directory / "never", check=False).code == 1
    outside = network.decloud("history", file, "--restore", "latest", "--to", network.work / "x", check=False)
    assert outside.code == 1
