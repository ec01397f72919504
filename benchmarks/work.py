"""Work that is prepared before the clock starts, let go at once, and measured by the database's clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

from benchmarks.control import Control
from benchmarks.sagas import SERVICE, build
from scoop_outbox import Scoop
from scoop_outbox._emission import emission
from scoop_outbox.app import service_of
from scoop_outbox.core.plans.launch import launch_and_commit
from scoop_outbox.daemon.daemons import Daemons
from scoop_outbox.daemon.hints import mail_channel

WARM_UP = 64
"""Runs that are executed before the clock starts: they open the connections and prepare the statements."""

_BATCH = 1000
# What is asleep, in benchmarks that have that, is due much later.
_DUE = "service = %(service)s and due < now() + interval '1 minute'"
_BUSY = f"select exists (select from mailbox where {_DUE}) or exists (select from outbox)"
_UNFINISHED = "select exists (select from held join run on run.id = held.run_id where run.ended_at is null)"
_HOLD = f"""
with taken as (
    delete from mailbox
    where id in (select id from mailbox where {_DUE} order by id offset %(warm_up)s)
    returning id, run_id, service, saga
)
insert into held select * from taken
"""
_RELEASE = """
with posted as (
    insert into mailbox (service, saga, run_id, due) select service, saga, run_id, now() from held order by id
    returning run_id
)
select clock_timestamp(), pg_notify(%(channel)s, '') from (select count(*) from posted) p
"""


@dataclass(frozen=True, slots=True)
class Done:
    """How many runs were executed in how many seconds, from their release to the end of the last one."""

    runs: int
    seconds: float

    @property
    def per_second(self) -> float:
        return self.runs / self.seconds


async def launch_in_bulk(app: Scoop, topic: str, count: int) -> None:
    """Write messages into the outbox."""
    await app.announce()
    for first in range(0, count, _BATCH):
        batch = [
            emission(topic, {"number": n}, key=None, headers=None, context=None, awaited=False, depth=1)
            for n in range(first, min(first + _BATCH, count))
        ]
        async with service_of(app).home.driver() as driver:
            await driver.run(launch_and_commit(batch, service_of(app).hints))


async def prepare(control: Control, topic: str, count: int, warm_up: int = WARM_UP) -> None:
    """Launch messages and take them in; all but a few of the runs are held back until `release`."""
    app = build(control.url)
    await launch_in_bulk(app, topic, count + warm_up)
    async with app.running(worker=False):
        while await control.one("select exists (select from outbox)"):
            await asyncio.sleep(0.01)
    await control.all(
        "create table if not exists held (id bigint primary key, run_id uuid not null, service text, saga text);"
        "truncate held"
    )
    await control.all(_HOLD, {"service": SERVICE, "warm_up": warm_up})
    await control.settle("held", "mailbox", "outbox")


async def release(control: Control) -> datetime:
    """Give the runs that were held back their mail, wake the workers, and return the time."""
    channel = service_of(build(control.url)).hints.channel(mail_channel(SERVICE))
    time: datetime = await control.one(_RELEASE, {"channel": channel})
    return time


async def until_done(control: Control) -> None:
    """Return when nothing is left to be done now. Watched seldom: the clock is not ours."""
    while await control.one(_BUSY, {"service": SERVICE}):
        await asyncio.sleep(0.05)


async def until_ended(control: Control) -> None:
    """Return when the runs that were held back have ended."""
    await until_done(control)
    while await control.one(_UNFINISHED):
        await asyncio.sleep(0.05)


async def done_since(control: Control, started: datetime) -> Done:
    """Return how long the runs that were held back took."""
    ((runs, seconds),) = await control.all(
        "select count(*), extract(epoch from max(ended_at) - %(started)s)::float8 "
        "from held join run on run.id = held.run_id",
        {"started": started},
    )
    return Done(runs, seconds)


@asynccontextmanager
async def warm(control: Control, slots: int, *, relay: bool = False) -> AsyncIterator[Daemons]:
    """Run a worker in this process, and wait until it has executed what was not held back."""
    app = build(control.url)
    async with app.running(relay=relay, slots=slots) as daemons:
        await until_done(control)
        yield daemons


async def execute(control: Control, topic: str, count: int, slots: int, *, relay: bool = False) -> Done:
    """Measure one worker process: this one."""
    await prepare(control, topic, count)
    async with warm(control, slots, relay=relay):
        started = await release(control)
        await until_ended(control)
        return await done_since(control, started)
