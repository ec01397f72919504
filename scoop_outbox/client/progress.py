"""Where a hierarchy stands that has not ended, in a few lines: what somebody is told who has waited too long."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from scoop_outbox.core.plans.inspect import read_open
from scoop_outbox.core.run import RunState
from scoop_outbox.core.statement import Plan

_SHOWN = 5


def read_standing(message_id: uuid.UUID) -> Plan[str]:
    """Return what a hierarchy waits for, in lines; empty when nothing of it is open."""
    runs, missing = yield from read_open(message_id, _SHOWN)
    lines = [_run(row) for row in runs] + [_missing(row) for row in missing]
    left_out = sum(rows[0][-1] - len(rows) for rows in (runs, missing) if rows)
    if left_out:
        lines.append(f"and {left_out} more: app.status() shows all of it")
    return "".join(f"\n- {line}" for line in lines)


def _run(row: Sequence[Any]) -> str:
    """Return how an open run stands, from a row of `read_open_runs`."""
    run_id, service, saga, state, step, next_step, children, idle, ahead, reason, times, why, queued, served, _ = row
    state = RunState(state)
    since = f"since {idle:.1f} s"
    if state is RunState.PARKED:
        does = f"is parked {since}, {reason}"
    elif children:
        does = f"waits for {children} open child{'ren' if children > 1 else ''} of step {step!r} {since}"
    elif queued:
        does = f"waits for its turn {since}"
    elif state is RunState.ROLLING_BACK:
        does = f"is due or at work {since}"
    else:
        due = "its first step" if step is None and next_step is None else f"step {next_step!r}"
        does = f"has {due} due or at work {since}"
    told = f"run {run_id} of saga {saga!r}, service {service!r}: {state}, {does}"
    if ahead is not None and ahead > 0:
        told += f"; it is tried again in {ahead:.1f} s"
    if times:
        told += f"; it was interrupted {times} times in a row, the last time: {why}"
    if not served and not children:
        told += f"; no worker of service {service!r} is alive"
    return told


def _missing(row: Sequence[Any]) -> str:
    """Return for whom a message is still on its way, from a row of `read_not_taken_in`."""
    message_id, service, saga, dead_letter, relayed, _ = row
    whose = "" if service is None else f" for saga {saga!r} of service {service!r}"
    told = f"message {message_id} has not been taken in{whose}: "
    if dead_letter is not None:
        return f"{told}it is dead letter {dead_letter}, see scoop-outbox dead-letters show {dead_letter}"
    told += "its transaction is not committed, or " if service is None else ""
    told += "it is in the outbox" if service is None else "it is in the outbox or at the broker"
    return told if relayed else f"{told}; no relay is alive"
