"""Explaining: what a run, or the hierarchy below a message, waits for."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from scoop_outbox.core.plans.explain import Situation, Workers, read_situations, read_stuck_below, read_workers_of
from scoop_outbox.core.plans.failures import Known
from scoop_outbox.core.plans.inspect import read_whereabouts
from scoop_outbox.core.plans.progress import Missing, OpenElsewhere, OpenRun, read_open
from scoop_outbox.core.statement import Plan, Rows
from scoop_outbox.operations import reasons
from scoop_outbox.operations.explanation import Explanation, Waiting
from scoop_outbox.operations.prefixes import find
from scoop_outbox.progress import elsewhere_line, missing_line, run_line

MOST = 100
"""How many open runs, and messages, are explained: those first that all others wait for."""


def explain(sought: uuid.UUID | str, known: Known) -> Plan[Explanation]:
    """Say what a run, or the hierarchy below a message, waits for.

    Args:
        sought: the id of the message or the run, or how it begins.
        known: what is known of failures.

    Raises:
        DefinitionError, UnknownMessage, AmbiguousId: as `find`.
    """
    found = yield from find(sought)
    message_id = found.message_id if found.run_id is None else None
    progress = yield from read_open(message_id, found.run_id, MOST)
    runs = yield from _runs(progress.runs, known)
    waiting = [*runs, *(yield from _messages(progress.missing)), *(yield from _elsewhere(progress.elsewhere))]
    if not waiting:
        ended = yield from read_stuck_below(message_id, found.run_id, MOST)
        waiting = [_ended(one) for one in (yield from read_situations(ended, known))]
    return Explanation(found.message_id, found.run_id, tuple(waiting), progress.left_out)


def _runs(runs: Sequence[OpenRun], known: Known) -> Plan[list[Waiting]]:
    situations = yield from read_situations([run.id for run in runs], known)
    by_run = {one.run.id: one for one in situations}
    return [_run(run, by_run[run.id]) for run in runs if run.id in by_run]


def _run(run: OpenRun, one: Situation) -> Waiting:
    return Waiting(
        run.id,
        run.message_id,
        run.parent,
        run.service,
        run.saga,
        one.run.state,
        run_line(run),
        None if one.due is None else reasons.next_text(one.due),
        run.children,
        tuple(reasons.of_run(one, children=bool(run.children))),
    )


def _ended(one: Situation) -> Waiting:
    run = one.run
    text = f"run {run.id} of saga {run.saga!r}, service {run.service!r}: {run.state}"
    why = tuple(reasons.of_ended(one))
    return Waiting(run.id, run.message_id, run.parent_run, run.service, run.saga, run.state, text, None, 0, why)


def _messages(missing: Sequence[Missing]) -> Plan[list[Waiting]]:
    if not missing:
        return []
    places = yield from read_whereabouts(list(dict.fromkeys(one.message_id for one in missing)))
    workers = yield from read_workers_of(one.service for one in missing if one.service is not None)
    nobody = Workers(0, {})
    return [
        Waiting(
            None,
            one.message_id,
            one.parent,
            one.service,
            one.saga,
            None,
            missing_line(one),
            None,
            0,
            tuple(reasons.of_message(one, places, workers.get(one.service or "", nobody))),
        )
        for one in missing
    ]


def _elsewhere(children: Sequence[OpenElsewhere]) -> Plan[list[Waiting]]:
    places: Rows = []
    if unheard := [one.message_id for one in children if one.reported is None]:
        places = yield from read_whereabouts(list(dict.fromkeys(unheard)))
    return [
        Waiting(
            one.run_id,
            one.message_id,
            one.parent,
            one.service,
            one.saga,
            None,
            elsewhere_line(one),
            None,
            0,
            tuple(reasons.of_elsewhere(one, places)),
            one.name or str(one.home),
        )
        for one in children
    ]
