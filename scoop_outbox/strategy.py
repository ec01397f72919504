"""Strategies: when a saga's runs begin, whom they wait for, and when they give up, as rules that users can write.

The engine asks them whenever it looks at a run, and does the rest: it keeps who is waited for with the launch, it waits
for everybody who has started, and it rolls back. So a strategy cannot break the one rule: what has begun is waited for.
After Scoop, where a strategy is the second argument of a saga and is written in SQL.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from scoop_outbox.errors import DefinitionError


@dataclass(frozen=True, slots=True, order=True)
class Participant:
    """Who handles messages of a topic.

    Attributes:
        service: the name of the service.
        saga: the name of its saga.
    """

    service: str
    saga: str


@dataclass(frozen=True, slots=True)
class OpenChild:
    """A child that a run waits for.

    Attributes:
        message_id: the message that was launched.
        participant: who is to handle it.
        started: whether it has executed anything. What has started is waited for, whatever a strategy says.
        launched_at: when the launching step was committed, by the database's clock.
    """

    message_id: uuid.UUID
    participant: Participant
    started: bool
    launched_at: datetime


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a strategy may look at: a run, as it was read in one transaction.

    Attributes:
        now: the time, by the database's clock; a strategy that asks another clock cannot be tested, and may jump.
        run_id: the run.
        message_id: its message.
        saga: the name of its saga.
        step: the step whose children it waits for; None before the first.
        rolling_back: whether it rolls back.
        began_at: when its message was taken in.
        children: those that it waits for, in the order in which they were launched.
    """

    now: datetime
    run_id: uuid.UUID
    message_id: uuid.UUID
    saga: str
    step: str | None
    rolling_back: bool
    began_at: datetime
    children: tuple[OpenChild, ...] = ()


class Strategy:
    """What every saga does unless it is given another one: it begins at once, waits for all, and never gives up.

    Derive from it and override what is to be different. Methods are pure: they look at their arguments only, for any
    worker may ask them, at any time, again. What they raise interrupts the run, which is parked if that goes on.
    """

    def expect(self, topic: str, subscribed: Collection[Participant]) -> Collection[Participant]:  # noqa: ARG002
        """Return who is waited for of a message that a step launches; asked once, when the step is committed.

        Args:
            topic: where the message is launched.
            subscribed: the sagas that are subscribed to the topic.
        """
        return subscribed

    def begin(self, outlook: Outlook) -> datetime | None:
        """Return the time before which a run does not execute its first step; None for at once."""

    def leave_behind(self, outlook: Outlook) -> Iterable[OpenChild]:  # noqa: ARG002
        """Return the children that are not waited for any longer, of those that have not started.

        Whoever handles such a message later does so in a late run, which no rollback reaches (`scope.late`).
        """
        return ()

    def give_up(self, outlook: Outlook) -> str | None:
        """Return why a run that does not roll back gives up; None when it does not."""

    def give_up_rollback(self, outlook: Outlook) -> str | None:
        """Return why the rollback of a run has failed, though something is left to be undone; None when it has not."""

    def look_again(self, outlook: Outlook) -> datetime | None:
        """Return when to ask again if nothing happens until then; None when only news can change the answers."""


DEFAULT = Strategy()


class AcknowledgedWithin(Strategy):
    """Best effort: whoever has not started some time after the launch is left behind.

    Args:
        timeout: seconds, or a `timedelta`.

    Raises:
        DefinitionError: it is not positive.
    """

    def __init__(self, timeout: float | timedelta) -> None:
        """See the class."""
        self._after = timeout if isinstance(timeout, timedelta) else timedelta(seconds=timeout)
        if self._after <= timedelta():
            raise DefinitionError(f"AcknowledgedWithin({timeout!r}): give the seconds as a positive number")

    def leave_behind(self, outlook: Outlook) -> Iterable[OpenChild]:
        """Return the children that should have started by now."""
        return [child for child in self._waiting(outlook) if child.launched_at + self._after <= outlook.now]

    def look_again(self, outlook: Outlook) -> datetime | None:
        """Return when the next child should have started."""
        return min((child.launched_at + self._after for child in self._waiting(outlook)), default=None)

    def _waiting(self, outlook: Outlook) -> Iterable[OpenChild]:
        return (child for child in outlook.children if not child.started)


class StaticTopology(Strategy):
    """Waits on some topics for participants that are named here, whether they are subscribed by then or not.

    So a service can be deployed before those that it waits for. Other topics are as the home knows them.

    Args:
        participants: for each topic the pairs of service and saga that are waited for.

    Raises:
        DefinitionError: it names something else than pairs.
    """

    def __init__(self, participants: Mapping[str, Iterable[tuple[str, str]]]) -> None:
        """See the class."""
        self._participants = {topic: _participants(topic, of) for topic, of in participants.items()}

    def expect(self, topic: str, subscribed: Collection[Participant]) -> Collection[Participant]:
        """Return whom the topology names; on other topics, who is subscribed."""
        return self._participants.get(topic, subscribed)


def _participants(topic: str, given: Iterable[object]) -> Collection[Participant]:
    found: list[Participant] = []
    for one in given:
        if not isinstance(one, tuple | list) or len(one) != 2 or not all(isinstance(name, str) for name in one):  # noqa: PLR2004
            raise DefinitionError(
                f"StaticTopology: {one!r} on topic {topic!r} is no participant; write a pair of service and saga"
            )
        found.append(Participant(*one))
    return tuple(dict.fromkeys(found))
