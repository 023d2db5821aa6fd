"""The peer's side of storage deals: a real ledger keeper, real stores and sockets, owners that do what they like."""

import shutil

import msgspec
import pytest

from fsdecloud.contracts import deal
from fsdecloud.contracts.deal import SignedRevision
from fsdecloud.errors import PeerRefused, RemoteError
from fsdecloud.peerd.dealbook import DealBook
from fsdecloud.store.shardsets import ShardSets
from fsdecloud.swarm import dealing
from fsdecloud.swarm.dealing import Phase
from tests.component.peerd.dealerworld import OFFER, PEER, begin, dealer_test, owner_of, shard
from tests.component.peerd.peerworld import until


def test_a_deal_from_its_first_day_to_its_last(tmp_path):
    async def work(world):
        owner = await owner_of(world)
        async with world.peer() as address, owner.pool() as pool:
            assert world.dealer.refusal(owner.key, 1)
            await begin(world, owner, pool, address)
            before = world.balance(PEER)
            assert not world.dealer.refusal(owner.key, 10_000)
            await owner.store(pool, address)
            assert world.dealer.keeps(shard(0)[0])
            assert not world.dealer.keeps(shard(99)[0])
            end = deal.period_end(owner.terms, (await world.view(owner.contract)).start, 0)
            assert world.dealer.status().next_proof == end
            await world.mine_to(end + 3)
            assert (await world.view(owner.contract)).phase is Phase.WINDOW
            await owner.revise(pool, address, settles=True)
            price = deal.period_price(owner.terms, 30_000)
            assert price > 0
            assert owner.newest.revision.earned == price
            await world.mine(10)
            await owner.revise(pool, address, final=True)
            await world.mine(2)
            assert await world.view(owner.contract) is None
            fees = sum(tx.fee for tx in world.inputs if tx.sender == PEER) - 1  # the deposit's was paid before
            assert world.balance(PEER) == before + 1000 + 2 * price - fees
            assert not world.dealer.keeps(shard(0)[0])
            assert world.dealer.status().ended == 1
            await world.mine(world.make.document.finality_depth)
            assert world.dealer.status().ended == 0
            assert world.sets.deals() == []

    dealer_test(tmp_path, work, finality_depth=5)


def test_an_owner_who_is_silent_pays_to_the_last_unit(tmp_path):
    """The peer proves each period on the chain by itself."""

    async def work(world):
        owner = await owner_of(world)
        async with world.peer() as address:
            async with owner.pool() as pool:
                await begin(world, owner, pool, address)
                await owner.store(pool, address)
            before = world.balance(PEER)
            sent = len(world.inputs)
            view = await world.view(owner.contract)
            await world.mine_to(deal.period_end(owner.terms, view.start, 1) + 90)
            assert await world.view(owner.contract) is None
            price = deal.period_price(owner.terms, 30_000)
            inputs = [tx for tx in world.inputs[sent:] if tx.sender == PEER]
            assert [[type(act).__name__ for act in tx.acts] for tx in inputs[:2]] == [
                ["Choosing", "Proving"],
                ["Proving"],
            ]
            assert world.balance(PEER) == before + 1000 + 2 * price - sum(tx.fee for tx in inputs)
            assert not world.dealer.status().trouble

    dealer_test(tmp_path, work)


def test_fault_77_revisions_that_are_forged_or_old_are_not_signed(tmp_path):
    async def work(world):
        owner, other = await owner_of(world), await owner_of(world, "q")
        async with world.peer() as address, owner.pool() as pool, other.pool() as wrong:
            await begin(world, owner, pool, address)
            first = owner.newest
            await owner.store(pool, address)
            second = owner.newest
            # The newest one again: the same answer. An older one, another one with its number: none.
            items = [(shard(i)[0], 10_000) for i in range(3)]
            again = await pool.revise(address, owner.contract, items, (), second.revision, second.owner)
            assert again.newest == second
            with pytest.raises(PeerRefused, match="does not follow"):
                await pool.revise(address, owner.contract, (), (), first.revision, first.owner)
            revision, _ = await owner.make_next(removed=[shard(0)[0]])
            for signature in (bytes(64), other.sign(revision), second.owner):
                with pytest.raises(PeerRefused, match="signature"):
                    await pool.revise(address, owner.contract, (), [shard(0)[0]], revision, signature)
            with pytest.raises(PeerRefused, match="no such deal"):
                await wrong.revise(address, owner.contract, (), [shard(0)[0]], revision, owner.sign(revision))
            with pytest.raises(PeerRefused, match="no such deal"):
                await wrong.attest(address, owner.contract, 2, bytes(32), 4)
            assert (await owner.fund(pool, address)).newest == second
            assert world.sets.staged(owner.contract) is None

    dealer_test(tmp_path, work)


