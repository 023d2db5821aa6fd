"""What a light daemon answers to local programs: each answer proved by a full daemon against a header of the best chain.

One question to the network for each question of a program, as a rule: a volume's latest anchor, an account and what a
transaction's validity depends on are one path each in the state after the tip. The registry is read node by node, of which
those that the last reading had are not asked for again. Everything here runs in the trio thread. Not here: `status` and what
needs headers alone (`lightapi`).
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Final, TypeAlias

from fsdecloud import codec
from fsdecloud.errors import InvalidBlock, InvalidTransaction, LedgerUnavailable, MalformedError, UsageError
from fsdecloud.ledger.accounting import line_of
from fsdecloud.ledger.blocks import block_id, bytes_root, decode_block, decode_header
from fsdecloud.ledger.chain import Point
from fsdecloud.ledger.contracting import contract_key, contract_of
from fsdecloud.ledger.fees import estimate_fee
from fsdecloud.ledger.mempool import slot_of
from fsdecloud.ledger.proofs import (
    Dropped,
    FalseProof,
    NotProven,
    TxProof,
    check_latest_anchor,
    check_state,
    check_tx,
    read_head,
)
from fsdecloud.ledger.staking import FINALITY_KEY
from fsdecloud.ledger.state import (
    COUNT_KEY,
    EMPTY_ROOT,
    REGISTRY_PREFIXES,
    State,
    StateNodes,
    VolumeHead,
    account_key,
    apply_transaction,
    keys_of,
    node_ref,
)
from fsdecloud.ledger.transactions import Anchor, Bond, Evidence, Transaction, Transfer, Unbond, Vote, decode_tx, tx_id
from fsdecloud.ledgerd.asking import Asker
from fsdecloud.ledgerd.chainapi import check_key, check_keys, check_range
from fsdecloud.ledgerd.light import LightKeeper
from fsdecloud.limits import MIB
from fsdecloud.net.unix import Handler
from fsdecloud.tree.lookup import missing_range, prefix_end
from fsdecloud.tree.node import NodeMissing
from fsdecloud.types import BlockId, TxId
from fsdecloud.wire import gossip, ledgerapi
from fsdecloud.wire.agentapi import Empty, Registry, RegistryPeer

Latest: TypeAlias = tuple[VolumeHead, ledgerapi.VolumeAnchor]
"""A volume's latest anchor, as the state has it and as it is told."""

PLACES_MAX: Final = 1024
"""Proven places of transactions that are remembered: each is good for as long as its block is in the best chain."""

REGISTRY_MAX: Final = 4096
"""State nodes of one registry, of about 8 KiB: a quarter of a million peers."""


