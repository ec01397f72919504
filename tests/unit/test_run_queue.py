"""Runs that are ready: sagas take turns, and each saga's runs are taken oldest first."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoop_outbox.daemon.worker.run_queue import RunQueue


def run(number: int) -> uuid.UUID:
    return uuid.UUID(int=number)


def taken(ready: RunQueue) -> list[tuple[int, str]]:
    found = []
    while ready:
        run_id, saga = ready.take()
        found.append((run_id.int, saga))
    return found


def test_q32_a_saga_with_many_runs_does_not_keep_the_others_waiting() -> None:
    ready = RunQueue()
    for number in range(4):
        ready.put(run(number), "busy")
    ready.put(run(10), "quiet")
    assert ready.next_saga() == "busy"
    assert taken(ready) == [(0, "busy"), (10, "quiet"), (1, "busy"), (2, "busy"), (3, "busy")]


def test_a_run_that_is_there_is_not_taken_twice() -> None:
    ready = RunQueue()
    ready.put(run(1), "a")
    ready.put(run(1), "a")
    assert (len(ready), ready.has("a"), ready.has("b")) == (1, True, False)
    assert taken(ready) == [(1, "a")]
    assert (ready.has("a"), ready.next_saga()) == (False, None)


def test_what_is_forgotten_can_be_put_again() -> None:
    ready = RunQueue()
    ready.put(run(1), "a")
    ready.clear()
    assert not ready
    with pytest.raises(StopIteration):
        ready.take()
    ready.put(run(1), "a")
    assert taken(ready) == [(1, "a")]


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from("abc"))))
def test_no_saga_is_taken_twice_while_another_one_waits(puts: list[tuple[int, str]]) -> None:
    ready = RunQueue()
    sagas: dict[int, str] = {}
    for number, saga in puts:
        ready.put(run(number), sagas.setdefault(number, saga))
    order = taken(ready)
    assert sorted(number for number, _ in order) == sorted(sagas)
    for index, (_, saga) in enumerate(order[1:], 1):
        waiting = {other for _, other in order[index:]}
        assert saga != order[index - 1][1] or waiting == {saga}
