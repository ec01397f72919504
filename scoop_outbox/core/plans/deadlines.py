"""Deadlines: what launches and steps say about time, by the database's clock. It is asked only if somebody needs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from scoop_outbox._deadlines import NONE, Deadlines
from scoop_outbox._emission import Emission
from scoop_outbox.core.deadline import passed_on
from scoop_outbox.core.plans.claim import Claim
from scoop_outbox.core.run import RunState, changed
from scoop_outbox.core.statement import Plan, ask, statement
from scoop_outbox.core.transition import Returned

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def date_launches(emissions: Sequence[Emission], source: str) -> Plan[Sequence[Emission]]:
    """Return messages that are launched from outside any run, with their deadlines.

    Args:
        emissions: the messages.
        source: who launches them.
    """
    now = yield from _now(emissions)
    return (
        [_dated(one, now, source, NONE) for one in emissions] if any(one.timeouts for one in emissions) else emissions
    )


def date_outcome(outcome: Returned, claimed: Claim, step: str, *, finalises: bool = False) -> Plan[Returned]:
    """Return what a callback of a step has left, with the deadline of its run and those of what it launches.

    Args:
        outcome: what it has left.
        claimed: its run.
        step: the name of the step.
        finalises: whether it is a finaliser: what that launches is not late.
    """
    asks, run, saga = outcome.asks, claimed.run, claimed.saga
    now = yield from _now(outcome.emissions, asks_the_clock=asks is not None and asks.asks_the_clock)
    if asks is not None:
        outcome = replace(outcome, deadline=asks.resolve(now, claimed.source).happy_path)
        run = changed(run, own_deadline=outcome.deadline)
    of = saga.get(step)
    shielded = finalises or saga.shield or (of is not None and of.options.shield)
    above = passed_on(saga, run, claimed.facts.now, shielded=shielded)
    if above == NONE and not any(one.timeouts for one in outcome.emissions):
        return outcome
    bound = run.state is RunState.ROLLING_BACK  # the run is not late itself: it looks after what it launches
    dated = [_dated(one, now, claimed.source, above, bound=bound) for one in outcome.emissions]
    return replace(outcome, emissions=dated)


def _dated(emission: Emission, now: datetime, source: str, above: Deadlines, *, bound: bool = False) -> Emission:
    own = NONE if emission.timeouts is None else emission.timeouts.resolve(now, source)
    deadlines = own.within(above) if emission.awaited else own
    by = deadlines.happy_path if emission.awaited and (bound or own.happy_path is not None) else None
    return replace(emission, deadlines=deadlines, child_deadline=None if by is None else by.at)


def _now(emissions: Sequence[Emission], *, asks_the_clock: bool = False) -> Plan[datetime]:
    """Return the time of the database, which is asked only if somebody needs it."""
    if not asks_the_clock and not any(one.timeouts is not None and one.timeouts.asks_the_clock for one in emissions):
        return _EPOCH
    (rows,) = yield from ask(statement("read_epoch"))
    return _EPOCH + timedelta(microseconds=rows[0][0])
