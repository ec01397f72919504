"""PB: the order of things comes from sequences, and times from the database: clocks may stand still, or be wrong."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from scoop_outbox import Handle
from scoop_outbox.message import uuid7
from tests.carriers import BUILTIN
from tests.scenarios.conftest import MakeShop
from tests.scenarios.rollback_helpers import fails
from tests.scenarios.shop import LONG, Shop, launches

STANDS_STILL = """
create function stands_still() returns trigger language plpgsql as $$
begin
    new := jsonb_populate_record(new, (
        select jsonb_object_agg(key, timestamptz '2026-01-01 12:00:00.820') from jsonb_each(to_jsonb(new))
        where key in ('created_at', 'started_at', 'ended_at') and value <> 'null'
    ));
    return new;
end $$;
create trigger stands_still before insert or update on scoop_outbox.step for each row execute function stands_still();
create trigger stands_still before insert or update on scoop_outbox.run for each row execute function stands_still();
create trigger stands_still before insert or update on scoop_outbox.message for each row execute function stands_still()
"""
"""Gives all that happens one and the same time."""


async def test_pb_02_d5_what_happens_at_one_moment_keeps_its_order(mixed: Shop, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(STANDS_STILL)
    mixed.saga("root", "R", launches("C"), None, launches("D", "D"), fails)
    mixed.saga("child", "C", launches("D"), None)
    mixed.saga("deep", "D", None, None)

    handle, _ = await mixed.fail("R")

    times = "select distinct t from scoop_outbox.step, unnest(array[started_at, ended_at]) t"
    assert len(await mixed.ask(times)) == 1
    forward = ["root-0", "child-0", "deep-0", "deep-1", "child-1", "root-1", "root-2", *["deep-0", "deep-1"] * 2]
    assert sorted(mixed.journal.entries) == sorted(
        [*forward, "root-3", *(entry.replace("-", "-rb") for entry in forward)]
    )
    undone = mixed.journal.entries[len(forward) + 1 :]
    assert undone[:4].count("deep-rb1") == undone[:4].count("deep-rb0") == 2
    assert undone[4:] == ["root-rb2", "root-rb1", "child-rb1", "deep-rb1", "deep-rb0", "child-rb0", "root-rb0"]
    executed = [step.step for step in (await mixed.only(handle, "root")).steps]
    assert executed == ["0", "1", "2", "3", "2", "1", "0"]


@contextmanager
def wrong_clock(hours: int) -> Iterator[None]:
    """Have this process believe that it is earlier or later than it is, as another one might."""
    real, real_ns = time.time, time.time_ns
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(time, "time", lambda: real() + hours * 3600)
        patched.setattr(time, "time_ns", lambda: real_ns() + hours * 3600 * 10**9)
        patched.setattr(uuid7, "_last", 0)  # ids ascend within a process, and this is to be another one
        yield


@pytest.mark.parametrize("carrier", [BUILTIN], indirect=True)  # brokers may deliver in another order
@pytest.mark.parametrize("hours", [1, -1], ids=["ahead", "behind"])
async def test_pb_04_d7_a_client_whose_clock_is_wrong_loses_no_message(make_shop: MakeShop, hours: int) -> None:
    shop, client = make_shop(), make_shop()
    handled: list[int] = []

    def notes(scope: Any, message: Any) -> None:
        handled.append(message.payload)
        scope.launch("C", None, timeout=600)

    root = shop.app.saga("root", "R", ordered="key")
    shop.step(root, "0", notes)
    shop.saga("child", "C", None)
    await shop.app.announce()

    async def launch(*numbers: int) -> list[Handle]:
        return [await client.app.launch("R", number, key="k", timeout=600) for number in numbers]

    with wrong_clock(hours):
        handles = await launch(0, 1)
    handles += await launch(2, 3)
    async with shop.running():
        with wrong_clock(hours):
            handles += await launch(4, 5)
        handles += await launch(6, 7)
        for handle in handles:
            await handle.wait(LONG)

    assert handled == list(range(8))
    assert shop.journal.count("child-0") == 8
