"""External participants: they handle messages like sagas, but somebody outside does the work and says how it ended."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any, NoReturn, TypedDict

from scoop_outbox._failure.root_cause import root_causes
from scoop_outbox._generics import T
from scoop_outbox.errors import DefinitionError
from scoop_outbox.failure import DistributedError
from scoop_outbox.message import Message, Topic, topic_name
from scoop_outbox.saga import Saga
from scoop_outbox.scope import AsyncScope, BlockingScope
from scoop_outbox.step import Compensation, Step

COMPLETION = "completion"
"""How the one execution of an external participant is called in what is stored and shown."""

FAILED = "ExternalFailed"
"""Type of the failure of an external participant whose work has failed, unless an exception says more."""
LOOK_AGAIN = timedelta(hours=1)
"""How often a worker looks at one that waits: its next wake-up is where everybody finds it who looks for what lives.
And whoever said something, and died before a wake-up was posted for it, is heard then."""


class ExternalOptions(TypedDict, total=False):
    """What an external participant says about its runs; each may be left out.

    Attributes:
        on_undo: the topic on which a message is launched when completed work is to be undone: a dict with
            `message_id`, `name`, the `result`, and as `reason` the `type`, `message` and `source` of what went wrong.
            Who handles it is waited for, as for anything that a compensation launches. Without it, nothing happens: the
            work counts as rolled back.
        formerly: names that it had before, as in `SagaOptions`.
        timeout: seconds within which it has to be completed, from when its message is taken in; or it gives up.
        rollback_timeout: seconds that undoing may take; or it is `rollback_failed`.
    """

    on_undo: str | Topic[Any] | None
    formerly: Iterable[str]
    timeout: float | timedelta | None
    rollback_timeout: float | timedelta | None


class CompleteOptions(TypedDict, total=False):
    """What is said when the work of an external participant is completed; each may be left out.

    Attributes:
        result: a JSON value that the work leaves, as with `scope.set_result`; None leaves nothing.
        service: the service that declares the participant, if more than one has one of that name.
        source: who did the work; kept. The service's name unless given.
    """

    result: Any
    service: str | None
    source: str | None


class FailOptions(TypedDict, total=False):
    """What is said when the work of an external participant has failed; each may be left out.

    Attributes:
        reason: in words: the message of a failure whose type is `ExternalFailed`.
        error: instead of that, an exception, with its traceback and causes.
        service: the service that declares the participant, if more than one has one of that name.
        source: who says so, part of the failure; the service's name unless given.
    """

    reason: str | None
    error: BaseException | None
    service: str | None
    source: str | None


class External(Saga[T]):
    """A message handler without steps: its work is completed or failed from outside.

    Made by `Scoop.external`.

    Attributes:
        on_undo: the topic on which it is told to undo what was completed; None when nobody has to be told.
    """

    def __init__(
        self,
        name: str,
        on: str | Topic[T],
        *,
        on_undo: str | Topic[Any] | None = None,
        formerly: Iterable[str] = (),
        timeout: float | timedelta | None = None,
        rollback_timeout: float | timedelta | None = None,
    ) -> None:
        """See `Scoop.external` and `ExternalOptions`."""
        super().__init__(name, on, formerly=formerly, timeout=timeout, rollback_timeout=rollback_timeout)
        self.on_undo = None if on_undo is None else topic_name(on_undo)
        told = None if self.on_undo is None else _telling(self, self.on_undo)
        self._steps[COMPLETION] = Step(name, COMPLETION, _never_called, compensate=told)

    def __repr__(self) -> str:
        """Show name and topic."""
        return f"<external {self.name!r} on {self.topic!r}>"

    def step(self, *_: object, **__: object) -> NoReturn:
        """Refuse: there are no steps.

        Raises:
            DefinitionError: always.
        """
        raise self._without_steps()

    def add_step(self, *_: object, **__: object) -> NoReturn:
        """Refuse: there are no steps.

        Raises:
            DefinitionError: always.
        """
        raise self._without_steps()

    def _without_steps(self) -> DefinitionError:
        return DefinitionError(
            f"{self.name!r} is an external participant and has no steps: somebody completes it with "
            f"app.complete(message_id, {self.name!r}); what executes steps is an app.saga()"
        )


def _never_called(_scope: BlockingScope, _message: Message[Any]) -> None:
    raise AssertionError("an external participant executes nothing")


def _telling(external: External[Any], topic: str) -> Compensation[Any]:
    """Return the compensation of what was completed: whoever did the work is told to undo it."""

    async def tell(scope: AsyncScope, message: Message[Any], error: DistributedError) -> None:
        reason = root_causes(error.failure)[0]
        told = {
            "message_id": str(message.id),
            "name": external.name,
            "result": next((own.value for own in scope.results), None),
            "reason": {"type": reason.type, "message": reason.message, "source": reason.source},
        }
        scope.launch(topic, told, key=message.key)

    return tell
