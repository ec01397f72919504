"""A program that has told psycopg, for all its connections, to adapt every value in a way of its own.

`python -m tests.integration.hostile before|after URL`: whether it does so before or after it imports scoop_outbox.
"""

import asyncio
import importlib
import sys
import uuid
from datetime import datetime, timedelta
from enum import Enum, StrEnum
from typing import Any

import psycopg
from psycopg.adapt import Buffer, Dumper, Loader
from psycopg.pq import Format
from psycopg.types.json import set_json_dumps, set_json_loads

ODD = ("odd",)
TYPES = (
    *("text", "varchar", "name", "uuid", "timestamptz", "interval", "json", "jsonb", "int2", "int4", "int8", "oid"),
    *("bool", "bytea", "float8", "numeric"),
)


class OddLoader(Loader):
    def load(self, data: Buffer) -> object:
        return ODD


class OddBinaryLoader(OddLoader):
    format = Format.BINARY


class OddDumper(Dumper):
    def dump(self, obj: object) -> Buffer:
        return b"odd"


class OddBinaryDumper(OddDumper):
    format = Format.BINARY


class Topics(StrEnum):
    ORDERS = "orders"
    PARTS = "parts"


def refuse(*_: Any) -> Any:
    raise AssertionError("the program's JSON library was called")


def odd_everywhere() -> None:
    # 705: literals of which the server does not know the type; 0: every type without a loader.
    oids = {psycopg.adapters.types[name].oid for name in TYPES} | {705, 0}
    oids |= {psycopg.adapters.types[name].array_oid for name in TYPES}
    for oid in oids:
        psycopg.adapters.register_loader(oid, OddLoader)
        psycopg.adapters.register_loader(oid, OddBinaryLoader)
    for kind in (
        str,
        int,
        bool,
        float,
        bytes,
        uuid.UUID,
        datetime,
        timedelta,
        list,
        tuple,
        dict,
        Enum,
        StrEnum,
        Topics,
    ):
        psycopg.adapters.register_dumper(kind, OddBinaryDumper)
        psycopg.adapters.register_dumper(kind, OddDumper)
    set_json_loads(refuse)
    set_json_dumps(refuse)


async def main(url: str) -> None:
    import scoop_outbox  # noqa: PLC0415 - the program may have been at work before

    app = scoop_outbox.Scoop("hostile", database=url)
    await app.migrate()
    app.launch_sync("strangers", "nobody listens")
    seen: list[object] = []

    orders = app.saga("orders", on=Topics.ORDERS, ordered="key")

    @orders.step
    async def first(scope: Any, message: Any) -> None:
        cursor = await scope.connection.execute("select 'text'::text, 1::int8, '{}'::json, null::text")
        seen.append(await cursor.fetchone())
        scope.context["who"] = "the first"
        scope.launch(
            Topics.PARTS, {"of": message.payload["number"], "fails": message.payload["fails"]}, key=message.key
        )

    @orders.step
    def second(scope: Any, message: Any) -> None:
        cursor = scope.connection.execute("select 'text'::text, 1::int8, '{}'::json, null::text")
        seen.append(cursor.fetchone())
        seen.append([result.value for result in scope.results] + [scope.context["who"], scope.iteration])

    @first.compensate
    async def undo(scope: Any, message: Any, error: Exception) -> None:
        seen.append(f"undone, key {message.key}")

    parts = app.saga("parts", on="parts")

    @parts.step(retry=scoop_outbox.Retry(attempts=2))
    def make(scope: Any, message: Any) -> None:
        if message.payload["fails"]:
            raise ValueError("no such part")
        scope.set_result({"made": message.payload["of"]})

    async with app.running():
        good = await app.launch(Topics.ORDERS, {"number": 1, "fails": False}, key="k", headers={"h": "v"})
        await good.wait(30)
        bad = await asyncio.to_thread(app.launch_sync, Topics.ORDERS, {"number": 2, "fails": True}, key="k")
        try:
            await bad.wait(30)
        except scoop_outbox.DistributedError as error:
            seen.append("no such part" in str(error) or "no such part" in "".join(error.__notes__ or []))
        async with await psycopg.AsyncConnection.connect(url) as connection:
            joined = await app.launch(Topics.ORDERS, {"number": 3, "fails": False}, session=connection)
        with psycopg.connect(url) as blocking:
            also = app.launch_sync(Topics.ORDERS, {"number": 4, "fails": False}, session=blocking)
        await joined.wait(30)
        await also.wait(30)
        states = [[run.state.value for run in (await app.status(one.id)).runs] for one in (good, bad, joined, also)]
        message = await app.message(good.id)
    odd = (ODD, ODD, ODD, None)
    result = [{"made": 1}, "the first", 0]
    assert seen[:3] == [odd, odd, result], seen[:3]
    assert "undone, key k" in seen, seen
    assert states == [["committed"] * 2, ["rolled_back"] * 2, ["committed"] * 2, ["committed"] * 2], states
    assert (message.topic, message.key, message.headers, message.payload["number"]) == ("orders", "k", {"h": "v"}, 1)
    assert abs(message.created_at.timestamp() - datetime.now().astimezone().timestamp()) < 120
    print("OK")


if __name__ == "__main__":
    if sys.argv[1] == "after":
        importlib.import_module("scoop_outbox")
    odd_everywhere()
    asyncio.run(main(sys.argv[2]))
