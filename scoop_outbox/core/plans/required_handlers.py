"""Launches that somebody has to handle: asked for before anything is written, and only if a launch demands it."""

from __future__ import annotations

from collections.abc import Sequence

from scoop_outbox._emission import Emission
from scoop_outbox.core.statement import Plan, ask, document, statement
from scoop_outbox.errors import UnhandledMessage


def check_handlers(emissions: Sequence[Emission], *, across: bool) -> Plan[None]:
    """See whether those are subscribed that the messages need.

    Args:
        emissions: the messages.
        across: whether sagas of other homes count.

    Raises:
        UnhandledMessage: they are not.
    """
    demanding = [emission for emission in emissions if emission.handlers is not None]
    if not demanding:
        return
    topics = sorted({emission.topic for emission in demanding})
    sagas = sorted({saga for emission in demanding for saga in emission.handlers or ()})
    asked = document({"topics": topics, "sagas": sagas})
    look = statement("read_listeners_across", document=asked) if across else statement("read_listeners", document=asked)
    (rows,) = yield from ask(look)
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
