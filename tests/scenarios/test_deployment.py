"""Deploying a new version while the old one runs: every run goes on, in its version or in one that can take it over."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from scoop_outbox import Answer, DistributedError, Scoop
from scoop_outbox.core.plans import placement
from scoop_outbox.daemon.worker import roster
from tests.waiting import until

LONG = 60.0

CHANGES = {
    "added": ("abc", "abxc"),
    "added in front": ("abc", "xabc"),
    "added at the end": ("abc", "abcx"),
    "removed": ("abc", "ac"),
    "removed at the end": ("abc", "ab"),
    "moved": ("abc", "acb"),
    "renamed": ("abc", "axc"),
    "all of it": ("abc", "xyz"),
}
PAIRS = {
    f"{name}, {way}": pair if way == "forwards" else pair[::-1]
    for name, pair in CHANGES.items()
    for way in ("forwards", "backwards")
}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look around often, and do not wait for a minute."""
    monkeypatch.setattr(roster, "EVERY", 0.2)
    monkeypatch.setattr(placement, "GRACE", timedelta(seconds=0.4))


Sagas = Mapping[str, str]
"""The names of sagas and of their steps, a letter each."""


def service(url: str, sagas: Sagas) -> Scoop:
    """A version of the service: each step waits for a handler elsewhere, and the run is claimed anew for the next."""
    app = Scoop("shop", database=url)

    async def coroutine(scope: Any, message: Any) -> None:
        scope.launch("pings", {})

    def thread(scope: Any, message: Any) -> None:
        scope.launch("pings", {})

    colours: Iterator[Any] = itertools.cycle((coroutine, thread))
    for name, steps in sagas.items():
        saga = app.saga(name, on=name)
        for step, callback in zip(steps, colours, strict=False):
            saga.add_step(step, callback)
    return app


def handler(url: str) -> Scoop:
    """Who handles the pings: while it is not running, runs stand still between two steps."""
    app = Scoop("handler", database=url)
    app.saga("ping", on="pings").add_step("pong", lambda scope, message: None)
    app.announce_sync()
    return app


def executed(url: str) -> dict[str, Counter[tuple[str, str]]]:
    """How many runs of each saga stand in each state after executing which steps."""
    text = """
        select r.saga, r.state, coalesce((
            select string_agg(s.step, '' order by s.seq) from scoop_outbox.step s where s.run_id = r.id
        ), '')
        from scoop_outbox.run r where r.service = 'shop'
    """
    found: dict[str, Counter[tuple[str, str]]] = {}
    with psycopg.connect(url, autocommit=True) as connection:
        for saga, state, steps in connection.execute(text.encode()):
            found.setdefault(saga, Counter())[state, steps] += 1
    return found


def states(url: str) -> set[str]:
    return {state for counts in executed(url).values() for state, _ in counts}


OLD = {name: old for name, (old, _) in PAIRS.items()}
NEW = {name: new for name, (_, new) in PAIRS.items()}


async def test_q66_with_workers_of_both_alive_each_run_stays_in_its_version(database_url: str) -> None:
    old, new, pings = service(database_url, OLD), service(database_url, NEW), handler(database_url)
    async with pings.running(relay=False), old.running(slots=8):
        handles = [await old.launch(name, {}) for name in PAIRS for _ in range(5)]
        async with new.running(relay=False, slots=8):
            for number in range(8):
                handles += [await (old if number % 2 else new).launch(name, {}) for name in PAIRS]
            await asyncio.gather(*(handle.wait(LONG) for handle in handles))
    for name, found in executed(database_url).items():
        assert set(found) <= {("committed", OLD[name]), ("committed", NEW[name])}, name
        assert found.total() == 13
    assert len(handles) == 13 * len(PAIRS) > 200
    await asyncio.gather(old.close(), new.close(), pings.close())


def stands(count: int, state: str, steps: Mapping[str, str]) -> dict[str, Counter[tuple[str, str]]]:
    return {name: Counter({(state, of): count}) for name, of in steps.items()}


def taken_over(old: str, new: str) -> bool:
    """Whether a run that has executed the first step of a version can go on in another one."""
    needs = old[1]
    return needs in new and not any(step in new and step not in new[new.index(needs) :] for step in old[1:])


