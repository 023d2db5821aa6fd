"""fsdecloud-ledger(7) says what the code does: every field, every reason, every number."""

import re
import typing
from pathlib import Path

import msgspec
import pytest

from fsdecloud import limits
from fsdecloud.crypto import merkle
from fsdecloud.ledger import blocks, contracting, mempool, network, reasons, staking, state, transactions, work
from fsdecloud.tree import node, update

PAGE = (Path(__file__).parents[3] / "man" / "fsdecloud-ledger.7").read_text()
SECTIONS = dict(re.findall(r"^\.Sh ([^\n]+)\n(.*?)(?=^\.Sh|\Z)", PAGE, re.MULTILINE | re.DOTALL))
REASONS = {
    name: kind for name, kind in vars(reasons).items() if isinstance(kind, type) and kind.__module__ == reasons.__name__
}
ROWS = (
    ("A key", state.Account),
    ("B slot", contracting.Recent),
    ("C contract", contracting.Contract),
    ("P", contracting.StoragePool),
    ("F", staking.Finality),
    ("S peer", staking.Stake),
    ("O peer", state.Operated),
    ("R peer", state.Registration),
    ("V volume", state.VolumeHead),
    ("Header", blocks.Header),
)


def items(section, subsection=None):
    """Return the tags of a section's lists."""
    text = SECTIONS[section]
    if subsection is not None:
        text = dict(re.findall(r"^\.Ss ([^\n]+)\n(.*?)(?=^\.Ss|\Z)", text, re.MULTILINE | re.DOTALL))[subsection]
    return re.findall(r"^\.It ([^\n]+)$", text, re.MULTILINE)


def test_the_reasons_are_those_of_the_code_each_in_its_place():
    of_transactions = {name for name, kind in REASONS.items() if issubclass(kind, reasons.InvalidTransaction)}
    assert set(items("REASONS", "Of a transaction")) == of_transactions
    assert set(items("REASONS", "Of a block")) == set(REASONS) - of_transactions
    for name in REASONS:
        assert len(re.findall(rf"^\.It {name}$", PAGE, re.MULTILINE)) == 1


def test_each_reason_of_a_rule_stands_at_its_rule():
    rules = PAGE.replace(SECTIONS["REASONS"], "")
    stored = {
        "StoredBlockDiffers",
        "ChainDamaged",
        "MalformedTransaction",
        "MalformedBlock",
        "BadSignature",
        "BadStamp",
    }
    for name in set(REASONS) - stored:
        assert f"({name}" in rules or f"{name})" in rules, name
    for kind in reasons.COMMITTED:
        assert f"({kind.__name__})" in SECTIONS["BLOCKS"].partition("When a block is valid")[2]


def test_each_transaction_is_described_with_its_fields():
    described = [item for item in items("TRANSACTIONS") if "(" in item]
    assert described == [
        f"{kind.__name__} ({kind.__struct_config__.tag}): {', '.join(kind.__struct_fields__)}"
        for kind in typing.get_args(transactions.Transaction)
    ]
    reserved = set(transactions.Kind) - {
        transactions.Kind[kind.__name__.upper()] for kind in typing.get_args(transactions.Transaction)
    }
    for kind in reserved:
        assert re.search(rf"\b{kind.value} \({kind.name.lower()}\)", SECTIONS["TRANSACTIONS"])


@pytest.mark.parametrize(("name", "kind"), ROWS, ids=[name for name, _ in ROWS])
def test_rows_and_header_are_described_with_their_fields(name, kind):
    assert f".It {name}: {', '.join(kind.__struct_fields__)}\n" in PAGE


def test_the_network_document_is_described_with_its_fields_and_their_bounds():
    named = [name for item in items("NETWORKS") for name in item.split(" , ")]
    assert named == list(network.NetworkDocument.__struct_fields__)
    types = {field.name: field.type for field in msgspec.inspect.type_info(network.NetworkDocument).fields}
    texts = dict(re.findall(r"^\.It (\w+)[^\n]*\n(.*?)(?=^\.It|^\.El)", SECTIONS["NETWORKS"], re.MULTILINE | re.DOTALL))
    for name, kind in types.items():
        if isinstance(kind, msgspec.inspect.IntType) and name not in ("genesis_time", "version"):
            assert str(kind.le) in texts[name], name
            assert re.search(rf"\b{kind.ge} ", texts[name]), name


