"""The service that is measured. Its steps do nothing: what they cost is the engine's."""

from __future__ import annotations

from scoop_outbox import Message, Scoop, Scope

SERVICE = "benchmark"
STEPS = 3
TREE_STEPS = 7


async def nothing(scope: Scope, message: Message) -> None:
    """Do nothing, in the loop."""


def nothing_blocking(scope: Scope, message: Message) -> None:
    """Do nothing, in a thread."""


async def launch_two(scope: Scope, message: Message) -> None:
    for number in range(2):
        scope.launch("tree.child", {"number": number})


async def launch_one(scope: Scope, message: Message) -> None:
    scope.launch("hop.child", {})


async def launch_many(scope: Scope, message: Message) -> None:
    for number in range(message.payload["children"]):
        scope.launch("fan.child", {"number": number})


def build(url: str | None) -> Scoop:
    """Declare the service."""
    app = Scoop(SERVICE, database=url)
    for name, callback in (("async", nothing), ("def", nothing_blocking)):
        three = app.saga(f"steps-{name}", on=f"steps.{name}")
        for number in range(STEPS):
            three.add_step(f"step {number}", callback)
    # Three steps, and two children of two steps each: seven in all.
    parent = app.saga("tree-parent", on="tree.parent")
    parent.add_step("launch", launch_two)
    parent.add_step("second", nothing)
    parent.add_step("third", nothing)
    child = app.saga("tree-child", on="tree.child")
    child.add_step("first", nothing)
    child.add_step("second", nothing)
    declare_hop(app)
    # As many children as the message says.
    fan = app.saga("fan-root", on="fan.root")
    fan.add_step("launch", launch_many)
    fan.add_step("finish", nothing)
    app.saga("fan-child", on="fan.child").add_step("only", nothing)
    # Taken in, never executed. Nobody handles the messages on relay.unhandled.
    app.saga("relay", on="relay.handled").add_step("only", nothing)
    return app


def declare_hop(app: Scoop) -> None:
    """Declare one child between two steps."""
    root = app.saga("hop-root", on="hop.root")
    root.add_step("launch", launch_one)
    root.add_step("finish", nothing)
    app.saga("hop-child", on="hop.child").add_step("only", nothing)


app = build(None)
"""For processes of their own: `scoop-outbox worker benchmarks.sagas:app`."""
