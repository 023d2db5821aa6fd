"""Why a contract, its arguments or an input is refused: one leaf for each reason.

    ContractError
    +-- InvalidDocument     not a document of the language: its form, its names, its limits
    +-- InvalidArguments    arguments that do not fit the document's parameters, or a contract that would run for too long
    +-- InputRefused        an input that the contract does not wait for; it is as it was before
        +-- ContractOver    it has ended
        +-- NoSuchCase      no case waits for this action
        +-- WrongAmount     a deposit of another amount than the one that is waited for
        +-- WrongActor      only another party may do this
        +-- OutOfBounds     a chosen value that is not within its bounds
        +-- OldAgreement    an agreement that is not newer than the one the contract knows
        +-- BadAgreement    an agreement without the signatures of all its parties
        +-- NotHeld         a proof that does not verify, or has nothing to prove yet
        +-- NotBehind       nothing to do: no action, and no timeout has passed
        +-- StillBehind     more timeouts have passed than one step goes through: inputs without actions first

Pure. Not here: the rules (`check`, `machine`).
"""

from __future__ import annotations

from fsdecloud.errors import ContractError


class InvalidDocument(ContractError):
    """Not a document of the language, or one beyond its limits."""


class InvalidArguments(ContractError):
    """The arguments are not what the document's parameters ask for."""


class InputRefused(ContractError):
    """The contract does not take this input, and is as it was before."""


class ContractOver(InputRefused):
    """The contract has ended."""


class NoSuchCase(InputRefused):
    """The contract waits for other actions than this one."""


class WrongAmount(InputRefused):
    """The contract waits for a deposit of another amount."""


class WrongActor(InputRefused):
    """Only another party may do this."""


class OutOfBounds(InputRefused):
    """A chosen value is not within the bounds that the contract sets."""


class OldAgreement(InputRefused):
    """The contract knows this agreement, or a newer one."""


class BadAgreement(InputRefused):
    """A signature of the agreement is missing, or is not its party's."""


class NotHeld(InputRefused):
    """The possession proof does not verify, or there is nothing to prove, or no challenge yet."""


class NotBehind(InputRefused):
    """It has no action, and no timeout has passed: it would change nothing."""


class StillBehind(InputRefused):
    """More timeouts have passed than one step goes through."""
