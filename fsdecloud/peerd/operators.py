"""Who runs the storage peers of a machine, as they declare it in the ledger (`ledger.transactions.Operate`). Blocking.

An operator is an Ed25519 key. Volumes put no two shards of a blob on peers of one operator while there are enough others, as
with peers of one network. Peer and operator both sign, so that nobody is counted among another's peers; the declaration is made
once and kept beside the peer, and the operator's key may be taken off the machine afterwards.

config/operators/OPERATOR.key   32-byte Ed25519 seed; made when it is first named, copied by hand to where else he runs peers
state/peers/NAME/operator.tx    the signed declaration, which the peer sends as long as the ledger says something else
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from fsdecloud.config import Paths, check_name, read_private_file, write_private_file
from fsdecloud.crypto import sign
from fsdecloud.errors import InvalidTransaction, UsageError
from fsdecloud.ledger.transactions import Operate, check_signatures, decode_tx, sign_operate
from fsdecloud.limits import TX_MAX
from fsdecloud.peerd import setup
from fsdecloud.peerd.registration import stamp_bits


def declare_operator(paths: Paths, name: str, operator: str | None) -> bytes:
    """Have the peer `name` declare its operator from its next start on; None: that it has none any more.

    Returns the operator's public key, b"" for none. Raises UsageError.
    """
    config = setup.load_config(paths, name)
    seed = None if operator is None else operator_seed(paths, operator)
    bits = stamp_bits(paths.ledger_state / "network", config.network)
    tx = sign_operate(config.network, setup.load_seed(paths, name), seed, int(time.time()), bits=bits)
    write_private_file(_file(paths, name), tx)
    return b"" if seed is None else sign.public_key(seed)


def operator_seed(paths: Paths, operator: str) -> bytes:
    """Return an operator's key, which is made when there is none. Raises UsageError when its file is not what it should be."""
    path = paths.config / "operators" / f"{check_name(operator)}.key"
    if not os.path.lexists(path):
        write_private_file(path, os.urandom(32))
    seed = read_private_file(path)
    if len(seed) != 32:
        raise UsageError(f"{path} has {len(seed)} bytes instead of 32: restore it, or move it away for a new operator")
    return seed


def load_declaration(paths: Paths, name: str) -> bytes:
    """Return the encoded declaration of a peer, b"" when it never made one. Raises UsageError for one that is damaged."""
    path = _file(paths, name)
    if not os.path.lexists(path):
        return b""
    data = read_private_file(path, TX_MAX)
    try:
        tx = decode_tx(data)
        check_signatures(setup.load_config(paths, name).network, tx)
    except InvalidTransaction as exc:
        raise UsageError(f"{path} is damaged ({exc}): decloud peer operator writes it again") from exc
    if not isinstance(tx, Operate) or tx.peer != sign.public_key(setup.load_seed(paths, name)):
        raise UsageError(f"{path} is not this peer's declaration: decloud peer operator writes it again")
    return data


def _file(paths: Paths, name: str) -> Path:
    return paths.peer_state(name) / "operator.tx"
