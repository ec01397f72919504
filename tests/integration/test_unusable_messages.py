"""What a service cannot take in becomes a dead letter, and keeps out no other message."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from scoop_outbox import Scoop, Topic
from scoop_outbox.app import service_of
from scoop_outbox.broker.protocol import Delivery
from scoop_outbox.message import uuid7
from tests.fake_broker import FakeBroker, again, message
from tests.integration.taking_in import Order, ask, once, runs, service, take_all_in

# Headers as they may come from anywhere: JSON for Python and not for Postgres, or text that no column can hold.
REFUSED = {
    "what Postgres refuses": {"scoop_context": '{"a": NaN}'},
    "a half of a character": {"scoop_context": '{"a": "\udcff"}'},
}


@pytest.mark.parametrize("headers", REFUSED.values(), ids=REFUSED)
async def test_a_message_that_cannot_be_stored_does_not_keep_out_the_others(
    database_url: str, headers: dict[str, Any]
) -> None:
    app = service(database_url)
    batch = [message(n) for n in range(20)]
    batch[11] = message(11, **headers)
    broker = FakeBroker(batch)
    intake = await take_all_in(database_url, broker, app)
    assert runs(database_url) == once([n for n in range(20) if n != 11])
    ((position, body, given),) = ask(database_url, "select position, body, headers from dead_letter")
    assert (position, body, given) == ("orders[0]@11", b"11", {"scoop-context": headers["scoop_context"]})
    assert (intake.counters.taken_in, intake.counters.dead_letters) == (19, 1)


def by_hand(content_type: str) -> Delivery:
    """As an adapter may make it without `delivery()`: nobody has looked at it yet."""
    made = message(2)
    return replace(made, envelope=made.envelope._replace(content_type=content_type))


@pytest.mark.parametrize("made", [by_hand, lambda content_type: message(2, content_type=content_type)])
@pytest.mark.parametrize("content_type", ["text/plain\0", "text/\udcff"])
async def test_a_content_type_that_is_no_text_makes_a_dead_letter(
    database_url: str, content_type: str, made: Callable[[str], Delivery]
) -> None:
    app = service(database_url)
    await take_all_in(database_url, FakeBroker([message(1), made(content_type), message(3)]), app)
    assert runs(database_url) == once([1, 3])
    ((body, stored, reason),) = ask(database_url, "select body, content_type, reason from dead_letter")
    assert body == b"2"
    assert stored == content_type.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
    assert "content type is no text" in reason


MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "id": ({"scoop_id": "17"}, "scoop-id is no UUID"),
    "lineage": ({"scoop_lineage": "a,b"}, "scoop-lineage is no list of run ids"),
    "context": ({"scoop_context": "[1]"}, "scoop-context is no JSON object"),
    "launched at": ({"scoop_launched_at": "{"}, "scoop-launched-at is no JSON object"),
    "home": ({"scoop_home": "here"}, "scoop-home is no UUID"),
}


@pytest.mark.parametrize("headers, reason", MALFORMED.values(), ids=MALFORMED)
async def test_malformed_headers_make_a_dead_letter_with_all_that_came(
    database_url: str, headers: dict[str, Any], reason: str
) -> None:
    app = service(database_url)
    body = b"\x00\xff bytes"
    odd = message(7, key=b"\xff\x00", body=body, content_type=None, tenant="acme", **headers)
    broker = FakeBroker([message(1), odd, message(2)], [odd], [again(odd, 9)])
    intake = await take_all_in(database_url, broker, app)
    assert runs(database_url) == once([1, 2])
    rows = ask(
        database_url,
        "select origin, service, topic, key, body, content_type, headers, position, reason from dead_letter",
    )
    sent = {"tenant": "acme", **{name.replace("_", "-"): value for name, value in headers.items()}}
    assert [row[:8] for row in rows] == [
        ("intake", "shop", "orders", "\\xff00", body, "", sent, "orders[0]@7"),
    ]
    assert reason in rows[0][8]
    assert len(broker.acknowledged) == 5
    assert intake.counters.dead_letters == 3


async def test_each_service_has_a_dead_letter_of_its_own(database_url: str) -> None:
    for name in ("shop", "books"):
        await take_all_in(database_url, FakeBroker([message(1, scoop_id="?")]), service(database_url, name))
    assert sorted(ask(database_url, "select service from dead_letter")) == [("books",), ("shop",)]


async def test_json_that_does_not_parse_is_a_dead_letter_unless_it_is_our_own(database_url: str) -> None:
    app = service(database_url)
    launched = message(3, body=b"{", message_id=uuid7())
    await take_all_in(database_url, FakeBroker([message(1, body=b"{"), message(2, body=b"[" * 100_000), launched]), app)
    rows = ask(database_url, "select position, reason from dead_letter order by id")
    assert [position for position, _ in rows] == ["orders[0]@1", "orders[0]@2"]
    assert "does not parse as JSON" in rows[0][1]
    assert runs(database_url) == {("shop", "a", b"{"): 1}


async def test_a_content_type_that_we_do_not_know_is_not_judged(database_url: str) -> None:
    app = service(database_url)
    bodies = [(b"\x00\x01avro", "application/avro"), (b"\xff{", None), (b"{", None), (b"", "text/plain")]
    batch = [message(n, body=body, content_type=kind) for n, (body, kind) in enumerate(bodies)]
    await take_all_in(database_url, FakeBroker(batch), app)
    stored = ask(database_url, "select body, content_type from message order by created_at, id")
    assert sorted(stored) == sorted((body, kind or "") for body, kind in bodies)
    assert sum(runs(database_url).values()) == 4


@dataclass(frozen=True)
class Strict:
    sku: str

    def __post_init__(self) -> None:
        raise ZeroDivisionError(self.sku)


@pytest.mark.parametrize("kind", [Order, Strict])
async def test_what_does_not_fit_the_typed_topic_of_any_saga_is_a_dead_letter(database_url: str, kind: type) -> None:
    app = service(database_url, on=Topic("orders", kind))
    fits, misfit = json.dumps({"sku": "x"}).encode(), b'{"other": 1}'
    await take_all_in(database_url, FakeBroker([message(1, body=fits), message(2, body=misfit), message(3)]), app)
    dead = [] if kind is Order else ["orders[0]@1"]
    rows = ask(database_url, "select position, reason from dead_letter order by id")
    assert [position for position, _ in rows] == [*dead, "orders[0]@2", "orders[0]@3"]
    assert rows[-2][1].endswith(f"does not fit {kind.__name__}: sku: Field required")


async def test_a_pattern_stands_for_topics_that_it_does_not_name(database_url: str) -> None:
    unfit, fit = json.dumps({"other": 1}).encode(), json.dumps({"sku": "x"}).encode()
    broker = FakeBroker(
        [
            message(1, topic="orders.new", body=unfit),
            message(2, topic="orders", body=unfit),
            message(3, topic="orders.new", body=fit),
        ]
    )
    broker.patterns["orders.*"] = r"^orders\.[^.]*$"
    app = service(database_url, on=Topic("orders.*", Order))
    app.saga("untyped", on="orders").add_step("only", lambda scope, message: None)
    service_of(app).servers.broker = broker
    await app.announce()
    await app.close()

    await take_all_in(database_url, broker, app)

    # The first fits no saga that gets it; the second is another topic's.
    assert ask(database_url, "select position from dead_letter") == [("orders.new[0]@1",)]
    assert runs(database_url) == {("shop", "untyped", unfit): 1, ("shop", "a", fit): 1}
    assert ask(database_url, "select topic from message order by topic") == [("orders",), ("orders.new",)]


async def test_rev_09_what_a_newer_version_can_read_is_taken_in(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    old = service(database_url, on=Topic("orders", Order))
    newer = Scoop("shop", database=database_url)
    newer.saga("a", on=Topic("orders", Order)).add_step("only", lambda scope, message: None)
    newer.saga("any", on="orders").add_step("only", lambda scope, message: None)
    newer.saga("bills", on="invoices").add_step("only", lambda scope, message: None)
    await newer.announce()
    await newer.close()
    batch = [
        message(1, body=b'{"sku": 1}', key=b"k"),
        message(2, body=b'{"sku": "x"}', key=b"k"),
        message(3, topic="invoices", body=b"no JSON"),
        message(4, topic="invoices", message_id=uuid7()),
    ]
    await take_all_in(database_url, FakeBroker(batch), old)
    assert ask(database_url, "select count(*) from dead_letter") == [(0,)]
    assert sum(runs(database_url).values()) == 6


async def test_a_message_that_no_saga_of_the_service_is_subscribed_to_is_a_dead_letter(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = service(database_url)
    service(database_url, "books", on="invoices")
    foreign, ours = message(1, topic="invoices"), message(2, topic="invoices", message_id=uuid7())
    batch = [foreign, ours, message(3)]
    intake = await take_all_in(database_url, FakeBroker(batch, [again(one, 9) for one in (foreign, ours)]), app)
    assert runs(database_url) == once([3])
    assert ask(database_url, "select position, service, origin from dead_letter order by id") == [
        ("invoices[0]@1", "shop", "intake"),
        ("invoices[0]@2", "shop", "intake"),
    ]
    ((reason,),) = ask(database_url, "select distinct reason from dead_letter")
    assert reason.startswith("no saga of shop listens on 'invoices'")
    assert "intake: message became a dead letter (position invoices[0]@2: no saga of shop listens on" in caplog.text
    assert (intake.counters.taken_in, intake.counters.dead_letters) == (1, 4)
    # The other service takes it in all the same, and so does this one once it has a saga.
    broker = FakeBroker([foreign, ours])
    await take_all_in(database_url, broker, service(database_url, "books", on="invoices"))
    service(database_url, on="invoices", sagas=("late",))
    await take_all_in(database_url, FakeBroker([foreign, ours]), app)
    assert ask(database_url, "select service, saga, count(*) from run group by 1, 2 order by 1, 2") == [
        ("books", "a", 2),
        ("shop", "a", 1),
        ("shop", "late", 2),
    ]


async def test_a_process_whose_saga_was_forgotten_drops_nothing(database_url: str) -> None:
    app = service(database_url)
    ask(database_url, "delete from subscription returning 1")
    await take_all_in(database_url, FakeBroker([message(1)]), app)
    assert ask(database_url, "select position from dead_letter") == [("orders[0]@1",)]


async def test_one_saga_that_can_read_a_message_is_enough(database_url: str) -> None:
    app = service(database_url, on=Topic("orders", Order))
    app.saga("untyped", on="orders").add_step("only", lambda scope, message: None)
    app.announce_sync()
    app.close_sync()
    await take_all_in(database_url, FakeBroker([message(1)]), app)
    assert ask(database_url, "select count(*) from dead_letter") == [(0,)]
    assert runs(database_url) == once([1], "shop", "a", "untyped")
