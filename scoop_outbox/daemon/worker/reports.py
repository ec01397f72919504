"""Reports: what a worker counts, and says to operators, of what has become of runs. After the commit, and once."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from scoop_outbox._log import get_logger
from scoop_outbox.core.plans.claim import Unhandled
from scoop_outbox.core.run import Run, RunState
from scoop_outbox.core.statement import Call
from scoop_outbox.daemon.counters import RunCounters
from scoop_outbox.daemon.hints import ProcessHints
from scoop_outbox.daemon.worker.alerts import Alerts, StuckRun
from scoop_outbox.daemon.worker.redaction import first_line
from scoop_outbox.failure import (
    CAUSES_LEFT_OUT,
    ChildRollbackFailed,
    ChildRolledBack,
    Failure,
    GaveUp,
    ParentSaidSo,
)
from scoop_outbox.message import Message

log = get_logger(__name__)

TEXT_LIMIT = 200
"""Characters of an exception's first line, and of a key, that a line of the log shows."""
QUIET = 10.0
"""Seconds in which one cause of interruptions is said once, however many runs it interrupts."""
_PASSED_ON = frozenset(kind.__name__ for kind in (ChildRolledBack, ChildRollbackFailed, ParentSaidSo, GaveUp))
"""Failures that tell how another one got here."""
_NAMED = 3
"""So many children that were left behind are named."""
_CAUSES = 1000
"""So many causes are remembered."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What a line of the log is about."""

    service: str
    saga: str
    run: uuid.UUID
    message: uuid.UUID
    key: str | bytes | None
    step: str | None

    @property
    def fields(self) -> dict[str, object]:
        """The fields of a line about it."""
        return {
            "service": self.service,
            "saga": self.saga,
            "run_id": self.run,
            "message_id": self.message,
            "key": self.key,
            "step": self.step,
        }

    def __str__(self) -> str:
        """Return it as it stands in such a line."""
        service, saga, step = printable(self.service), printable(self.saga), printable(self.step or "-")
        key = self.key if isinstance(self.key, str) or self.key is None else repr(self.key)
        return (
            f"service {service}, saga {saga}, run {self.run}, message {self.message}, "
            f"key {'-' if key is None else line_of(key)}, step {step}"
        )


