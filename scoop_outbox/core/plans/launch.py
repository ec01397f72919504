"""Plans of launching: messages from outside any run are written into the outbox."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from scoop_outbox._emission import Emission
from scoop_outbox.core.plans.claim import Hints, Unhandled
from scoop_outbox.core.plans.deadlines import date_launches
from scoop_outbox.core.plans.idempotency import claim_ids
from scoop_outbox.core.plans.required_handlers import check_handlers
from scoop_outbox.core.run import Run
from scoop_outbox.core.statement import BEGIN, COMMIT, Plan, Rows, Statement, ask, document, statement
from scoop_outbox.wire.headers import CONTEXT, DEADLINES, LAUNCHED_AT, LINEAGE


@dataclass(frozen=True, slots=True)
class Here:
    """A service that launches, and will handle what it launches, though nobody but its own process knows that yet.

    Attributes:
        service: its name.
        sagas: those that listen on each topic that is launched on.
    """

    service: str
    sagas: Mapping[str, Sequence[str]]


def launch(
    emissions: Sequence[Emission],
    *,
    source: str = "scoop_outbox",
    via_broker: bool = False,
    across: bool = False,
    here: Here | None = None,
) -> Plan[Unhandled]:
    """Write messages from outside any run into the outbox, in whatever transaction is open.

    Returns the topics of those that no saga is subscribed to. Raises `UnhandledMessage` if one of them must not be, and
    `ConflictingMessage` if another message has the id that a caller gave one; one that was launched under it is left.

    Args:
        emissions: the messages.
        source: who launches them.
        via_broker: whether a broker carries them, and not this home itself.
        across: whether sagas of other homes may be waited for.
        here: who handles them and has not been announced; whoever waits for a message waits for them, too.
    """
    yield from check_handlers(emissions, across=across)
    fresh = yield from claim_ids(emissions)
    if not fresh:
        return []
    fresh = yield from date_launches(fresh, source)
    unhandled, *_ = yield from ask(*_launching(fresh, here, via_broker=via_broker, across=across))
    return _unhandled(unhandled, fresh, here)


def launch_and_commit(
    emissions: Sequence[Emission],
    hints: Hints,
    *,
    source: str = "scoop_outbox",
    via_broker: bool = False,
    across: bool = False,
    here: Here | None = None,
) -> Plan[Unhandled]:
    """Do as `launch` in a transaction of its own."""
    yield from check_handlers(emissions, across=across)
    fresh = yield from claim_ids(emissions, BEGIN)
    if not fresh:
        yield from ask(COMMIT)
        return []
    fresh = yield from date_launches(fresh, source)
    begin = [] if any(one.given for one in emissions) else [BEGIN]
    launching = _launching(fresh, here, via_broker=via_broker, across=across)
    *_, unhandled = (yield from ask(*begin, *launching, COMMIT))[: len(begin) + 1]
    hints.outbox()
    return _unhandled(unhandled, fresh, here)


def _unhandled(places: Rows, emissions: Sequence[Emission], here: Here | None) -> Unhandled:
    topics = [emissions[place - 1].topic for (place,) in places]
    return [topic for topic in topics if here is None or not here.sagas.get(topic)]


def _launching(
    emissions: Sequence[Emission], here: Here | None, *, via_broker: bool, across: bool
) -> Iterator[Statement]:
    params = launch_params(emissions, None, 0, via_broker=via_broker)
    yield statement("launch_across", **params) if across else statement("launch", **params)
    expected = [] if here is None else [(one.message_id, saga) for one in emissions for saga in here.sagas[one.topic]]
    if here is not None and expected:
        handlers = [{"id": str(message_id), "saga": saga} for message_id, saga in expected]
        yield statement("expect_here", document=document({"service": here.service, "handlers": handlers}))


def launch_params(emissions: Sequence[Emission], run: Run | None, seq: int, *, via_broker: bool) -> dict[str, Any]:
    """Return the parameters of `launch` for messages of a run, or for messages from outside when there is none.

    If services take them in at different times, who is to handle a root is written down, for those who wait for it.
    """
    lineage = "" if run is None else ",".join(map(str, run.lineage))
    starts = accumulate((len(emission.body) for emission in emissions), initial=0)
    messages = [
        {
            "id": str(emission.message_id),
            "topic": emission.topic,
            "key": emission.key,
            "start": start,
            "size": len(emission.body),
            "content_type": emission.content_type,
            # Text within text: Postgres looks for broken characters in what it takes apart, and headers may hold such.
            "headers": json.dumps(_headers(emission, lineage)),
            "awaited": emission.awaited and run is not None,
            "deadline": None if emission.child_deadline is None else emission.child_deadline.isoformat(),
        }
        for emission, start in zip(emissions, starts, strict=False)
    ]
    return {
        "document": document(messages),
        "bodies": b"".join(emission.body for emission in emissions),
        "run": None if run is None else run.id,
        "seq": seq,
        "via_broker": via_broker,
    }


def _headers(emission: Emission, lineage: str) -> dict[str, str]:
    headers = dict(emission.headers)
    if emission.awaited and lineage:
        headers[LINEAGE] = lineage
    if emission.context is not None:
        headers[CONTEXT] = emission.context
    deadlines = emission.deadlines.dumps()
    if deadlines is not None:
        headers[DEADLINES] = deadlines
    headers[LAUNCHED_AT] = json.dumps(emission.launched_at.to_json())
    return headers
