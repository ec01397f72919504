"""The participant in Node, and a home that says on the wire what a test tells it to: on real brokers, without Scoop."""

import json
import random
import uuid

from scoop_outbox.failure import Failure
from scoop_outbox.message import JSON, Envelope, uuid7
from tests.participant.counterpart import REASON, SAID_SO, Counterpart, run_id
from tests.participant.node import Courier
from tests.waiting import until

SITE = {"fileName": "shop.py", "lineNumber": 24, "className": "shop", "functionName": "ship"}


async def test_homes_learn_of_each_other(orders: Counterpart, courier: Courier) -> None:
    announced = orders.kinds("subscriptions")[0]
    (one,) = announced["subscriptions"]
    assert (one["topic"], one["pattern"], one["service"], one["saga"]) == ("parcels.book", None, "courier", "book")
    assert announced["from"]["replyTo"] == "scoop.control.courier"
    assert orders.kinds("confirmed")[0]["revision"] == 1

    # Whoever does not know it yet is told, directly; what is older than what is known changes nothing.
    before = len(orders.kinds("subscriptions"))
    await orders.say("subscriptions", revision=0, subscriptions=[], known={})
    await until(lambda: len(orders.kinds("subscriptions")) > before, 30)
    await until(lambda: len(orders.kinds("confirmed")) >= 2, 30)
    assert [said["revision"] for said in orders.kinds("confirmed")] == [1, 1]
    assert courier.query("select revision from peer where id = ?", orders.id) == [(1,)]


async def test_a_child_commits_with_a_result(orders: Counterpart, courier: Courier) -> None:
    message = await orders.launch({"to": "Prague"})
    ended = await orders.told(message, "started", "committed")
    assert ended["result"] == {"tracking": f"CZ-{message[-6:]}", "invoice": None}
    assert ended["run"] == run_id(message, "courier", "book")
    assert [news["generation"] for news in orders.news(message)] == [1, 2]
    assert courier.query("select state from parcel where id = ?", message) == [("booked",)]


async def test_a_child_fails_with_the_line_that_failed(orders: Counterpart, courier: Courier) -> None:
    message = await orders.launch({"to": "Atlantis"}, scoop_launched_at=json.dumps(SITE))
    ended = await orders.told(message, "started", "rolled_back")
    failure = Failure.from_json(ended["failure"])
    assert (failure.type, failure.message) == ("NoSuchPlace", "no van goes to Atlantis")
    assert failure.source.startswith("book[")
    assert failure.launched_at is not None
    assert failure.launched_at.to_json() == SITE
    innermost = failure.stack_trace[-1]
    assert (innermost.file_name, innermost.function_name) == ("courier.js", "reserve")
    assert failure.to_json() == ended["failure"]
    assert courier.query("select * from parcel") == []


async def test_a_committed_child_is_undone(orders: Counterpart, courier: Courier) -> None:
    message = await orders.launch({"to": "Prague"})
    await orders.told(message, "started", "committed")
    await orders.order("roll_back", message, 2, context={"tenant": "acme"})
    ended = await orders.told(message, "started", "committed", "rolled_back")
    assert ended["failure"] == SAID_SO
    assert courier.query("select state from parcel where id = ?", message) == [("released",)]


async def test_what_cannot_be_undone_is_undone_when_somebody_has_seen_to_it(
    orders: Counterpart, courier: Courier
) -> None:
    message = await orders.launch({"to": "Prague"})
    await orders.told(message, "started", "committed")
    courier.query("update parcel set state = 'on its way' where id = ?", message)
    await orders.order("roll_back", message, 2)
    ended = await orders.told(message, "started", "committed", "rollback_failed")
    assert (ended["failure"]["type"], ended["obstacle"]["type"]) == ("ParentSaidSo", "AlreadyGone")

    courier.query("update parcel set state = 'booked' where id = ?", message)
    courier.retry(run_id(message, "courier", "book"))
    ended = await orders.told(message, "started", "committed", "rollback_failed", "rolling_back", "rolled_back")
    assert ended["failure"]["causes"] == [REASON]


async def test_a_message_that_was_cancelled_before_it_came_starts_nothing(
    orders: Counterpart, courier: Courier
) -> None:
    message = orders.message({"to": "Prague"})
    await orders.order("cancel", message.id, 0)
    await orders.told(message.id, "cancelled")
    await orders.publish(message)
    await orders.told(await orders.launch({"to": "Brno"}), "started", "committed")
    assert orders.states(message.id) == ["cancelled"]
    assert courier.query("select address from parcel") == [("Brno",)]


async def test_an_order_about_an_unknown_run_is_answered_and_its_message_may_still_come(
    orders: Counterpart, courier: Courier
) -> None:
    message = orders.message({"to": "Prague"})
    await orders.order("where", message.id, 0)
    told = await orders.told(message.id, "unknown")
    assert told["failure"]["type"] == "UnknownRun"
    await orders.order("where", message.id, 1)
    await orders.told(message.id, "unknown", "unknown")
    # What becomes of it is newer than what was said: else whoever asked took it for old news.
    await orders.publish(message)
    await orders.told(message.id, "unknown", "unknown", "started", "committed")


