"""Whose failure an error is: the step's, or the machinery's (behaviour Q61).

Decided by the connection on which it happened and by its SQL state, never by the class of the exception alone: another
database that is down raises the same classes as ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import sqlalchemy as sa

from scoop_outbox.errors import TransientError
from scoop_outbox.store.callbacks import Interrupted
from scoop_outbox.store.lent import Lent

CONNECTION_ERRORS = (psycopg.Error, sa.exc.SQLAlchemyError, OSError)
"""What is raised when a connection cannot be opened, or is lost outside a plan."""
DATABASE_ERRORS = (Interrupted, *CONNECTION_ERRORS)
"""What is raised when a database cannot be used, whether a connection was open or not. To be tried again."""

READ_ONLY = "25006"
NO_SAVEPOINT = "3B001"

_ROWS = ("22", "23", "44", "54", "P0")
"""Classes of what a database refuses because of the rows that it was given; 54 because they are too large for it."""

_MACHINERY = (
    "08",  # connection exceptions
    "40001",  # serialization_failure
    "40P01",  # deadlock_detected
    "53",  # no disk, no memory, no connection left
    "57P0",  # the server shuts down, has crashed, starts
    READ_ONLY,  # we still talk to the old primary after a failover
    "26000",  # what was prepared here has been deallocated by somebody
)
"""States in which a statement of the user's met a failure of the machinery."""


def of_the_rows(error: psycopg.Error) -> bool:
    """Tell whether what the database says to a statement of ours can be the doing of what a callback wrote.

    Anything else, a lock or time limit, a full disk, a missing permission, nobody's rows have caused.
    """
    state = error.sqlstate or ""
    return state.startswith(_ROWS) or state == NO_SAVEPOINT


def is_refusal(error: psycopg.Error) -> bool:
    """Tell whether a database refuses what it was to store, now and later; psycopg's own refusals have no SQL state."""
    return isinstance(error, psycopg.DataError | psycopg.IntegrityError) or (error.sqlstate or "").startswith("54")


def is_forbidden(error: BaseException) -> bool:
    """Tell whether a database says that its user may not do what was asked."""
    return any(isinstance(one, psycopg.errors.InsufficientPrivilege) for one in (error, error.__cause__))


def rolled_back(error: BaseException) -> bool:
    """Tell whether the database says by an error that it has undone the transaction, and committed nothing of it."""
    return isinstance(error, psycopg.Error) and (error.sqlstate or "").startswith("40") and error.sqlstate != "40003"


def words(error: BaseException) -> str:
    """Return an error in a line: its class, its SQL state, and what the server says, without its details.

    What it says of rows is left out: it quotes their values (`invalid input syntax for type integer: "4111-1111"`).
    """
    original = getattr(error, "orig", None)
    if isinstance(original, psycopg.Error):
        error = original
    name = type(error).__name__
    if not isinstance(error, psycopg.Error):
        return name
    said = error.diag.message_primary or next(iter(str(error).strip().splitlines()), "")
    if (error.sqlstate or "").startswith(_ROWS):
        said = ""
    return f"{name}{'' if error.sqlstate is None else f' {error.sqlstate}'}{said and f': {said}'}"


def server_of(raw: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> str:
    """Return host and port of the server that a connection leads to, or its socket."""
    try:
        host, port = raw.info.host, raw.info.port
    except psycopg.Error:  # it is broken already
        return "a server"
    if host.startswith("/"):
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def spoils(error: BaseException) -> bool:
    """Tell whether an error shows that the connection is not to be used again, although it works."""
    return any(isinstance(one, psycopg.Error) and one.sqlstate == READ_ONLY for one in _chain(error))


def interruption(error: BaseException, lent: Lent | None, *, lost: bool) -> Interrupted | None:
    """Return the interruption that an error out of a callback stands for; None if it is a failure of the step.

    Args:
        error: what the callback raised.
        lent: the connection that it was lent, if it asked for one.
        lost: whether the connection is gone.
    """
    chain = list(_chain(error))
    for one in chain:
        if isinstance(one, TransientError):
            return Interrupted(words(one), wanted=True)
    for one in chain:
        if isinstance(one, MemoryError) or (lent is not None and lent.has_seen(one) and _of_the_machinery(one)):
            return Interrupted(words(one))
    if lost:
        # What the server said last, though the callback may have raised something else of it.
        said = next((one for one in chain if lent is not None and _is_of(one, lent)), error)
        return Interrupted(f"the connection was lost ({words(said)})")
    if lent is not None and (aborted := lent.aborted_by) is not None and _of_the_machinery(aborted):
        return Interrupted(words(aborted))
    return None


def _is_of(error: BaseException, lent: Lent) -> bool:
    return isinstance(error, psycopg.Error) and lent.has_seen(error)


def _of_the_machinery(error: BaseException) -> bool:
    return isinstance(error, psycopg.Error) and (error.sqlstate or "").startswith(_MACHINERY)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all that it says it was raised for: causes, contexts, members of groups, SQLAlchemy's."""
    seen: set[int] = set()
    ahead: list[BaseException | None] = [error]
    while ahead:
        one = ahead.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        ahead.append(one.__cause__)
        if not one.__suppress_context__:
            ahead.append(one.__context__)
        original = getattr(one, "orig", None)
        if isinstance(original, BaseException):
            ahead.append(original)
        if isinstance(one, BaseExceptionGroup):
            ahead.extend(one.exceptions)
