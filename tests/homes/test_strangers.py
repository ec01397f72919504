"""What homes say counts for what is theirs; what was lost, or is gone, holds up nobody for ever."""

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from scoop_outbox.core.plans.failures import Writing, id_of
from scoop_outbox.core.plans.gone_homes import forget_home
from scoop_outbox.core.plans.silence import ask_silent
from scoop_outbox.core.statement import ask, statement
from scoop_outbox.daemon.silence import Silence
from scoop_outbox.failure import Failure
from scoop_outbox.message import uuid7
from scoop_outbox.wire.control import Kind
from tests.homes.ear import Child, Ear, Peer, failure

LONG_AGO = datetime.min.replace(tzinfo=UTC)
TEN_MINUTES = timedelta(minutes=10)


def state_of(ear: Ear, child: Child) -> list[tuple[Any, ...]]:
    return ear.ask("select state, exists (select from request) from run where id = %s", child.run)


@pytest.mark.parametrize("order, state", [("roll_back", "committed"), ("cancel", "running")])
async def test_orders_count_only_from_the_home_that_waits(ear: Ear, order: str, state: str) -> None:
    parent, stranger, child = Peer("parent"), Peer("stranger"), Child(uuid7())
    await ear.take_in(parent.launched(child))
    ear.execute("update run set state = %s where id = %s", state, child.run)
    await ear.hear(stranger.orders(order, child.said(1), reason=failure("because")))
    assert state_of(ear, child) == [(state, False)]
    await ear.hear(parent.orders(order, child.said(1), reason=failure("because")))
    assert state_of(ear, child) == [("rolling_back", False) if order == "roll_back" else ("running", True)]


async def test_a_home_that_was_restored_announces_itself_anew(ear: Ear) -> None:
    ear.execute("update home set revision = 2, announced = '[]'")
    await ear.hear(Peer().says(Kind.CONFIRMED, revision=7))
    (told,) = ear.said(Kind.SUBSCRIPTIONS)
    assert told["revision"] == 8
    assert ear.ask("select revision from home") == [(8,)]
    await ear.hear(Peer("other").says(Kind.CONFIRMED, revision=7))
    assert len(ear.said(Kind.SUBSCRIPTIONS)) == 1


async def test_what_another_home_handles_of_a_message_from_outside_is_asked_after(ear: Ear) -> None:
    """Nobody has noted when it was launched. As long as its home speaks, it is asked once it has said nothing of it."""
    there, child = Peer(), Child(uuid7())
    await ear.hear(there.says(Kind.CONFIRMED, revision=0))
    ear.execute(
        "insert into child (message_id, service, saga, run_id, seq, ordinal, home) values (%s, %s, %s, %s, 0, 1, %s)",
        *(*child, child.message, there.sender.id),
    )
    driver = await ear.home.connect()
    try:
        page = await driver.run(ask_silent(LONG_AGO, TEN_MINUTES, None, ear.home.failures))
        assert page.asked == 1
        await ear.hear(there.news(child.said(1, state="started")))
        assert (await driver.run(ask_silent(LONG_AGO, TEN_MINUTES, None, ear.home.failures))).asked == 0
    finally:
        await driver.close()


async def test_a_home_that_has_not_been_heard_of_is_asked_now_and_then_all_the_same(ear: Ear) -> None:
    there, child = Peer(), Child(uuid7())
    await ear.hear(there.says(Kind.CONFIRMED, revision=0))
    ear.execute(
        "insert into child (message_id, service, saga, run_id, seq, ordinal, home) values (%s, %s, %s, %s, 0, 1, %s)",
        *(*child, child.message, there.sender.id),
    )
    ear.execute("update peer set heard_at = clock_timestamp() - interval '1 day'")
    silence, driver = Silence(ear.home.failures, every=-1.0), await ear.home.connect()
    try:
        asked = [await silence.look(driver) for _ in range(7)]
    finally:
        await driver.close()
    assert asked == [1, 0, 0, 0, 0, 0, 1]


async def test_many_large_reports_are_several_messages(ear: Ear) -> None:
    there, children = Peer(), [Child(uuid7()) for _ in range(6)]
    for child in children:
        await ear.take_in(there.launched(child))
        ear.execute(
            "update run set state = 'committed', result = %s where id = %s", json.dumps("x" * 100_000), child.run
        )
    before = len(ear.said(Kind.NEWS))
    await ear.hear(there.orders("where", *(child.said(1) for child in children)))
    answers = ear.said(Kind.NEWS)[before:]
    assert len(answers) == 3
    assert {one["run"] for news in answers for one in news["children"]} == {str(child.run) for child in children}


async def test_a_home_that_was_forgotten_holds_up_no_rollback(ear: Ear) -> None:
    there, committed, waiting, parent = Peer(), Child(uuid7()), Child(uuid7()), uuid.uuid4()
    await ear.hear(there.says(Kind.CONFIRMED, revision=0))
    for child, state in ((committed, "committed"), (waiting, "waiting")):
        ear.execute(
            "insert into child (message_id, service, saga, run_id, seq, ordinal, home, state, open) "
            "values (%s, %s, %s, %s, 1, 1, %s, %s, %s)",
            *(*child, parent, there.sender.id, state, state == "waiting"),
        )
    driver = await ear.home.connect()
    try:
        assert await driver.run(forget_home("there", ear.home.failures)) == 1
        writing = Writing(ear.home.failures)
        reason = id_of(writing.name(Failure("Boom", None, "me")))
        ordered = {"order": "roll_back", "reason": "{}", "context": None, "rollback_by": None, "reverse": False}
        undoing = statement("ask_children", run=parent, seq=1, failure=reason, **ordered)
        await driver.run(ask(*writing.statements(), undoing))
    finally:
        await driver.close()
    assert ear.ask("select state, open from child order by state") == [
        ("rollback_failed", False),
        ("rolled_back", False),
    ]
    assert ear.said(Kind.ORDERS) == []
