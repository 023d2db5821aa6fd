"""The pages that show the ledger to people: what stands on them, as JSON, and the files that show it (`pages/`).

Everything is read-only and bounded: lists have a greatest length, blocks are read in a worker thread. Numbers that may pass
2^53 are strings, which is what a browser can hold. Names and addresses are other people's text; the script puts them on the
page as text and nothing else. Not here: HTTP (`net.http`).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from importlib import resources
from typing import Any, Final

import msgspec
import trio

from fsdecloud.crypto.wallet import PREFIX, address_of, key_of
from fsdecloud.errors import InvalidTransaction, UsageError
from fsdecloud.ledger.blocks import Header, decode_block, decode_header
from fsdecloud.ledger.chain import Point
from fsdecloud.ledger.staking import stake_of
from fsdecloud.ledger.state import State
from fsdecloud.ledger.transactions import (
    Anchor,
    Coinbase,
    Operate,
    Register,
    Transaction,
    Transfer,
    decode_tx,
    fee_of,
    tx_id,
)
from fsdecloud.ledger.work import target_after, work_of
from fsdecloud.ledgerd.hub import Hub
from fsdecloud.ledgerd.keeper import Keeper
from fsdecloud.ledgerd.mining import Mining
from fsdecloud.net.http import LiveSocket, Page, PageRequest, Refusal
from fsdecloud.types import BlockId, TxId

BLOCKS_MAX: Final = 100
"""Blocks in one list."""

TXS_MAX: Final = 500
"""Transactions in one list."""

PEERS_MAX: Final = 1000
ANCHORS_MAX: Final = 50
SUMMARIES_MAX: Final = 1000
RATE_BLOCKS: Final = 60
"""The network's hash rate is what the last so many blocks took."""

LIVE_PAUSE: Final = 0.5
"""Seconds between two messages to one browser, at least: a burst of changes is one message."""

LIVE_EVERY: Final = 15.0
"""Seconds after which it gets one without a change: connections and hash rates have no event."""

