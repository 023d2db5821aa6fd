"""Some owners, some peers, and all that the deals between them say, on a real chain, hour by hour.

Blocks, transactions, contracts, shard sets, bytes and proofs are real, and both sides decide by the code that owners and peers
run (`swarm.dealing`). What is not here: processes, sockets, disks. Each side looks once in each block; what two of them talk
about off chain takes no time. After each block all money is counted: it is what the blocks have brought, less what has burned.
"""

import random
from collections import Counter
from dataclasses import dataclass, field

from blake3 import blake3

from fsdecloud import codec
from fsdecloud.contracts import deal
from fsdecloud.contracts.deal import SignedRevision, plan_terms
from fsdecloud.contracts.library import standard
from fsdecloud.contracts.machine import SEED_BLOCKS, challenge_seed
from fsdecloud.crypto import possession, sign
from fsdecloud.crypto.shardset import EMPTY, update
from fsdecloud.ledger.contracting import Contract, contract_of, pool_of
from fsdecloud.ledger.network import AMOUNT_MAX, subsidy_at
from fsdecloud.ledger.state import Account
from fsdecloud.ledger.transactions import decode_tx, sign_deploy, sign_input, sign_transfer, tx_id
from fsdecloud.swarm import dealing
from fsdecloud.swarm.dealing import Act, Phase, view_of
from tests.unit.ledger.chainmaker import MINER, MINER_KEY, Maker, easy_network

HOUR = 3600
DAY = 24
PERIOD = 10 * DAY
FEE = 1
ASKED = 46
"""Samples that an owner asks for off chain."""
SHARDS = 60
WIDTHS = (6, 7, 11, 8, 12, 16)


def seed_of(name):
    return blake3(name.encode()).digest()


@dataclass(eq=False)
class Peer:
    """One who lends storage."""

    name: str
    leaves_at: int = 1 << 60
    """Height from which on it answers nobody."""
    drops_at: int = 1 << 60
    """Height at which it throws away a part of what it has,"""
    drops: float = 0.0
    """and which part."""
    shards: dict = field(default_factory=dict)

    def __post_init__(self):
        self.seed = seed_of(self.name)
        self.key = sign.public_key(self.seed)


@dataclass(eq=False)
class Deal:
    """One deal, and what its sides know of it."""

    owner: "Owner"
    peer: Peer
    terms: deal.Terms
    contract: bytes
    newest: SignedRevision | None = None
    pages: dict = field(default_factory=dict)
    shard_set: object = EMPTY
    ended_at: int = 0
    caught: int = 0
    """Periods in which the owner was shown no proof off chain."""
    asked: int = 0
    challenged: int = 0
    proofs: int = 0
    """On the chain."""
    is_followed: bool = False
    looked: int = -1
    """Period that was asked about last."""
    seed: bytes = b""


@dataclass(eq=False)
class Owner:
    """One who stores."""

    name: str
    vanishes_at: int = 1 << 60
    replaces: bool = True

    def __post_init__(self):
        self.seed = seed_of(self.name)
        self.key = sign.public_key(self.seed)

    def deal_seed(self, peer, number):
        return seed_of(f"{self.name} {peer.name} {number}")


