"""Launches under ids of the caller's: the same message under the same id is the same launch, and is written once."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence

from scoop_outbox.core.statement import Plan, Statement, ask, statement
from scoop_outbox.errors import ConflictingMessage
from scoop_outbox.message import is_json
from scoop_outbox.scope import Emission


def claim_ids(emissions: Sequence[Emission], *before: Statement) -> Plan[Sequence[Emission]]:
    """Return the messages that are to be written: those whose ids the caller has not given, or nobody has claimed yet.

    Whoever claims an id that an open transaction has claimed waits for its end. Nothing is asked where no id was given.

    Args:
        emissions: the messages.
        before: what is to be executed ahead, in the same round trip.

    Raises:
        ConflictingMessage: another message has one of the ids; no other is claimed then.
    """
    given: dict[uuid.UUID, tuple[str, str]] = {}
    for one in emissions:
        if one.given:
            known = given.setdefault(one.message_id, (one.topic, digest(one)))
            _compare(one, known)
    if not given:
        return emissions
    topics, digests = zip(*given.values(), strict=True)
    *_, rows = yield from ask(
        *before, statement("claim_ids", ids=list(given), topics=list(topics), digests=list(digests))
    )
    claimed = {message_id for (message_id,) in rows}
    others = [one for one in emissions if one.given and one.message_id not in claimed]
    if others:
        # A statement of its own: it sees what the other transaction has committed while the claim waited for it.
        (rows,) = yield from ask(statement("read_launched", ids=[one.message_id for one in others]))
        launched = {message_id: (topic, text) for message_id, topic, text in rows}
        try:
            for one in others:
                _compare(one, launched.get(one.message_id))
        except ConflictingMessage:
            # The caller may commit what else it has done: an id that stayed claimed could never be launched.
            yield from ask(statement("release_ids", ids=list(claimed)))
            raise
    fresh: list[Emission] = []
    for one in emissions:
        if not one.given:
            fresh.append(one)
        elif one.message_id in claimed:
            claimed.remove(one.message_id)  # once, though it be given twice
            fresh.append(one)
    return fresh


def digest(emission: Emission) -> str:
    """Return what tells a message from others of its topic: its key, content type and body.

    JSON counts by what it says, not by the order of its keys. Headers and context do not count: they tell how the
    message came to be launched, a trace for example, which is another one each time that it is tried.
    """
    body = emission.body
    if is_json(emission.content_type):
        try:
            body = json.dumps(json.loads(body), sort_keys=True).encode()
        except (ValueError, RecursionError):
            body = emission.body
    found = hashlib.sha256()
    for part in (emission.key or "", emission.content_type):
        encoded = part.encode()
        found.update(b"%d:%s" % (len(encoded), encoded))
    found.update(b"key" if emission.key is not None else b"")
    found.update(b":" + body)
    return found.hexdigest()


def _compare(one: Emission, launched: tuple[str, str] | None) -> None:
    """Refuse a message whose id another one has.

    Raises:
        ConflictingMessage: saying in what they differ.
    """
    if launched is None:
        differs = "is that of a message that was not launched under an id of the caller's"
    elif launched[0] != one.topic:
        differs = f"was launched on topic {launched[0]!r} before, and this message is for {one.topic!r}"
    elif launched[1] != digest(one):
        differs = f"was launched on topic {one.topic!r} before, with another payload, content type or key"
    else:
        return
    raise ConflictingMessage(
        f"the id {one.message_id} {differs}: nothing was launched. An id is one message's: derive others from it, with "
        "uuid.uuid5(id, 'invoice') for example"
    )
