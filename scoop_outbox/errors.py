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

    @classmethod
    def closed_its_connection(cls, step: str, saga: str) -> StepError:
        """Return what is wrong with a step that closes the connection it was lent."""
        return cls(
            f"step {step!r} of saga {saga!r} closed its connection: scope.connection and scope.session are lent, and "
            "the engine takes them back (`with scope.connection:` closes it too; use connection.transaction())"
        )

    @classmethod
    def left_something_running(cls, step: str, saga: str) -> StepError:
        """Return what is wrong with a step whose tasks or threads are still at work on its connection."""
        return cls(
            f"step {step!r} of saga {saga!r} ended while its connection was still in use: await its tasks, join its "
            "threads, and finish what is copied or streamed before the callback returns"
        )


class ScopeEnded(ScoopError):
    """A scope, or something taken from it, was used after its callback had ended.

    What a callback leaves running, a task of `asyncio.gather` for example, belongs to no transaction any more: await
    it before the callback returns.
    """

    @classmethod
    def of(cls, step: str, saga: str, run_id: object) -> ScopeEnded:
        """Return what is wrong with something that outlives its step."""
        return cls(
            f"step {step!r} of saga {saga!r} (run {run_id}) has ended, and its scope, session and connection with it: "
            "whatever works for a step must be awaited or joined before its callback returns or raises"
        )


class StepTimeout(ScoopError):
    """A step has taken longer than its `timeout`: a failure like any other, for its retry policy and for the run."""

    @classmethod
    def of(cls, step: str, saga: str, timeout: float) -> StepTimeout:
        """Return what is wrong with a step that takes too long."""
        return cls(f"step {step!r} of saga {saga!r} has taken longer than {timeout:g} s, and was ended")


class RunCancelled(BaseException):
    """The run gives up, because it was cancelled or is late: raised by `scope.checkpoint()`.

    Let it through, as an `asyncio.CancelledError`: what the step has done is undone, and the run is rolled back. It is
    no `Exception`, so that what handles errors does not take it for one.
    """

    @classmethod
    def of(cls, step: str, saga: str, run_id: object) -> RunCancelled:
        """Return what a step is told at a checkpoint."""
        return cls(f"run {run_id} of saga {saga!r} gives up: what step {step!r} has done is undone")


class UnhandledMessage(ScoopError):
    """A message was launched that somebody has to handle, and those are not subscribed to its topic."""


class ConflictingMessage(ScoopError):
    """A message was launched under an id that another message has: with another topic, payload or key."""


class UnknownMessage(ScoopError):
    """No message with this id was launched, or its hierarchy has been pruned."""


class AmbiguousId(ScoopError):
    """Several messages or runs have an id that begins with what was given; the error names them."""


class TransientError(ScoopError):
    """Raise it in a callback to say: not now. The transaction is undone and the callback is called again later.

    It never counts as a failure of the saga, and it never stops coming back: use a `Retry` policy for what may
    really fail.
    """
