"""Q42: what is launched again under the same key, on the same topic, is launched once."""

import asyncio
import uuid
from typing import Any

import pytest

from scoop_outbox import ConflictingMessage, DefinitionError, Draft, PayloadError, Retry, Scoop, Topic
from scoop_outbox._emission import DEDUPLICATION
from tests.scenarios.conftest import MakeShop
from tests.scenarios.shop import LONG, Shop
from tests.scenarios.test_repeated_launches import claimed, declare, in_outbox, session_of

OF_ORDER_1 = uuid.UUID("eda3ec63-3eb3-5af9-b8f1-632b45c6e31e")
"""What `order-1` stands for on topic R, in every version and process."""


async def test_q42_the_same_key_is_launched_once_also_long_after_it_was_handled(mixed: Shop) -> None:
    seen: list[Any] = []
    declare(mixed, seen)

    async with mixed.running():
        handles = [await mixed.app.launch("R", {"a": 1, "b": 2}, dedup_key="order-1") for _ in range(3)]
        await handles[0].wait(LONG)
        again = await mixed.app.launch("R", {"b": 2, "a": 1}, dedup_key="order-1", headers={"trace": "x"})
        await again.wait(LONG)

    assert {handle.id for handle in (*handles, again)} == {OF_ORDER_1}
    assert seen == [{"a": 1, "b": 2}]


async def test_q42_the_same_key_at_the_same_time_is_launched_once(make_shop: MakeShop, database_url: str) -> None:
    """By services that know nothing of each other, too."""
    here, there = make_shop(), make_shop(service="there")
    handles = await asyncio.gather(
        *(shop.app.launch("R", 1, dedup_key="k") for shop in (here, there) for _ in range(9))
    )
    assert in_outbox(database_url) == [(handles[0].id, "1")]
    assert len({handle.id for handle in handles}) == 1


def test_q42_a_key_is_unique_for_its_topic_alone(make_shop: MakeShop, database_url: str) -> None:
    app = make_shop().app
    typed: Topic[int] = Topic("U", int)
    launched = [
        app.launch_sync("R", 1, dedup_key="k"),
        app.launch_sync("U", 1, dedup_key="k"),
        app.launch_sync(typed, 1, dedup_key="k"),
        app.launch_sync("R", 1, dedup_key="other"),
        # Not the same as "k" on a topic whose name goes on.
        app.launch_sync("Rk", 1, dedup_key="k"),
        app.launch_sync("R", 1, dedup_key="kk"),
    ]
    ids = [handle.id for handle in launched]
    assert ids[1] == ids[2]
    assert len(set(ids)) == len(ids) - 1
    assert sorted(one for one, _ in in_outbox(database_url)) == sorted(set(ids))


def test_q42_another_message_under_the_key_is_refused(make_shop: MakeShop, database_url: str) -> None:
    app = make_shop().app
    first = app.launch_sync("R", 1, dedup_key="k")
    for other in ({"payload": 2}, {"payload": 1, "key": "x"}):
        with pytest.raises(
            ConflictingMessage, match=r"the dedup_key 'k' \(id .*\) of a message on topic 'R' was launch"
        ):
            app.launch_sync("R", dedup_key="k", **other)
    with pytest.raises(ConflictingMessage, match=r"the dedup_key 'n' .* is given twice, for messages that differ"):
        app.launch_many_sync([Draft("R", 1, dedup_key="n"), Draft("R", 2, dedup_key="n")])
    assert in_outbox(database_url) == [(first.id, "1")]
    assert claimed(database_url) == [first.id], "what was refused has claimed nothing"
    # It is an id like another: who knows it may say so.
    assert app.launch_sync("R", 1, id=first.id).id == first.id


def test_q42_many_are_launched_each_once(make_shop: MakeShop, database_url: str) -> None:
    app = make_shop().app
    app.launch_many_sync([Draft("R", number, dedup_key=f"order-{number}") for number in (3, 4)])
    drafts = [Draft("R", number, dedup_key=f"order-{number}") for number in range(6)]
    handles = app.launch_many_sync([*drafts, drafts[0], Draft("R", "own")])
    assert handles[6].id == handles[0].id
    assert handles[1].id == OF_ORDER_1
    assert [body for _, body in in_outbox(database_url)] == ["3", "4", "0", "1", "2", "5", '"own"']


def test_q42_a_key_is_free_again_when_its_transaction_is_rolled_back(make_shop: MakeShop, database_url: str) -> None:
    app = make_shop().app
    with session_of(database_url) as session:
        app.launch_sync("R", 1, dedup_key="k", session=session)
        session.rollback()
    assert claimed(database_url) == []
    app.launch_sync("R", 2, dedup_key="k")
    assert [body for _, body in in_outbox(database_url)] == ["2"]


async def test_q42_a_step_that_is_executed_again_launches_once_under_a_key(mixed: Shop) -> None:
    """What a step launches for itself is launched once anyway; what it launches detached is, under a key."""
    seen: list[Any] = []
    declare(mixed, seen)
    launched: list[uuid.UUID] = []

    async def mails(scope: Any, _: Any) -> None:
        handle = await mixed.app.launch("R", 1, detached=True, dedup_key=scope.idempotency_key)
        launched.append(handle.id)
        if scope.attempt == 0:
            raise ValueError("not yet")

    mixed.app.saga("upper", "U").add_step("only", mails, retry=Retry(attempts=2, backoff=0.01))
    async with mixed.running():
        await (await mixed.app.launch("U", None)).wait(LONG)
        await mixed.app.handle(launched[0]).wait(LONG)
    assert len(launched) == 2
    assert len(set(launched)) == 1
    assert seen == [1]


def test_what_a_key_stands_for_never_changes() -> None:
    """It is stored: another recipe would launch everything again."""
    assert uuid.UUID("7796022a-0694-4cd3-9c8f-d37fb6550c13") == DEDUPLICATION
    assert uuid.uuid5(uuid.uuid5(DEDUPLICATION, "R"), "order-1") == OF_ORDER_1


@pytest.mark.parametrize("wrong", ["", "\ud800", b"k", 1, uuid.UUID(int=1)])
def test_what_is_no_key_is_refused(wrong: Any) -> None:
    with pytest.raises(PayloadError, match="a dedup_key is text that is not empty"):
        Scoop("shop", database="postgresql://nobody@127.0.0.1:1/x").launch_sync("R", 1, dedup_key=wrong)


def test_a_key_of_any_length_and_content_will_do(make_shop: MakeShop, database_url: str) -> None:
    keys = ["x" * 100_000, "\0", "ß", "a\nb", "{}"]
    handles = make_shop().app.launch_many_sync([Draft("R", 1, dedup_key=key) for key in keys])
    assert [one for one, _ in in_outbox(database_url)] == [handle.id for handle in handles]


def test_an_id_and_a_key_are_not_given_together() -> None:
    app = Scoop("shop", database="postgresql://nobody@127.0.0.1:1/x")
    with pytest.raises(DefinitionError, match="pass id= or dedup_key="):
        app.launch_sync("R", 1, id=uuid.uuid4(), dedup_key="k")
    with pytest.raises(DefinitionError, match="pass id= or dedup_key="):
        app.launch_many_sync([Draft("R", 1, id=uuid.uuid4(), dedup_key="k")])
