"""UR: somebody asks for the rollback of what has committed, as a whole or in part."""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from scoop_outbox import ActiveRun, Answer, GaveUp, Handle, RollbackAnswer, RollbackRequested, Runs, RunState
from scoop_outbox.cli import main
from scoop_outbox.daemon.worker import roster, waiting_requests
from tests.scenarios.conftest import MakeShop
from tests.scenarios.shop import LONG, Gate, Shop, events, launches, raises, together
from tests.waiting import until

FEELZ: dict[str, Any] = {"reason": "feelz", "source": "master-system"}
ACCEPTED = RollbackAnswer(Answer.ACCEPTED)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have workers look around them more often."""
    monkeypatch.setattr(roster, "EVERY", 0.2)


def family(shop: Shop, gate: Gate | None = None) -> None:
    """A root whose first step launches a child; the compensation of the child may be held back."""
    shop.saga("root", "R", launches("C"))
    child = shop.app.saga("child", "C")
    shop.step(child, "0", compensate=gate or True)


async def undone(handle: Handle) -> RollbackRequested:
    """How a hierarchy that is rolled back by request ends for those who wait for it."""
    with pytest.raises(RollbackRequested) as caught:
        await handle.wait(LONG)
    return caught.value


async def is_in(shop: Shop, handle: Handle, saga: str, state: RunState) -> bool:
    return any(run.state is state for run in await shop.runs(handle, saga))


@asynccontextmanager
async def undoing(shop: Shop, gate: Gate) -> AsyncIterator[Handle]:
    """A family that is being rolled back by request: the compensation of the child is held back until the end."""
    family(shop, gate)
    handle = await shop.run("R")
    async with shop.running():
        assert await shop.app.rollback(handle.id, **FEELZ) == ACCEPTED
        await until(lambda: gate.entered, LONG)
        yield handle
        gate.open = True
        await undone(handle)


@pytest.mark.everywhere
async def test_ur_01_ur_12_a_committed_hierarchy_is_undone_for_the_reason_of_the_request(shop: Shop) -> None:
    errors: dict[str, Any] = {}

    def notes(saga: str) -> Any:
        def body(_: object, __: object, error: Any) -> None:
            errors[saga] = error.failure

        return body

    root, child = shop.app.saga("root", "R"), shop.app.saga("child", "C")
    shop.step(root, "0", launches("C"), compensate=notes("root"))
    shop.step(child, "0", compensate=notes("child"))

    async with shop.running():
        handle = await shop.app.launch("R", None)
        await handle.wait(LONG)
        assert await shop.app.rollback(handle.id, **FEELZ) == ACCEPTED
        error = await undone(handle)

    assert shop.journal == ["root-0", "child-0", "child-rb0", "root-rb0"]
    assert await events(shop.app, handle) == [
        "root 0 step compensated",
        "child 0 step compensated",
        "child 0 compensation committed",
        "root 0 compensation committed",
    ]
    assert await shop.states(handle) == {"root": RunState.ROLLED_BACK, "child": RunState.ROLLED_BACK}
    for failure in (error.failure, errors["root"]):
        assert str(failure) == "[master-system] RollbackRequested: feelz"
    assert errors["child"].type == "ParentSaidSo"
    assert errors["child"].source.startswith("root[")
    assert [str(cause) for cause in errors["child"].causes] == ["[master-system] RollbackRequested: feelz"]


async def test_ur_02_a_part_is_undone_and_what_is_above_it_stays_committed(mixed: Shop) -> None:
    family(mixed)
    handle = await mixed.run("R")
    child = await mixed.only(handle, "child")

    async with mixed.running():
        assert await mixed.app.rollback(child.id, **FEELZ) == ACCEPTED
        await until(lambda: is_in(mixed, handle, "child", RunState.ROLLED_BACK), LONG)
        await handle.wait(LONG)  # its root has committed, and stays so

    assert mixed.journal == ["root-0", "child-0", "child-rb0"]
    assert await mixed.states(handle) == {"root": RunState.COMMITTED, "child": RunState.ROLLED_BACK}
    assert await mixed.app.rollback(child.id, **FEELZ) == RollbackAnswer(Answer.ALREADY_ROLLED_BACK)


async def test_ur_03_ur_10_below_an_active_run_nothing_is_undone_before_it_has_ended(mixed: Shop) -> None:
    gate = Gate()
    mixed.saga("root", "R", launches("C"), gate)
    mixed.saga("child", "C", None)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        root, child = await mixed.only(handle, "root"), await mixed.only(handle, "child")
        refused = RollbackAnswer(Answer.REFUSED_ACTIVE, (ActiveRun(root.id, "shop", "root", "running"),))
        assert await mixed.app.rollback(child.id, **FEELZ) == refused
        assert await mixed.app.rollback(child.message_id, **FEELZ, if_active="cancel") == refused
        gate.open = True
        await handle.wait(LONG)
        assert mixed.journal == ["root-0", "child-0", "root-1"]
        assert await mixed.app.rollback(child.id, **FEELZ) == ACCEPTED
        await until(lambda: is_in(mixed, handle, "child", RunState.ROLLED_BACK), LONG)

    assert mixed.journal == ["root-0", "child-0", "root-1", "child-rb0"]


async def test_ur_04_q11_a_second_request_compensates_nothing_twice(mixed: Shop) -> None:
    gate = Gate()
    async with undoing(mixed, gate) as handle:
        for if_active in ("refuse", "wait"):
            answered = await mixed.app.rollback(handle.id, reason="again", if_active=if_active)
            assert answered == RollbackAnswer(Answer.ALREADY_REQUESTED)

    assert await mixed.app.rollback(handle.id) == RollbackAnswer(Answer.ALREADY_ROLLED_BACK)
    assert mixed.journal == ["root-0", "child-0", "child-rb0", "root-rb0"]


@pytest.mark.everywhere
async def test_ur_05_a_message_that_nobody_has_seen_starts_a_run_that_executes_nothing(mixed: Shop) -> None:
    mixed.saga("root", "R", None)
    await mixed.app.announce()
    handle = await mixed.app.launch("R", None)

    assert await mixed.app.rollback(handle.id, **FEELZ) == ACCEPTED
    assert await mixed.app.rollback(handle.id) == RollbackAnswer(Answer.ALREADY_REQUESTED)
    async with mixed.running():
        error = await undone(handle)

    assert mixed.journal == []
    assert await mixed.states(handle) == {"root": RunState.ROLLED_BACK}
    assert str(error.failure) == "[master-system] RollbackRequested: feelz"


async def test_ur_06_q9_an_active_run_is_not_undone_by_its_own_id(mixed: Shop) -> None:
    gate = Gate()
    mixed.saga("root", "R", None, gate)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        root = await mixed.only(handle, "root")
        active = (ActiveRun(root.id, "shop", "root", "running"),)
        for one in (root.id, handle.id):
            assert await mixed.app.rollback(one, **FEELZ) == RollbackAnswer(Answer.REFUSED_ACTIVE, active)
        gate.open = True
        await handle.wait(LONG)

    assert mixed.journal == ["root-0", "root-1"]


async def test_ur_07_q49_what_could_not_be_rolled_back_is_refused(mixed: Shop) -> None:
    root, child = mixed.app.saga("root", "R"), mixed.app.saga("child", "C")
    mixed.step(root, "0", launches("C"))
    mixed.step(child, "0", compensate=raises("stuck"))
    handle = await mixed.run("R")
    child_run = await mixed.only(handle, "child")
    async with mixed.running():
        assert await mixed.app.rollback(child_run.id, **FEELZ) == ACCEPTED
        await until(lambda: is_in(mixed, handle, "child", RunState.ROLLBACK_FAILED), LONG)

    refused = RollbackAnswer(Answer.REFUSED_ROLLBACK_FAILED)
    for one in (handle.id, child_run.id):
        assert await mixed.app.rollback(one, **FEELZ, if_active="wait") == refused
    assert await mixed.states(handle) == {"root": RunState.COMMITTED, "child": RunState.ROLLBACK_FAILED}
    # When somebody has given the part up, it counts as done (behaviour Q10).
    assert await mixed.app.abandon(child_run.id, note="by hand") is Answer.ACCEPTED
    assert await mixed.app.rollback(child_run.id, **FEELZ) == RollbackAnswer(Answer.ABANDONED)
    async with mixed.running():
        assert await mixed.app.rollback(handle.id, **FEELZ) == ACCEPTED
        await undone(handle)
    assert mixed.journal == ["root-0", "child-0", "child-rb0", "root-rb0"]


async def test_ur_08_q49_what_has_rolled_back_by_itself_is_said_to_have(mixed: Shop) -> None:
    mixed.saga("root", "R", None, raises())
    handle, _ = await mixed.fail("R")

    assert await mixed.app.rollback(handle.id, **FEELZ) == RollbackAnswer(Answer.ALREADY_ROLLED_BACK)
    assert await mixed.app.rollback(uuid.uuid4()) == RollbackAnswer(Answer.UNKNOWN)
    assert mixed.journal == ["root-0", "root-1", "root-rb0"]


async def test_ur_09_q10_a_part_that_is_undone_already_does_not_hold_up_the_whole(mixed: Shop) -> None:
    family(mixed)
    handle = await mixed.run("R")
    child = await mixed.only(handle, "child")

    async with mixed.running():
        await mixed.app.rollback(child.id)
        await until(lambda: is_in(mixed, handle, "child", RunState.ROLLED_BACK), LONG)
        assert await mixed.app.rollback(handle.id, **FEELZ) == ACCEPTED
        await undone(handle)

    assert mixed.journal == ["root-0", "child-0", "child-rb0", "root-rb0"]


async def test_ur_11_a_saga_that_subscribed_afterwards_is_not_waited_for(make_shop: MakeShop) -> None:
    here, elsewhere = make_shop(), make_shop(service="elsewhere")
    family(here)
    handle = await here.run("R")
    elsewhere.saga("another", "C", None)
    await elsewhere.app.announce()

    async with here.running():
        assert await here.app.rollback(handle.id, **FEELZ) == ACCEPTED
        await undone(handle)

    # In a home of its own it may have handled the message while it announced itself: for nobody.
    assert [one for one in here.journal.entries if one != "another-0"] == ["root-0", "child-0", "child-rb0", "root-rb0"]


async def test_ur_13_compensations_see_the_context_with_which_their_run_committed(mixed: Shop) -> None:
    seen: list[Any] = []

    def writes(scope: Any, _: object) -> None:
        scope.context["written"] = scope.saga

    def reads(scope: Any, *_: object) -> None:
        seen.append((scope.saga, scope.context.get("launched"), scope.context.get("written")))

    root, child = mixed.app.saga("root", "R"), mixed.app.saga("child", "C")
    mixed.step(root, "0", launches("C"), compensate=reads)
    mixed.step(root, "1", writes)
    mixed.step(child, "0", writes, compensate=reads)
    handle = await mixed.run("R", context={"launched": True})

    async with mixed.running():
        assert await mixed.app.rollback(handle.id, **FEELZ) == ACCEPTED
        await undone(handle)

    assert seen == [("child", True, "root"), ("root", True, "root")]


KINDS = ("sqlalchemy", "asyncpg", "psycopg")


@asynccontextmanager
async def transaction(kind: str, url: str) -> AsyncIterator[Any]:
    """A transaction of the user's, which is undone unless it is committed."""
    if kind == "psycopg":
        async with await psycopg.AsyncConnection.connect(url) as connection:
            yield connection
            await connection.rollback()
        return
    driver = {"sqlalchemy": "psycopg", "asyncpg": "asyncpg"}[kind]
    engine = create_async_engine(make_url(url).set(drivername=f"postgresql+{driver}"))
    try:
        async with AsyncSession(engine) as session:
            yield session
    finally:
        await engine.dispose()


