"""Which of several homes of a service handles a message: the rules as tables."""

import json
import uuid
from collections import Counter

import pytest

from scoop_outbox.message import Envelope
from scoop_outbox.wire.forwarded import Forwarded, read_forwarded
from scoop_outbox.wire.headers import EXPECTS, HOME, text
from scoop_outbox.wire.members import MalformedControl
from scoop_outbox.wire.sharing import Place, choose, passed_on

HERE, THERE, FAR, GONE = (uuid.UUID(int=number) for number in range(1, 5))
BOTH = frozenset({HERE, THERE})
NOBODY: frozenset[uuid.UUID] = frozenset()


def key_of(home: uuid.UUID) -> str:
    """A key that belongs to one of both homes."""
    return next(key for key in map(str, range(100)) if choose(BOTH, key) == home)


def message(
    *expects: tuple[str, str, uuid.UUID | None], home: uuid.UUID | None = None, key: str | None = None
) -> Envelope:
    named = [[service, saga] if at is None else [service, saga, str(at)] for service, saga, at in expects]
    headers = ({EXPECTS: json.dumps(named)} if named else {}) | ({} if home is None else {HOME: str(home)})
    return Envelope(str(uuid.UUID(int=9)), "t", key, b"{}", "application/json", headers)


def place(listening: frozenset[uuid.UUID] = BOTH, sharing: frozenset[uuid.UUID] = BOTH) -> Place:
    return Place("stock", HERE, {THERE, FAR}, listening, sharing)


@pytest.mark.parametrize(
    "envelope, at, stays, others",
    [
        # Who is waited for has been frozen, and where.
        (message(("stock", "a", HERE), home=FAR), place(), True, NOBODY),
        (message(("stock", "a", THERE), home=FAR), place(), False, {THERE}),
        (message(("stock", "a", THERE), ("stock", "b", HERE), home=FAR), place(), True, {THERE}),
        (message(("stock", "a", THERE), ("stock", "b", FAR), home=HERE), place(), False, {THERE, FAR}),
        (message(("stock", "a", None), home=FAR), place(), True, NOBODY),
        # Whoever is not there any more is answered for by whoever is.
        (message(("stock", "a", GONE), home=FAR), place(), True, NOBODY),
        (message(("stock", "a", GONE), ("stock", "b", THERE), home=FAR), place(), True, {THERE}),
        # Others are waited for: that says nothing of this service.
        (message(("billing", "a", THERE), home=FAR, key=key_of(THERE)), place(), False, {THERE}),
        (message(("billing", "a", THERE), home=HERE, key=key_of(THERE)), place(), True, NOBODY),
        # A home that did not know yet that there are others waits for its own.
        (message(home=THERE, key=key_of(HERE)), place(), False, {THERE}),
        (message(home=HERE, key=key_of(THERE)), place(), True, NOBODY),
        # Nobody waits for it: it belongs where its key does.
        (message(home=FAR, key=key_of(THERE)), place(), False, {THERE}),
        (message(key=key_of(THERE)), place(), False, {THERE}),
        (message(key=key_of(HERE)), place(), True, NOBODY),
        # It is drained, or the other one is.
        (message(key=key_of(HERE)), place(sharing=frozenset({THERE})), False, {THERE}),
        (message(key=key_of(THERE)), place(sharing=frozenset({HERE})), True, NOBODY),
        # There is one home.
        (message(key=key_of(THERE)), place(NOBODY, NOBODY), True, NOBODY),
    ],
)
def test_where_a_message_is_handled(envelope: Envelope, at: Place, stays: bool, others: frozenset[uuid.UUID]) -> None:
    assert passed_on(envelope, at) == (stays, others)


def test_without_a_key_a_message_belongs_where_its_id_does() -> None:
    found = {passed_on(message()._replace(id=str(uuid.UUID(int=number))), place()) for number in range(50)}
    assert found == {(True, NOBODY), (False, frozenset({THERE}))}


def test_a_home_that_is_added_takes_keys_from_all_and_moves_no_others() -> None:
    keys = [str(number) for number in range(3000)]
    before = {key: choose(BOTH, key) for key in keys}
    after = {key: choose([*BOTH, FAR], key) for key in keys}
    assert {after[key] for key in keys if after[key] != before[key]} == {FAR}
    assert min(Counter(after.values()).values()) > 900


def test_what_is_passed_on_arrives_as_it_was() -> None:
    headers = {"scoop-id": str(uuid.UUID(int=9)), "own": text(b"\xff\xfe"), "empty": ""}
    for one in (
        Envelope(str(uuid.UUID(int=9)), "t", None, b"\x00\xff", "", headers),
        Envelope(str(uuid.UUID(int=9)), "t", "", b"", "text/plain", {}),
        Envelope(str(uuid.UUID(int=9)), "t", "\\xff00", b"{}", "application/json", {}),
    ):
        said = json.loads(json.dumps(Forwarded("stock", one).to_json()))
        assert read_forwarded(said) == Forwarded("stock", one)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"id": "9"}, "id is no UUID"),
        ({"topic": ""}, "topic is no text"),
        ({"topic": "a\0"}, "topic is no text"),
        ({"key": 1}, "key is no text"),
        ({"body": "?"}, "body is no base64"),
        ({"body": 1}, "body is no base64"),
        ({"contentType": None}, "contentType is no text"),
        ({"headers": []}, "headers is no JSON object"),
        ({"headers": {"a": 1}}, "headers holds what is no text"),
    ],
)
def test_what_is_passed_on_and_is_none_is_refused(change: dict[str, object], reason: str) -> None:
    said = Forwarded("stock", message()).to_json()
    said["message"] |= change
    with pytest.raises(MalformedControl, match=reason):
        read_forwarded(said)