class Year:
    """A chain with its owners and peers. `run` until a height."""

    def __init__(self, seed=0, *, price=10**12, periods=6, levy=100, share=100):
        self.random = random.Random(seed)
        self.maker = Maker(
            easy_network(interval=HOUR, half_life=1 << 24, storage_share=share, storage_levy=levy, subsidy=10**9)
        )
        self.price, self.periods = price, periods
        self.deals = []
        self.queue = []
        """Transactions for the next block, with the contract that each is about."""
        self.nonces = {}
        self.given = Counter()
        self.fees = Counter()
        """What each key had from others by transfers, and paid in fees."""
        self.ids = {}
        """Of blocks, by height."""

    # ---- money -----------------------------------------------------------------------------------------------------
    def balance(self, key):
        return self.maker.state().account(key).balance

    def earned(self, key):
        """Return what contracts paid to a key, less what it lost in them. Between deals: its deposits are back then."""
        return self.balance(key) - self.given[key] + self.fees[key]

    def check_books(self):
        """All money there is: on accounts, in contracts, in the pool."""
        state = self.maker.state()
        found = sum(codec.decode(value, Account).balance for _key, value in state.stored_rows(b"A"))
        found += sum(
            sum(codec.decode(value, Contract).instance.running.balances) for _key, value in state.stored_rows(b"C")
        )
        pool = pool_of(state)
        height = self.maker.tip.height
        brought = sum(subsidy_at(self.maker.document, one) for one in range(1, height + 1))
        assert found + pool.balance + pool.burned == brought < AMOUNT_MAX, height

    # ---- blocks ----------------------------------------------------------------------------------------------------
    def nonce(self, key):
        used = self.nonces.get(key, 0)
        self.nonces[key] = used + 1
        self.fees[key] += FEE
        return self.maker.state().account(key).nonce + used

    def pay(self, seed, to, amount):
        self.given[to] += amount
        self.given[sign.public_key(seed)] -= amount
        self.queue.append((b"", sign_transfer(self.maker.network, seed, to, amount, FEE, self.nonce_of(seed))))

    def nonce_of(self, seed):
        return self.nonce(sign.public_key(seed))

    def send(self, seed, contract, acts):
        """Send an input, unless the next block has one for the contract already: the other side's, perhaps."""
        if any(about == contract for about, _data in self.queue):
            return False
        data = sign_input(self.maker.network, seed, contract, acts, FEE, self.nonce_of(seed))
        self.queue.append((contract, data))
        return True

    def block(self):
        checked = self.maker.add([data for _about, data in self.queue])
        self.ids[checked.point.height] = checked.point.id
        self.queue.clear()
        self.nonces.clear()

    # ---- deals -----------------------------------------------------------------------------------------------------
    def begin(self, owner, peer, shards):
        """Give the owner's new deal key its money, deploy, and store. Three blocks."""
        number = sum(known.peer is peer and known.owner is owner for known in self.deals)
        deal_seed = owner.deal_seed(peer, number)
        size = sum(map(len, shards.values()))
        terms = plan_terms(
            sign.public_key(deal_seed),
            peer.key,
            price=self.price,
            interval=HOUR,
            most=2 * size,
            period=PERIOD,
            periods=self.periods,
            collateral=size * self.price * PERIOD * HOUR // deal.UNIT,
            samples=possession.CHAIN_SAMPLES,
            funding=DAY,
            window=2 * DAY,
            contest=DAY,
        )
        self.pay(owner.seed, terms.owner, terms.escrow + 100 * FEE)
        if self.balance(peer.key) < terms.collateral + 100 * FEE:
            self.pay(MINER, peer.key, terms.collateral + 100 * FEE)  # or it could not begin
        self.block()
        program = standard(deal.NAME)
        data = sign_deploy(
            self.maker.network, deal_seed, program.id, deal.arguments_of(terms), FEE, self.nonce_of(deal_seed)
        )
        self.queue.append((b"", data))
        self.block()
        made = Deal(owner, peer, terms, tx_id(decode_tx(data)))
        made.seed = deal_seed
        self.deals.append(made)
        self.sign(made, dealing.first_revision())
        self.step()
        self.step()
        self.step()
        peer.shards.update(shards)
        self.store(made, {shard: len(data) for shard, data in shards.items()})
        return made

    def sign(self, made, revision):
        signatures = [
            deal.sign_revision(seed, self.maker.network, made.contract, revision)
            for seed in (made.seed, made.peer.seed)
        ]
        made.newest = SignedRevision(revision, *signatures)
        deal.check_signed(made.terms, self.maker.network, made.contract, made.newest)

    def view(self, made):
        found = contract_of(self.maker.state(), made.contract)
        return None if found is None else view_of(made.contract, found.instance, self.maker.tip.height + 1)

    def store(self, made, changes, **options):
        """Agree on a revision that adds shards (id: length), or removes them (id: None)."""
        before = made.shard_set
        revised = update(made.pages.get, before, changes)
        removed = max(before.size - revised.shard_set.size, 0) if None in changes.values() else 0
        shard_set = revised.shard_set
        revision = dealing.next_revision(
            self.view(made), made.newest.revision, shard_set.root, shard_set.size, removed, **options
        )
        made.shard_set = shard_set
        for path, page in revised.pages.items():
            if page is None:
                made.pages.pop(path, None)
            else:
                made.pages[path] = page
        self.sign(made, revision)

    def prove(self, made, seed, samples):
        """Return the peer's proof, None when it lacks a shard."""
        try:
            return possession.prove(made.pages.get, made.shard_set, seed, samples, made.peer.shards.__getitem__)
        except KeyError:
            return None

    def challenge(self, made, view):
        first = dealing.challenge_height(view)
        ids = tuple(self.ids[height] for height in range(first, first + SEED_BLOCKS))
        return challenge_seed(made.contract, view.standing.period, ids)

    # ---- an hour ---------------------------------------------------------------------------------------------------
    def step(self):
        """Let everybody look, and make a block."""
        height = self.maker.tip.height + 1
        for made in self.deals:
            if made.ended_at:
                continue
            view = self.view(made)
            if view is None:
                made.ended_at = height
                continue
            owner_is_there = height < made.owner.vanishes_at
            peer_is_there = height < made.peer.leaves_at
            if height >= made.peer.drops_at and made.peer.drops:
                gone = sorted(made.peer.shards)
                for shard in self.random.sample(gone, round(len(gone) * made.peer.drops)):
                    del made.peer.shards[shard]
                made.peer.drops = 0.0
            if owner_is_there:
                self.settle(made, view, peer_is_there=peer_is_there)
                self.act(made, view, dealing.owner_next(view, made.newest), made.seed, is_owner=True)
            if peer_is_there:
                self.act(made, view, dealing.peer_next(view, made.newest), made.peer.seed, is_owner=False)
        self.block()

    def settle(self, made, view, *, peer_is_there):
        """Have the peer prove off chain the period that has ended, and agree that it is paid."""
        if (
            view.phase is not Phase.WINDOW
            or view.standing.part != "period_end"
            or not dealing.is_challengeable(view)
            or made.newest.revision.final
            or made.newest.revision.settled > view.standing.period
            or made.looked == view.standing.period
        ):
            return
        made.looked = view.standing.period
        made.asked += 1
        seed = self.challenge(made, view)
        proof = self.prove(made, seed, ASKED) if peer_is_there else None
        if proof is None or not possession.verify(made.shard_set.root, seed, ASKED, proof):
            made.caught += 1
            return
        is_last = view.standing.period + 1 == made.terms.periods
        revision = made.newest.revision
        self.sign(
            made,
            dealing.next_revision(view, revision, revision.root, revision.bytes, 0, settles=True, final=is_last),
        )

    def act(self, made, view, following, seed, *, is_owner):
        newest = made.newest if following.brings else None
        if following.act is Act.FUND:
            self.send(seed, made.contract, (deal.fund_owner if is_owner else deal.fund_peer)(made.terms))
        elif following.act is Act.BRING:
            self.send(seed, made.contract, deal.bring(made.newest))
        elif following.act is Act.CHALLENGE:
            made.challenged += self.send(seed, made.contract, deal.challenge(newest))
        elif following.act is Act.CATCH_UP:
            self.send(seed, made.contract, deal.catch_up())
        elif following.act is Act.PROVE:
            proof = self.prove(made, self.challenge(made, view), made.terms.samples)
            if proof is not None:
                made.proofs += self.send(seed, made.contract, deal.prove(proof, newest))

    def run(self, height):
        """Make blocks up to a height, and count the money after each."""
        while self.maker.tip.height < height:
            self.step()
            self.check_books()

    def shards(self, count=SHARDS):
        """Return new shards by id."""
        found = [self.random.randbytes(self.random.randint(2_000, 9_000)) for _ in range(count)]
        return {blake3(data).digest(): data for data in found}