async def test_where_brings_the_last_news_again(orders: Counterpart, courier: Courier) -> None:
    message = await orders.launch({"to": "Prague"})
    await orders.told(message, "started", "committed")
    orders.said.clear()
    await orders.order("where", message, 1)
    assert (await orders.told(message, "committed"))["generation"] == 2
    # Whoever knows more than the courier, which was restored from a backup, gets an answer that is newer still.
    await orders.order("where", message, 7)
    await orders.told(message, "committed", "committed")
    assert [news["generation"] for news in orders.news(message)] == [2, 8]


async def test_a_child_launches_one_and_waits_for_it(orders: Counterpart, courier: Courier) -> None:
    deadlines = {"happyPath": {"deadline": "2126-11-30T12:00:00+00:00", "source": "shop", "trace": []}}
    parent = str(uuid.uuid4())
    message = await orders.launch(
        {"to": "Prague", "price": 7},
        scoop_lineage=parent,
        scoop_context='{"tenant": "acme"}',
        scoop_deadlines=json.dumps(deadlines),
    )
    await until(lambda: orders.messages, 30)
    (invoice,) = orders.messages
    assert json.loads(invoice.body) == {"parcel": message, "to": "Prague", "price": 7}
    assert invoice.content_type == JSON
    headers = invoice.headers
    assert headers["scoop-id"] == invoice.id
    assert headers["scoop-home"] == orders.kinds("subscriptions")[0]["from"]["id"]
    assert headers["scoop-reply-to"] == "scoop.control.courier"
    assert headers["scoop-lineage"].split(",") == [parent, run_id(message, "courier", "book")]
    assert json.loads(headers["scoop-expects"]) == [["billing", "invoice"]]
    assert json.loads(headers["scoop-context"]) == {"tenant": "acme"}
    assert json.loads(headers["scoop-deadlines"]) == deadlines
    assert json.loads(headers["scoop-launched-at"])["functionName"] == "bill"

    child = {
        "message": invoice.id,
        "run": run_id(invoice.id, "billing", "invoice"),
        "service": "billing",
        "saga": "invoice",
    }
    await orders.say("news", children=[{**child, "generation": 1, "state": "started"}])
    await orders.told(message, "started")
    await orders.say("news", children=[{**child, "generation": 2, "state": "committed", "result": {"number": 12}}])
    assert (await orders.told(message, "started", "committed"))["result"]["invoice"] == {"number": 12}

    # Its own children are undone before it is.
    await orders.order("roll_back", message, 2)
    order = await orders.asked("roll_back")
    assert order["children"] == [{**child, "generation": 2}]
    assert order["reason"]["type"] == "ParentSaidSo"
    assert order["reason"]["causes"] == [SAID_SO]
    assert order["context"] == {"tenant": "acme"}
    assert courier.query("select state from parcel") == [("booked",)]
    undone = {"failure": {**REASON, "type": "ParentSaidSo"}}
    await orders.say("news", children=[{**child, "generation": 3, "state": "rolled_back", **undone}])
    await orders.told(message, "started", "committed", "rolled_back")
    assert courier.query("select state from parcel") == [("released",)]

    # Whoever has ended, and whose parent is pruned, tells its own children.
    await orders.order("release", message, 3)
    assert (await orders.asked("release"))["children"] == [{**child, "generation": 3}]


async def child_of(orders: Counterpart, message: str) -> dict[str, object]:
    """The child that the courier waits for, as it is named in news."""
    await until(lambda: [one for one in orders.messages if json.loads(one.body)["parcel"] == message], 30)
    (invoice,) = [one for one in orders.messages if json.loads(one.body)["parcel"] == message]
    run = run_id(invoice.id, "billing", "invoice")
    return {"message": invoice.id, "run": run, "service": "billing", "saga": "invoice"}


async def test_a_child_that_fails_takes_its_parent_along(orders: Counterpart, courier: Courier) -> None:
    message = await orders.launch({"to": "Prague", "price": 7})
    child = await child_of(orders, message)
    # It may end before it was heard of that it had begun; and what is late changes nothing.
    await orders.say("news", children=[{**child, "generation": 2, "state": "rolled_back", "failure": REASON}])
    await orders.say("news", children=[{**child, "generation": 1, "state": "started"}])
    ended = await orders.told(message, "started", "rolled_back")
    assert ended["failure"]["type"] == "ChildRolledBack"
    assert ended["failure"]["message"] == "Child failure occurred while suspended in step [bill]"
    assert ended["failure"]["causes"] == [REASON]
    assert courier.query("select state from parcel") == [("released",)]


