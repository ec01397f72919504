"""(e) A step that launches many children: the time for each of them."""

from __future__ import annotations

import statistics
from collections import defaultdict
from uuid import UUID

from benchmarks.control import Control
from benchmarks.sagas import build
from benchmarks.server import Bench
from benchmarks.table import Table, Target, ratios
from scoop_outbox import Scoop

SLOTS = 16
MOST = 1.5
COMPARED_WITH = 100

_TOOK = """
select extract(epoch from r.ended_at - s.started_at)::float8 * 1000
from run r join step s on s.run_id = r.id and s.seq = 1
where r.message_id = %(message)s
"""


async def measure(bench: Bench) -> list[Table]:
    """Launch parents one after the other, each with more children than the one before."""
    sizes = {1: 20, 100: 4, 1000: 1} if bench.quick else {1: 30, 100: 6, 1000: 2, 10_000: 1}
    if bench.smoke:
        sizes = {1: 1, COMPARED_WITH: 1}
    took: dict[int, list[float]] = defaultdict(list)
    async with bench.database() as control:
        app = build(control.url)
        async with app.running(slots=SLOTS):
            await _fan_out(app, control, COMPARED_WITH)
            for _ in range(bench.runs):
                for size, times in sizes.items():
                    each = [await _fan_out(app, control, size) / size for _ in range(times)]
                    took[size].append(statistics.median(each))
    table = Table(
        f"(e) fan-out: from the first step's start to the parent's end, for each child ({SLOTS} slots, one process)",
        ("children", "ms per child", f"ratio to {COMPARED_WITH}"),
    )
    for size in sizes:
        ratio = ratios(took[size], took[COMPARED_WITH])
        table.add(f"{size:,}", took[size], ratio)
        if size > COMPARED_WITH:
            table.targets.append(Target(f"{size:,} children: at most {MOST}", statistics.median(ratio), most=MOST))
    table.notes.append("A single child costs the latency of a hop; from 100 on the slots are full.")
    return [table]


async def _fan_out(app: Scoop, control: Control, children: int) -> float:
    """Return milliseconds."""
    handle = await app.launch("fan.root", {"children": children})
    await handle.wait(300)
    return await _milliseconds(control, handle.id)


async def _milliseconds(control: Control, message: UUID) -> float:
    return float(await control.one(_TOOK, {"message": message}))
