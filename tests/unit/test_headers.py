"""What is on the wire: every byte of a key and a header comes through, and ids are the same whenever they are made."""

import uuid
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoop_outbox.broker.incoming import delivery
from scoop_outbox.broker.protocol import Delivery
from scoop_outbox.message import Envelope, uuid7
from scoop_outbox.wire import headers as wire
from scoop_outbox.wire import validation


@given(st.binary())
def test_any_bytes_of_a_header_come_through(value: bytes) -> None:
    assert wire.octets(wire.text(value)) == value


@given(st.binary())
def test_any_bytes_of_a_key_come_through_and_can_be_stored(key: bytes) -> None:
    text = wire.key_text(key)
    assert "\0" not in text
    assert text.encode().decode() == text
    assert wire.key_octets(text) == key
    seen = wire.key_seen(text)
    assert (seen.encode() if isinstance(seen, str) else seen) == key


@pytest.mark.parametrize("key", ["", "a", "größe 🛒", "\\x", "\\x61", "\\x61zz", "a\0b"])
def test_a_key_that_is_text_is_seen_as_text(key: str) -> None:
    assert wire.key_seen(wire.key_text(key)) == key
    assert wire.key_octets(wire.key_text(key)) == key.encode()


def test_a_key_that_is_no_text_is_seen_as_bytes() -> None:
    assert wire.key_seen(wire.key_text(b"\xff\x00")) == b"\xff\x00"
    assert wire.key_seen(None) is None


def test_a_derived_id_depends_on_every_part_and_on_where_parts_end() -> None:
    ids = {
        wire.derived_id("kafka", "orders", "1", "2"),
        wire.derived_id("kafka", "orders", "12", ""),
        wire.derived_id("kafka", "orders", "1", "3"),
        wire.derived_id("kafka", "order", "s1", "2"),
        wire.derived_id("kafka", "orders", "1", "2", milliseconds=1),
    }
    assert len(ids) == 5
    assert wire.derived_id("a", b"b") == wire.derived_id(b"a", "b")


def test_a_derived_id_sorts_by_time_and_is_a_uuid_of_version_8() -> None:
    early = wire.derived_id("z", milliseconds=1_000)
    late = wire.derived_id("a", milliseconds=1_001)
    assert early < late
    for one in (early, late, wire.derived_id("a"), wire.derived_id("a", milliseconds=-1)):
        found = uuid.UUID(one)
        assert (str(found), found.version, found.variant) == (one, 8, uuid.RFC_4122)


def envelope(**headers: str) -> Envelope:
    return Envelope(str(uuid7()), "orders", None, b"1", "application/json", headers)


RUN = "01a20d49-27f9-7a10-8f3c-0d8e35c1f9b2"


@pytest.mark.parametrize(
    "headers, says",
    [
        ({}, None),
        ({"anything": "\udcff", "ce_id": "1"}, None),
        ({wire.LINEAGE: RUN, wire.CONTEXT: "{}", wire.LAUNCHED_AT: "{}", wire.HOME: RUN}, None),
        ({wire.LINEAGE: f"{RUN},{RUN}"}, None),
        ({wire.LINEAGE: ""}, "scoop-lineage is no list of run ids"),
        ({wire.LINEAGE: f"{RUN},"}, "scoop-lineage is no list of run ids"),
        ({wire.LINEAGE: "'; drop table run"}, "scoop-lineage is no list of run ids"),
        ({wire.CONTEXT: "[]"}, "scoop-context is no JSON object"),
        ({wire.CONTEXT: "{"}, "scoop-context is no JSON object"),
        ({wire.CONTEXT: "[" * 100_000}, "scoop-context is no JSON object"),
        ({wire.LAUNCHED_AT: "1"}, "scoop-launched-at is no JSON object"),
        ({wire.HOME: "here"}, "scoop-home is no UUID"),
    ],
)
def test_headers_of_ours_that_cannot_be_meant_are_a_defect(headers: dict[str, str], says: str | None) -> None:
    defect = validation.defect(envelope(**headers))
    assert (defect is None) if says is None else (defect is not None and says in defect)


OTHERWISE = wire.derived_id("otherwise")


def received(
    headers: Mapping[str, str], key: bytes | None = None, content_type: str | None = None, topic: str = "orders"
) -> Delivery:
    return delivery(
        topic=topic, key=key, body=b"1", content_type=content_type, headers=headers, otherwise=OTHERWISE,
        position="orders[0]@1", tag=None,
    )  # fmt: skip


def test_what_was_sent_is_what_is_received() -> None:
    sent = envelope(tenant="acme")
    got = received(wire.outgoing(sent), content_type="application/json")
    assert got.defect is None
    assert got.envelope.id == sent.id
    assert got.envelope.headers["tenant"] == "acme"


@pytest.mark.parametrize("known", [RUN, RUN.upper(), RUN.replace("-", ""), f"{{{RUN}}}", f"urn:uuid:{RUN}"])
def test_an_id_is_the_same_one_however_it_was_written(known: str) -> None:
    assert received({wire.ID: known}).envelope.id == RUN


def test_a_message_from_outside_has_the_identity_that_its_producer_gave_it() -> None:
    assert received({}).envelope.id == OTHERWISE
    event = {"ce_id": "7", "ce_source": "/shop"}
    assert received(event).envelope.id == received({**event, "more": "1"}).envelope.id != OTHERWISE
    assert received({**event, "ce_source": "/books"}).envelope.id != received(event).envelope.id
    assert received(event, topic="copies").envelope.id != received(event).envelope.id


@pytest.mark.parametrize(
    "one, other", [(("a\nb", "c"), ("a", "b\nc")), (("", "\na"), ("\n", "a")), (("1\na", ""), ("1", "a"))]
)
def test_an_identity_is_of_its_source_whatever_either_holds(one: tuple[str, str], other: tuple[str, str]) -> None:
    ids = [received({"ce_source": source, "ce_id": given}).envelope.id for source, given in (one, other)]
    assert ids[0] != ids[1]


def test_an_id_that_is_none_is_a_defect_and_the_message_keeps_an_identity() -> None:
    got = received({wire.ID: "seven"})
    assert got.defect == "its header scoop-id is no UUID"
    assert got.envelope.id == OTHERWISE
    assert got.envelope.headers == {wire.ID: "seven"}


def test_what_somebody_has_made_of_a_message_of_ours_is_another_message() -> None:
    sent = wire.outgoing(envelope(**{wire.LINEAGE: RUN, wire.CONTEXT: "{}", wire.HOME: RUN, "tenant": "acme"}))
    original = received({**sent, wire.TOPIC: "orders"})
    assert original.envelope.id != OTHERWISE
    assert original.envelope.headers[wire.LINEAGE] == RUN
    copy = received({**sent, wire.TOPIC: "orders.raw"})
    assert (copy.defect, copy.envelope.id, copy.envelope.headers) == (None, OTHERWISE, {"tenant": "acme"})
    # Nor can what it has copied be wrong.
    assert received({**sent, wire.ID: "seven", wire.TOPIC: "orders.raw"}).defect is None


def test_key_and_content_type_may_be_missing() -> None:
    got = received({}).envelope
    assert (got.key, got.content_type) == (None, "")
    assert received({}, key=b"\xff").envelope.key == "\\xff"