@pytest.mark.parametrize("kind", KINDS)
async def test_ur_14_a_request_is_there_if_the_transaction_of_its_caller_commits(
    mixed: Shop, impatient: None, database_url: str, kind: str
) -> None:
    family(mixed)

    async with mixed.running():
        first, second = [await mixed.app.launch("R", None) for _ in range(2)]
        for handle in (first, second):
            await handle.wait(LONG)
        async with transaction(kind, database_url) as session:
            assert await mixed.app.rollback(second.id, session=session) == ACCEPTED
        async with transaction(kind, database_url) as session:
            assert await mixed.app.rollback(first.id, **FEELZ, session=session) == ACCEPTED
            answered = await mixed.app.rollback(first.id, session=session)
            assert answered == RollbackAnswer(Answer.ALREADY_REQUESTED)
            assert outcomes(database_url) == []
            await session.commit()
        await until(lambda: is_in(mixed, first, "root", RunState.ROLLED_BACK), LONG)
        error = await undone(first)
        await second.wait(LONG)

    assert str(error.failure) == "[master-system] RollbackRequested: feelz"
    assert outcomes(database_url) == ["accepted"]
    assert mixed.journal.count("root-rb0") == 1


def test_ur_14_without_an_event_loop(mixed: Shop, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        answered = mixed.app.rollback_sync(uuid.uuid4(), session=connection)
        assert answered == RollbackAnswer(Answer.UNKNOWN)
        with pytest.raises(ValueError, match="if_active='cancel' cannot be undone"):
            mixed.app.rollback_sync(uuid.uuid4(), if_active="cancel", session=connection)
    mixed.app.close_sync()


async def test_nobody_waits_for_a_transaction_that_has_asked_the_same(mixed: Shop, database_url: str) -> None:
    family(mixed)
    handle = await mixed.run("R")

    async with mixed.running(), transaction("psycopg", database_url) as session:
        assert await mixed.app.rollback(handle.id, session=session) == ACCEPTED
        assert await mixed.app.rollback(handle.id, **FEELZ) == ACCEPTED
        await undone(handle)
        await session.commit()

    assert mixed.journal == ["root-0", "child-0", "child-rb0", "root-rb0"]


async def test_q8_what_is_active_is_waited_for(mixed: Shop, impatient: None) -> None:
    gate = Gate()
    mixed.saga("root", "R", launches("C"), gate)
    mixed.saga("child", "C", None)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        child = await mixed.only(handle, "child")
        assert await mixed.app.rollback(handle.id, **FEELZ, if_active="wait") == ACCEPTED
        for if_active in ("refuse", "wait"):
            answered = await mixed.app.rollback(handle.id, if_active=if_active)
            assert answered == RollbackAnswer(Answer.ALREADY_REQUESTED)
        assert await mixed.app.rollback(child.id, **FEELZ, if_active="wait") == ACCEPTED
        assert mixed.journal == ["root-0", "child-0", "root-1"]
        gate.open = True
    async with mixed.running():  # another worker
        await until(lambda: is_in(mixed, handle, "root", RunState.ROLLED_BACK), LONG)
        error = await undone(handle)

    assert str(error.failure) == "[master-system] RollbackRequested: feelz"
    assert mixed.journal.of("child") == ["child-0", "child-rb0"]
    assert mixed.journal.of("root")[-2:] == ["root-rb1", "root-rb0"]


async def test_q8_a_request_waits_for_an_ancestor_and_for_what_is_below(mixed: Shop, impatient: None) -> None:
    gates = Gate(), Gate()
    mixed.saga("root", "R", launches("C"), gates[0])
    child = mixed.saga("child", "C", launches("G"))
    mixed.step(child, "1")
    mixed.step(mixed.app.saga("grandchild", "G"), "0", compensate=gates[1])

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: gates[0].entered, LONG)
        runs = {run.saga: run for run in await mixed.runs(handle)}
        assert await mixed.app.rollback(runs["child"].id, if_active="wait") == ACCEPTED
        assert await mixed.app.rollback(runs["grandchild"].id, if_active="refuse") != ACCEPTED
        gates[0].open = True
        await until(lambda: gates[1].entered, LONG)
        assert await mixed.app.rollback(runs["root"].id, **FEELZ, if_active="wait") == ACCEPTED
        answered = await mixed.app.rollback(runs["root"].id)
        assert answered == RollbackAnswer(Answer.ALREADY_REQUESTED)
        gates[1].open = True
        await until(lambda: is_in(mixed, handle, "root", RunState.ROLLED_BACK), LONG)

    assert [one for one in mixed.journal.entries if "rb" in one] == [
        *("child-rb1", "grandchild-rb0", "child-rb0"),
        *("root-rb1", "root-rb0"),
    ]


