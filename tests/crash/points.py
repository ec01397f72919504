"""A service whose process kills itself at a chosen point: the environment's CRASH_AT, `step:kind:when`."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import psycopg

from scoop_outbox import AsyncScope, BlockingScope, Message, Scoop
from scoop_outbox.client.servers import DATABASE_VARIABLE
from scoop_outbox.scope import Scope
from tests.crash.flow import Refusal, note, note_blocking

points = Scoop("crash points")


def _crash_at(scope: Scope, kind: str, when: str) -> None:
    if os.environ.get("CRASH_AT") == f"{scope.step}:{kind}:{when}":
        os.kill(os.getpid(), signal.SIGKILL)


def _crash_once_committed(scope: Scope, kind: str) -> None:
    """Watch from outside: the process dies as soon as others can see the effect, whatever it does by then."""
    if os.environ.get("CRASH_AT") == f"{scope.step}:{kind}:committed":
        threading.Thread(target=_watch, args=(scope.idempotency_key,), daemon=True).start()


def _watch(key: str) -> None:
    with psycopg.connect(os.environ[DATABASE_VARIABLE], autocommit=True) as connection:
        while connection.execute("select from effect where key = %s", (key,)).fetchone() is None:
            pass
        os.kill(os.getpid(), signal.SIGKILL)


async def _act(scope: AsyncScope, kind: str) -> None:
    _crash_at(scope, kind, "before")
    await note(scope, kind)
    _crash_at(scope, kind, "after")
    _crash_once_committed(scope, kind)


def _act_blocking(scope: BlockingScope, kind: str) -> None:
    _crash_at(scope, kind, "before")
    note_blocking(scope, kind)
    _crash_at(scope, kind, "after")
    _crash_once_committed(scope, kind)


async def _undo(scope: AsyncScope, message: Message, error: Exception) -> None:
    await _act(scope, "compensation")


def _undo_blocking(scope: BlockingScope, message: Message, error: Exception) -> None:
    _act_blocking(scope, "compensation")


outer = points.saga("outer", on="outer")


@outer.step
async def one(scope: AsyncScope, message: Message) -> None:
    await _act(scope, "step")


@outer.step
async def two(scope: AsyncScope, message: Message) -> None:
    await _act(scope, "step")
    scope.launch("inner", message.payload)


@two.on_child_failure
async def handle(scope: AsyncScope, message: Message, error: Exception) -> None:
    await _act(scope, "child_failure_handler")
    if message.payload["fails"] == "inner":
        raise error


@outer.step
async def three(scope: AsyncScope, message: Message) -> None:
    if message.payload["fails"] == "outer":
        raise Refusal("the last step refuses")
    await _act(scope, "step")


inner = points.saga("inner", on="inner")


@inner.step
def four(scope: BlockingScope, message: Message) -> None:
    _act_blocking(scope, "step")


@inner.step
def five(scope: BlockingScope, message: Message) -> None:
    if message.payload["fails"].startswith("inner"):
        raise Refusal("the child refuses")
    _act_blocking(scope, "step")


for _step in (one, two, three):
    _step.compensate(_undo)
for _blocking in (four, five):
    _blocking.compensate(_undo_blocking)


def ends(fails: str) -> dict[str, Any]:
    """Return how the sagas end."""
    return {
        "nothing": {"outer": "committed", "inner": "committed"},
        "inner, handled": {"outer": "committed", "inner": "rolled_back"},
        "inner": {"outer": "rolled_back", "inner": "rolled_back"},
        "outer": {"outer": "rolled_back", "inner": "rolled_back"},
    }[fails]