def fund(year, owner, amount):
    """Have the miner pay an owner."""
    while year.balance(MINER_KEY) < amount + FEE:
        year.block()
    year.pay(MINER, owner.key, amount)
    year.block()


class Story:
    """Twelve peers and two owners, for so many days: most are honest, and some are not, or not there.

    peers 0 to 8    do what they should, all the time
    peer 9          throws 5 % of its shards away after a third of the time
    peer 10         leaves for good a little after half of it; a spare one replaces it
    peer 11         has a deal with an owner who vanishes after a quarter of it, and with nobody else
    """

    def __init__(self, days, *, seed=0, periods=3):
        self.year = year = Year(seed, periods=periods)
        self.begin = 300
        self.end = self.begin + days * DAY
        self.alice = Owner("alice")
        self.bob = Owner("bob", vanishes_at=self.begin + days * DAY // 4)
        fund(year, self.alice, 200 * 10**9)
        fund(year, self.bob, 20 * 10**9)
        self.honest = [Peer(f"peer {i}") for i in range(9)]
        self.dropper = Peer("peer 9", drops_at=self.begin + days * DAY // 3, drops=0.05)
        self.leaver = Peer("peer 10", leaves_at=self.begin + days * DAY * 11 // 20)
        self.served = Peer("peer 11")
        self.spare = Peer("peer 12")
        self.deposits = {}
        """What each peer's account had from the miner, for collaterals and fees."""
        self.kept = {}
        """What each of the first owner's peers keeps, by the peer's name."""

    def run(self):
        """Live through it."""
        year = self.year
        while year.maker.tip.height < self.begin - 80:
            year.step()
        for peer in (*self.honest, self.dropper, self.leaver):
            self.kept[peer.name] = year.shards()
            year.begin(self.alice, peer, self.kept[peer.name])
        self.served_shards = year.shards()
        year.begin(self.bob, self.served, self.served_shards)
        while year.maker.tip.height < self.end:
            year.step()
            year.check_books()
            for made in [one for one in year.deals if one.ended_at and not one.is_followed]:
                made.is_followed = True
                self.follow(made)
        while not all(made.ended_at for made in year.deals):
            year.step()
            year.check_books()
        return self

    def follow(self, made):
        """Renew a deal that went well; give the shards of a bad one to the spare peer, as repair would."""
        if made.owner is not self.alice or self.year.maker.tip.height > self.end - 2 * DAY:
            return
        if not made.caught:
            self.year.begin(self.alice, made.peer, self.kept[made.peer.name])
        elif made.peer.name in self.kept:
            shards = self.kept.pop(made.peer.name)
            spare = self.spare if not self.spare.shards else Peer(f"instead of {made.peer.name}")
            self.kept[spare.name] = shards
            self.year.begin(self.alice, spare, shards)

    def deals_of(self, peer):
        return [made for made in self.year.deals if made.peer is peer]

    def table(self):
        """Return rows: who, deals, periods asked, not shown, proofs on the chain, challenges, earned, burned."""
        rows = []
        for peer in dict.fromkeys(made.peer for made in self.year.deals):
            deals = self.deals_of(peer)
            rows.append(
                (
                    peer.name,
                    len(deals),
                    sum(made.asked for made in deals),
                    sum(made.caught for made in deals),
                    sum(made.proofs for made in deals),
                    sum(made.challenged for made in deals),
                    self.year.earned(peer.key),
                )
            )
        return rows


def main():
    """Print the table of a year."""
    story = Story(365, periods=9).run()
    print(f"{'peer':24}{'deals':>6}{'asked':>7}{'not shown':>11}{'proofs':>8}{'challenges':>12}{'earned':>16}")
    for name, *numbers in story.table():
        print(f"{name:24}" + "".join(f"{number:>{width}}" for number, width in zip(numbers, WIDTHS, strict=True)))
    pool = pool_of(story.year.maker.state())
    print(f"blocks {story.year.maker.tip.height}, burned {pool.burned}, in the pool {pool.balance}")


if __name__ == "__main__":
    main()
