"""The errors a caller may see. Each message says what is wrong and what to do about it."""

from __future__ import annotations


class ScoopError(Exception):
    """Base class of every error that scoop_outbox raises itself."""


class DefinitionError(ScoopError):
    """A saga, step, topic or name cannot be used as it was declared."""


class PayloadError(ScoopError):
    """A payload, header or context value cannot be encoded, or stored bytes cannot be decoded."""


class DatabaseError(ScoopError):
    """The database cannot be used: it is unreachable, not migrated, or its URL is wrong."""


class BrokerError(ScoopError):
    """The broker's URL is wrong, or no installed adapter serves it."""


class StepError(ScoopError):
    """A step broke its contract with the engine, for example by ending its own transaction."""

    @classmethod
    def ended_its_transaction(cls, step: str, saga: str) -> StepError:
        """Return what is wrong with a step that commits or rolls back by itself."""
        return cls(
            f"step {step!r} of saga {saga!r} ended its own transaction: never commit or roll back scope.connection; "
            "the engine ends the transaction after the callback (use connection.transaction() for a savepoint)"
        )


class UnknownMessage(ScoopError):
    """No message with this id was launched, or its hierarchy has been pruned."""


class TransientError(ScoopError):
    """Raise it in a callback to say: not now. The transaction is undone and the callback is called again later.

    It never counts as a failure of the saga, and it never stops coming back: use a `Retry` policy for what may
    really fail.
    """