async def test_q79_when_the_old_version_goes_runs_move_on_or_wait_for_it_and_none_is_lost(database_url: str) -> None:
    old, new, pings = service(database_url, OLD), service(database_url, NEW), handler(database_url)
    async with old.running(slots=8):
        handles = [await old.launch(name, {}) for name in PAIRS for _ in range(4)]
        first = {name: steps[0] for name, steps in OLD.items()}
        await until(lambda: executed(database_url) == stands(4, "running", first), LONG)
    async with new.running(slots=8), pings.running(relay=False):
        await until(lambda: states(database_url) == {"committed", "parked"}, LONG)
        moved = {name: OLD[name][0] + NEW[name][NEW[name].index(OLD[name][1]) :]
                 for name, pair in PAIRS.items() if taken_over(*pair)}  # fmt: skip
        left = {name: OLD[name][0] for name in PAIRS if name not in moved}
        assert executed(database_url) == {**stands(4, "committed", moved), **stands(4, "parked", left)}

        again = service(database_url, OLD)
        async with again.running(relay=False, slots=8):
            await asyncio.gather(*(handle.wait(LONG) for handle in handles))
        await again.close()
    left = {name: OLD[name] for name in left}
    assert executed(database_url) == {**stands(4, "committed", moved), **stands(4, "committed", left)}
    await asyncio.gather(old.close(), new.close(), pings.close())


async def test_q79_a_run_that_would_leave_out_a_step_says_so_and_goes_on_when_it_is_retried(database_url: str) -> None:
    old, new, pings = (
        service(database_url, {"order": "abc"}),
        service(database_url, {"order": "acb"}),
        handler(database_url),
    )
    async with old.running():
        handle = await old.launch("order", {})
        await until(lambda: executed(database_url) == stands(1, "running", {"order": "a"}))
    async with new.running(), pings.running(relay=False):
        await until(lambda: states(database_url) == {"parked"})
        (run,) = [run for run in (await new.status(handle.id)).runs if run.saga == "order"]
        assert run.reason is not None
        assert "executes 'c' before 'b', and this run would leave that out" in run.reason
        assert await new.retry(run.id) is Answer.ACCEPTED
        await handle.wait(LONG)
    assert executed(database_url) == stands(1, "committed", {"order": "ab"})
    await asyncio.gather(old.close(), new.close(), pings.close())


async def test_q66_a_step_that_nobody_knows_is_waited_for_before_the_run_is_parked(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "GRACE", timedelta(seconds=600))
    old, new, pings = (
        service(database_url, {"order": "ab"}),
        service(database_url, {"order": "ax"}),
        handler(database_url),
    )
    async with old.running():
        handle = await old.launch("order", {})
        await until(lambda: executed(database_url) == stands(1, "running", {"order": "a"}))
    async with pings.running(), new.running(relay=False) as daemons:
        await until(lambda: daemons.worker is not None and daemons.worker._dispatcher.left_alone > 0)
        assert executed(database_url) == stands(1, "running", {"order": "a"})
        again = service(database_url, {"order": "ab"})
        async with again.running(relay=False):
            await handle.wait(LONG)
        await again.close()
    assert executed(database_url) == stands(1, "committed", {"order": "ab"})
    await asyncio.gather(old.close(), new.close(), pings.close())


async def test_q66_a_version_that_the_user_names_is_one_version_whatever_its_steps(database_url: str) -> None:
    def labelled(steps: str) -> Scoop:
        app = Scoop("shop", database=database_url)
        saga = app.saga("order", on="order", version="1")
        for name in steps:
            saga.add_step(name, lambda scope, message: scope.launch("pings", {}) and None)
        return app

    old, new, pings = labelled("ab"), labelled("axb"), handler(database_url)
    async with old.running():
        handle = await old.launch("order", {})
        await until(lambda: executed(database_url) == stands(1, "running", {"order": "a"}))
        async with new.running(relay=False), pings.running(relay=False):
            await handle.wait(LONG)
    assert states(database_url) == {"committed"}
    await asyncio.gather(old.close(), new.close(), pings.close())


