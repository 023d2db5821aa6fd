"""Contracts that end by themselves: a bounded number at each height, and none before its money is back where it belongs."""

import sys
from pathlib import Path

import pytest

from fsdecloud.contracts.inputs import Depositing
from fsdecloud.contracts.library import STANDARD
from fsdecloud.crypto import sign
from fsdecloud.ledger import contracting
from fsdecloud.ledger.network import network_id
from fsdecloud.ledger.reasons import EndsTaken
from fsdecloud.ledger.state import Account, State, StateNodes, apply_transaction, begin_block
from fsdecloud.ledger.transactions import decode_tx, sign_deploy, sign_input, tx_id
from fsdecloud.limits import CONTRACT_ENDINGS

sys.path.insert(0, str(Path(__file__).parent))
from chainmaker import easy_network

SEEDS = [bytes([n + 1]) * 32 for n in range(3)]
KEYS = [sign.public_key(seed) for seed in SEEDS]
DOCUMENT = easy_network(storage_share=0)
NETWORK = network_id(DOCUMENT)
MONEY = 10**9
ESCROW = bytes.fromhex(STANDARD["escrow"])
PRICE = 7


@pytest.fixture
def state():
    found = State(StateNodes(lambda _: None).get, bytes(32))
    for key in KEYS:
        found.set_account(key, Account(MONEY, 0))
    return found


def deploy(state, height, funding=3):
    """Deploy an escrow and return its id."""
    nonce = state.account(KEYS[0]).nonce
    tx = decode_tx(sign_deploy(NETWORK, SEEDS[0], ESCROW, (*KEYS, PRICE, funding, 1, 1), 1, nonce))
    apply_transaction(DOCUMENT, state, tx, 0, height)
    return tx_id(tx)


def fund(state, contract, height):
    """Pay into an escrow."""
    acts = (Depositing("buyer", "buyer", PRICE),)
    tx = decode_tx(sign_input(NETWORK, SEEDS[0], contract, acts, 1, state.account(KEYS[0]).nonce))
    apply_transaction(DOCUMENT, state, tx, 0, height)


def begin(state, height):
    begin_block(DOCUMENT, state, height.to_bytes(32), height)
    state.work = 0


def test_only_so_many_contracts_end_at_one_height_and_the_next_ones_free(state):
    begin(state, 1)
    contracts = [deploy(state, 1) for _ in range(CONTRACT_ENDINGS * contracting.ENDS_AHEAD)]
    ends = [contracting.contract_of(state, contract).ends for contract in contracts]
    first = contracting.contract_of(state, contracts[0]).instance.end
    assert ends == [first + n // CONTRACT_ENDINGS for n in range(len(contracts))]
    before = dict(state.changes)
    with pytest.raises(EndsTaken):
        deploy(state, 1)
    assert state.changes == before
    deploy(state, 1, funding=3 + contracting.ENDS_AHEAD)


def test_what_nobody_ends_ends_by_itself_and_all_money_is_back(state):
    begin(state, 1)
    contracts = [deploy(state, 1, funding=9) for _ in range(CONTRACT_ENDINGS + 1)]
    for contract in contracts:
        fund(state, contract, 1)
    ends = [contracting.contract_of(state, contract).ends for contract in contracts]
    fees = 2 * len(contracts)
    assert state.account(KEYS[0]).balance == MONEY - fees - PRICE * len(contracts)
    for height in range(2, ends[-1] + 1):
        begin(state, height)
        left = [contract for contract in contracts if contracting.contract_of(state, contract) is not None]
        assert left == [contract for contract, end in zip(contracts, ends, strict=True) if end > height]
    # The buyer did not object in time: the seller is paid.
    assert state.account(KEYS[1]).balance == MONEY + PRICE * len(contracts)
    assert state.account(KEYS[0]).balance == MONEY - fees - PRICE * len(contracts)
    assert [key for key, value in state.changes.items() if key[:1] in (b"C", b"D", b"E") and value is not None] == []
