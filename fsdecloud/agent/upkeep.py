"""What all those share who keep stored blobs whole: audit, repair, recoding, settling, copies, leases.

Each of them works with the same parts of an agent (`stack` makes them): where blobs are, whom they may go to, and how they are
fetched, sent, deleted and journalled.
"""

from __future__ import annotations

from dataclasses import dataclass

from fsdecloud.agent.fetch import Fetcher
from fsdecloud.agent.garbage import Garbage
from fsdecloud.agent.hosts import Hosts
from fsdecloud.agent.journal import JournalWriter
from fsdecloud.agent.locations import LocationMap
from fsdecloud.agent.peers import PeerBook
from fsdecloud.agent.upload import Uploader
from fsdecloud.swarm.repair import Policy


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one agent that upkeep needs."""

    locations: LocationMap
    hosts: Hosts
    book: PeerBook
    fetcher: Fetcher
    uploader: Uploader
    garbage: Garbage
    writer: JournalWriter
    policy: Policy


class Upkeep:
    """Base of those who keep stored blobs whole."""

    def __init__(self, parts: Parts) -> None:
        self._locations = parts.locations
        self._hosts = parts.hosts
        self._book = parts.book
        self._fetcher = parts.fetcher
        self._uploader = parts.uploader
        self._garbage = parts.garbage
        self._writer = parts.writer
        self._policy = parts.policy
