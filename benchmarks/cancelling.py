"""(p) Cancelling a run with many children, each of which has done something: the time for each of them."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections import defaultdict

from benchmarks.control import Control
from benchmarks.server import Bench
from benchmarks.table import Table, Target, ratios
from scoop_outbox import DistributedError, Message, Retry, Scoop, Scope

SLOTS = 16
MOST = 1.5
COMPARED_WITH = 100
LEAST = 1000.0
"""Children that are undone in a second."""
_WAITING = "select count(*) from run where not_before is not null and state = 'running'"


async def measure(bench: Bench) -> list[Table]:
    """Cancel parents one after the other, each with more children than the one before."""
    sizes = {100: 4, 1000: 1} if bench.quick else {100: 6, 1000: 2, 10_000: 1}
    if bench.smoke:
        sizes = {COMPARED_WITH: 1}
    took: dict[int, list[float]] = defaultdict(list)
    async with bench.database() as control:
        app = _build(control.url)
        async with app.running(slots=SLOTS):
            await _cancel(app, control, COMPARED_WITH)
            for _ in range(bench.runs):
                for size, times in sizes.items():
                    took[size].append(statistics.median([await _cancel(app, control, size) for _ in range(times)]))
    table = Table(
        f"(p) cancelling: from the request to the root's end, for each child ({SLOTS} slots, one process)",
        ("children", "ms per child", f"ratio to {COMPARED_WITH}"),
    )
    for size in sizes:
        ratio = ratios(took[size], took[COMPARED_WITH])
        table.add(f"{size:,}", took[size], ratio)
        rate = 1000 / statistics.median(took[size])
        table.targets.append(Target(f"{size:,} children: at least {LEAST:,.0f} a second", rate, least=LEAST))
        if size > COMPARED_WITH:
            table.targets.append(Target(f"{size:,} children: at most {MOST}", statistics.median(ratio), most=MOST))
    table.notes.append("Each child has committed a step, waits for a retry of the next one, and is compensated.")
    return [table]


def _build(url: str) -> Scoop:
    app = Scoop("benchmark", database=url)
    root, child = app.saga("root", on="cancelled"), app.saga("child", on="children")

    @root.step
    async def launch(scope: Scope, message: Message) -> None:
        for number in range(message.payload["children"]):
            scope.launch("children", {"number": number})

    @child.step
    async def first(scope: Scope, message: Message) -> None: ...

    @first.compensate
    async def undo(scope: Scope, message: Message, error: DistributedError) -> None: ...

    @child.step(retry=Retry(attempts=2, backoff=3600.0, max_backoff=3600.0))
    async def second(scope: Scope, message: Message) -> None:
        raise ValueError("not yet")

    return app


async def _cancel(app: Scoop, control: Control, children: int) -> float:
    """Return milliseconds for each child."""
    handle = await app.launch("cancelled", {"children": children})
    while await control.one(_WAITING) < children:
        await asyncio.sleep(0.1)
    began = time.perf_counter()
    await app.cancel(handle.id)
    with contextlib.suppress(DistributedError):
        await handle.wait(300)
    return (time.perf_counter() - began) * 1000 / children