async def test_who_is_cancelled_while_it_waits_gives_up_its_children_first(
    orders: Counterpart, courier: Courier
) -> None:
    message = await orders.launch({"to": "Prague", "price": 7})
    child = await child_of(orders, message)
    await orders.order("cancel", message, 1)
    assert (await orders.asked("cancel"))["children"] == [{**child, "generation": 0}]
    assert orders.states(message) == ["started"]
    # It had committed before the order came: then it is undone.
    await orders.say("news", children=[{**child, "generation": 2, "state": "committed"}])
    await orders.asked("roll_back")
    await orders.say("news", children=[{**child, "generation": 3, "state": "rolled_back", "failure": REASON}])
    ended = await orders.told(message, "started", "rolled_back")
    assert (ended["failure"]["type"], ended["failure"]["causes"]) == ("GaveUp", [REASON])
    assert courier.query("select state from parcel") == [("released",)]


async def test_who_has_children_that_cannot_be_undone_is_stuck_until_they_are(
    orders: Counterpart, courier: Courier
) -> None:
    message = await orders.launch({"to": "Prague", "price": 7})
    child = await child_of(orders, message)
    stuck = {"state": "rollback_failed", "failure": REASON, "obstacle": {**REASON, "type": "Jammed"}}
    await orders.say("news", children=[{**child, "generation": 2, **stuck}])
    ended = await orders.told(message, "started", "rollback_failed")
    assert ended["failure"]["type"] == "ChildRolledBack"
    assert ended["obstacle"]["type"] == "ChildRollbackFailed"
    assert ended["obstacle"]["causes"][0]["type"] == "Jammed"

    await orders.say("news", children=[{**child, "generation": 3, "state": "rolling_back"}])
    await orders.told(message, "started", "rollback_failed", "rolling_back")
    await orders.say("news", children=[{**child, "generation": 4, "state": "rolled_back", "failure": REASON}])
    await orders.told(message, "started", "rollback_failed", "rolling_back", "rolled_back")


async def test_whatever_comes_twice_and_in_whatever_order_ends_the_same(orders: Counterpart, courier: Courier) -> None:
    chance = random.Random(7)
    messages = [orders.message({"to": "Prague" if number % 3 else "Atlantis"}) for number in range(12)]
    shuffled = messages * 3
    chance.shuffle(shuffled)
    await orders.publish(*shuffled)
    for number, message in enumerate(messages):
        await orders.told(message.id, "started", "committed" if number % 3 else "rolled_back")

    rounds = [(order, message) for message in messages for order in ("roll_back", "cancel", "where")] * 2
    chance.shuffle(rounds)
    for order, message in rounds:
        await orders.order(order, message.id, 2)
    for number, message in enumerate(messages):
        undone = ["committed", "rolled_back"] if number % 3 else ["rolled_back"]
        await orders.told(message.id, "started", *undone)
    assert courier.query("select state, count(*) from parcel group by state") == [("released", 8)]


async def test_nobody_is_told_of_what_nobody_waits_for(orders: Counterpart, courier: Courier) -> None:
    plain = Envelope(str(uuid7()), "parcels.book", None, b'{"to": "Plain"}', JSON, {})
    unexpected = orders.message({"to": "Unexpected"}, scoop_expects='[["courier", "other"]]')
    await orders.publish(plain, unexpected)
    await until(lambda: len(courier.query("select * from parcel where state = 'booked'")) == 2, 30)
    await orders.told(await orders.launch({"to": "Expected"}), "started", "committed")
    assert orders.news(plain.id) == orders.news(unexpected.id) == []


async def test_what_nobody_understands_is_kept_and_stops_nothing(orders: Counterpart, courier: Courier) -> None:
    await orders.say("gossip")
    await orders.publish(
        Envelope(str(uuid7()), "scoop.control.courier", None, b'{"version": 2, "kind": "news"}', JSON, {}),
        Envelope(str(uuid7()), "scoop.control.courier", None, b"no JSON", JSON, {}),
        orders.message({"to": "Prague"}, scoop_lineage="nobody"),
    )
    await orders.say("orders", order="explode", children=[{"message": str(uuid7()), "run": str(uuid7())}])
    await orders.told(await orders.launch({"to": "Prague"}), "started", "committed")
    await until(lambda: len(courier.query("select * from dead_letter")) == 5, 30)
    reasons = sorted(str(reason) for (reason,) in courier.query("select reason from dead_letter"))
    assert [reason for reason in reasons if "version 2" in reason or "gossip" in reason or "explode" in reason]
    assert len(set(reasons)) == 5


async def test_a_crash_loses_nothing(orders: Counterpart, courier: Courier) -> None:
    messages = []
    for number in range(30):
        messages.append(await orders.launch({"to": f"Street {number}"}))
        if number % 10 == 5:
            courier.kill()
            courier.start()
    for message in messages:
        await orders.told(message, "started", "committed")
    assert courier.query("select state, count(*) from parcel group by state") == [("booked", 30)]
