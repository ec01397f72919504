"""Where a hierarchy stands that has not ended, in lines: for somebody who has waited too long, and for operators."""

from __future__ import annotations

import uuid

from scoop_outbox.core.plans.progress import Missing, OpenElsewhere, OpenRun, read_open
from scoop_outbox.core.run import ChildState, RunState
from scoop_outbox.core.statement import Plan

RECENT = 120.0
"""Seconds within which a home counts as just heard of: it is noted once a minute."""
_SHOWN = 5


def read_standing(message_id: uuid.UUID) -> Plan[str]:
    """Return what a hierarchy waits for, in lines; empty when nothing of it is open."""
    found = yield from read_open(message_id, None, _SHOWN)
    lines = [_in_short(run) for run in found.runs] + [_in_transit(one) for one in found.missing]
    lines += [_in_another_home(one) for one in found.elsewhere]
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
    elif run.sleeps:
        does = f"sleeps behind step {run.step!r} {since}, and wakes in {run.ahead:.1f} s"
    elif run.state is RunState.ROLLING_BACK:
        does = f"is due or at work {since}"
    else:
        due = "its first step" if run.step is None and run.next_step is None else f"step {run.next_step!r}"
        does = f"has {due} due or at work {since}"
    whose = "" if run.parent_home is None else f", for home {run.parent_home!r}"
    return f"run {run.id} of saga {run.saga!r}, service {run.service!r}{whose}: {run.state}, {does}"


def missing_line(missing: Missing) -> str:
    """Return for whom a message is still on its way."""
    whose = "" if missing.service is None else f" for saga {missing.saga!r} of service {missing.service!r}"
    return f"message {missing.message_id} has not been taken in{whose}"


def elsewhere_line(one: OpenElsewhere) -> str:
    """Return for which home a child is waited for, and what was heard of it last."""
    home = home_text(one)
    waits = {
        ChildState.CANCELLING: f"cancelled; waits for {home} to confirm",
        ChildState.ROLLING_BACK: f"waits for {home} to roll back",
    }.get(one.state, f"waits for {home}")
    if one.reported is not None:
        said = f" {one.state.value!r}" if one.state is ChildState.STARTED else " of it"
        heard = f"last heard{said} {one.reported:.1f} s ago"
    elif one.launched is not None:
        heard = f"nothing heard of it in {one.launched:.1f} s"
    else:
        heard = "nothing heard of it"
    return f"{waits}: saga {one.saga!r} of service {one.service!r}, {heard}"


def home_text(one: OpenElsewhere) -> str:
    """Return how a home is called that a child lives in."""
    return f"home {str(one.home) if one.name is None else repr(one.name)}"


def silence_text(one: OpenElsewhere) -> str | None:
    """Return that a home is not known, or for how long nothing at all was heard of it, if that is long."""
    if one.heard is None:
        return "no home of this id is known here"
    if one.heard < RECENT:
        return None
    return f"{home_text(one)} was last heard of {one.heard / 60:.0f} min ago"


def interruption_text(times: int, why: str | None) -> str:
    """Return how often a run was interrupted, and why."""
    return f"it was interrupted {times} times in a row, the last time: {why}"


def dead_letter_text(number: int) -> str:
    """Return that a message was given up."""
    return f"it is dead letter {number}, see scoop-outbox dead-letters show {number}"


def _in_short(run: OpenRun) -> str:
    told = run_line(run)
    if run.ahead is not None and run.ahead > 0 and not run.sleeps:
        told += f"; it is tried again in {run.ahead:.1f} s"
    if run.interruptions:
        told += f"; {interruption_text(run.interruptions, run.interruption)}"
    if not run.served and not run.children:
        told += f"; no worker of service {run.service!r} is alive"
    return told


def _in_another_home(one: OpenElsewhere) -> str:
    told, silence = elsewhere_line(one), silence_text(one)
    return told if silence is None else f"{told}; {silence}"


def _in_transit(missing: Missing) -> str:
    told = f"{missing_line(missing)}: "
    if missing.dead_letter is not None:
        return told + dead_letter_text(missing.dead_letter)
    told += "its transaction is not committed, or " if missing.service is None else ""
    told += "it is in the outbox" if missing.service is None else "it is in the outbox or at the broker"
    return told if missing.relayed else f"{told}; no relay is alive"
