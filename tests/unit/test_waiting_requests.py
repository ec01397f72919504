"""When requests that wait are tried: often at first, rarely later, and never so many that they hold up the mail."""

import uuid
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import pytest

from scoop_outbox import Answer
from scoop_outbox.daemon.worker import waiting_requests as module
from scoop_outbox.daemon.worker.waiting_requests import AT_ONCE, LONGEST, WaitingRequests
from tests.clock import Clock

FAILURE = uuid.UUID(int=0)


def target(number: int) -> uuid.UUID:
    return uuid.UUID(int=number)


class Driver:
    """Answers the two plans of waiting requests, of which none is closed unless it is told so."""

    def __init__(self, clock: Clock, waiting: int, seconds: float = 0.0) -> None:
        self.waiting = [target(number) for number in range(1, waiting + 1)]
        self.tried: list[uuid.UUID] = []
        self.closes: set[uuid.UUID] = set()
        self._clock = clock
        self._seconds = seconds

    async def run(self, plan: Any) -> Any:
        of = plan.gi_frame.f_locals
        plan.close()
        if plan.__name__ == "read_waiting":
            found = [one for one in self.waiting if one > (of["after"] or FAILURE) and one not in of["resting"]]
            return [(one, FAILURE) for one in found[: of["most"]]]
        self.tried.append(of["target"])
        self._clock.now += self._seconds
        if of["target"] not in self.closes:
            return None
        self.waiting.remove(of["target"])
        return Answer.ACCEPTED


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(module, "time", clock := Clock())
    return clock


async def look(requests: WaitingRequests, driver: Driver, clock: Clock, *, times: int = 1, every: float = 5.0) -> None:
    for _ in range(times):
        await requests.look(cast("Any", driver))
        clock.now += every


def waiting() -> WaitingRequests:
    return WaitingRequests("shop", cast("Any", None), cast("Any", SimpleNamespace()))


async def test_a_request_that_waits_is_tried_ever_more_rarely(clock: Clock) -> None:
    driver, requests, began = Driver(clock, 1), waiting(), clock.now
    times: list[float] = []
    for _ in range(60):
        at, before = clock.now - began, len(driver.tried)
        await look(requests, driver, clock)
        times += [at] * (len(driver.tried) - before)
    assert times == [0, 5, 15, 35, 75, 135, 195, 255]


async def test_one_that_is_new_is_tried_at_once_beside_those_that_rest(clock: Clock) -> None:
    driver, requests = Driver(clock, 3), waiting()
    await look(requests, driver, clock, times=5)
    driver.tried.clear()
    driver.waiting.append(target(9))
    driver.closes = {target(9)}
    await look(requests, driver, clock)
    assert driver.tried == [target(9)]


async def test_a_look_ends_soon_and_the_next_one_goes_on_from_there(clock: Clock) -> None:
    driver, requests = Driver(clock, 5, seconds=LONGEST * 0.6), waiting()
    for _ in range(2):
        began = clock.now
        await look(requests, driver, clock, every=0.0)
        assert clock.now - began <= LONGEST * 1.6
    assert driver.tried == [target(number) for number in (1, 2, 3, 4)]


async def test_however_many_wait_each_is_tried(clock: Clock) -> None:
    driver, requests = Driver(clock, 2 * AT_ONCE + 10), waiting()
    await look(requests, driver, clock, times=4)
    tried = Counter(driver.tried)
    assert set(tried) == set(driver.waiting)
    assert max(tried.values()) <= 2


async def test_what_is_closed_by_others_is_forgotten(clock: Clock) -> None:
    driver, requests = Driver(clock, 3), waiting()
    await look(requests, driver, clock, times=3)
    driver.waiting.clear()
    await look(requests, driver, clock, times=30)
    assert not requests._resting
