"""The money of `decloud up --priced`: who mines on this machine pays the volume and its peers, once, so that they can begin."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from fsdecloud.cli import client, submitting, walletview
from fsdecloud.cli.output import Progress, note
from fsdecloud.cli.purse import Purse, open_purse
from fsdecloud.cli.wallet import pay
from fsdecloud.config import Paths
from fsdecloud.errors import FsdecloudError

PRICE: Final = 1_000_000
"""What the peers ask for a GiB and a month, in the smallest unit."""

BUDGET: Final = 100_000_000
"""What the volume may spend in a month: 100 GiB of shards, a tenth of what the first block brings."""

WALLET: Final = 3 * BUDGET
"""What the volume begins with: two deals that follow each other are locked up together for a while, and there are fees."""

COLLATERALS: Final = BUDGET // 2
"""What each peer begins with."""

PATIENCE: Final = 120.0
"""Seconds for blocks to bring the money."""

LOOK: Final = 0.5


def supply(paths: Paths, volume: str, peers: Sequence[str]) -> None:
    """Pay the volume's wallet and the peers' accounts what they need to begin, if they have less than a third of it.

    Goes on without when the miner has too little after PATIENCE; `status` says what lacks. Raises LedgerUnavailable.
    """
    miner = open_purse(paths, None, miner=True, with_secret=True)
    needs = [
        (open_purse(paths, volume), WALLET),
        *((open_purse(paths, None, peer=peer), COLLATERALS) for peer in peers),
    ]
    progress = Progress()
    with submitting.open_ledger(paths, miner.network, miner.who) as ledger:
        open_needs = [(purse, amount) for purse, amount in needs if _has(ledger, purse) < amount // 3]
        deadline = time.monotonic() + PATIENCE
        try:
            while open_needs:
                purse, amount = open_needs[0]
                if _has(ledger, miner) > 2 * amount:
                    pay(ledger, miner, 0, purse.keys(0, 1)[0], amount, None, None)
                    open_needs.pop(0)
                    continue
                if time.monotonic() > deadline:
                    note(
                        f"the miner of this home has too little for {purse.who}: decloud wallet send --miner pays it later"
                    )
                    return
                progress.show(f"waiting for blocks that bring money, for {purse.who}")
                time.sleep(LOOK)
        finally:
            progress.end()


def _has(ledger: client.Client, purse: Purse) -> int:
    """Return what a wallet has, what is on its way to it included."""
    try:
        holdings = walletview.read_holdings(ledger, purse)
    except FsdecloudError as exc:
        note(f"what {purse.who} has is not known: {exc}")
        return 0
    return holdings.available + holdings.incoming
