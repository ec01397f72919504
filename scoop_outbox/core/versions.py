"""Versions of a saga: who executes a run while the workers of a service do not all have the same code.

A run belongs to the version under which its first step was executed, as long as a worker of that version is alive.
Then the newest living version that knows the step it needs takes it over, unless that would silently leave out a step.
What no living worker knows is waited for, for a minute; then the run is parked, until somebody knows it (behaviour Q66,
Q79).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from scoop_outbox.saga import Saga

GRACE = timedelta(minutes=1)
"""For how long nobody has to know a step until the runs that need it are parked."""


@dataclass(frozen=True, slots=True)
class Version:
    """A saga as the workers of one deployment declare it.

    Attributes:
        id: the same for the same service, saga and steps (or label, if the saga was given one), in every process.
        steps: the names of its steps in order.
    """

    id: str
    saga: str
    steps: tuple[str, ...]

    @classmethod
    def of(cls, service: str, saga: Saga, name: str | None = None) -> Version:
        """Return the version of a saga as this process declares it, under its name or under one that it had."""
        steps = tuple(step.name for step in saga.steps)
        what = steps if saga.version is None else saga.version
        text = json.dumps([service, name or saga.name, what])
        return cls(hashlib.sha256(text.encode()).hexdigest()[:16], name or saga.name, steps)


@dataclass(frozen=True, slots=True)
class Deployment:
    """What the living workers of a service know, as one of them has last seen it.

    Attributes:
        mine: the versions that this process has, by saga.
        alive: the versions that some living worker has, by saga, the newest first.
        since: when this process began to look, by the database's clock.
    """

    mine: Mapping[str, Version] = field(default_factory=dict)
    alive: Mapping[str, Sequence[Version]] = field(default_factory=dict)
    since: datetime | None = None

    @property
    def others(self) -> list[str]:
        """The versions of our sagas that other living workers have, and this process has not."""
        mine = {one.id for one in self.mine.values()}
        return [one.id for saga in self.mine for one in self.alive.get(saga, ()) if one.id not in mine]


def executing_version(saga: str, version: str, needs: str | None, deployment: Deployment) -> Version | None:
    """Return the version whose workers execute a run; None if no living one knows what it needs.

    Args:
        saga: the run's saga, which this process has.
        version: the version that the run belongs to; empty for a run that has not begun.
        needs: the step whose callback is due; None when none is.
        deployment: what is known of the living.
    """
    mine = deployment.mine[saga]
    alive = deployment.alive.get(saga, ())
    own = [mine] if version in ("", mine.id) else [one for one in alive if one.id == version]
    # Its own version may lack a step, too: another one has begun what is to be undone.
    return next((one for one in (*own, *alive, mine) if needs is None or needs in one.steps), None)


def left_out(before: Sequence[str], after: Sequence[str], needs: str, executed: Collection[str]) -> list[str]:
    """Return the steps that a run would silently leave out if it moved to another version of its saga.

    Those are the steps that were still to come, that the other version has too, but not behind the one that is due.

    Args:
        before: the steps of the version that the run belongs to, in order.
        after: the steps of the version that would take it over.
        needs: the step that is due, which both have.
        executed: the steps that the run has executed.
    """
    if needs not in before or needs not in after:
        return []
    to_come, still_to_come = before[before.index(needs) :], after[after.index(needs) :]
    return [step for step in to_come if step in after and step not in still_to_come and step not in executed]