class Reports:
    """The reports of one worker. Its methods may be called from any thread.

    Args:
        service: whose worker.
        sagas: the names of its sagas.
        hints: counts launches that nobody handles, for the whole process.
        seconds_since: how long ago a time of the database's clock was.
        alerts: told of runs that get stuck.
        via_broker: whether a broker carries the messages that are launched.

    Attributes:
        ends: how runs have ended.
    """

    def __init__(
        self,
        service: str,
        sagas: Iterable[str],
        hints: ProcessHints,
        seconds_since: Callable[[datetime], float],
        alerts: Alerts,
        *,
        via_broker: bool,
    ) -> None:
        """Have said nothing yet."""
        self._service = service
        self._hints = hints
        self._seconds_since = seconds_since
        self._alerts = alerts
        self._via_broker = via_broker
        self._interrupted = Seldom(QUIET)
        self.counters = RunCounters(sagas)

    def unhandled(self, topics: Unhandled) -> None:
        """Say once for each topic that nobody listens to what was launched."""
        self._hints.unhandled.note(topics, self._service, via_broker=self._via_broker)

    def slow(self, call: Call, seconds: float) -> None:
        """Say that a callback is being executed for long."""
        subject = _subject(call.run, call.step, call.message)
        log.warning(
            "run: step is slow (%s: its %s is being executed for more than %.0f s, and goes on)",
            *(subject, _KINDS[call.key.rpartition(":")[2]], seconds),
            extra={**subject.fields, "seconds": round(seconds, 1)},
        )

    def changed(self, run: Run, step: str | None, message: Message) -> None:
        """Count how a run has ended, and say what has gone wrong with it."""
        state = run.state
        if state.ended:
            parked = state is RunState.PARKED
            self.counters.note(run.saga, state, None if parked else self._seconds_since(message.created_at))
        if state in (RunState.PARKED, RunState.ROLLBACK_FAILED):
            self._alerts.tell(_stuck(_subject(run, step, message), state, _told(run), run.obstacle))
        level = _level(run)
        if level is not None and log.isEnabledFor(level):
            subject = _subject(run, step, message)
            reason = _told(run)
            log.log(level, _EVENTS[state], subject, reason, extra={**subject.fields, "reason": reason})
        if run.late and state in (RunState.ROLLED_BACK, RunState.ROLLBACK_FAILED):
            log.error(
                "run: late run failed (service %s, saga %s, run %s: %s, and no parent waits for it: %s)",
                *(run.service, run.saga, run.id, state),
                "no failure is known" if run.told is None else f"{run.told.type} in {run.told.source}",
                extra={"service": run.service, "saga": run.saga, "run_id": run.id},
            )

    def cancels_children(self, run: Run, reason: Failure, message: Message) -> None:
        """Say that a run has told its children to give up, and waits for them."""
        subject, why = _subject(run, run.step, message), _why(reason, run.saga)
        event = "giving up" if run.giving_up is not None else "failing fast"
        log.info(_CANCELS[event], subject, why, extra={**subject.fields, "reason": why})

    def expires_children(self, run: Run, reason: Failure, message: Message) -> None:
        """Say that children have failed that had not started by their deadline."""
        subject, why = _subject(run, run.step, message), _why(reason, run.saga)
        log.info("run: children were late (%s: %s)", subject, why, extra={**subject.fields, "reason": why})

    def leaves_behind(self, run: Run, participants: Sequence[tuple[str, str]], message: Message) -> None:
        """Say that a run does not wait any longer for children that have not started: of these services and sagas."""
        subject = _subject(run, run.step, message)
        whom = sorted({f"{saga} in {service}" for service, saga in participants})
        who = ", ".join(whom[:_NAMED]) + (f" and {len(whom) - _NAMED} more" if len(whom) > _NAMED else "")
        why = f"not started: {who}"
        log.warning("run: children were left behind (%s: %s)", subject, why, extra={**subject.fields, "reason": why})

    def healed(self, run: Run, message: Message) -> None:
        """Say that a run whose rollback had failed goes on by itself."""
        subject = _subject(run, run.step, message)
        log.info(
            "run: rolling back again (%s: what had stopped it below has been rolled back)",
            subject,
            extra=subject.fields,
        )

    def passes_over(self, run: Run, step: str | None, message: Message) -> None:
        """Say that a rollback goes on though something could not be undone; at its end it will have failed."""
        subject = _subject(run, step, message)
        why = "" if run.unresolved is None else _why(run.unresolved, run.saga)
        log.error(
            "run: not undone, rolling back all the same (%s: %s)", subject, why, extra={**subject.fields, "reason": why}
        )

    def discarded(self, run: Run, step: str, message: Message) -> None:
        """Say that what a step has done was undone, for its run was asked to give up meanwhile."""
        subject = _subject(run, step, message)
        log.info("run: step discarded, the run gives up (%s)", subject, extra=subject.fields)

    def interrupted(self, subject: Subject, reason: str, count: int, host: str) -> None:
        """Say that a run was interrupted and is executed again; a cause that interrupts many runs is said seldom."""
        others = self._interrupted.take(f"{subject.saga}: {reason}")
        log.log(
            logging.DEBUG if others is None else logging.WARNING,
            "run: interrupted, will be executed again (%s, at %s, %d in a row%s: %s)",
            *(subject, host, count, f", {others} more like it were not logged" if others else "", reason),
            extra={**subject.fields, "host": host, "interruptions": count, "reason": reason},
        )

    def parked(self, subject: Subject, reason: str, count: int, host: str) -> None:
        """Say that a run was interrupted so often that it is parked."""
        self.counters.note(subject.saga, RunState.PARKED, None)
        why = f"interrupted {count} times in a row without progress, the last time: {reason}"
        self._alerts.tell(_stuck(subject, RunState.PARKED, why, None))
        log.error(
            "run: parked (%s, at %s, interrupted %d times in a row without progress, the last time: %s; fix the cause, "
            "then run: scoop-outbox retry %s)",
            *(subject, host, count, reason, subject.run),
            extra={**subject.fields, "host": host, "interruptions": count, "reason": reason},
        )


