"""Messages: names, ids, payloads and topics."""

import dataclasses
import threading
import time
import uuid
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from scoop_outbox import DefinitionError, Message, PayloadError, Topic
from scoop_outbox.message import BYTES, JSON, NAME_LIMIT, checked_name, dump_json, encode, topic_name, uuid7


@dataclasses.dataclass
class Line:
    sku: str
    count: int = 1


@dataclasses.dataclass
class Order:
    id: int
    lines: list[Line] = dataclasses.field(default_factory=list)


class Model(BaseModel):
    number: int


class Struct(msgspec.Struct):
    number: int


class Colour(Enum):
    RED = "red"


def message(body: bytes, content_type: str = JSON, schema: Topic[Any] | None = None) -> Message:
    return Message(uuid7(), "orders", None, body, content_type, {}, datetime.now(UTC), schema)


# Names ------------------------------------------------------------------------------------------------------------

GOOD = [
    "x",
    "o'clock",
    'say "hi"',
    "50% off",
    "{schema}",
    "; drop table run; --",
    "a\nb",
    "\\",
    "🛒",
    "é" * 127,
    "x" * 255,
]


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("kind", ["service", "saga", "step", "topic"])
def test_q41_names_are_arbitrary_text(kind: str, name: str) -> None:
    assert checked_name(kind, name) == name


@pytest.mark.parametrize(
    "name, says",
    [
        ("", "must not be empty"),
        (" \t", "must not be empty"),
        ("a\0b", "NUL"),
        ("\ud800", "lone surrogate"),
        ("x" * (NAME_LIMIT + 1), "256 bytes"),
        ("🛒" * 64, "256 bytes"),
        (None, "is text, not NoneType"),
        (b"bytes", "is text, not bytes"),
        (7, "is text, not int"),
    ],
)
def test_q41_names_that_cannot_be_stored_are_refused(name: object, says: str) -> None:
    with pytest.raises(DefinitionError, match=says) as error:
        checked_name("topic", name)
    assert "topic" in str(error.value)
    str(error.value).encode()


@given(st.text())
def test_a_name_is_either_storable_or_refused_with_a_printable_message(name: str) -> None:
    try:
        checked_name("saga", name)
    except DefinitionError as error:
        str(error).encode()
    else:
        assert 0 < len(name.encode()) <= NAME_LIMIT
        assert "\0" not in name


# Ids --------------------------------------------------------------------------------------------------------------


def test_ids_are_uuids_of_version_7_that_ascend() -> None:
    before = time.time_ns() // 1_000_000
    ids = [uuid7() for _ in range(10_000)]
    after = time.time_ns() // 1_000_000
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert {(one.version, one.variant) for one in ids} == {(7, uuid.RFC_4122)}
    assert before - 1 <= ids[0].int >> 80 <= after + 10


