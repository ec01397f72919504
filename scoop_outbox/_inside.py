"""Whether the code that runs here works for a callback: what a callback starts, tasks and threads, does too."""

from __future__ import annotations

from contextvars import ContextVar

from scoop_outbox.errors import StepError
from scoop_outbox.scope import Scope

_scope: ContextVar[Scope | None] = ContextVar("scoop_outbox_scope", default=None)


def enter(scope: Scope) -> None:
    """Say from now on, in this context, that what runs works for the callback that was handed `scope`."""
    _scope.set(scope)


def current() -> Scope | None:
    """Return the scope of the callback that the code which calls this works for; None outside of callbacks."""
    return _scope.get()


def refuse_launch(session: object, *, detached: bool) -> None:
    """Refuse to launch a hierarchy from within a callback that would not belong to its step (behaviour Q72).

    What a callback has left running still speaks for it, also after its end.

    Raises:
        StepError: it is neither said to be detached, nor launched in the step's own transaction.
    """
    scope = _scope.get()
    if scope is None or detached or (session is not None and scope.owns(session)):
        return
    raise StepError(
        f"launch() inside step {scope.step!r} of saga {scope.saga!r} starts a hierarchy that does not belong to the "
        "step: nobody would wait for it, and it would be there even if the step fails. Use scope.launch(), or "
        "scope.launch_on_global_scope() if nobody is to wait; if it is meant, pass detached=True"
    )


def refuse_wait() -> None:
    """Refuse to wait for a hierarchy within a callback (behaviour Q72).

    Raises:
        StepError: a callback is being called here.
    """
    scope = _scope.get()
    if scope is not None and not scope.ended:
        raise StepError(
            f"wait() inside step {scope.step!r} of saga {scope.saga!r} would hold a slot, a transaction and a lock "
            "while others need them: launch with scope.launch(), and the next step starts when all of it has ended"
        )
