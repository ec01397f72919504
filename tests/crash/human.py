"""A service that has work done by somebody outside, and undone again, for processes that are killed meanwhile."""

from __future__ import annotations

from scoop_outbox import AsyncScope, Message
from tests.crash.flow import Refusal, note, service

human = service("human")
human.external("approval", on="approvals", on_undo="approvals.undo")

expense = human.saga("expense", on="expense")


@expense.step
async def asks(scope: AsyncScope, message: Message) -> None:
    await note(scope, "step")
    scope.launch("approvals", message.payload)


@asks.compensate
async def forgets(scope: AsyncScope, message: Message, error: Exception) -> None:
    await note(scope, "compensation")


@expense.step
async def pays(scope: AsyncScope, message: Message) -> None:
    if message.payload["n"] % 3 == 0:
        raise Refusal("no money")
    await note(scope, "step")


@pays.compensate
async def takes_back(scope: AsyncScope, message: Message, error: Exception) -> None:
    await note(scope, "compensation")


withdrawal = human.saga("withdrawal", on="approvals.undo")


@withdrawal.step
async def withdraws(scope: AsyncScope, message: Message) -> None:
    await note(scope, "step")
