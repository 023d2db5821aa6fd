"""Proof of work, and how hard it is.

Pure, integers only. The target follows at every block from one number, the chain's *lead*: the active time it used
beyond one interval per block (negative when it was faster). Target = first target × 2^(lead / half-life): the
absolutely scheduled exponential rule (ASERT, Lundeberg 2020; Bitcoin Cash's aserti3-2d approximation of 2^x), which has
no window to game.

*Active time* grows with each block by the growth of the median of the last eleven times, and by at most four intervals:
a quiet week does not make history cheap to rewrite. The median, and not the block's own time, because it never goes
back: times that zigzag within their bounds gain nothing, and one wrong clock moves nothing. The lead is cut off where the
target would pass the easiest, so that years of rare blocks are not credit for years of fast ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from blake3 import blake3

from fsdecloud.ledger.blocks import NONCE_SIZE
from fsdecloud.ledger.network import NetworkDocument

MEDIAN_SPAN: Final = 11
"""Block times that the median is over."""

ACTIVE_INTERVALS: Final = 4
"""A block adds at most this many intervals of active time."""

_ID_CONTEXT: Final = "fsdecloud 2026 v1 block"
_HALVINGS_MAX: Final = 250
"""A lead this many half-lives below zero gives a target of about 1; further down nothing changes."""


def median_time(recent: tuple[int, ...]) -> int:
    """Return the median of the last block times (the upper one of an even number)."""
    return sorted(recent)[len(recent) // 2]


def next_recent(recent: tuple[int, ...], time: int) -> tuple[int, ...]:
    """Return the last times with `time` appended."""
    return (*recent, time)[-MEDIAN_SPAN:]


def next_lead(document: NetworkDocument, lead: int, recent: tuple[int, ...], time: int) -> int:
    """Return the lead after a block of time `time` on a chain with this lead and these last times."""
    grown = median_time(next_recent(recent, time)) - median_time(recent)
    active = min(grown, ACTIVE_INTERVALS * document.interval)
    easiest = int.from_bytes(document.easiest_target) // int.from_bytes(document.first_target)
    top = easiest.bit_length() * document.half_life
    return max(-_HALVINGS_MAX * document.half_life, min(lead + active - document.interval, top))


def target_after(document: NetworkDocument, lead: int) -> bytes:
    """Return the target of the block that follows a chain with this lead: 32 bytes, big-endian."""
    exponent = (lead << 16) // document.half_life
    shift, fraction = exponent >> 16, exponent & 0xFFFF
    # 2^x on [0, 1) in 16-bit fixed point, off by less than 0.013 % (aserti3-2d).
    factor = 65536 + ((195766423245049 * fraction + 971821376 * fraction**2 + 5127 * fraction**3 + (1 << 47)) >> 48)
    target = int.from_bytes(document.first_target) * factor
    target = target << shift if shift >= 0 else target >> -shift
    return max(1, min(target >> 16, int.from_bytes(document.easiest_target))).to_bytes(32)


def work_of(target: bytes) -> int:
    """Return the number of hashes that a block with this target stands for."""
    return (1 << 256) // (int.from_bytes(target) + 1)


def hash_header(prefix: bytes, nonce: bytes) -> bytes:
    """Return the id of the header whose bytes are `prefix` and `nonce`: what is compared with its target, 32 bytes."""
    return blake3(prefix + nonce, derive_key_context=_ID_CONTEXT).digest()


def search(prefix: bytes, target: bytes, start: int, stop: Callable[[], bool], batch: int) -> tuple[bytes | None, int]:
    """Try nonces from `start` on for the header bytes `prefix`. Returns the nonce, or None once `stop()` says so, and how
    many were tried. `stop` is asked after each `batch` tries."""
    base = blake3(prefix, derive_key_context=_ID_CONTEXT)
    number = start
    while True:
        for candidate in range(number, number + batch):
            hasher = base.copy()
            nonce = (candidate & 0xFFFFFFFFFFFFFFFF).to_bytes(NONCE_SIZE)
            hasher.update(nonce)
            if hasher.digest() <= target:
                return nonce, candidate - start + 1
        number += batch
        if stop():
            return None, number - start