async def test_q8_a_request_that_waits_ends_with_what_rolls_back_by_itself(
    mixed: Shop, impatient: None, database_url: str
) -> None:
    gate = Gate()

    def fails(*_: object) -> Any:
        yield from gate()
        raise RuntimeError("no")

    mixed.saga("root", "R", None, fails)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        assert await mixed.app.rollback(handle.id, **FEELZ, if_active="wait") == ACCEPTED
        gate.open = True
        with pytest.raises(Exception, match="no"):
            await handle.wait(LONG)
        await until(lambda: outcomes(database_url) == ["already rolled back"], LONG)

    assert mixed.journal == ["root-0", "root-1", "root-rb0"]


def outcomes(url: str) -> list[str | None]:
    """What has become of the requests to roll back."""
    with psycopg.connect(url) as connection:
        found = connection.execute("select outcome from scoop_outbox.request where kind = 'rollback' order by id")
        return [outcome for (outcome,) in found]


@pytest.mark.parametrize("shield", [False, True])
async def test_q8_what_is_active_is_cancelled_and_what_commits_all_the_same_is_undone(
    mixed: Shop, impatient: None, shield: bool
) -> None:
    gate = Gate()
    root = mixed.app.saga("root", "R", shield=shield)
    mixed.step(root, "0", launches("C"))
    mixed.step(root, "1", gate)
    mixed.saga("child", "C", None)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        assert await mixed.app.rollback(handle.id, **FEELZ, if_active="cancel") == ACCEPTED
        gate.open = True
        await until(lambda: is_in(mixed, handle, "root", RunState.ROLLED_BACK), LONG)
        with pytest.raises(RollbackRequested if shield else GaveUp) as caught:
            await handle.wait(LONG)

    assert caught.value.root_cause.message == "feelz"
    ended = ["root-rb1", "child-rb0", "root-rb0"] if shield else ["child-rb0", "root-rb0"]
    assert mixed.journal == ["root-0", "child-0", "root-1", *ended]