def bits(number):
    return str(number), f"2^{(number + 1).bit_length() - 1} \\- 1"


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("DESCRIPTION", f"amount\n0 to {' ('.join(bits(network.AMOUNT_MAX))})"),
        ("DESCRIPTION", f"time\nseconds since 1970 without leap seconds, 0 to {' ('.join(bits(network.TIME_MAX))})"),
        ("DESCRIPTION", f".Ql {transactions.DOMAIN.decode()} ."),
        ("DESCRIPTION", '"fsdecloud 2026 v1 merkle leaf"'),
        ("DESCRIPTION", '"fsdecloud 2026 v1 merkle node"'),
        ("DESCRIPTION", '"fsdecloud 2026 v1 merkle root"'),
        ("NETWORKS", f"at most {network.NETWORK_MAX} bytes"),
        ("NETWORKS", f"at least {network.STEADY} intervals in version 2"),
        ("NETWORKS", f"is at most {network.AMOUNT_MAX}"),
        ("TRANSACTIONS", f"1 to {transactions.URL_MAX} printable"),
        ("TRANSACTIONS", f"exactly {limits.ANCHOR_PAYLOAD} bytes"),
        ("TRANSACTIONS", f'"{transactions._ID_CONTEXT}"'),
        ("TRANSACTIONS", f'"{transactions._STAMP_CONTEXT}"'),
        ("STATE", f'"{transactions._LINK_CONTEXT}"'),
        ("STATE", f'"{state._NODE_CONTEXT}"'),
        ("STATE", f'"{state._BORDER_CONTEXT}"'),
        ("STATE", f"length of both plus {node.ITEM_OVERHEAD}"),
        ("STATE", f"is {limits.NODE_MAX_ITEMS} or"),
        ("STATE", f"at least {limits.NODE_MAX}, or"),
        ("STATE", f"at least {limits.NODE_MIN}, and"),
        ("STATE", f"(max(size, {update.LIGHT_ITEM}) << 32) / {limits.NODE_TARGET}"),
        ("BLOCKS", f"at least {blocks.TRANSACTION_MIN} bytes"),
        ("BLOCKS", f"has {blocks.NONCE_SIZE} bytes"),
        ("BLOCKS", f"at most {blocks.HEADER_MAX} bytes"),
        ("BLOCKS", f'"{blocks._ID_CONTEXT}"'),
        ("WORK AND TIME", f"last {work.MEDIAN_SPAN} block times"),
        ("WORK AND TIME", f"{work.ACTIVE_INTERVALS} interval)"),
        ("WORK AND TIME", f"max(\\-{work._HALVINGS_MAX} half_life"),
        ("BLOCKS", f"at most {staking.VOTES_MAX} votes"),
        ("VOTES", f"fewer than {staking.CHANGES_MAX} weights"),
        ("VOTES", f".Ar unbond_delay\n/ {staking.RESTARTS}."),
        ("TRANSACTIONS", f"at most {transactions.VOTE_MAX} bytes, that"),
        ("NETWORKS", f"{network.DELAY_DEPTHS} times\n.Ar finality_depth"),
        ("NETWORKS", f"{network.BOND_FEES} times\n.Ar minimum_fee"),
        ("STATE", f"modulo {contracting.RING}"),
        ("CONTRACTS", f"at most {limits.CONTRACT_WORK}"),
        ("CONTRACTS", f"fewer than {limits.CONTRACT_ENDINGS} contracts"),
        ("CONTRACTS", f"the first {2 * limits.CONTRACT_ENDINGS} of its"),
        ("CONTRACTS", f"Of the {contracting.ENDS_AHEAD} heights"),
        ("CONTRACTS", f"at most {limits.CONTRACT_ROUNDS} rounds"),
        ("CONTRACTS", f"at most {limits.CONTRACT_HORIZON} blocks"),
        ("TRANSACTIONS", f"at most {limits.CONTRACT_MAX} bytes, or"),
        ("TRANSACTIONS", f"at most {limits.CONTRACT_NAMES} values"),
        ("TRANSACTIONS", f"at most {limits.CONTRACT_ACTIONS} acts"),
        ("TRANSACTIONS", f"at most {limits.PROOF_MAX} bytes"),
        ("MEMPOOL", f"At most {mempool.SENDER_MAX} wait for one"),
        ("MEMPOOL", f"{mempool.COUNT_MAX} and {limits.MEMPOOL_MAX} bytes in all"),
    ],
)
def test_the_numbers_are_those_of_the_code(section, words):
    assert words in SECTIONS[section]


def test_the_contexts_of_lists_are_the_prefix_and_these_words():
    assert merkle.CONTEXT_PREFIX == "fsdecloud 2026 v1 "
