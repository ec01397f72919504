"""What a worker says of sagas of its service that nobody has, looking twice, whatever happens meanwhile."""

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from scoop_outbox.daemon.worker import surroundings as module
from scoop_outbox.daemon.worker.surroundings import Surroundings
from scoop_outbox.store.callbacks import Interrupted
from tests.clock import Clock

GONE, COMING, THEIRS = ("gone", "orders", False), ("coming", "orders", False), ("theirs", "orders", True)


class Driver:
    """Answers plans by their names, and fails when it is told to."""

    def __init__(self) -> None:
        self.strangers: list[tuple[str, str, bool]] = []
        self.fails = False
        self.asked = 0

    async def run(self, plan: Any) -> Any:
        plan.close()
        if plan.__name__ != "read_strangers":
            return {"unpark": [], "read_waiting": []}.get(plan.__name__, True)
        self.asked += 1
        if self.fails:
            raise Interrupted("the server went away")
        return self.strangers


class Roster:
    """Of a worker that is alone."""

    deployment = None

    async def refresh(self, driver: object) -> bool:
        return False


class World:
    """One worker that looks around."""

    def __init__(self, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
        self.clock = clock
        self.driver = Driver()
        self._caplog = caplog
        home = SimpleNamespace(failures=None, cooperation=SimpleNamespace(is_due=False))
        parts = cast("Any", Roster()), cast("Any", home), cast("Any", SimpleNamespace())
        self._surroundings = Surroundings("shop", {}, *parts)

    async def look(self, *strangers: tuple[str, str, bool], after: float = 5.0) -> None:
        self.clock.now += after
        self.driver.strangers = list(strangers)
        try:
            await self._surroundings.look(cast("Any", self.driver))
        except Interrupted:
            assert self.driver.fails

    @property
    def told(self) -> list[tuple[int, str]]:
        return [(one.levelno, f"saga {vars(one)['saga']}") for one in self._caplog.records]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> World:
    caplog.set_level(logging.INFO, module.__name__)
    monkeypatch.setattr(module, "time", clock := Clock())
    return World(clock, caplog)


async def test_who_is_missing_twice_is_warned_of_once(world: World) -> None:
    await world.look(GONE)
    assert world.told == []
    for _ in range(3):
        await world.look(GONE)
    assert world.told == [(logging.WARNING, "saga gone")]
    assert world.driver.asked == 2


async def test_who_was_only_starting_is_no_stranger(world: World) -> None:
    await world.look(COMING, THEIRS)
    await world.look(("coming", "orders", True), THEIRS)
    assert world.told == [(logging.INFO, "saga theirs"), (logging.INFO, "saga coming")]


@pytest.mark.parametrize("failing", [0, 1])
async def test_a_look_that_failed_does_not_count(world: World, failing: int) -> None:
    for number in range(4):
        world.driver.fails = number == failing
        await world.look(GONE)
    assert world.told == [(logging.WARNING, "saga gone")]


async def test_the_second_look_is_as_late_when_the_connection_was_lost_meanwhile(world: World) -> None:
    await world.look(COMING)
    await world.look(COMING, after=0.1)  # there is a new connection, on which all is looked at again
    assert world.told == []
    await world.look(("coming", "orders", True))
    assert world.told == [(logging.INFO, "saga coming")]


async def test_who_misses_nobody_does_not_ask_again(world: World) -> None:
    for _ in range(3):
        await world.look()
    assert world.driver.asked == 1
