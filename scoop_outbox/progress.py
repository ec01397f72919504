"""Where a hierarchy stands that has not ended, in lines: for somebody who has waited too long, and for operators."""

from __future__ import annotations

import uuid

from scoop_outbox.core.plans.progress import Missing, OpenRun, read_open
from scoop_outbox.core.run import RunState
from scoop_outbox.core.statement import Plan

_SHOWN = 5


def read_standing(message_id: uuid.UUID) -> Plan[str]:
    """Return what a hierarchy waits for, in lines; empty when nothing of it is open."""
    found = yield from read_open(message_id, None, _SHOWN)
    lines = [_in_short(run) for run in found.runs] + [_in_transit(one) for one in found.missing]
    if found.left_out:
        lines.append(f"and {found.left_out} more: app.status() shows all of it")
    return "".join(f"\n- {line}" for line in lines)


def run_line(run: OpenRun) -> str:
    """Return how an open run stands."""
    since = f"since {run.idle:.1f} s"
    if run.state is RunState.PARKED:
        does = f"is parked {since}, {run.reason}"
    elif run.children:
        does = f"waits for {run.children} open child{'ren' if run.children > 1 else ''} of step {run.step!r} {since}"
    elif run.queued:
        does = f"waits for its turn {since}"
    elif run.state is RunState.ROLLING_BACK:
        does = f"is due or at work {since}"
    else:
        due = "its first step" if run.step is None and run.next_step is None else f"step {run.next_step!r}"
        does = f"has {due} due or at work {since}"
    return f"run {run.id} of saga {run.saga!r}, service {run.service!r}: {run.state}, {does}"


def missing_line(missing: Missing) -> str:
    """Return for whom a message is still on its way."""
    whose = "" if missing.service is None else f" for saga {missing.saga!r} of service {missing.service!r}"
    return f"message {missing.message_id} has not been taken in{whose}"


def interruption_text(times: int, why: str | None) -> str:
    """Return how often a run was interrupted, and why."""
    return f"it was interrupted {times} times in a row, the last time: {why}"


def dead_letter_text(number: int) -> str:
    """Return that a message was given up."""
    return f"it is dead letter {number}, see scoop-outbox dead-letters show {number}"


def _in_short(run: OpenRun) -> str:
    told = run_line(run)
    if run.ahead is not None and run.ahead > 0:
        told += f"; it is tried again in {run.ahead:.1f} s"
    if run.interruptions:
        told += f"; {interruption_text(run.interruptions, run.interruption)}"
    if not run.served and not run.children:
        told += f"; no worker of service {run.service!r} is alive"
    return told


def _in_transit(missing: Missing) -> str:
    told = f"{missing_line(missing)}: "
    if missing.dead_letter is not None:
        return told + dead_letter_text(missing.dead_letter)
    told += "its transaction is not committed, or " if missing.service is None else ""
    told += "it is in the outbox" if missing.service is None else "it is in the outbox or at the broker"
    return told if missing.relayed else f"{told}; no relay is alive"