_JSON: Final = "application/json"
_FILES: Final = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/explorer.css": ("explorer.css", "text/css; charset=utf-8"),
    "/explorer.js": ("explorer.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


class Explorer:
    """Answers for `net.http.serve_pages`."""

    def __init__(self, keeper: Keeper, hub: Hub, mining: Mining | None) -> None:
        self._keeper = keeper
        self._hub = hub
        self._mining = mining
        self._summaries: OrderedDict[BlockId, dict[str, Any]] = OrderedDict()
        """Lines of blocks that were shown: a page that follows the chain reads each block once."""
        self._threads = trio.CapacityLimiter(1)
        """One reader of blocks at a time: the rest of the machine is for the chain itself."""
        directory = resources.files("fsdecloud.ledgerd") / "pages"
        self._files = {path: Page((directory / name).read_bytes(), kind) for path, (name, kind) in _FILES.items()}

    async def answer(self, request: PageRequest) -> Page:
        """Return a page or a piece of data. Raises Refusal."""
        page = self._files.get(request.path)
        if page is not None:
            await trio.lowlevel.checkpoint()
            return page
        path, query = request.path, request.query
        if path == "/api/overview":
            return _json(await self._overview())
        if path == "/api/blocks":
            return _json(
                await self._read(self._blocks, _number(query.get("before"), 1 << 53), _count(query.get("count")))
            )
        if path == "/api/mempool":
            await trio.lowlevel.checkpoint()
            return _json(self._mempool())
        if path == "/api/peers":
            return _json(await self._peers())
        if path == "/api/search":
            return _json(await self._read(self._search, query.get("q", "").strip()))
        match = re.fullmatch("/api/(block|tx|key)/([0-9A-Za-z]{1,64}|(?i:decloud1)[0-9A-Za-z]{59})", path, re.ASCII)
        if match is None:
            raise Refusal(404, "there is no such page")
        read: Callable[[str], dict[str, Any]] = {"block": self._block, "tx": self._tx, "key": self._key}[match[1]]
        return _json(await self._read(read, match[2]))

    async def live(self, socket: LiveSocket) -> None:
        """Tell one browser of every change until it goes. A slow one gets fewer messages, not older ones."""
        while True:
            changed = self._keeper.change_event()
            await socket.send(msgspec.json.encode(await self._overview()).decode())
            await trio.sleep(LIVE_PAUSE)
            with trio.move_on_after(LIVE_EVERY):
                await changed.wait()

    # ---- what is shown ---------------------------------------------------------------------------------------------
    async def _read(self, work: Callable[..., dict[str, Any]], *arguments: object) -> dict[str, Any]:
        return await trio.to_thread.run_sync(work, *arguments, limiter=self._threads)

    async def _overview(self) -> dict[str, Any]:
        keeper, mining = self._keeper, self._mining
        tip = keeper.tip
        rate = await self._read(self._network_rate, tip)
        document = keeper.document
        return {
            "network": {
                "name": document.name,
                "id": keeper.network.hex(),
                "interval": document.interval,
                "finality_depth": document.finality_depth,
                "mines_when_idle": document.mine_when_idle,
            },
            "height": tip.height,
            "tip": tip.id.hex(),
            "tip_time": tip.time,
            "now": keeper.now(),
            "work": str(int.from_bytes(tip.work)),
            "difficulty": str(work_of(target_after(document, tip.lead))),
            "network_rate": rate["rate"],
            "mempool": {"count": len(keeper.pool), "bytes": keeper.pool.size},
            "mining": mining is not None and mining.is_busy,
            "hash_rate": 0.0 if mining is None else mining.hash_rate,
            "daemons": len(self._hub.peers()),
            "alarm": keeper.alarm,
        }

    def _network_rate(self, tip: Point) -> dict[str, Any]:
        """Return the hashes per second that the last blocks stand for; None while there are too few."""
        height = max(1, tip.height - RATE_BLOCKS)
        identity = self._keeper.store.best_at(height) if tip.height > height else None
        first = None if identity is None else self._keeper.store.point(identity)
        if first is None or tip.time <= first.time:
            return {"rate": None}
        return {"rate": (int.from_bytes(tip.work) - int.from_bytes(first.work)) / (tip.time - first.time)}

    def _blocks(self, before: int, count: int) -> dict[str, Any]:
        """Blocks of the best chain below the height `before`, the newest first."""
        store = self._keeper.store
        top = min(before - 1, store.tip().height)
        found = []
        for height in range(top, max(0, top - count), -1):
            identity = store.best_at(height)
            header = None if identity is None else store.header(identity)
            if identity is None or header is None:
                break
            found.append(self._summary(identity, decode_header(header)))
        return {"blocks": found}

    def _summary(self, identity: BlockId, header: Header) -> dict[str, Any]:
        """Return a line about a block. What is in it is None where only its header is kept."""
        found = self._summaries.get(identity)
        if found is None:
            data = self._keeper.store.block(identity)
            block = None if data is None else decode_block(data)
            coinbase = None if block is None else decode_tx(block.transactions[0])
            found = {
                "height": header.height,
                "id": identity.hex(),
                "time": header.time,
                "difficulty": str(work_of(header.target)),
                "transactions": None if block is None else len(block.transactions),
                "bytes": None if data is None else len(data),
                "miner": coinbase.recipient.hex() if isinstance(coinbase, Coinbase) else None,
            }
            self._summaries[identity] = found
            while len(self._summaries) > SUMMARIES_MAX:
                self._summaries.popitem(last=False)
        return found

    def _block(self, text: str) -> dict[str, Any]:
        store = self._keeper.store
        identity = BlockId(_bytes32(text)) if len(text) == 64 else store.best_at(_number(text, 0))
        header = None if identity is None else store.header(identity)
        if identity is None or header is None:
            raise Refusal(
                404, "no such block is stored here; the genesis block is the network document and has no bytes"
            )
        decoded = decode_header(header)
        tip = store.tip()
        is_best = store.best_at(decoded.height) == identity
        data = store.block(identity)
        block = None if data is None else decode_block(data)
        transactions = [] if block is None else [_line(tx) for tx in block.transactions[:TXS_MAX]]
        following = store.best_at(decoded.height + 1) if is_best else None
        return {
            **self._summary(identity, decoded),
            "parent": decoded.parent.hex(),
            "next": None if following is None else following.hex(),
            "target": decoded.target.hex(),
            "nonce": decoded.nonce.hex(),
            "ids_root": decoded.ids_root.hex(),
            "bytes_root": decoded.bytes_root.hex(),
            "state_root": decoded.state_root.hex(),
            "is_best": is_best,
            "confirmations": tip.height - decoded.height + 1 if is_best else 0,
            "list": transactions,
        }

    def _tx(self, text: str) -> dict[str, Any]:
        identity = TxId(_bytes32(text))
        store = self._keeper.store
        found = store.find_tx(identity)
        data = found[0] if found is not None else self._keeper.pool.get(identity)
        if data is None:
            raise Refusal(404, "the ledger knows no such transaction")
        tx = decode_tx(data)
        return {
            "id": identity.hex(),
            "kind": type(tx).__name__.lower(),
            "bytes": len(data),
            "fee": str(fee_of(tx)),
            "height": None if found is None else found[1],
            "index": None if found is None else found[2],
            "confirmations": 0 if found is None else store.tip().height - found[1] + 1,
            "fields": _fields(tx),
        }

    def _key(self, text: str) -> dict[str, Any]:
        """What the state says of one public key, be it of a person, a volume or a peer."""
        key = _key(text)
        state = self._keeper.state()
        account = state.account(key)
        registration, operated, head = state.registration(key), state.operated(key), state.volume(key)
        anchors: tuple[tuple[bytes, int], ...] = ()
        if head is not None:
            first = max(1, head.sequence - ANCHORS_MAX + 1)
            anchors = self._keeper.store.anchors(key, first, ANCHORS_MAX)
        return {
            "key": key.hex(),
            "address": address_of(key),
            "balance": str(account.balance),
            "nonce": account.nonce,
            "peer": None if registration is None else msgspec.structs.asdict(registration),
            "operator": operated.operator.hex() if operated is not None else "",
            "volume": None if head is None else {
                "sequence": head.sequence,
                "device": head.device.hex(),
                "lease_expiry": head.lease_expiry,
                "tx": head.tx.hex(),
                "height": head.height,
            },
            "anchors": [{**_line(data), "height": height} for data, height in reversed(anchors)],
        }  # fmt: skip

    def _mempool(self) -> dict[str, Any]:
        pool = self._keeper.pool
        waiting = [pool.get(identity) for identity in pool.ids()[:TXS_MAX]]
        return {"count": len(pool), "bytes": pool.size, "list": [_line(data) for data in waiting if data is not None]}

    async def _peers(self) -> dict[str, Any]:
        daemons = [
            {"url": peer.url, "id": peer.id.hex(), "inbound": peer.inbound, "height": peer.height}
            for peer in self._hub.peers()
        ]
        return {**await self._read(self._registry), "height": self._keeper.tip.height, "daemons": daemons}

    def _registry(self) -> dict[str, Any]:
        state = self._keeper.state()
        operators = state.operators()
        rows = sorted(state.registry(), key=lambda row: row[1].place)
        interval = self._keeper.document.checkpoint_interval
        return {
            "checkpoint": self._keeper.finality().newest.height if interval else None,
            "interval": interval,
            "count": len(rows),
            "capacity": str(sum(row.capacity for _, row in rows)),
            "peers": [
                {
                    "id": peer.hex(),
                    "url": row.url,
                    "capacity": str(row.capacity),
                    "price": str(row.price),
                    "height": row.height,
                    "time": self._time_of(row.height),
                    "stake": self._stake(state, peer),
                    "operator": operators.get(peer, b"").hex(),
                }
                for peer, row in rows[:PEERS_MAX]
            ],
        }

    def _time_of(self, height: int) -> int | None:
        """Return the time of a block of the best chain."""
        identity = self._keeper.store.best_at(height)
        point = None if identity is None else self._keeper.store.point(identity)
        return None if point is None else point.time

    def _stake(self, state: State, peer: bytes) -> dict[str, Any] | None:
        """Return what a peer has bonded and when it voted last; None for one that never had a stake."""
        found = stake_of(state, peer) if self._keeper.document.checkpoint_interval else None
        if found is None:
            return None
        return {
            "amount": str(found.amount),
            "votes": bool(found.weight),
            "last_vote": found.target or None,
            "release": found.release or None,
            "burned": found.is_burned,
        }

    def _search(self, text: str) -> dict[str, Any]:
        """Say what page a height, an id or a key is on."""
        if re.fullmatch("[0-9]{1,15}", text, re.ASCII):
            if self._keeper.store.best_at(int(text)) is None or int(text) == 0:
                raise Refusal(404, f"there is no block {int(text)}: the chain has {self._keeper.store.tip().height}")
            return {"kind": "block", "id": str(int(text))}
        identity = _key(text)
        if self._keeper.store.header(BlockId(identity)) is not None:
            return {"kind": "block", "id": identity.hex()}
        if self._keeper.store.find_tx(TxId(identity)) is not None or TxId(identity) in self._keeper.pool:
            return {"kind": "tx", "id": identity.hex()}
        found = self._key(identity.hex())
        if found["balance"] != "0" or found["nonce"] or found["peer"] or found["volume"]:
            return {"kind": "key", "id": identity.hex()}
        raise Refusal(404, "no block, transaction, peer, volume or account has this id")


def _json(value: dict[str, Any]) -> Page:
    return Page(msgspec.json.encode(value), _JSON)


def _number(text: str | None, default: int) -> int:
    if text is None:
        return default
    if not re.fullmatch("[0-9]{1,15}", text, re.ASCII):
        raise Refusal(400, "a height is a number")
    return int(text)


def _count(text: str | None) -> int:
    count = _number(text, 20)
    if not 1 <= count <= BLOCKS_MAX:
        raise Refusal(400, f"count is from 1 to {BLOCKS_MAX}")
    return count


def _bytes32(text: str) -> bytes:
    if not re.fullmatch("[0-9a-fA-F]{64}", text, re.ASCII):
        raise Refusal(400, "write a height, an id of 64 hexadecimal digits, or an address")
    return bytes.fromhex(text)


def _key(text: str) -> bytes:
    """Return the key that an account address, or 64 hexadecimal digits, stand for; the latter may be any id, too."""
    if not text.lower().startswith(f"{PREFIX}1"):
        return _bytes32(text)
    try:
        return key_of(text)
    except UsageError as exc:
        raise Refusal(400, str(exc)) from exc


def _line(data: bytes) -> dict[str, Any]:
    """Return a line about a transaction."""
    try:
        tx = decode_tx(data)
    except InvalidTransaction as exc:  # of a kind that a later version has, in a block that was stored by it
        return {"id": "", "kind": "unknown", "bytes": len(data), "fee": "0", "text": str(exc)}
    return {
        "id": tx_id(tx).hex(),
        "kind": type(tx).__name__.lower(),
        "bytes": len(data),
        "fee": str(fee_of(tx)),
        "text": _describe(tx),
    }


def _describe(tx: object) -> str:
    """Say in a few words what a transaction does; nothing of a kind that has no words here."""
    if isinstance(tx, Coinbase):
        return f"{tx.amount} to {_short(tx.recipient)}"
    if isinstance(tx, Transfer):
        return f"{tx.amount} from {_short(tx.sender)} to {_short(tx.recipient)}"
    if isinstance(tx, Register):
        return f"peer {_short(tx.peer)} at {tx.url}"
    if isinstance(tx, Anchor):
        return f"state {tx.sequence} of volume {_short(tx.volume)}"
    if isinstance(tx, Operate):
        return f"peer {_short(tx.peer)} is run by {_short(tx.operator) or 'nobody'}"
    return ""


def _short(key: bytes) -> str:
    return key.hex()[:12]


def _fields(tx: Transaction) -> list[dict[str, str]]:
    """Return a transaction's own fields as text, in their order; a payload only by its length, as nobody can read it."""
    fields = []
    for name in tx.__struct_fields__:
        value = getattr(tx, name)
        if name == "payload":
            text = f"{len(value)} bytes, encrypted for the owner"
        else:
            text = value.hex() if isinstance(value, bytes) else str(value)
        fields.append({"name": name, "value": text})
    return fields
