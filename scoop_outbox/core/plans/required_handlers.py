"""Launches that somebody has to handle: asked for before anything is written, and only if a launch demands it."""

from __future__ import annotations

from collections.abc import Sequence

from scoop_outbox._emission import Emission
from scoop_outbox.core.statement import Plan, ask, document, statement
from scoop_outbox.errors import UnhandledMessage


def check_handlers(emissions: Sequence[Emission]) -> Plan[None]:
    """See whether those are subscribed that the messages need.

    Raises:
        UnhandledMessage: they are not.
    """
    demanding = [emission for emission in emissions if emission.handlers is not None]
    if not demanding:
        return
    topics = sorted({emission.topic for emission in demanding})
    sagas = sorted({saga for emission in demanding for saga in emission.handlers or ()})
    asked = document({"topics": topics, "sagas": sagas})
    (rows,) = yield from ask(statement("read_listeners", document=asked))
    handled = {topics[place - 1] for place, _ in rows}
    listening = {(topics[place - 1], sagas[saga - 1]) for place, saga in rows if saga is not None}
    for emission in demanding:
        missing = [saga for saga in sorted(set(emission.handlers or ())) if (emission.topic, saga) not in listening]
        if missing or emission.topic not in handled:
            raise UnhandledMessage(_missing(emission.topic, missing))


def _missing(topic: str, missing: Sequence[str]) -> str:
    who = f"saga {', '.join(map(repr, missing))} is not" if missing else "no saga is"
    return (
        f"{who} subscribed to topic {topic!r}, and the launch needs it: nothing was launched. A saga is "
        "subscribed once its service has run"
    )
