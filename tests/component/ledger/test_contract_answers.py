"""What full and light daemons say of a contract: as it is after the tip, and nothing once it has ended."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fsdecloud import codec
from fsdecloud.contracts import deal
from fsdecloud.contracts.library import standard
from fsdecloud.contracts.machine import Instance
from fsdecloud.crypto import sign
from fsdecloud.errors import UsageError
from fsdecloud.ledger.blocks import encode_block
from fsdecloud.ledger.transactions import decode_tx, sign_deploy, tx_id
from fsdecloud.ledgerd.api import LocalApi
from fsdecloud.wire.ledgerapi import ContractsInfo, ContractsQuery

sys.path.insert(0, str(Path(__file__).parent))
from lightnodes import light_test
from nodes import connected, fill

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "ledger"))
from chainmaker import MINER, MINER_KEY

PEER = sign.public_key(bytes([5]) * 32)


def terms():
    return deal.plan_terms(
        MINER_KEY,
        PEER,
        price=1,
        interval=60,
        most=1,
        period=40,
        periods=1,
        collateral=0,
        funding=5,
        window=8,
        contest=1,
    )


def test_contracts_are_found_by_their_ids(tmp_path):
    async def work(make, light, full):
        api = LocalApi(full.keeper, full.hub, None)

        async def ask(*ids: bytes) -> ContractsInfo:
            query = ContractsQuery(ids)
            answer = await api.handlers()["contracts"][1](query)
            async with connected(light, full):
                await light.reach(make.tip)
                assert await light.ask("contracts", query) == answer
            return answer

        await fill(full, make, 1)
        deploy = sign_deploy(make.network, MINER, standard(deal.NAME).id, deal.arguments_of(terms()), 1, 0)
        contract = tx_id(decode_tx(deploy))
        assert (await ask(contract)).contracts == (b"",)
        await full.keeper.accept(encode_block(make.add([deploy]).block))
        found = await ask(bytes(32), contract, *[bytes([n]) * 32 for n in range(20)])
        assert (found.height, found.tip, found.contracts[0]) == (2, make.tip.id, b"")
        instance = codec.decode(found.contracts[1], Instance)
        assert (deal.terms_of(instance), instance.start) == (terms(), 2)
        await fill(full, make, instance.end - 2)  # nobody paid: it ends by itself
        assert (await ask(contract)).contracts == (b"",)
        for wrong in ((), (b"short",), (bytes(32),) * 65):
            with pytest.raises(UsageError):
                await ask(*wrong)

    light_test(tmp_path, work)