def test_fault_78_shards_that_were_never_sent_are_not_in_a_revision(tmp_path):
    async def work(world):
        owner = await owner_of(world)
        async with world.peer() as address, owner.pool() as pool:
            await begin(world, owner, pool, address)
            await owner.store(pool, address)
            newest = owner.newest
            missing = [(shard(50)[0], 10_000)]
            with pytest.raises(PeerRefused, match="not here"):
                await owner.revise(pool, address, missing)
            await pool.put(address, [shard(60)])
            with pytest.raises(PeerRefused, match="has 10000 bytes"):
                await owner.revise(pool, address, [(shard(60)[0], 9_999)])
            revision, _ = await owner.make_next([(shard(60)[0], 10_000)])
            for added, removed, why in (
                ((), (), "do not make the set"),
                ([(shard(60)[0], 10_000)] * 2, (), "twice"),
                ([(shard(60)[0], 10_000)], [shard(60)[0]], "twice"),
                ([(shard(1)[0], 10_000)], (), "already"),
                ((), [shard(60)[0]], "not in the set"),
            ):
                with pytest.raises(PeerRefused, match=why):
                    await pool.revise(address, owner.contract, added, removed, revision, owner.sign(revision))
            assert (await owner.fund(pool, address)).newest == newest
            assert world.sets.staged(owner.contract) is None
            await owner.revise(pool, address, [(shard(60)[0], 10_000)], [shard(0)[0]])

    dealer_test(tmp_path, work)


def test_fault_112_a_revision_that_takes_earnings_back_is_not_signed(tmp_path):
    async def work(world):
        owner = await owner_of(world)
        async with world.peer() as address, owner.pool() as pool:
            await begin(world, owner, pool, address)
            await owner.store(pool, address)
            await world.mine(10)  # into the first period, which is paid for also by what goes in its course
            good, _ = await owner.make_next(removed=[shard(0)[0]])
            fields = good.number, good.root, good.bytes
            for earned in (good.earned - 1, 0, owner.terms.escrow + 1, (1 << 62) - 1):
                bad = deal.Revision(*fields, earned, good.settled, False)
                with pytest.raises(PeerRefused, match="earned"):
                    await pool.revise(address, owner.contract, (), [shard(0)[0]], bad, owner.sign(bad))
            assert owner.newest.revision.number == 2
            await owner.revise(pool, address, (), [shard(0)[0]])

    dealer_test(tmp_path, work)


def test_terms_that_are_not_the_peers_are_refused(tmp_path):
    async def work(world):
        owner = await owner_of(world, amount=10**8)
        async with world.peer() as address, owner.pool() as pool:
            for changes, why in (
                ({"price": OFFER.price - 1}, "price"),
                ({"collateral": 10**6}, "of the escrow"),
                ({"periods": 65_000, "most": 1000}, "days"),
                ({"samples": 9}, "samples"),
                ({"pays": False}, "owner's money"),
            ):
                await owner.deploy(**({"most": 10_000} | changes))
                with pytest.raises(PeerRefused, match=why):
                    await owner.fund(pool, address)
            assert world.waiting() == []
            assert world.sets.deals() == []

    dealer_test(tmp_path, work)


def test_a_peer_without_money_signs_nothing(tmp_path):
    async def work(world):
        owner = await owner_of(world)
        async with world.peer() as address, owner.pool() as pool:
            await owner.deploy()
            with pytest.raises(PeerRefused, match="no money"):
                await owner.fund(pool, address)
            await world.pay(PEER, 2000)
            await owner.fund(pool, address)
            assert [tx.sender for tx in world.waiting()] == [PEER]

    dealer_test(tmp_path, work, money=500)


def test_a_deposit_that_is_lost_is_sent_again(tmp_path):
    async def work(world):
        owner = await owner_of(world)
        async with world.peer() as address, owner.pool() as pool:
            await owner.deploy()
            await owner.fund(pool, address)
            for _ in range(2):
                await owner.fund(pool, address)
                assert len(world.waiting()) == 1
            await world.mine(with_pool=False)
            assert len(world.waiting()) == 1
            await world.mine()
            assert world.waiting() == []
            assert (await owner.fund(pool, address)).is_funded

    dealer_test(tmp_path, work)