class LightAnswers:
    """Answers the questions that a full daemon answers from its state and bodies."""

    def __init__(self, keeper: LightKeeper, asker: Asker) -> None:
        self._keeper = keeper
        self._asker = asker
        self._places: OrderedDict[TxId, TxProof] = OrderedDict()
        self._registry_root = b""
        self._registry = Registry(())
        self._registry_nodes: dict[bytes, bytes] = {}

    @property
    def provers(self) -> int:
        """How many full daemons are connected."""
        return len(self._asker.full())

    def handlers(self) -> dict[str, Handler]:
        """Return what stands in for the handlers of a full daemon (`api`)."""
        return {
            "submit": (ledgerapi.SubmitTx, self._submit),
            "tx": (ledgerapi.TxQuery, self._tx),
            "account": (ledgerapi.KeyQuery, self._account),
            "accounts": (ledgerapi.AccountsQuery, self._accounts),
            "account_history": (ledgerapi.HistoryQuery, self._account_history),
            "fee": (ledgerapi.FeeQuery, self._fee),
            "contracts": (ledgerapi.ContractsQuery, self._contracts),
            "volume": (ledgerapi.KeyQuery, self._volume),
            "anchors": (ledgerapi.AnchorQuery, self._anchors),
            "blocks": (ledgerapi.BlockQuery, self._blocks),
            "registry": (Empty, self._read_registry),
        }

    # ---- transactions ----------------------------------------------------------------------------------------------
    async def _submit(self, query: ledgerapi.SubmitTx) -> ledgerapi.TxResult:
        """Offer a transaction to all full daemons, once it is valid after the tip by proof."""
        try:
            return await self._offer(query.tx)
        except InvalidTransaction as exc:
            raise InvalidTransaction(f"{type(exc).__name__}: {exc}") from exc

    async def _offer(self, data: bytes) -> ledgerapi.TxResult:
        keeper = self._keeper
        tx = decode_tx(data, keeper.document.transaction_max)
        identity, tip = tx_id(tx), keeper.tip
        state = await self._state(tip, _keys_for(tx))
        head = read_head(state, tx.volume) if isinstance(tx, Anchor) else None
        if head is not None and head.tx == identity:
            keeper.pool.drop(identity)
            return ledgerapi.TxResult(identity, head.height)
        try:
            self._apply(state, tx, tip)
        except InvalidTransaction:
            keeper.pool.drop(identity)
            proof = await self._find(identity)
            if proof is not None:
                return ledgerapi.TxResult(identity, self._height_of(proof))
            raise
        return ledgerapi.TxResult(*keeper.submit(data))

    def _apply(self, state: State, tx: Transaction, tip: Point) -> None:
        """Check a transaction after those of the same sender that wait. Raises an InvalidTransaction leaf."""
        keeper = self._keeper
        time, height = max(keeper.now(), tip.median_time + 1), tip.height + 1
        for other in self._waiting(slot_of(tx)[1]):
            if slot_of(other) != slot_of(tx):
                try:
                    apply_transaction(keeper.document, state, other, time, height, stacked=True)
                except (InvalidTransaction, NodeMissing):
                    continue
        apply_transaction(keeper.document, state, tx, time, height, stacked=True)

    def _waiting(self, sender: bytes) -> list[Transaction]:
        """Return what waits here of a sender: what takes a nonce last, and in that order."""
        pool = self._keeper.pool
        decoded = [decode_tx(data) for identity in pool.ids() if (data := pool.get(identity)) is not None]
        own = [tx for tx in decoded if slot_of(tx)[1] == sender]
        return sorted(own, key=lambda tx: -1 if (nonce := _nonce_of(tx)) is None else nonce)

    async def _tx(self, query: ledgerapi.TxQuery) -> ledgerapi.TxFound:
        check_key(query.id)
        proof = await self._find(query.id)
        if proof is None:
            return ledgerapi.TxFound(self._keeper.pool.get(query.id) or b"", None, 0, 0)
        self._keeper.pool.drop(query.id)
        height = self._height_of(proof)
        return ledgerapi.TxFound(proof.tx, height, proof.index, self._keeper.tip.height - height + 1)

    async def _find(self, identity: TxId) -> TxProof | None:
        """Return a transaction's proven place in the best chain; None when nobody asked has one."""
        known = self._places.get(identity)
        if known is not None and self._keeper.point_of_best(known.block) is not None:
            return known

        def check(answer: gossip.TxProofs) -> TxProof:
            if len(answer.proofs) > 1:
                raise FalseProof("more proofs than were asked for")
            for proof in answer.proofs:
                if tx_id(self._check_place(proof)) != identity:
                    raise FalseProof("a proof of another transaction")
                return proof
            raise NotProven("it does not know the transaction")

        try:
            proof = await self._asker.ask(gossip.GetTxProofs((identity,)), gossip.TxProofs, check, is_owed=False)
        except NotProven:
            return None
        self._places[identity] = proof
        if len(self._places) > PLACES_MAX:
            self._places.popitem(last=False)
        return proof

    def _check_place(self, proof: TxProof) -> Transaction:
        """Return the transaction of a proof against a header of the best chain. Raises FalseProof, NotProven."""
        point = self._keeper.point_of_best(proof.block)
        header = None if point is None else self._keeper.store.header(point.id)
        if header is None:
            raise NotProven("its proof is for a block that is not in our best chain")
        return check_tx(decode_header(header), proof)

    def _height_of(self, proof: TxProof) -> int:
        point = self._keeper.point_of_best(proof.block)
        if point is None:
            raise LedgerUnavailable("the best chain has just changed; try again")
        return point.height

    # ---- the state -------------------------------------------------------------------------------------------------
    async def _state(self, tip: Point, keys: tuple[bytes, ...]) -> State:
        """Return the state after `tip`, in which `keys` may be read."""

        def check(answer: gossip.StateProof) -> State:
            if not answer.nodes and tip.state_root != EMPTY_ROOT:
                raise NotProven(f"it does not have the state after block {tip.height}")
            return check_state(tip.state_root, keys, answer.nodes)

        return await self._asker.ask(gossip.GetState(tip.id, keys), gossip.StateProof, check)

    async def _account(self, query: ledgerapi.KeyQuery) -> ledgerapi.Account:
        check_key(query.key)
        state = await self._state(self._keeper.tip, (account_key(query.key),))
        account = state.account(query.key)
        return ledgerapi.Account(account.balance, self._next_nonce(query.key, account.nonce))

    def _next_nonce(self, key: bytes, nonce: int) -> int:
        for tx in self._waiting(key):
            if _nonce_of(tx) == nonce:
                nonce += 1
        return nonce

    async def _accounts(self, query: ledgerapi.AccountsQuery) -> ledgerapi.AccountsInfo:
        check_keys(query.keys)
        tip = self._keeper.tip
        found: dict[bytes, ledgerapi.AccountState] = {}
        for start in range(0, len(query.keys), gossip.KEYS_MAX):
            some = query.keys[start : start + gossip.KEYS_MAX]
            state = await self._state(tip, tuple(map(account_key, some)))
            for key in some:
                account = state.account(key)
                nonce = self._next_nonce(key, account.nonce)
                found[key] = ledgerapi.AccountState(account.balance, account.nonce, nonce)
        pool = self._keeper.pool
        waiting = [data for identity in pool.ids() if (data := pool.get(identity)) is not None]
        own = tuple([data for data in waiting if await self._waits_for(decode_tx(data), found)])
        accounts = tuple(found[key] for key in query.keys)
        return ledgerapi.AccountsInfo(tip.height, tip.id, tip.time, accounts, own, is_light=True)

    async def _waits_for(self, tx: Transaction, accounts: dict[bytes, ledgerapi.AccountState]) -> bool:
        """Tell whether a transaction that was submitted here does something to one of these accounts, and is in no block yet:
        by its nonce where that is known, else by asking."""
        if all(line_of(tx, key) is None for key in accounts):
            return False
        sender, nonce = accounts.get(slot_of(tx)[1]), _nonce_of(tx)
        if sender is not None and nonce is not None:
            return nonce >= sender.nonce
        return await self._find(tx_id(tx)) is None

    async def _account_history(self, _: ledgerapi.HistoryQuery) -> ledgerapi.HistoryPage:
        raise UsageError(
            "a light daemon cannot tell which blocks changed a balance, as no header says so: run a full one (balances, and "
            "payments whose ids are known, it proves)"
        )

    async def _fee(self, query: ledgerapi.FeeQuery) -> ledgerapi.FeeEstimate:
        document = self._keeper.document
        return ledgerapi.FeeEstimate(estimate_fee(document, query.size, (), ()), document.minimum_fee, 0)

    async def _contracts(self, query: ledgerapi.ContractsQuery) -> ledgerapi.ContractsInfo:
        check_keys(query.ids)
        tip = self._keeper.tip
        encoded: list[bytes] = []
        for start in range(0, len(query.ids), gossip.KEYS_MAX):
            some = query.ids[start : start + gossip.KEYS_MAX]
            state = await self._state(tip, tuple(map(contract_key, some)))
            found = [contract_of(state, contract) for contract in some]
            encoded += [b"" if one is None else codec.encode(one.instance) for one in found]
        return ledgerapi.ContractsInfo(tip.height, tip.id, tuple(encoded))

    # ---- anchors ---------------------------------------------------------------------------------------------------
    async def _volume(self, query: ledgerapi.KeyQuery) -> ledgerapi.VolumeAnchor:
        check_key(query.key)
        latest, _ = await self._ask_anchors(query.key, 0, 0)
        return ledgerapi.VolumeAnchor(b"", -1) if latest is None else latest[1]

    async def _anchors(self, query: ledgerapi.AnchorQuery) -> ledgerapi.AnchorList:
        check_key(query.key)
        check_range(query.first, query.count)
        found: list[ledgerapi.VolumeAnchor] = []
        first = max(1, query.first)
        while len(found) < query.count:
            number = first + len(found)
            count = min(query.count - len(found), gossip.PROOFS_MAX)
            latest, more = await self._ask_anchors(query.key, number, count)
            found += more
            if latest is None or number + len(more) > latest[0].sequence:
                break
        return ledgerapi.AnchorList(tuple(found))

    async def _ask_anchors(
        self, volume: bytes, first: int, count: int
    ) -> tuple[Latest | None, list[ledgerapi.VolumeAnchor]]:
        """Return a volume's latest anchor after the tip, and at least one, if there is any, of `count` from number `first`."""
        keeper, tip = self._keeper, self._keeper.tip

        def check(answer: gossip.Anchors) -> tuple[Latest | None, list[ledgerapi.VolumeAnchor]]:
            if not answer.nodes and tip.state_root != EMPTY_ROOT:
                raise NotProven(f"it does not have the state after block {tip.height}")
            latest = check_latest_anchor(keeper.network, tip.state_root, volume, answer.nodes, answer.latest)
            if latest is None:
                return None, []
            head = latest[0]
            newest = ledgerapi.VolumeAnchor(answer.latest, head.height)
            due = max(0, min(count, head.sequence - first + 1))
            found = [self._check_anchor(volume, first + n, proof) for n, proof in enumerate(answer.proofs[:due])]
            if not found and count and first <= head.sequence:
                if first < head.sequence:
                    raise Dropped(f"it does not have anchor {first} of the volume any more")
                found = [newest]
            return (head, newest), found

        return await self._asker.ask(gossip.GetAnchors(tip.id, volume, first, count), gossip.Anchors, check)

    def _check_anchor(self, volume: bytes, sequence: int, proof: TxProof) -> ledgerapi.VolumeAnchor:
        tx = self._check_place(proof)
        if not isinstance(tx, Anchor) or tx.volume != volume or tx.sequence != sequence:
            raise FalseProof("a proof of another transaction than the anchor that was asked for")
        return ledgerapi.VolumeAnchor(proof.tx, self._height_of(proof))

    # ---- the registry ----------------------------------------------------------------------------------------------
    async def _read_registry(self, _: Empty) -> Registry:
        root = self._keeper.tip.state_root
        if root == EMPTY_ROOT:
            return Registry(())
        if root != self._registry_root:
            nodes = dict(self._registry_nodes)
            while wanted := _missing_nodes(nodes, root):
                if len(nodes) > 2 * REGISTRY_MAX:
                    raise LedgerUnavailable("the registry is larger than this daemon reads: run a full one")
                refs = tuple(wanted[: gossip.NODES_MAX])
                nodes |= await self._asker.ask(gossip.GetNodes(refs), gossip.Nodes, partial(_check_nodes, refs))
            used: dict[bytes, bytes] = {}
            self._registry = _decode_registry(nodes, root, used)
            self._registry_root, self._registry_nodes = root, used
        return self._registry

    # ---- blocks ----------------------------------------------------------------------------------------------------
    async def _blocks(self, query: ledgerapi.BlockQuery) -> ledgerapi.BlockList:
        check_range(query.first, query.count)
        store, first = self._keeper.store, max(1, query.first)
        found: list[bytes] = []
        while len(found) < query.count and sum(map(len, found)) <= MIB:
            start = first + len(found)
            heights = range(start, start + min(query.count - len(found), gossip.BLOCKS_MAX))
            ids = tuple(identity for identity in map(store.best_at, heights) if identity is not None)
            if not ids:
                break

            found += await self._asker.ask(gossip.GetBlocks(ids), gossip.Blocks, partial(self._check_blocks, ids))
        return ledgerapi.BlockList(tuple(found))

    def _check_blocks(self, ids: tuple[BlockId, ...], answer: gossip.Blocks) -> tuple[bytes, ...]:
        """Return the leading blocks of those asked for: whoever prunes may have only later ones."""
        found: list[bytes] = []
        for data in answer.blocks:
            try:
                block = decode_block(data, self._keeper.document.block_max)
            except InvalidBlock as exc:
                raise FalseProof(f"no block: {exc}") from exc
            identity = block_id(block.header)
            if identity not in ids or bytes_root(block.transactions) != block.header.bytes_root:
                raise FalseProof("another block than was asked for")
            if len(found) == len(ids) or identity != ids[len(found)]:
                break
            found.append(data)
        if not found:
            raise Dropped("it does not have the blocks any more")
        return tuple(found)


