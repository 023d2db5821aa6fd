"""Every size, count and time-out, each with its reason. Bytes and seconds unless the name says otherwise.

Pure. A limit that belongs to one network of ledgers is in that network's parameters (`ledger.network`), not here.

What the driver keeps in memory, and what bounds it:

    dirty chunks, the sealer's queue        DIRTY_MAX; then writers wait
    opened chunks, their free buffers       READ_CACHE, 16 buffers
    chunks being brought or opened ahead    READ_AHEAD_MAX of each
    decoded tree nodes                      NODE_CACHE_ITEMS
    inodes                                  inodes.INODES_KEPT clean ones; dirty ones until the next group commit; open ones
    chunk values of an inode                4096, 64 once it is closed
    look-up counts, open handles            as many as the kernel holds: it forgets, it releases
    pending changes (overlay)               what COMMIT_INTERVAL brings, or PENDING_PLENTY rows; commits need no peer
    operation records                       as pending changes; RECORDS_MAX without a journal
    staged entries: place, marks, queue     STAGED_ENTRIES_MAX, and `-o stage_size=` in bytes
    fetched entries before the index        FETCHED_MAX
    commits whose receipts are awaited      1024, coarser beyond
    requests                                FUSE_TASKS; of these wait for network or room: WAITERS_MAX
    asked of the agent at once              NETWORK_WAITERS; unsent bytes: net.unix.NOTICES_MAX
    receipts, deals, programs, manifests    1024, 4096, 512, 64
    internal errors                         one row for each place in the program
    record batches without an anchor        150 bytes for each commit while the ledger is away: they come more rarely then
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

# ---- file system -------------------------------------------------------------------------------------------------
CHUNK_SIZE: Final = MIB
"""Plaintext extent sealed as one entry: one kernel request (1 MiB), and large enough that per-entry costs vanish."""

INLINE_MAX: Final = 2 * KIB
"""A chunk up to this size lives in the tree itself: an entry would cost a location row larger than the saving."""

MAX_PATCHES: Final = 64
"""Patches over a chunk before it is folded: bounds what one read has to fetch."""

MAX_FILE_SIZE: Final = 1 << 60
"""Largest file size: keeps offset arithmetic of all callers within a signed 64-bit integer."""

NAME_MAX: Final = 255
SYMLINK_MAX: Final = 4095
LINK_MAX: Final = 65000
"""ext4's limit: what programs are tested against."""

XATTR_NAME_MAX: Final = 255
XATTR_VALUE_MAX: Final = 64 * KIB
"""The kernel's own limits (limits.h XATTR_SIZE_MAX)."""

XATTR_INLINE_MAX: Final = INLINE_MAX
"""A longer extended attribute is an entry of its own, so that tree nodes stay small."""

# ---- tree --------------------------------------------------------------------------------------------------------
NODE_TARGET: Final = 8 * KIB
"""Mean node size: one round trip carries a hundred entries, one change rewrites little."""

NODE_MAX: Final = 16 * KIB
NODE_MAX_ITEMS: Final = 128
"""Forced borders: nobody can grind keys into giant nodes."""

NODE_MIN: Final = NODE_TARGET // 8
"""No border by hash before this: an inner node has several children, so nobody can grind keys into a tall tree."""

TREE_KEY_MAX: Final = 400
"""A directory entry's key: parent, name hash and a name of 255 bytes, with room for a prefix."""

TREE_VALUE_MAX: Final = 64 * KIB
"""Largest value of one item; a chunk with 64 patches takes 5 KiB."""

NODE_DECODE_MAX: Final = 128 * KIB
"""A decoded node over this is malformed: NODE_MAX plus the largest single item."""

# ---- sealing -----------------------------------------------------------------------------------------------------
ENTRY_MAX: Final = MIB + 4 * KIB
"""Largest sealed entry: a chunk, its header and tag, with room for a format to come."""

SMALL_ENTRY: Final = 16 * KIB
"""Up to this an entry is an LMDB value and travels inline between agent and driver; above, it lies in a segment."""

PACK_ENTRY_MAX: Final = 256 * KIB
"""Entries under this are packed: a blob of its own costs n requests."""

BLOB_TARGET: Final = MIB
"""A pack is closed when the next entry would pass this."""

BLOB_MAX: Final = MIB + 8 * KIB

# ---- local store -------------------------------------------------------------------------------------------------
SEGMENT_SIZE: Final = 64 * MIB
"""A segment is closed past this: small enough to drop whole, large enough that files are few."""

STATE_MAP_SIZE: Final = 16 * GIB
CACHE_MAP_SIZE: Final = 16 * GIB
CHAIN_MAP_SIZE: Final = 64 * GIB
SHARD_MAP_SIZE: Final = 64 * GIB
SHARD_SETS_MAP_SIZE: Final = 16 * GIB
AGENT_MAP_SIZE: Final = 16 * GIB
"""LMDB map sizes: address space, not disk. Far above any use, so that the map never grows while transactions are open."""

CACHE_SIZE: Final = 2 * GIB
"""Default bound on the clean cache's bytes on disk (`-o cache_size=`)."""

STAGE_SIZE: Final = 32 * GIB
"""Default bound on staged bytes that no peer has yet (`-o stage_size=`): past it writers wait, then get ENOSPC."""

MIN_FREE: Final = 256 * MIB
"""Disk space that the cache leaves free for everybody else."""

STAGE_RESERVE: Final = 32 * MIB
"""Disk space that staged data leaves free: the journal's next files (4 MiB each), LMDB and the agent's journal must be able
to grow, else nothing that fills the disk could be stored and let go, nor the volume mounted."""

# ---- driver ------------------------------------------------------------------------------------------------------
DIRTY_MAX: Final = 64 * MIB
"""Dirty plaintext in memory before writers wait: a few dozen chunks in flight keep sealing busy."""