def test_what_is_not_paid_for_is_not_stored(tmp_path):
    async def work(world):
        owner = await owner_of(world)
        async with world.peer() as address, owner.pool() as pool:
            await begin(world, owner, pool, address, most=60_000)
            refusal = world.dealer.refusal
            assert "no deal" in refusal(bytes(32), 1)
            assert "names" in refusal(owner.key, OFFER.credit + 1)
            assert not refusal(owner.key, OFFER.credit)
            await owner.store(pool, address, 5)
            assert not refusal(owner.key, 10_000)
            assert "escrow" in refusal(owner.key, 11_000)

    dealer_test(tmp_path, work)


def test_two_owners_at_once(tmp_path):
    async def work(world):
        a, b = await owner_of(world, "a"), await owner_of(world, "b")
        async with world.peer() as address, a.pool() as one, b.pool() as two:
            await a.deploy()
            await b.deploy()
            await a.fund(one, address)
            await b.fund(two, address)
            assert len(world.waiting()) == 2  # one nonce after the other
            await world.mine()
            assert (await a.fund(one, address)).is_funded
            assert (await b.fund(two, address)).is_funded
            await a.store(one, address, 2)
            with pytest.raises(PeerRefused, match="not here"):  # it is: but stored by another one
                await b.revise(two, address, [(shard(0)[0], 10_000)])
            await b.store(two, address, 3)
            state = world.dealer.status()
            assert (state.running, state.bytes, state.collateral) == (2, 50_000, 2000)
            last = shard(2)[0]
            assert world.dealer.keeps(last)
            assert world.dealer.keeps(last, b.key)
            assert not world.dealer.keeps(last, a.key)
            assert not world.dealer.keeps(last, bytes(32))
            proof = await two.attest(address, b.contract, 2, b"x" * 32, 4)
            assert proof
            with pytest.raises(PeerRefused, match="newest"):
                await two.attest(address, b.contract, 1, b"x" * 32, 4)

    dealer_test(tmp_path, work)


def test_it_goes_on_after_a_restart(tmp_path):
    async def work(world):
        owner = await owner_of(world)
        async with world.peer() as address, owner.pool() as pool:
            await begin(world, owner, pool, address)
            await owner.store(pool, address)
        async with world.peer() as address, owner.pool() as pool:
            assert (await owner.fund(pool, address)).newest == owner.newest
            await owner.store(pool, address, 1, first=10)
            assert isinstance(owner.newest, SignedRevision)

    dealer_test(tmp_path, work)


def test_a_challenge_on_the_chain_is_answered(tmp_path):
    async def work(world):
        owner = await owner_of(world)
        async with world.peer() as address, owner.pool() as pool:
            await begin(world, owner, pool, address)
            await owner.store(pool, address)
            view = await world.view(owner.contract)
            await world.mine_to(deal.period_end(owner.terms, view.start, 0))
            await world.mine_these([owner.signed(deal.challenge(owner.newest))])
            assert (await world.view(owner.contract)).phase is Phase.ASKED
            after = msgspec.structs.replace(owner.newest.revision, number=3)
            with pytest.raises(PeerRefused, match="waits for a proof"):
                await pool.revise(address, owner.contract, (), (), after, owner.sign(after))
            await world.mine(5)  # the blocks of the challenge, the proof, the time to contest it
            view = await world.view(owner.contract)
            assert (view.standing.paid, view.standing.missed) == (deal.period_price(owner.terms, 30_000), False)
            assert world.dealer.status().paid == view.standing.paid

    dealer_test(tmp_path, work)


def test_a_final_revision_ends_a_deal_although_an_older_one_was_brought(tmp_path):
    async def work(world):
        owner = await owner_of(world)
        async with world.peer() as address, owner.pool() as pool:
            await begin(world, owner, pool, address)
            await owner.store(pool, address)
            older = owner.newest
            view = await world.view(owner.contract)
            await world.mine_to(deal.period_end(owner.terms, view.start, 0) - 1)
            await owner.revise(pool, address, final=True)
            await world.mine_these()
            await world.mine_these([owner.signed(deal.bring(older))])
            assert (await world.view(owner.contract)).standing.part == "review"
            before = world.balance(PEER)
            await world.mine(4)
            assert await world.view(owner.contract) is None
            assert world.balance(PEER) > before + 1000

    dealer_test(tmp_path, work)