async def test_q8_of_sagas_that_handle_a_message_those_that_have_committed_are_undone_last(
    mixed: Shop, impatient: None
) -> None:
    gate = Gate()
    mixed.saga("quick", "R", None)
    mixed.saga("slow", "R", None, gate)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: gate.entered and mixed.journal.count("quick-0"), LONG)
        (active,) = (await mixed.app.rollback(handle.id)).active
        assert active.saga == "slow"
        assert await mixed.app.rollback(handle.id, **FEELZ, if_active="cancel") == ACCEPTED
        gate.open = True
        await until(lambda: is_in(mixed, handle, "quick", RunState.ROLLED_BACK), LONG)

    assert sorted(one for one in mixed.journal.entries if "rb" in one) == ["quick-rb0", "slow-rb0"]


async def test_requests_that_go_on_waiting_do_not_hold_up_those_behind_them(
    mixed: Shop, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting_requests, "AT_ONCE", 1)
    gate = Gate()

    def holds(_: object, message: Any) -> Any:
        yield from gate() if message.payload else ()

    mixed.saga("root", "R", launches("C"), holds)
    mixed.saga("child", "C", None)

    async with mixed.running():
        handles = [await mixed.app.launch("R", held) for held in (True, True, False)]
        for handle in handles:
            await until(lambda: mixed.journal.count("root-1") == 3, LONG)
            child = await mixed.only(handle, "child")
            assert await mixed.app.rollback(child.id, if_active="wait") == ACCEPTED
        await until(lambda: is_in(mixed, handles[-1], "child", RunState.ROLLED_BACK), LONG)
        assert mixed.journal.count("child-rb0") == 1
        gate.open = True
        await until(lambda: mixed.journal.count("child-rb0") == 3, LONG)


