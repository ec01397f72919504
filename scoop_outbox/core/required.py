"""Launches that somebody has to handle: asked for before anything is written, and only if a launch demands it."""

from __future__ import annotations

from collections.abc import Sequence

from scoop_outbox.core.statement import Plan, ask, statement
from scoop_outbox.errors import UnhandledMessage
from scoop_outbox.scope import Emission


def check_handlers(emissions: Sequence[Emission]) -> Plan[None]:
    """See whether those are subscribed that the messages need.

    Raises:
        UnhandledMessage: they are not.
    """
    demanding = [emission for emission in emissions if emission.handlers is not None]
    if not demanding:
        return
    topics = sorted({emission.topic for emission in demanding})
    (rows,) = yield from ask(statement("read_listeners", topics=topics))
    for emission in demanding:
        listening = {saga for topic, saga in rows if topic == emission.topic}
        missing = sorted(set(emission.handlers or ()) - listening)
        if missing or not listening:
            raise UnhandledMessage(_missing(emission.topic, missing))


def _missing(topic: str, missing: Sequence[str]) -> str:
    who = f"saga {', '.join(map(repr, missing))} is not" if missing else "no saga is"
    return (
        f"{who} subscribed to topic {topic!r}, and the launch needs it: nothing was launched. A saga is "
        "subscribed once its service has run"
    )
