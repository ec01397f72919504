"""RunBackoff: longer each time, up to a limit, and over at once when there is news."""

import uuid

import pytest

from scoop_outbox.daemon.worker.run_backoff import RunBackoff

RUN = uuid.UUID(int=1)


def test_a_run_that_is_not_known_may_be_tried() -> None:
    assert RunBackoff().left(RUN) <= 0


def test_each_time_is_longer_than_half_of_twice_the_one_before() -> None:
    backoff = RunBackoff()
    for failures in range(20):
        backoff.note(RUN)
        longest = min(0.04 * 2**failures, 30.0)
        assert longest * 0.49 < backoff.left(RUN) <= longest
    assert len(backoff) == 1


def test_news_ends_it() -> None:
    backoff = RunBackoff()
    for _ in range(10):
        backoff.note(RUN)
    backoff.forget(RUN)
    backoff.forget(RUN)
    assert backoff.left(RUN) <= 0
    backoff.note(RUN)
    assert backoff.left(RUN) <= 0.04


def test_runs_that_another_worker_is_done_with_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("scoop_outbox.daemon.worker.run_backoff.time.monotonic", lambda: clock[0])
    backoff = RunBackoff()
    for number in range(100):
        backoff.note(uuid.UUID(int=number))
    assert len(backoff) == 100
    clock[0] += 1.1
    backoff.note(RUN)
    backoff.note(uuid.UUID(int=200))
    assert len(backoff) == 2
    assert backoff.left(RUN) > 0