async def test_q12_a_hierarchy_with_a_failure_that_was_handled_is_undone(mixed: Shop) -> None:
    root = mixed.app.saga("root", "R")
    mixed.step(root, "0", launches("C", "D"), on_child_failure=lambda *_: None)
    mixed.saga("broken", "C", None, raises())
    mixed.saga("whole", "D", None)
    handle = await mixed.run("R")

    async with mixed.running():
        assert await mixed.app.rollback(handle.id, **FEELZ) == ACCEPTED
        await undone(handle)

    assert mixed.journal.count("broken-rb0") == 1
    assert mixed.journal.entries[-2:] == ["whole-rb0", "root-rb0"]


async def test_a_part_is_undone_by_its_message_in_every_saga_that_handles_it(mixed: Shop) -> None:
    mixed.saga("root", "R", launches("C"))
    mixed.saga("one", "C", None)
    mixed.saga("other", "C", None)
    handle = await mixed.run("R")
    one = await mixed.only(handle, "one")

    async with mixed.running():
        assert await mixed.app.rollback(one.message_id, **FEELZ) == ACCEPTED
        await until(lambda: is_in(mixed, handle, "one", RunState.ROLLED_BACK), LONG)
        await until(lambda: is_in(mixed, handle, "other", RunState.ROLLED_BACK), LONG)
        assert await mixed.app.rollback(handle.id, **FEELZ) == ACCEPTED
        await undone(handle)

    assert sorted(mixed.journal.entries[3:5]) == ["one-rb0", "other-rb0"]
    assert mixed.journal.entries[5:] == ["root-rb0"]


