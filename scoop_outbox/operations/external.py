"""Work of external participants: whoever ends it may shorten its id."""

from __future__ import annotations

import uuid

from scoop_outbox.answers import Answer
from scoop_outbox.core.plans.external import completion, failing, say
from scoop_outbox.core.statement import Plan
from scoop_outbox.operations.prefixes import find_target
from scoop_outbox.store.home import Home


def complete(
    target: uuid.UUID | str, name: str, result: object, service: str | None, source: str, home: Home
) -> Plan[Answer]:
    """Do what `Runs.complete` says."""
    word = completion((yield from find_target(target)), name, result, service, source, home.limits)
    return (yield from say(word, home.failures, None))


def fail(
    target: uuid.UUID | str,
    name: str,
    reason: str | None,
    error: BaseException | None,
    service: str | None,
    source: str,
    home: Home,
) -> Plan[Answer]:
    """Do what `Runs.fail` says."""
    word = failing((yield from find_target(target)), name, reason, error, service, source)
    return (yield from say(word, home.failures, None))
