"""Which errors fsdecloud raises.

    FsdecloudError
    +-- FsError(OSError)            local and normal; class attribute ERRNO
    |   +-- NotFound Exists NotDirectory IsDirectory NotEmpty NotPermitted AccessDenied InvalidArgument
    |   +-- NameTooLong NoSpace(QuotaExceeded) FileTooBig ReadOnly CrossDevice TooManyLinks NoAttribute
    |   +-- OutOfRange NotSupported StaleHandle DamagedData
    +-- RemoteError                 a peer, the agent or the network could not do it
    |   +-- PeerUnavailable PeerRefused BlobMissing BlobCorrupt NotEnoughPeers RemoteTimeout AgentLost
    +-- ProtocolError
    |   +-- LocalProtocolError      we broke the protocol: a bug of ours
    |   +-- RemoteProtocolError     the other side broke it: drop the connection
    +-- MalformedError              bytes that do not decode to a valid value
    +-- SealError                   bytes that do not authenticate under their key or id
    +-- LedgerError
    |   +-- InvalidTransaction InvalidBlock   subclassed by the ledger, one leaf for each reason
    |   +-- LedgerUnavailable                 the ledger daemon does not answer
    |   +-- BlockPruned                       it has dropped the block that this takes
    |   +-- ContractError                     subclassed by the contracts, one leaf for each reason
    +-- CertificateError            a certificate proves nothing, or not of this file or network
    +-- StoreError                  local storage
    |   +-- StoreCorrupt StoreFull StoreLocked
    +-- UsageError(message, exit code)        printed as one line, without traceback

Translate once, at the edge: a third party's error becomes ours where it is imported; ours becomes an errno in `fuse`,
a close code in `net`, an exit code in `cli`. Not here: how any of them is shown.
"""

from __future__ import annotations

import errno
from typing import ClassVar


class FsdecloudError(Exception):
    """Base of all expected failures; its text says what failed and what to do."""


class FsError(FsdecloudError, OSError):
    """A file-system call failed in a way the caller's errno describes."""

    ERRNO: ClassVar[int] = errno.EIO

    def __init__(self, message: str = "") -> None:
        super().__init__(self.ERRNO, message or self.__class__.__name__)


class NotFound(FsError):
    """No such name or inode."""

    ERRNO = errno.ENOENT


class Exists(FsError):
    """The name is taken."""

    ERRNO = errno.EEXIST


class NotDirectory(FsError):
    """A directory was needed."""

    ERRNO = errno.ENOTDIR


class IsDirectory(FsError):
    """Anything but a directory was needed."""

    ERRNO = errno.EISDIR


class NotEmpty(FsError):
    """The directory still has entries."""

    ERRNO = errno.ENOTEMPTY


class NotPermitted(FsError):
    """Only the owner, or root, may."""

    ERRNO = errno.EPERM


class AccessDenied(FsError):
    """The mode bits forbid it."""

    ERRNO = errno.EACCES


class InvalidArgument(FsError):
    """The call makes no sense."""

    ERRNO = errno.EINVAL


class NameTooLong(FsError):
    """A name over 255 bytes or a symlink target over 4095."""

    ERRNO = errno.ENAMETOOLONG


class NoSpace(FsError):
    """The staging area or the volume is full."""

    ERRNO = errno.ENOSPC


class QuotaExceeded(NoSpace):
    """The local disk's quota is used up."""

    ERRNO = errno.EDQUOT


class FileTooBig(FsError):
    """Past the largest file size."""

    ERRNO = errno.EFBIG


class ReadOnly(FsError):
    """The mount is read-only."""

    ERRNO = errno.EROFS


class CrossDevice(FsError):
    """Source and target lie in different file systems."""

    ERRNO = errno.EXDEV


class TooManyLinks(FsError):
    """The link count is at its limit."""

    ERRNO = errno.EMLINK


class NoAttribute(FsError):
    """No such extended attribute."""

    ERRNO = errno.ENODATA


class OutOfRange(FsError):
    """A value or a buffer is outside its limits."""

    ERRNO = errno.ERANGE


class NotSupported(FsError):
    """This file system does not do that."""

    ERRNO = errno.EOPNOTSUPP


class StaleHandle(FsError):
    """The handle's file or snapshot is gone."""

    ERRNO = errno.ESTALE


class DamagedData(FsError):
    """Local data does not verify."""

    ERRNO = errno.EIO


class RemoteError(FsdecloudError):
    """The network side could not do it; the local side is fine."""


class PeerUnavailable(RemoteError):
    """No connection to the peer, or it was lost."""


class PeerRefused(RemoteError):
    """The peer answered no: quota, admission, limits."""

    reason = ""
    """Its own word, where it gave one."""


class BlobMissing(RemoteError):
    """Nothing knows where the entry or blob is, or no holder has it."""


class BlobCorrupt(RemoteError):
    """What a peer sent is not what its id says."""


class NotEnoughPeers(RemoteError):
    """Fewer than the needed shards can be reached."""


class RemoteTimeout(RemoteError):
    """The deadline passed first."""


class AgentLost(RemoteError):
    """The agent process ended; it is being restarted."""


class ProtocolError(FsdecloudError):
    """A message that the protocol does not allow here."""


class LocalProtocolError(ProtocolError):
    """We broke the protocol."""


class RemoteProtocolError(ProtocolError):
    """The other side broke the protocol."""


class MalformedError(FsdecloudError, ValueError):
    """Bytes that are not the encoding of a valid value."""


class SealError(FsdecloudError):
    """Bytes that do not authenticate: a wrong key, or changed data."""


class LedgerError(FsdecloudError):
    """The ledger rejects or cannot do it."""


class InvalidTransaction(LedgerError):
    """A transaction that no block may hold."""


class InvalidBlock(LedgerError):
    """A block that no chain may hold."""


class LedgerUnavailable(LedgerError):
    """The ledger daemon does not answer."""


class BlockPruned(LedgerError):
    """The ledger daemon has dropped the block that this takes; one that keeps all bodies has it."""


class ContractError(LedgerError):
    """A contract's document, arguments or input that the language or the contract does not allow."""


class CertificateError(FsdecloudError):
    """A certificate is damaged or forged, or is not about this file, or not of this network."""


class StoreError(FsdecloudError):
    """Local storage failed."""


class StoreCorrupt(StoreError):
    """A store cannot be opened or holds what it must not."""


class StoreFull(StoreError):
    """The disk, the map or the quota is full; `errno` says which: ENOSPC or EDQUOT."""

    def __init__(self, message: str, code: int = errno.ENOSPC) -> None:
        super().__init__(message)
        self.errno = code


class StoreLocked(StoreError):
    """Another process has the store open."""


class UsageError(FsdecloudError):
    """Something the person asked for cannot be done; `exit_code` is documented in the man page."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def as_seen(error: FsdecloudError) -> FsdecloudError:
    """Return a new error to raise for a failure of local storage that was noted earlier: what a program's call fails with.

    A full disk is NoSpace or QuotaExceeded, whatever else stays what it is (EIO).
    """
    if isinstance(error, StoreFull):
        return QuotaExceeded(str(error)) if error.errno == errno.EDQUOT else NoSpace(str(error))
    return StoreError(str(error)) if isinstance(error, StoreError) else error