async def test_while_a_part_is_being_undone_the_whole_is_refused_and_the_answer_says_why(mixed: Shop) -> None:
    gate = Gate()
    family(mixed, gate)
    handle = await mixed.run("R")
    child = await mixed.only(handle, "child")

    async with mixed.running():
        assert await mixed.app.rollback(child.id) == ACCEPTED
        await until(lambda: gate.entered, LONG)
        answered = await mixed.app.rollback(handle.id)
        assert answered.answer is Answer.REFUSED_ACTIVE
        assert answered.active == (ActiveRun(child.id, child.service, "child", "rolling_back"),)
        gate.open = True
        await until(lambda: is_in(mixed, handle, "child", RunState.ROLLED_BACK), LONG)


async def test_requests_that_race_compensate_everything_once(mixed: Shop, database_url: str) -> None:
    mixed.saga("root", "R", launches("C", "C"), launches("C"))
    mixed.saga("child", "C", launches("G"))
    mixed.saga("grandchild", "G", None)
    async with mixed.running():
        handles = [await mixed.app.launch("R", number) for number in range(10)]
        for handle in handles:
            await handle.wait(LONG)
        asked = [one for handle in handles for run in await mixed.runs(handle) for one in (run.id, run.message_id)]
        random.Random(1).shuffle(asked)
        answers = await together(*(mixed.app.rollback(one, if_active="refuse") for one in asked))
        assert ACCEPTED in answers
        for handle in handles:
            await has_ended(mixed, handle)
            answered = await mixed.app.rollback(handle.id)
            assert answered.answer in (Answer.ACCEPTED, Answer.ALREADY_ROLLED_BACK)
            await undone(handle)

    counts = {one: mixed.journal.count(one) for one in set(mixed.journal.entries)}
    assert counts == {
        **{f"root-{one}": 10 for one in ("0", "1", "rb0", "rb1")},
        **{f"child-{one}": 30 for one in ("0", "rb0")},
        **{f"grandchild-{one}": 30 for one in ("0", "rb0")},
    }
    with Runs(database_url) as runs:
        assert runs.list(states=[RunState.RUNNING, RunState.ROLLING_BACK]) == []


async def has_ended(shop: Shop, handle: Handle) -> None:
    async def ended() -> bool:
        return (await shop.status(handle)).ended

    await until(ended, LONG)


async def test_operators_undo_without_an_application(mixed: Shop, database_url: str) -> None:
    gate = Gate()
    mixed.saga("root", "R", None, gate)

    async with mixed.running():
        handle = await mixed.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        root = await mixed.only(handle, "root")
        arguments = ["rollback", str(handle.id), "--database", database_url, "--reason", "feelz", "--source", "me"]
        refused = await asyncio.to_thread(CliRunner().invoke, main, arguments)
        gate.open = True
        await handle.wait(LONG)
        told = await asyncio.to_thread(CliRunner().invoke, main, arguments)
        error = await undone(handle)

    assert (refused.exit_code, told.exit_code) == (1, 0)
    assert refused.output == f"{handle.id}\trefused: active\n  {root.id}\trunning\tshop/root\n"
    assert told.output == f"{handle.id}\taccepted\n"
    assert str(error.failure) == "[me] RollbackRequested: feelz"
    with Runs(database_url) as runs:
        assert runs.rollback(root.id, source="me") == RollbackAnswer(Answer.ALREADY_ROLLED_BACK)


def test_a_word_that_says_nothing_is_not_taken(mixed: Shop) -> None:
    with pytest.raises(ValueError, match="if_active is one of 'refuse', 'cancel', 'wait', and not 'perhaps'"):
        mixed.app.rollback_sync(uuid.uuid4(), if_active="perhaps")  # type: ignore[arg-type]