def test_a_deposit_that_a_reorganisation_drops_comes_again(tmp_path):
    async def work(world):
        owner = await owner_of(world)
        async with world.peer() as address, owner.pool() as pool:
            await owner.deploy()
            fork = world.make.tip
            await owner.fund(pool, address)
            await world.mine()
            assert (await owner.fund(pool, address)).is_funded
            dropped = world.make.tip
            world.make.add(parent=fork)
            first = world.make.blocks[world.make.tip.id]
            world.make.add()
            await world.keeper.accept(first)
            await world.keeper.accept(world.make.blocks[world.make.tip.id])
            await world.seen()
            assert world.make.tip.height == dropped.height + 1
            assert [tx.sender for tx in world.waiting()] == [PEER]
            assert not (await owner.fund(pool, address)).is_funded
            await world.mine()
            assert (await owner.fund(pool, address)).is_funded

    dealer_test(tmp_path, work)


def test_without_its_ledger_daemon_it_signs_nothing_and_says_so(tmp_path):
    async def work(world):
        owner = await owner_of(world)
        async with world.peer() as address, owner.pool() as pool:
            await begin(world, owner, pool, address)
            await owner.store(pool, address)
            world.daemon.cancel()
            await until(lambda: world.dealer.status().trouble)
            with pytest.raises(RemoteError, match="ledger daemon"):
                await owner.store(pool, address, 1, first=9)
            assert (await owner.fund(pool, address)).newest == owner.newest
            await world.start_daemon()
            await until(lambda: not world.dealer.status().trouble)
            await owner.store(pool, address, 1, first=9)

    dealer_test(tmp_path, work)


def test_whatever_a_crash_leaves_it_goes_on(tmp_path, monkeypatch):
    """Copies of the directory after each durable step of a deal's first revisions: each is the state before or after."""
    copies = []

    def copied(cls, name):
        real = getattr(cls, name)

        def step(*args, **options):
            result = real(*args, **options)
            path = tmp_path / f"copy-{len(copies)}"
            shutil.copytree(tmp_path / "peer", path)
            copies.append(path)
            return result

        monkeypatch.setattr(cls, name, step)

    async def work(world):
        owner = await owner_of(world)
        for cls, name in ((ShardSets, "stage"), (ShardSets, "accept"), (DealBook, "_put")):
            copied(cls, name)
        async with world.peer() as address, owner.pool() as pool:
            await begin(world, owner, pool, address)
            await owner.store(pool, address)
        monkeypatch.undo()
        items = [shard(i) for i in range(3)]
        seen = set()
        for path in copies:
            async with world.peer(path) as address, owner.pool() as pool:
                found = await pool.fund(address, owner.contract, owner.sign(dealing.first_revision()))
                assert found.is_funded
                seen.add(found.newest.revision.number)
                if not all(await pool.has(address, [one for one, _ in items])):
                    await pool.put(address, items)
                added = [(one, len(data)) for one, data in items]
                newest = owner.newest
                again = await pool.revise(address, owner.contract, added, (), newest.revision, newest.owner)
                assert again.newest == newest
        assert seen == {1, 2}
        assert len(copies) >= 5

    dealer_test(tmp_path, work)


def test_a_deal_that_cannot_be_proven_holds_no_other_one_up(tmp_path):
    async def work(world):
        a, b = await owner_of(world, "a"), await owner_of(world, "b")
        async with world.peer() as address, a.pool() as one, b.pool() as two:
            await begin(world, a, one, address)
            await begin(world, b, two, address)
            await a.store(one, address, 1)
            await b.store(two, address, 1, first=5)
            world.damage(shard(0)[0])
            end = deal.period_end(b.terms, (await world.view(b.contract)).start, 0)
            await world.mine_to(end + 3)
            state = world.dealer.status()
            assert a.contract.hex()[:16] in state.trouble
            assert "damaged" in state.trouble
            await world.mine(3)
            assert (await world.view(a.contract)).standing.paid == 0
            assert (await world.view(b.contract)).standing.paid == deal.period_price(b.terms, 10_000) > 0

    dealer_test(tmp_path, work)
