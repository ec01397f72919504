"""What a plan yields and what it is sent: the whole vocabulary between rules and drivers.

A *plan* is a generator. It yields a batch of named statements and is sent a list with the rows of each; or it
yields a `Call` and is sent how the user's callback ended. It knows no driver, no SQL text and no event loop, so
the blocking and the async driver run the same plans.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from scoop_outbox.core.run import Run
from scoop_outbox.core.transition import Raised, Returned
from scoop_outbox.message import Message
from scoop_outbox.scope import Result
from scoop_outbox.step import Callback

T = TypeVar("T")
Rows = list[tuple[Any, ...]]


class Refused(Exception):
    """The database refused a batch for good; what was open is undone. Carries the driver's error."""

    def __init__(self, error: Exception) -> None:
        """Wrap what the driver raised."""
        super().__init__(str(error))
        self.error = error


class Statement(NamedTuple):
    """A statement of the store, by name, with its parameters."""

    name: str
    params: Mapping[str, Any]


Batch = Sequence[Statement]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a callback asks for at a checkpoint: whether its run gives up.

    Attributes:
        run: which run.
        deadline: until when it has to commit.
    """

    run: uuid.UUID
    deadline: datetime | None


@dataclass(slots=True)
class Interrupt:
    """How a callback is cancelled that may be: by whoever finds out, while it lasts, that its run gives up.

    Attributes:
        cancel: cancels it at its next await; None before it has begun, and once it has ended.
        asked: whether somebody has.
    """

    cancel: Callable[[], object] | None = None
    asked: bool = False

    def ask(self) -> None:
        """Cancel the callback, once."""
        if not self.asked and self.cancel is not None:
            self.asked = True
            self.cancel()


@dataclass(frozen=True, slots=True)
class Call:
    """A callback of the user to be called inside the transaction, behind its savepoint.

    Attributes:
        error: the third argument of compensations and failure handlers.
        handles: whether the callback is there to handle `error`: what it raises instead keeps `error` as its cause.
        key: identifies callback and instance, whatever the attempt.
        check: raises when the callback's return value cannot be used; then the call counts as raised.
        source: names this worker in a failure.
        checkpoint: what is asked at a checkpoint; None for a callback that ends whatever is asked of its run.
        timeout: how many seconds it may take.
        interrupt: cancels it when its run gives up; None when it is not to be.
    """

    callback: Callback
    run: Run
    step: str
    message: Message
    iteration: int
    attempt: int
    key: str
    source: str
    error: Exception | None = None
    handles: bool = False
    results: Sequence[Result] = field(default=())
    check: Callable[[object], object] = lambda value: value
    checkpoint: Checkpoint | None = None
    timeout: float | None = None
    interrupt: Interrupt | None = None


Ask = Batch | Call
Answer = Any  # list[Rows] for a batch, Returned | Raised for a call: a generator has one send type
Plan = Generator[Ask, Answer, T]

CallOutcome = Returned | Raised


def ask(*statements: Statement) -> Generator[Ask, Answer, list[Rows]]:
    """Run statements in order, in one round trip, and return the rows of each."""
    rows: list[Rows] = yield statements
    return rows


def statement(name: str, /, **params: Any) -> Statement:
    """Name a statement and bind its parameters."""
    return Statement(name, params)


def document(value: object) -> bytes:
    """Return a parameter that arrives as it is, whatever the settings of a connection: JSON in UTF-8."""
    return json.dumps(value, ensure_ascii=False).encode()


BEGIN = Statement("begin", {})
COMMIT = Statement("commit", {})
COMMIT_AND_BEGIN = Statement("commit_and_begin", {})
ROLLBACK = Statement("rollback", {})
SAVEPOINT = Statement("savepoint", {})
RELEASE_SAVEPOINT = Statement("release_savepoint", {})
READ_CLOCK = Statement("read_clock", {})
SYNC = Statement(name="sync", params={})
"""No statement: an error before it leaves what comes after it to be executed, and both are still one round trip."""
ROLLBACK_TO_SAVEPOINT = Statement("rollback_to_savepoint", {})