def test_ids_of_many_threads_are_unique() -> None:
    ids: list[uuid.UUID] = []
    threads = [threading.Thread(target=lambda: ids.extend([uuid7() for _ in range(2000)])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == 8000


def test_an_id_never_goes_back_when_the_clock_does(monkeypatch: pytest.MonkeyPatch) -> None:
    first = uuid7()
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert uuid7() > first


# Payloads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload, body, content_type",
    [
        (None, b"null", JSON),
        ({"a": [1, 2.5, "x", None, True]}, b'{"a":[1,2.5,"x",null,true]}', JSON),
        ("é\0\ud800", b'"\\u00e9\\u0000\\ud800"', JSON),
        (b"\x00\xff", b"\x00\xff", BYTES),
        (bytearray(b"ab"), b"ab", BYTES),
        (memoryview(b"ab"), b"ab", BYTES),
        (Order(1, [Line("a")]), b'{"id":1,"lines":[{"sku":"a","count":1}]}', JSON),
        ({"order": Order(1)}, b'{"order":{"id":1,"lines":[]}}', JSON),
        ([Model(number=3)], b'[{"number":3}]', JSON),
        ({"struct": Struct(3)}, b'{"struct":{"number":3}}', JSON),
    ],
)
def test_payloads_that_travel(payload: object, body: bytes, content_type: str) -> None:
    assert encode("orders", payload) == (body, content_type)


def endless() -> list[Any]:
    itself: list[Any] = []
    itself.append(itself)
    return itself


BAD = [object(), {1, 2}, {"a": b"bytes"}, float("nan"), float("-inf"), [complex(1)], {(1, 2): 3}, Order, endless(), ...]


@pytest.mark.parametrize("payload", BAD, ids=lambda payload: type(payload).__name__)
def test_payloads_that_cannot_travel_are_refused(payload: object) -> None:
    with pytest.raises(PayloadError, match=r"'orders' cannot be encoded as JSON: .*Use plain values"):
        encode("orders", payload)


@pytest.mark.parametrize(
    "value, instead",
    [
        (datetime(2026, 11, 29, tzinfo=UTC), r"value\.isoformat\(\), or give the topic a type"),
        (date(2026, 11, 29), r"value\.isoformat\(\)"),
        (timedelta(1), r"value\.total_seconds\(\)"),
        (uuid.uuid4(), r"str\(value\), or give the topic a type"),
        (Decimal("1.5"), r"str\(value\)"),
        (Colour.RED, r"value\.value"),
        ({1}, r"sorted\(value\)"),
        (b"bytes", "base64"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_to_use_instead_of_a_plain_value_that_cannot_travel_is_said(value: object, instead: str) -> None:
    with pytest.raises(PayloadError, match=f"{type(value).__name__} is not JSON serializable: pass .*{instead}"):
        encode("orders", {"a": [value]})


def test_what_cannot_be_encoded_is_named() -> None:
    with pytest.raises(PayloadError, match=r"^the result cannot be encoded"):
        dump_json(object(), "the result")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_json_is_ascii_and_comes_back(payload: object) -> None:
    body, content_type = encode("orders", payload)
    assert body.isascii()
    assert b"\0" not in body
    assert message(body, content_type).payload == payload


def test_a_payload_is_decoded_anew_each_time() -> None:
    one = message(b'{"a":[]}')
    one.payload["a"].append(1)
    assert one.payload == {"a": []}


@pytest.mark.parametrize(
    "content_type", [JSON, "application/json; charset=utf-8", "application/json ;x=y", "application/vnd.shop+json"]
)
def test_json_is_known_by_its_media_type(content_type: str) -> None:
    assert message(b"[1]", content_type).payload == [1]


@pytest.mark.parametrize("content_type", ["application/avro", "text/plain", BYTES])
def test_bodies_of_other_types_stay_bytes(content_type: str) -> None:
    assert message(b"[1]", content_type).payload == b"[1]"


def test_a_body_of_unknown_type_is_decoded_if_it_is_json() -> None:
    assert message(b"[1]", "").payload == [1]
    assert message(b"\x00\x00\x00\x00\x01avro", "").payload == b"\x00\x00\x00\x00\x01avro"


@pytest.mark.parametrize("body", [b"{", b"", b"\xff\xfe", b"nope"])
def test_a_body_that_does_not_parse_says_so_without_showing_it(body: bytes) -> None:
    with pytest.raises(PayloadError, match="does not parse"):
        message(body).payload  # noqa: B018 - decoded when looked at


# Topics -----------------------------------------------------------------------------------------------------------


def test_a_typed_topic_decodes() -> None:
    assert message(b'{"id":3}', schema=Topic("orders", Order)).payload == Order(3)
    assert message(b'{"number":7}', schema=Topic("orders", Model)).payload.number == 7


@pytest.mark.parametrize("body", [b"{}", b"[]", b"7", b"{", b"null", b""])
def test_a_body_that_does_not_fit_the_topics_type_is_refused(body: bytes) -> None:
    with pytest.raises(PayloadError, match=r"a message on topic 'orders' does not fit Order"):
        message(body, schema=Topic("orders", Order)).payload  # noqa: B018 - decoded when looked at


@pytest.mark.parametrize("payload", [{"id": 1}, Line("a"), None, b"{}", Model(number=1)])
def test_a_typed_topic_carries_its_type_only(payload: Any) -> None:
    with pytest.raises(PayloadError, match="topic 'orders' carries Order, not"):
        encode(Topic("orders", Order), payload)


def test_a_typed_topic_carries_subclasses() -> None:
    @dataclasses.dataclass
    class Express(Order):
        pass

    assert encode(Topic("orders", Order), Express(1))[0] == b'{"id":1,"lines":[]}'


def test_a_topics_name_is_checked() -> None:
    with pytest.raises(DefinitionError, match="topic name"):
        Topic("", Order)
    with pytest.raises(DefinitionError, match="topic name is text, not int"):
        topic_name(7)  # type: ignore[arg-type]  # that is the point
    assert topic_name(Topic("orders", Order)) == topic_name("orders") == "orders"
