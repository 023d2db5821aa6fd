"""A volume's redundancy is changed while it is mounted: what was copied before gets it too, and the old shards go."""

from __future__ import annotations

from typing import Any

from tests.cluster.harness import Network, Status

MIB = 1 << 20
FILES, SIZE = 3, 2 * MIB
SMALL = 40


def held(network: Network) -> dict[str, int]:
    """Return how many bytes of shards each local peer has."""
    lines: list[dict[str, Any]] = network.decloud("peer", "status", "--json").json_lines()
    return {line["id"]: line["used"] for line in lines}


def is_recoded(status: Status) -> bool:
    """Say whether everything has the redundancy 2/6 and nothing is lacking."""
    repair = status["repair"]
    recoding = repair["recoding"]
    counted = recoding is not None and recoding["redundancy"] == "2/6" and recoding["counted"]
    return bool(counted) and not any((recoding["blobs"], repair["under_replicated"], repair["away"]))


def test_what_was_copied_at_one_of_three_is_at_the_end_on_two_of_six() -> None:
    with Network(peers=3) as network:
        network.up()
        network.wait_status(lambda status: status["n"] == 3, 60, "three peers are used")
        network.down()
        for file in network.home.glob("**/peer.toml"):
            file.write_text(file.read_text().replace("grace = 86400", "grace = 0"))
        network.up()
        # What is written while one seems to be down yet, it gets later: how full the disks are would not be what it will be.
        network.wait_status(lambda s: all(peer["state"] == "up" for peer in s.peers), 60, "all peers are reached")
        mnt = network.mountpoint
        script = (
            f"for i in $(seq {FILES}); do head -c {SIZE} /dev/urandom > {mnt}/big$i; done;"
            f"for i in $(seq {SMALL}); do head -c 9000 /dev/urandom > {mnt}/small$i; done;"
            f"head -c 3000 /dev/urandom > {mnt}/tiny"
        )
        network.run("sh", "-c", script)
        network.sync("anchored")
        digest = f"cd {mnt} && find . -type f | sort | xargs sha256sum"
        before = network.run("sh", "-c", digest).out
        full = held(network)
        assert min(full.values()) > FILES * SIZE

        network.peers = 6
        network.up()
        network.wait_status(lambda status: len(status.peers) == 6 and status["n"] == 6, 60, "six peers are used")
        assert network.status()["repair"]["recoding"] is None, "with auto it waits for an hour"
        network.decloud("volume", "set", network.volume, "--redundancy", "2/6")
        status = network.wait_status(is_recoded, 90, "everything is coded anew")
        assert status["repair"]["recoding"]["done_bytes"] > FILES * SIZE
        assert "re-coding to 2/6" in network.decloud("status", mnt, check=False).out
        network.sync("anchored")
        network.wait_until(
            lambda: max(held(network).values()) < FILES * SIZE,
            60,
            lambda: f"the old shards go: {full} -> {held(network)}, {network.status()['gc']}",
        )

        # Any four of the six go, those that had everything among them.
        network.drop_cache()
        others = [peer for peer in network.status().local_peers() if peer["id"] not in full]
        for peer in network.status().local_peers():
            if peer["id"] in full or peer["id"] == others[0]["id"]:
                network.kill(peer["pid"])
        assert network.run("sh", "-c", digest, deadline=120).out == before