async def test_q66_a_rollback_is_left_to_the_version_in_which_the_run_began(database_url: str) -> None:
    undone: list[str] = []

    def version(label: str) -> Scoop:
        app = Scoop("shop", database=database_url)
        saga = app.saga("order", on="order", version=label)

        @saga.step
        def reserve(scope: Any, message: Any) -> None:
            scope.launch("pings", {})

        @reserve.compensate
        def release(scope: Any, message: Any, error: Exception) -> None:
            undone.append(label)

        @saga.step
        def fail(scope: Any, message: Any) -> None:
            raise ValueError("no")

        return app

    old, new, pings = version("1"), version("2"), handler(database_url)
    async with old.running(), new.running(relay=False):
        handles = [await (old, new)[number % 2].launch("order", {}) for number in range(20)]
        await until(lambda: executed(database_url) == stands(20, "running", {"order": "reserve"}))
        async with pings.running(relay=False):
            outcomes = await asyncio.gather(*(handle.wait(LONG) for handle in handles), return_exceptions=True)
    assert all(isinstance(outcome, Exception) for outcome in outcomes)
    steps = "select s.worker from scoop_outbox.step s join scoop_outbox.run r on r.id = s.run_id where r.saga = 'order'"
    began, ended = f"{steps} and s.state = 'compensated'", f"{steps} and s.kind = 'compensation'"
    with psycopg.connect(database_url, autocommit=True) as connection:
        workers = [Counter(connection.execute(text.encode()).fetchall()) for text in (began, ended)]
    assert workers[0] == workers[1]
    assert len(undone) == 20
    await asyncio.gather(old.close(), new.close(), pings.close())


async def test_q66_what_a_newer_version_cannot_undo_waits_for_one_that_can(database_url: str) -> None:
    undone: list[str] = []

    def version(*steps: str) -> Scoop:
        app = Scoop("shop", database=database_url)
        saga = app.saga("order", on="order")

        def reserve(scope: Any, message: Any) -> None:
            scope.launch("pings", {})

        def release(scope: Any, message: Any, error: Exception) -> None:
            undone.append(scope.step)

        def fail(scope: Any, message: Any) -> None:
            raise ValueError("no")

        for name in steps:
            saga.add_step(name, fail if name == "fail" else reserve, compensate=release)
        return app

    old, new, pings = version("reserve", "fail"), version("fail"), handler(database_url)
    async with old.running():
        handle = await old.launch("order", {})
        await until(lambda: executed(database_url) == stands(1, "running", {"order": "reserve"}))
    async with new.running(), pings.running(relay=False):
        await until(lambda: states(database_url) == {"parked"})
        again = version("reserve", "fail")
        async with again.running(relay=False):  # the new one is still there
            with pytest.raises(DistributedError):
                await handle.wait(LONG)
        await again.close()
    assert (states(database_url), undone) == ({"rolled_back"}, ["reserve"])
    await asyncio.gather(old.close(), new.close(), pings.close())


async def test_b7_workers_of_one_service_with_different_sagas_share_the_work(database_url: str) -> None:
    one, other = Scoop("shop", database=database_url), Scoop("shop", database=database_url)
    one.saga("one", on="ones").add_step("work", lambda scope, message: None)
    other.saga("other", on="others").add_step("work", lambda scope, message: None)
    async with one.running() as first, other.running(relay=False) as second:
        assert first.worker is not None
        assert second.worker is not None
        # Each of them has all the mail of its own saga, though there are two workers.
        await until(lambda: first.worker is not None and first.worker._roster.left > 0)
        handles = [await one.launch(topic, {}) for _ in range(50) for topic in ("ones", "others")]
        await asyncio.gather(*(handle.wait(LONG) for handle in handles))
        for worker in (first.worker, second.worker):
            shares = worker._roster.shares()
            assert (shares["part"], shares["parts"]) == ([0], [1])
            assert worker.counters.claims >= 50
    await asyncio.gather(one.close(), other.close())


async def test_q79_a_handler_of_failures_does_not_hide_that_a_step_would_be_left_out(database_url: str) -> None:
    executed: list[str] = []
    fails = asyncio.Event()

    def version(steps: str) -> Scoop:
        app = Scoop("shop", database=database_url)
        saga = app.saga("order", on="orders")

        async def handle(scope: Any, message: Any, error: Exception) -> None:
            executed.append("handler")

        def step(name: str) -> Any:
            async def body(scope: Any, message: Any) -> None:
                executed.append(name)
                if name == "a":
                    scope.launch("payments", {})

            return body

        for name in steps:
            saga.add_step(name, step(name), on_child_failure=handle if name == "a" else None)
        return app

    async def pay(scope: Any, message: Any) -> None:
        await fails.wait()
        raise ValueError

    bank = Scoop("bank", database=database_url)
    bank.saga("payment", on="payments").add_step("pay", pay)
    old, new = version("abc"), version("acb")
    async with bank.running(relay=False):
        async with old.running():
            handle = await old.launch("orders", {})
            await until(lambda: executed == ["a"])
        async with new.running():
            fails.set()
            await until(lambda: "parked" in states(database_url), LONG)
        async with old.running():
            await handle.wait(LONG)
    assert executed == ["a", "handler", "b", "c"]
    await asyncio.gather(old.close(), new.close(), bank.close())
