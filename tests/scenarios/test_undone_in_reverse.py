"""Q1, Q44, Q73, Q75: a step whose messages are undone one after the other, and children of it that cannot be."""

from collections import Counter
from typing import Any

from scoop_outbox import RunState
from scoop_outbox.policy import ROLLBACK_HANDLER_CALLS
from tests.scenarios.rollback_helpers import fails
from tests.scenarios.shop import Shop, raises

MESSAGES = ROLLBACK_HANDLER_CALLS + 3


def launches_all(scope: Any, _: Any) -> None:
    for number in range(MESSAGES):
        scope.launch("C", number)


async def test_q73_q75_the_handler_is_called_for_each_message_however_many_there_are(mixed: Shop) -> None:
    calls: list[tuple[int, str]] = []

    def handles(scope: Any, *_: Any) -> None:
        calls.append((scope.attempt, scope.idempotency_key))

    root = mixed.app.saga("root", "R")
    mixed.step(root, "0", launches_all, rollback_children="reverse", on_child_rollback_failure=handles)
    mixed.step(root, "1", fails)
    mixed.step(mixed.app.saga("child", "C"), "0", compensate=raises("rb"))

    handle, _ = await mixed.fail("R")

    assert [attempt for attempt, _ in calls] == [0] * MESSAGES
    assert len({key for _, key in calls}) == MESSAGES
    assert (await mixed.only(handle, "root")).state is RunState.ROLLED_BACK


async def test_q44_q73_what_a_handler_launches_fails_and_it_is_called_again_for_the_same_message(mixed: Shop) -> None:
    calls: list[tuple[int, str]] = []

    def handles(scope: Any, *_: Any) -> None:
        calls.append((scope.attempt, scope.idempotency_key))
        if scope.attempt == 0:
            scope.launch("repairs", None)

    root = mixed.app.saga("root", "R")
    mixed.step(root, "0", launches_all, rollback_children="reverse", on_child_rollback_failure=handles)
    mixed.step(root, "1", fails)
    mixed.step(mixed.app.saga("child", "C"), "0", compensate=raises("rb"))
    mixed.saga("repair", "repairs", raises("no"))

    handle, _ = await mixed.fail("R")

    assert [attempt for attempt, _ in calls] == [0, 1] * MESSAGES
    assert set(Counter(key for _, key in calls).values()) == {2}
    assert (await mixed.only(handle, "root")).state is RunState.ROLLED_BACK
