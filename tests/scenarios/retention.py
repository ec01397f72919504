"""What the scenarios of pruning are written with."""

import asyncio
from datetime import timedelta
from typing import Any

from scoop_outbox import Handle, Pruning, PruningOptions
from scoop_outbox.app import service_of
from scoop_outbox.core.plans.pruner import Counts
from tests.scenarios.shop import Shop

MONTH = timedelta(days=30)
HISTORY = ("run", "step", "child", "request", "failure", "expected_root", "mailbox", "lane_entry")
"""Tables of which nothing is left of a hierarchy that has been pruned."""

OLDER = """
with free as (
    select id from scoop_outbox.run
    where %(messages)s::uuid[] is null or message_id = any(%(messages)s)
    for update skip locked
), runs as (
    update scoop_outbox.run set created_at = created_at - %(by)s, ended_at = ended_at - %(by)s
    where id in (select id from free)
)
update scoop_outbox.message set created_at = created_at - %(by)s
where %(messages)s::uuid[] is null or id = any(%(messages)s)
"""


async def age(shop: Shop, by: timedelta, *handles: Handle) -> None:
    """Make hierarchies older, or all of them; but for runs that are being executed."""
    messages = [run.message_id for handle in handles for run in await shop.runs(handle)] if handles else None
    await shop.execute(OLDER, by=by, messages=messages)


async def prune(shop: Shop, older_than: timedelta = MONTH, archive: Any = None, **options: Any) -> Counts:
    """Prune the shop's database."""

    def blocking() -> Counts:
        with Pruning(service_of(shop.app).home.url) as pruning:
            return pruning.prune(PruningOptions(older_than, **options), archive)

    return await asyncio.to_thread(blocking)


async def rows(shop: Shop) -> dict[str, int]:
    """How many rows there are of what has been, by table; not of tables without any."""
    counts = {table: (await shop.ask(f"select count(*) from scoop_outbox.{table}"))[0][0] for table in HISTORY}  # noqa: S608
    return {table: count for table, count in counts.items() if count}
