"""Policies compute when to try again."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoop_outbox import DefinitionError, Retry
from scoop_outbox.policy import COMPENSATION, ONCE, seconds


class NotNow(Exception):
    pass


@pytest.mark.parametrize("failed, allowed", [(1, True), (2, True), (3, False), (4, False)])
def test_a_policy_counts_attempts(failed: int, allowed: bool) -> None:
    assert Retry(attempts=3).allows(failed, ValueError()) is allowed


@pytest.mark.parametrize("error, allowed", [(NotNow(), True), (ValueError(), False)])
def test_a_policy_may_name_what_is_tried_again(error: Exception, allowed: bool) -> None:
    assert Retry(attempts=3, on=(NotNow, KeyError)).allows(1, error) is allowed


@pytest.mark.parametrize("failed, wait", [(1, 2), (2, 4), (3, 8), (4, 10), (5, 10), (2000, 10)])
def test_the_wait_doubles_up_to_a_limit(failed: int, wait: float) -> None:
    policy = Retry(attempts=9999, backoff=timedelta(seconds=2), max_backoff=10, jitter=0)
    assert policy.delay(failed, 0.99) == timedelta(seconds=wait)


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True), st.floats(0, 1), st.floats(0, 1e6))
def test_jitter_only_shortens_and_never_below_nothing(
    failed: int, chance: float, jitter: float, backoff: float
) -> None:
    wait = Retry(backoff=backoff, max_backoff=60, jitter=jitter).delay(failed, chance)
    longest = Retry(backoff=backoff, max_backoff=60, jitter=0).delay(failed, chance)
    assert timedelta(0) <= wait <= longest <= timedelta(seconds=60)


@pytest.mark.parametrize(
    "options",
    [
        {"attempts": 0},
        {"attempts": -1},
        {"backoff": -1},
        {"max_backoff": timedelta(-1)},
        {"jitter": 1.1},
        {"jitter": -0.1},
    ],
)
def test_numbers_that_make_no_sense_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(DefinitionError, match="Retry"):
        Retry(**options)  # type: ignore[arg-type]  # a table of wrong values


def test_q55_what_is_tried_how_often_unless_told_otherwise() -> None:
    assert not ONCE.allows(1, ValueError())
    assert [COMPENSATION.allows(failed, ValueError()) for failed in (1, 2, 3)] == [True, True, False]
    assert COMPENSATION.delay(1, 0) == timedelta(seconds=1)


@pytest.mark.parametrize("duration, expected", [(2, 2.0), (0.5, 0.5), (timedelta(minutes=1), 60.0)])
def test_durations(duration: float | timedelta, expected: float) -> None:
    assert seconds(duration) == expected
