"""(d) Steps per second beside runs that are asleep or wait for children."""

from __future__ import annotations

from contextlib import AsyncExitStack

from benchmarks.control import Control
from benchmarks.history import LAUNCHED_AT, MESSAGE, MESSAGES, RUN, compare, compared
from benchmarks.sagas import SERVICE
from benchmarks.server import Bench
from benchmarks.table import Table

_RUNS = f"""
insert into run (id, message_id, service, saga, lineage, step, next_step, seq, instance, context, launched_at)
select {RUN}, {MESSAGE}, %(service)s, 'steps-async', array[{RUN}], 'step 0', 'step 1', 1, 1,
       '{{"tenant":"north","user":"somebody@example.org"}}', %(launched_at)s::json
from generate_series(1, %(count)s) n
"""
# Every other run sleeps, an hour or more; the rest wait for a child of another service.
_ASLEEP = f"""
insert into mailbox (service, saga, run_id, due)
select %(service)s, 'steps-async', {RUN}, now() + interval '1 hour' + (n::bigint * 7919 %% 100003) * interval '1 second'
from generate_series(2, %(count)s, 2) n
"""
_OPEN = f"""
insert into child (message_id, service, saga, run_id, seq, ordinal, open, state)
select gen_random_uuid(), 'elsewhere', 'slow', {RUN}, 1, 1, true, 'started' from generate_series(1, %(count)s, 2) n
"""
_LATE = """
update run set own_deadline = json_build_object(
    'deadline', to_char(now() + interval '1 hour', 'YYYY-MM-DD"T"HH24:MI:SSTZH:TZM'),
    'source', 'benchmark', 'trace', '[]'::json
)
"""
_TIMERS = (
    "insert into mailbox (service, saga, run_id, due) select service, saga, id, now() + interval '1 hour' from run"
)


async def fill_with_deadlines(control: Control, count: int) -> None:
    """Write so many runs that wait, with a deadline in an hour."""
    for statement in (MESSAGES, _RUNS, _LATE, _TIMERS):
        await control.all(statement, {"count": count, "service": SERVICE, "launched_at": LAUNCHED_AT})


async def fill_with_waiting(control: Control, count: int) -> None:
    """Write so many runs that wait, one way or the other."""
    for statement in (MESSAGES, _RUNS, _ASLEEP, _OPEN):
        await control.all(statement, {"count": count, "service": SERVICE, "launched_at": LAUNCHED_AT})


async def measure(bench: Bench) -> list[Table]:
    """Compare a database where nothing waits with one where much does."""
    sizes = (0, bench.size(100_000, 20_000))
    async with AsyncExitStack() as stack:
        databases = []
        for size in sizes:
            control = await stack.enter_async_context(bench.database())
            await fill_with_waiting(control, size)
            databases.append(control)
        rates = await compare(bench, databases)
    return [compared("(d) steps per second beside runs that are asleep or wait", "waiting runs", sizes, rates)]