def _nonce_of(tx: Transaction) -> int | None:
    """Return the nonce of its sender's account that a transaction takes; None when it takes none."""
    kind, _, number = slot_of(tx)
    return number if kind == "transfer" else None


def _keys_for(tx: Transaction) -> tuple[bytes, ...]:
    """Return the state keys that a transaction's validity depends on, and what applying it reads."""
    keys = keys_of(slot_of(tx)[1])
    if isinstance(tx, Bond | Unbond | Vote | Evidence):
        return (*keys, FINALITY_KEY)
    return (*keys, account_key(tx.recipient)) if isinstance(tx, Transfer) else (*keys, COUNT_KEY)


def _check_nodes(refs: tuple[bytes, ...], answer: gossip.Nodes) -> dict[bytes, bytes]:
    """Return nodes by reference. Raises FalseProof for one that was not asked for, NotProven when there is none."""
    found = {node_ref(data): data for data in answer.nodes}
    if not found:
        raise NotProven("it does not have the state")
    if not found.keys() <= set(refs):
        raise FalseProof("a state node that nobody asked for")
    return found


def _missing_nodes(nodes: dict[bytes, bytes], root: bytes) -> list[bytes]:
    """Return the references of the nodes that lack for reading the registry, those nearest the root."""
    get = StateNodes(nodes.get).get
    try:
        found = [ref for prefix in REGISTRY_PREFIXES for ref in missing_range(get, root, prefix, prefix_end(prefix))]
    except MalformedError as exc:
        raise LedgerUnavailable(f"the state after the tip is malformed: {exc}") from exc
    return list(dict.fromkeys(found))


def _decode_registry(nodes: dict[bytes, bytes], root: bytes, used: dict[bytes, bytes]) -> Registry:
    """Return the registry by the peers' places, and put the nodes that it took into `used`."""

    def read(ref: bytes) -> bytes | None:
        used[ref] = nodes[ref]
        return used[ref]

    state = State(StateNodes(read).get, root)
    try:
        operators = state.operators()
        rows = sorted(state.registry(), key=lambda item: item[1].place)
    except MalformedError as exc:
        raise LedgerUnavailable(f"the registry after the tip is malformed: {exc}") from exc
    return Registry(
        tuple(RegistryPeer(peer, r.url, r.capacity, r.sequence, operators.get(peer, b""), r.price) for peer, r in rows)
    )