READ_CACHE: Final = 64 * MIB
"""Opened chunks kept in memory."""

NODE_CACHE_ITEMS: Final = 4096
"""Decoded tree nodes kept in memory: about 4096 x 10 KiB at worst."""

GROUP_COMMIT_DELAY: Final = 1.0
"""What a program closed reaches D1 within this, without an fsync."""

HANDLER_DEADLINE: Final = 60.0
"""A FUSE request that waits for the network or for room is answered after this; later only with a longer `-o timeout`."""

FULL_WAIT: Final = 5.0
"""Writers wait this long on a full disk before they get ENOSPC: some rounds of eviction from the cache, and a segment or two
that peers take."""

NETWORK_WAITERS: Final = 48
"""Entries asked of the agent at once; more wait for their turn."""

FUSE_TASKS: Final = 1024
"""Requests of the kernel served at once. One that waits costs a task and a page of its buffer, about 30 KiB."""

WAITERS_MAX: Final = 256
"""Requests that may wait for the network or for room, those in the queue for it too; more fail at once. Far under
FUSE_TASKS, so that `ls`, `df`, cached reads and writes always have a task."""

SLOW_REQUEST: Final = 5.0
"""A request that takes longer is logged and counted: nothing local does."""

RECORDS_MAX: Final = 100_000
"""Operation records that wait in memory for a journal that cannot be written (about 200 bytes each); then changes get
ENOSPC."""

STAGED_ENTRIES_MAX: Final = 1_000_000
"""Staged entries that peers do not have yet, about 700 bytes of memory each; past it writers wait, then get ENOSPC."""

FETCHED_MAX: Final = 4096
"""Fetched entries that wait for the cache's index, small ones with their bytes (at most 64 MiB); more are not cached."""

READ_AHEAD_MAX: Final = 64
"""Chunks being fetched or opened ahead of all readers together: 1 MiB each."""

READ_AHEAD_CHUNKS: Final = 8
"""Chunks fetched ahead of a sequential reader."""

COMMIT_INTERVAL: Final = 10.0
"""Pending changes older than this are written into the tree."""

PENDING_PLENTY: Final = 100_000
"""Pending changes and operation records, from which on no commit waits for longer than COMMIT_INTERVAL: some 50 MB."""

# ---- network -----------------------------------------------------------------------------------------------------
MESSAGE_MAX: Final = 2 * MIB
"""Largest websocket message: a whole blob as one shard (k=1) with its envelope, and no room for a bomb."""

RECEIVE_BUFFER: Final = 288 * KIB
"""trio-websocket reads this much at once; its default of 4 KiB costs five times the throughput. A shard of a full chunk at
4/12 with what is around it, encrypted, comes in one piece."""

WINDOW_BYTES: Final = 8 * MIB
"""Shard bytes a client may have unanswered on one connection: hides latency, bounds the peer's memory."""

CONNECT_TIMEOUT: Final = 10.0
REQUEST_TIMEOUT: Final = 20.0
KEEPALIVE: Final = 20.0
"""A ping after this much silence: a black hole is noticed within 30 s (twice at most)."""

PEER_CONNECTIONS_MAX: Final = 256
"""Connections a peer serves at once, so that memory and sockets stay bounded."""

# ---- ledger ------------------------------------------------------------------------------------------------------
TX_MAX: Final = 64 * KIB
BLOCK_MAX: Final = MIB
ANCHOR_PAYLOAD: Final = 1024
"""Every anchor's encrypted payload has this size, so that its length says nothing."""

REPAIR_PAYLOAD: Final = 384
"""Bytes at its end that are for whoever has a repair key, the rest is the owner's."""

MEMPOOL_MAX: Final = 32 * MIB

CONTRACT_MAX: Final = 16 * KIB
"""Bytes of an encoded contract document: the standard ones have under 3 KiB."""

CONTRACT_NODES: Final = 1024
"""Contract nodes, values and observations of a document together: what one step can cost follows from it."""

CONTRACT_DEPTH: Final = 64
"""Nesting of a document: far from the recursion limit of whoever decodes it; parts go deeper by name."""

CONTRACT_NAMES: Final = 32
"""Parameters, parts, names of choices and of `let` in one document, of each."""

CONTRACT_FIELDS: Final = 8
"""Integers in one choice."""

CONTRACT_PARTIES: Final = 16
"""Parties of one contract, and signatures under one agreement: each costs a tenth of a millisecond."""

CONTRACT_ACTIONS: Final = 8
"""Actions in one input."""

CONTRACT_ROUNDS: Final = 1 << 16
"""Rounds of all repeats of a contract multiplied: four years of hourly periods."""

CONTRACT_STEP: Final = 2048
"""Contract nodes and values after which a step stops at the next `when`, though its timeout may have passed: about 1 ms.
A contract that nobody touched for a thousand periods takes several steps to catch up, none of which costs a block much."""

CONTRACT_HORIZON: Final = 1 << 24
"""Blocks until a contract's last timeout, 32 years at one a minute: no row of the state is there for ever."""

PROOF_MAX: Final = 16 * KIB
"""Bytes of a possession proof."""

SAMPLES_MAX: Final = 16
"""Leaves that one possession proof on the chain shows: so many, of any but the largest deals, fit into PROOF_MAX."""

CONTRACT_ENDINGS: Final = 32
"""Contracts that end by themselves at one height: what a block has to do before its transactions is bounded."""

CONTRACT_WORK: Final = 1 << 20
"""What contracts may cost in one block, in the machine's units: about half a second of one core."""

# ---- local sockets -----------------------------------------------------------------------------------------------
RPC_MAX: Final = 4 * MIB
"""Largest frame on a local socket; bulk data never crosses it."""
