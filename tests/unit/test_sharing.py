"""Which of several homes of a service handles a message: the rules as tables."""

import json
import uuid
from collections import Counter
from collections.abc import Collection

import pytest

from scoop_outbox.message import Envelope
from scoop_outbox.wire.forwarded import Forwarded, read_forwarded
from scoop_outbox.wire.headers import EXPECTS, HOME, text
from scoop_outbox.wire.members import MalformedControl
from scoop_outbox.wire.sharing import Place, choose, passed_over, route

HERE, THERE, FAR, NEW = (uuid.UUID(int=number) for number in range(1, 5))
BOTH = frozenset({HERE, THERE})


def told(home: uuid.UUID) -> str:
    return f"scoop.control.{home.int}"


def key_of(home: uuid.UUID) -> str:
    """A key that belongs to one of both homes."""
    return next(key for key in map(str, range(100)) if choose(BOTH, key) == home)


def message(
    *expects: tuple[str, str, uuid.UUID | None], home: uuid.UUID | None = None, key: str | None = None
) -> Envelope:
    named = [[service, saga] if at is None else [service, saga, str(at), told(at)] for service, saga, at in expects]
    headers = ({EXPECTS: json.dumps(named)} if named else {}) | ({} if home is None else {HOME: str(home)})
    return Envelope(str(uuid.UUID(int=9)), "t", key, b"{}", "application/json", headers)


def place(same: Collection[str] = (), **sharing: frozenset[uuid.UUID]) -> Place:
    names = {saga: set(same) - {saga} for saga in sharing if saga in same}
    return Place("stock", HERE, {THERE: told(THERE)}, sharing, names)


@pytest.mark.parametrize(
    "envelope, at, here, others",
    [
        # Who is waited for has been frozen, and where: it does not matter whether anybody here knows that home.
        (message(("stock", "a", HERE), home=FAR), place(a=BOTH), {"a"}, set()),
        (message(("stock", "a", THERE), home=FAR), place(a=BOTH), set(), {THERE}),
        (message(("stock", "a", NEW), home=NEW), place(a=BOTH), set(), {NEW}),
        (message(("stock", "a", NEW), home=NEW), place(), set(), {NEW}),
        (message(("stock", "a", THERE), ("stock", "b", HERE), home=FAR), place(a=BOTH), {"b"}, {THERE}),
        (message(("stock", "a", THERE), ("stock", "b", FAR), home=HERE), place(a=BOTH), set(), {THERE, FAR}),
        (message(("stock", "a", None), home=FAR), place(a=BOTH), {"a"}, set()),
        # Its launcher has not heard of another saga.
        (message(("stock", "a", HERE), home=FAR, key=key_of(THERE)), place(a=BOTH, b=BOTH), {"a"}, {THERE}),
        (message(("stock", "a", THERE), home=FAR, key=key_of(HERE)), place(a=BOTH, b=BOTH), {"b"}, {THERE}),
        (message(("stock", "a", THERE), home=FAR), place(a=BOTH, b=frozenset({HERE})), {"b"}, {THERE}),
        # Its launcher knows a saga by another name.
        (message(("stock", "a", THERE), home=HERE), place(["a", "b"], b=BOTH), set(), {THERE}),
        (message(("stock", "a", HERE), home=THERE), place(["a", "b"], b=BOTH), {"a", "b"}, set()),
        (message(("stock", "a", THERE), home=FAR, key=key_of(HERE)), place(["a", "b"], a=BOTH, b=BOTH), set(), {THERE}),
        # Others are waited for: that says nothing of this service.
        (message(("billing", "x", THERE), home=FAR, key=key_of(THERE)), place(a=BOTH), set(), {THERE}),
        (message(("billing", "x", THERE), home=HERE, key=key_of(THERE)), place(a=BOTH), None, set()),
        # Its launcher has not known of this service, not even of its own sagas.
        (message(home=THERE, key=key_of(HERE)), place(a=BOTH), set(), {THERE}),
        (message(home=HERE, key=key_of(THERE)), place(a=BOTH), None, set()),
        # Nobody waits for it: it belongs where its key does, saga by saga.
        (message(key=key_of(THERE)), place(a=BOTH), set(), {THERE}),
        (message(key=key_of(HERE)), place(a=BOTH), {"a"}, set()),
        (message(home=FAR, key=key_of(THERE)), place(a=BOTH, b=frozenset({HERE})), {"b"}, {THERE}),
        (message(key=key_of(HERE)), place(a=BOTH, c=frozenset({THERE})), {"a"}, {THERE}),
        # It is drained, or the other one is.
        (message(key=key_of(HERE)), place(a=frozenset({THERE})), set(), {THERE}),
        (message(key=key_of(THERE)), place(a=frozenset({HERE})), {"a"}, set()),
        # There is one home.
        (message(key=key_of(THERE)), place(), None, set()),
    ],
)
def test_where_a_message_is_handled(
    envelope: Envelope, at: Place, here: set[str] | None, others: set[uuid.UUID]
) -> None:
    found = route(envelope, at)
    assert found.others == {home: told(home) for home in others}
    assert found.stays is (here is None or bool(here))
    assert {saga for saga, home in found.homes.items() if home is None} == (here or set())


@pytest.mark.parametrize(
    "envelope, elsewhere, expected",
    [
        (message(("stock", "a", HERE), ("stock", "b", THERE), home=FAR), (), {"b"}),
        (message(("stock", "a", HERE), ("billing", "b", THERE), home=FAR), (), set()),
        (message(key="k"), ("c",), {"c"}),
        (message(key="k"), (), set()),
    ],
)
def test_who_is_passed_over_where_a_message_was_passed_on(
    envelope: Envelope, elsewhere: tuple[str, ...], expected: set[str]
) -> None:
    assert passed_over(envelope, "stock", HERE, elsewhere) == expected


def test_without_a_key_a_message_belongs_where_its_id_does() -> None:
    messages = [message()._replace(id=str(uuid.UUID(int=number))) for number in range(50)]
    assert {route(one, place(a=BOTH)).stays for one in messages} == {True, False}


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
        said = json.loads(json.dumps(Forwarded("stock", one, ("b",)).to_json()))
        assert read_forwarded(said) == Forwarded("stock", one, ("b",))


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
