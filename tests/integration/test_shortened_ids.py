"""Operators shorten ids where they act, from `cancel` to `complete`, and nothing is guessed."""

import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from scoop_outbox import AmbiguousId, Answer, DefinitionError, DistributedError, Handle, RunState, Scoop, UnknownMessage
from scoop_outbox.operations.runs import Runs
from tests.integration.seeing import command, nothing, printed, raises, refused
from tests.waiting import until

FIRST, SECOND = (uuid.UUID(f"01a20d49-27f9-7a10-8f3c-{n:012x}") for n in (0xABC, 0xDEF))
OTHER = uuid.UUID("01a20d49-ffff-7a10-8f3c-000000000000")
NOBODYS = uuid.UUID("01a20d4a-ffff-7a10-8f3c-000000000000")
ACTING = ("cancel", "rollback", "retry", "skip", "abandon")


@pytest.fixture
def runs(database_url: str) -> Iterator[Runs]:
    with Runs(database_url) as opened:
        yield opened


@pytest.fixture
def app(database_url: str) -> Scoop:
    """A service whose orders commit, and whose other messages cannot be rolled back."""
    app = Scoop("shop", database=database_url)
    for saga in ("a", "b"):
        app.saga(saga, on="orders").add_step("only", nothing)
    stuck = app.saga("stuck", on="broken")
    stuck.add_step("first", nothing, compensate=raises("no way back"))
    stuck.add_step("second", raises("boom"))
    return app


async def handled(app: Scoop, *launched: tuple[str, uuid.UUID]) -> list[Handle]:
    """Launch messages and wait for their ends."""
    async with app.running():
        handles = [await app.launch(topic, 1, id=one) for topic, one in launched]
        for handle in handles:
            with contextlib.suppress(DistributedError):
                await handle.wait(20)
    return handles


def run_of(runs: Runs, message_id: uuid.UUID, saga: str) -> uuid.UUID:
    return next(run.id for run in runs.show(message_id).runs if run.saga == saga)


async def test_what_fits_one_thing_alone_is_acted_on(app: Scoop, database_url: str, runs: Runs) -> None:
    await app.launch("orders", 1, id=OTHER)  # nobody takes it in: there are no runs that begin alike
    await app.close()
    assert runs.cancel("01A20D49-FF", source="me") is Answer.ACCEPTED
    assert printed(database_url, "cancel", "01a20d49ff") == f"{OTHER}\talready requested\n"


async def test_a_run_is_found_by_what_only_runs_begin_with(app: Scoop, database_url: str, runs: Runs) -> None:
    await handled(app, ("broken", FIRST), ("broken", OTHER))
    first, other = run_of(runs, FIRST, "stuck"), run_of(runs, OTHER, "stuck")
    assert runs.skip("01a20d49-ff", source="me") is Answer.ACCEPTED, "messages do not count"
    assert printed(database_url, "abandon", str(first)[:14]) == f"{first}\taccepted\n"
    said = refused(database_url, "retry", "01a20d49")
    assert f"several ids begin with 01a20d49, pass more of it: run {min(first, other)}, run {max(first, other)}" in said
    assert command(database_url, "retry", str(other)[:14]).output == f"{other}\talready requested\n"


async def test_a_message_and_its_run_are_not_taken_for_each_other(app: Scoop, database_url: str, runs: Runs) -> None:
    await handled(app, ("orders", FIRST))
    for verb in ("cancel", "rollback"):
        said = refused(database_url, verb, "01a20d49")
        assert all(f"run {run_of(runs, FIRST, saga)}" in said for saga in ("a", "b"))
        assert f"message {FIRST}" in said
    run_id = run_of(runs, FIRST, "b")
    answered = runs.rollback(str(run_id)[:30], source="me")
    assert answered.answer is Answer.ACCEPTED
    async with app.running():
        with pytest.raises(Exception, match="RollbackRequested"):
            await app.handle(FIRST).wait(20)
    states = {run.saga: run.state for run in runs.show(FIRST).runs}
    assert states == {"a": RunState.COMMITTED, "b": RunState.ROLLED_BACK}


async def test_work_outside_is_ended_by_what_fits_one_thing_alone(app: Scoop, database_url: str, runs: Runs) -> None:
    app.external("manager", on="approvals")
    async with app.running():
        handles = [await app.launch("approvals", 1, id=one) for one in (FIRST, SECOND)]
        await until(lambda: len(runs.list(saga="manager")) == 2, 20)
        first, second = (str(run_of(runs, one, "manager")) for one in (FIRST, SECOND))
        for verb in ("complete", "fail"):
            said = refused(database_url, verb, "01a20d49", "manager")
            assert all(f"{kind} {one}" in said for kind, one in (("message", FIRST), ("run", second)))
        assert runs.complete(first[:30], "manager", source="me") is Answer.ACCEPTED
        assert printed(database_url, "fail", str(SECOND)[:35], "manager") == f"{SECOND}\taccepted\n"
        assert await handles[0].wait(20) is None
        with pytest.raises(DistributedError):
            await handles[1].wait(20)
    with pytest.raises(UnknownMessage):
        runs.fail("01a20d4a", "manager", source="me")


async def test_nothing_is_done_when_one_of_several_ids_is_not_clear(app: Scoop, database_url: str, runs: Runs) -> None:
    for message_id in (FIRST, SECOND, OTHER):
        await app.launch("orders", 1, id=message_id)
    await app.close()
    said = refused(database_url, "cancel", str(OTHER), "01a20d4927")
    assert f"message {FIRST}, message {SECOND}" in said
    assert runs.cancel(OTHER, source="me") is Answer.ACCEPTED, "it had not been asked before"


@pytest.mark.parametrize("verb", ACTING)
def test_what_is_no_id_or_nobodys_is_refused(verb: str, database_url: str, runs: Runs) -> None:
    act: Any = getattr(runs, verb)
    for sought in ("01a20", "01a20d4g", f"{FIRST}0", ""):
        with pytest.raises(DefinitionError, match="hexadecimal digits"):
            act(sought, source="me")
    with pytest.raises(UnknownMessage, match=r"no (message and no )?run of this database has an id that begins with 0"):
        act("01a20d4a", source="me")
    assert "begins with 01a20d4a" in refused(database_url, verb, "01a20d4a")
    assert refused(database_url, verb, str(NOBODYS)) == "", "a whole id has an answer"
    assert command(database_url, verb, str(NOBODYS).replace("-", "")).output == f"{NOBODYS}\tunknown\n"


def test_ambiguous_ids_are_an_error_of_their_own(app: Scoop, runs: Runs) -> None:
    for message_id in (FIRST, SECOND):
        app.launch_sync("orders", 1, id=message_id)
    app.close_sync()
    with pytest.raises(AmbiguousId, match=f"message {FIRST}, message {SECOND}"):
        runs.find_target("01a20d")
    with pytest.raises(UnknownMessage, match="no run of this database"):
        runs.find_run("01a20d")
