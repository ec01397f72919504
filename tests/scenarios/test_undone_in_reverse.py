"""Q1, Q44, Q73, Q75: a step whose messages are undone one after the other, and children of it that cannot be."""

from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from scoop_outbox import Answer, RunState
from scoop_outbox.core.plans import placement
from scoop_outbox.daemon.worker import roster
from scoop_outbox.policy import ROLLBACK_HANDLER_CALLS
from tests.scenarios.conftest import MakeShop
from tests.scenarios.healing import ends
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


@pytest.mark.parametrize("compensate", [True, False])
async def test_q1_q66_the_order_is_kept_when_the_newest_code_lacks_the_step(
    make_shop: MakeShop, monkeypatch: pytest.MonkeyPatch, compensate: bool
) -> None:
    monkeypatch.setattr(placement, "GRACE", timedelta(0))
    monkeypatch.setattr(roster, "EVERY", 0.1)
    before, without = make_shop(), make_shop()

    def undoes(_: Any, message: Any, __: Any) -> None:
        before.journal(f"undo-{message.payload}")

    for shop in (before, without):
        shop.step(shop.app.saga("child", "C"), "0", compensate=undoes)
        root = shop.app.saga("root", "R")
        if shop is before:
            shop.step(root, "0", launches_all, rollback_children="reverse", compensate=compensate)
        shop.step(root, "1")

    handle = await before.run("R")
    async with without.running():
        assert (await without.app.rollback(handle.id)).answer is Answer.ACCEPTED
        run = await ends(without, handle, "root", RunState.PARKED)
        assert run.reason is not None
        assert run.reason.startswith("no living worker knows step '0' of saga 'root'")
        assert before.journal.of("undo") == []
        async with before.running(relay=False):  # the others are still there
            await ends(before, handle, "root", RunState.ROLLED_BACK)

    assert before.journal.of("undo") == [f"undo-{number}" for number in reversed(range(MESSAGES))]
