"""Plans of strategies: what they look at is read, and whom they wait for is written, only for sagas that have one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime

from scoop_outbox._emission import Emission
from scoop_outbox.core.run import Run, RunState
from scoop_outbox.core.statement import Plan, Statement, ask, document, statement
from scoop_outbox.core.transition import Returned
from scoop_outbox.saga import Saga
from scoop_outbox.strategy import OpenChild, Outlook, Participant, Strategy


def read_outlook(run: Run, now: datetime) -> Plan[Outlook]:
    """Return what the strategy of a run's saga looks at.

    Args:
        run: the run, locked.
        now: the time, by the database's clock.
    """
    (rows,) = yield from ask(statement("read_open_children", run=run.id))
    children = tuple(
        OpenChild(message_id, Participant(service, saga), started, launched_at)
        for message_id, service, saga, started, launched_at in rows
    )
    began_at = run.created_at or now
    back = run.state is RunState.ROLLING_BACK
    return Outlook(now, run.id, run.message_id, run.saga, run.step, back, began_at, children)


def expect_participants(outcome: Returned, saga: Saga, *, across: bool) -> Plan[Returned]:
    """Return what a callback has left, with who is waited for of each message, if the strategy says that."""
    strategy = saga.strategy
    if strategy is None or type(strategy).expect is Strategy.expect or not outcome.emissions:
        return outcome
    topics = sorted({emission.topic for emission in outcome.emissions if emission.awaited})
    look = (
        statement("read_participants_across", topics=topics)
        if across
        else statement("read_participants", topics=topics)
    )
    (rows,) = yield from ask(look)
    subscribed: dict[str, list[Participant]] = defaultdict(list)
    for topic, service, name in rows:
        subscribed[topic].append(Participant(service, name))
    chosen = {topic: tuple(dict.fromkeys(strategy.expect(topic, tuple(subscribed[topic])))) for topic in topics}
    emissions = [replace(one, expects=chosen[one.topic]) if one.awaited else one for one in outcome.emissions]
    return replace(outcome, emissions=emissions)


def expected(emissions: Sequence[Emission], run: Run, seq: int) -> Iterator[Statement]:
    """Write who is waited for instead of those that are subscribed.

    Args:
        emissions: what was launched.
        run: by which run.
        seq: by which execution.
    """
    messages = [
        {
            "id": str(emission.message_id),
            "ordinal": ordinal,
            "deadline": None if emission.child_deadline is None else emission.child_deadline.isoformat(),
            "handlers": [[one.service, one.saga] for one in emission.expects],
        }
        for ordinal, emission in enumerate(emissions, 1)
        if emission.expects is not None
    ]
    if messages:
        yield statement("expect_children", document=document(messages), run=run.id, seq=seq)
