"""Launches under ids of the caller's: the same message under the same id is the same launch, and is written once."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence
from typing import NamedTuple

from scoop_outbox._emission import Emission
from scoop_outbox.core.statement import Plan, Statement, ask, document, statement
from scoop_outbox.errors import ConflictingMessage
from scoop_outbox.message import is_json


def claim_ids(emissions: Sequence[Emission], *before: Statement) -> Plan[Sequence[Emission]]:
    """Return the messages that are to be written: those whose ids the caller has not given, or nobody has claimed yet.

    Whoever claims an id that an open transaction has claimed waits for its end. Nothing is asked where no id was given.

    Args:
        emissions: the messages.
        before: what is to be executed ahead, in the same round trip.

    Raises:
        ConflictingMessage: another message has one of the ids; no other is claimed then.
    """
    claims = list(_given(emissions).values())
    if not claims:
        return emissions
    *_, rows = yield from ask(*before, statement("claim_ids", claims=_document(claims)))
    claimed = [claims[place - 1] for (place,) in rows]
    ids = {one.id for one in claimed}
    if len(claimed) < len(claims):
        yield from _check([one for one in claims if one.id not in ids], claimed)
    fresh: list[Emission] = []
    for one in emissions:
        if not one.given or one.message_id in ids:
            ids.discard(one.message_id)  # once, though it be given twice
            fresh.append(one)
    return fresh


def _given(emissions: Sequence[Emission]) -> dict[uuid.UUID, _Claim]:
    """Return the ids that the caller has given, and for what.

    Raises:
        ConflictingMessage: he has given one to two messages.
    """
    given: dict[uuid.UUID, _Claim] = {}
    for one in emissions:
        if one.given:
            claim = _Claim(one.message_id, one.topic, digest(one), one.dedup_key)
            if not given.setdefault(one.message_id, claim).is_of_the_message_of(claim):
                raise _conflict(claim, "is given twice, for messages that differ")
    return given


def _check(others: Sequence[_Claim], claimed: Sequence[_Claim]) -> Plan[None]:
    """See whether ids that could not be claimed were claimed for these very messages.

    Raises:
        ConflictingMessage: one was not; those that could be claimed are given back.
    """
    # A statement of its own: it sees what the other transaction has committed while the claim waited for it.
    (rows,) = yield from ask(statement("read_launched", claims=_document(others)))
    for place, known, same_topic, same in rows:
        differs = _difference(known=known, same_topic=same_topic, same=same)
        if differs is not None:
            # The caller may commit what else it has done: an id that stayed claimed could never be launched.
            yield from ask(statement("release_ids", claims=_document(claimed)))
            raise _conflict(others[place - 1], differs)


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


class _Claim(NamedTuple):
    """An id, what tells the message that it is given to from others, and the key that the id was made from, if any."""

    id: uuid.UUID
    topic: str
    digest: str
    dedup_key: str | None

    def is_of_the_message_of(self, other: _Claim) -> bool:
        return (self.topic, self.digest) == (other.topic, other.digest)


def _document(claims: Sequence[_Claim]) -> bytes:
    return document([{"id": str(one.id), "topic": one.topic, "digest": one.digest} for one in claims])


def _difference(*, known: bool, same_topic: bool, same: bool) -> str | None:
    """Say why a message is not the one that was launched under its id; None if it is."""
    if not known:
        return "is that of a message that was not launched under an id of the caller's"
    if not same_topic:
        return "was launched on another topic before"
    return None if same else "was launched before, with another payload, content type or key"


def _conflict(one: _Claim, differs: str) -> ConflictingMessage:
    if one.dedup_key is not None:
        return ConflictingMessage(
            f"the dedup_key {one.dedup_key!r:.200} (id {one.id}) of a message on topic {one.topic!r} {differs}: "
            "nothing was launched. On each topic a dedup_key is one message's"
        )
    return ConflictingMessage(
        f"the id {one.id} of a message on topic {one.topic!r} {differs}: nothing was launched. An id is one "
        "message's: derive others from it, with uuid.uuid5(id, 'invoice') for example"
    )