class Seldom:
    """Decides what is said and what is only counted, so that one cause does not fill the log.

    Args:
        seconds: for how long a cause is only counted after it has been said.
    """

    def __init__(self, seconds: float) -> None:
        """Have said nothing yet."""
        self._seconds = seconds
        self._said: dict[str, tuple[float, int]] = {}

    def take(self, cause: str) -> int | None:
        """Return how often a cause was not said since it was said last; None when it is not to be said now, either."""
        now = time.monotonic()
        at, unsaid = self._said.get(cause, (None, 0))
        if at is not None and now - at < self._seconds:
            self._said[cause] = at, unsaid + 1
            return None
        if len(self._said) >= _CAUSES:
            self._said.clear()
        self._said[cause] = now, 0
        return unsaid


def _subject(run: Run, step: str | None, message: Message) -> Subject:
    return Subject(run.service, run.saga, run.id, message.id, message.key, step)


def _stuck(of: Subject, state: RunState, reason: str, failure: Failure | None) -> StuckRun:
    return StuckRun(of.run, of.message, of.service, of.saga, of.key, of.step, state, reason, failure)


_CANCELS = {
    "giving up": "run: giving up, children were told (%s: %s)",
    "failing fast": "run: failing fast, children were told (%s: %s)",
}
_KINDS = {
    "step": "body",
    "child-failure": "handler of failures",
    "finaliser": "finaliser",
    "compensation": "compensation",
    "child-rollback-failure": "handler of rollback failures",
}
"""What a callback is to its step, by the end of its key."""
_EVENTS = {
    RunState.ROLLING_BACK: "run: rolling back (%s: %s)",
    RunState.ROLLED_BACK: "run: rolled back for its parent (%s: %s)",
    RunState.ROLLBACK_FAILED: "run: rollback failed (%s: %s)",
    RunState.PARKED: "run: parked (%s: %s)",
}


def _level(run: Run) -> int | None:
    """Return how loudly it is said that a run has got into its state; None when there is nothing to say."""
    match run.state:
        case RunState.ROLLING_BACK:
            # One of a root is the end of a hierarchy; one of a child its parent may be prepared for.
            return logging.WARNING if run.parent_run is None else logging.INFO
        case RunState.ROLLED_BACK:
            # What it has failed with itself was said when that happened.
            asked = run.failure is not None and run.failure.type == ParentSaidSo.__name__
            return logging.DEBUG if asked else None
        case RunState.ROLLBACK_FAILED | RunState.PARKED:
            return logging.ERROR
        case _:
            return None


def _told(run: Run) -> str:
    """Return why a run is in its state, in a line."""
    if run.state is RunState.PARKED:
        return printable(run.reason or "")
    why = _why(run.failure, run.saga)
    if run.state is RunState.ROLLBACK_FAILED:
        return f"{_why(run.obstacle, run.saga)}; it was to be rolled back for: {why}"
    return why


def _why(failure: Failure | None, saga: str) -> str:
    """Return why something failed, in a line: what was raised where it began, and what that was caused by."""
    if failure is None:
        return "no failure is known"
    while failure.type in _PASSED_ON and (below := _first_cause(failure)) is not None:
        failure = below
    root = failure
    while (below := _first_cause(root)) is not None:
        root = below
    text = _described(failure)
    if root is not failure:
        text += f" (root cause: {_described(root)})"
    return text if failure.source.startswith(f"{saga}[") else f"{text}, in {line_of(failure.source)}"


def _first_cause(failure: Failure) -> Failure | None:
    for cause in failure.causes:
        # What stands for levels that were left out has the root causes below it, or nothing.
        known = cause if cause.type != CAUSES_LEFT_OUT else _first_cause(cause)
        if known is not None:
            return known
    return None


def _described(failure: Failure) -> str:
    # The first line alone: the others are details. And not that one, where a library quotes in it what it was given.
    first = first_line(failure.type, failure.message)
    return f"{line_of(failure.type)}: {line_of(first)}" if first else line_of(failure.type)


def line_of(text: str) -> str:
    """Return the beginning of a text, in one line whatever it holds."""
    return printable(text if len(text) <= TEXT_LIMIT else f"{text[: TEXT_LIMIT - 3]}...")


def printable(text: str) -> str:
    """Return a text in one line, whatever it holds."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
