"""Programs that fork, as web servers do that load their application first.

`python -m tests.integration.forking WHAT URL`. Not in the process of the tests: that has threads, and a child of it
would be another pytest.
"""

import asyncio
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from typing import Any

import psycopg

from scoop_outbox import Scoop, Scope
from scoop_outbox.app import service_of
from scoop_outbox.message import Message, uuid7

CHILDREN = 3
LAUNCHES = 20
_LONG = 30.0


def backends(url: str) -> set[int]:
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "select pid from pg_stat_activity "
            "where datname = current_database() and application_name like 'scoop_outbox%'"
        )
        return {pid for (pid,) in rows}


def with_signals(url: str) -> set[int]:
    """Return all connections, once the one for hints is there, which a thread opens."""
    question = "select from pg_stat_activity where datname = current_database() and application_name like '%:notifier'"
    until(lambda: rows(url, question))
    return backends(url)


def rows(url: str, question: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, options="-c search_path=scoop_outbox") as connection:
        return connection.execute(question.encode()).fetchall()


def fork(work: Callable[[int], None], count: int = CHILDREN) -> list[int]:
    """Have `work` done by children, with the number of each, side by side."""
    children = []
    for number in range(count):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                signal.alarm(int(_LONG))  # one that hangs ends as well
                work(number)
                gc.collect()  # what it has forgotten of its parent's goes away
                status = 0
            except BaseException:  # noqa: BLE001 - told here, for nothing else is there to tell it
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    return children


def joined(children: list[int]) -> None:
    for child in children:
        _, status = os.waitpid(child, 0)
        assert status == 0, f"a child has ended with {status}"


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + _LONG
    while not condition():
        assert time.monotonic() < deadline, "it has not come true"
        time.sleep(0.01)


def launching(app: Scoop, parents: set[int]) -> Callable[[int], None]:
    def launch(number: int) -> None:
        for one in range(LAUNCHES):
            app.launch_sync("strangers", [number, one])
        with service_of(app).home.blocking_driver() as driver:
            assert driver.raw.info.backend_pid not in parents, "a child uses its parent's connection"

    return launch


def all_arrived(url: str, extra: int) -> None:
    ((count, ids),) = rows(url, "select count(*), count(distinct message_id) from outbox")
    assert (count, ids) == (CHILDREN * LAUNCHES + extra, count), (count, ids)


def blocking(url: str) -> None:
    app = Scoop("forks", database=url)
    app.launch_sync("strangers", "by the parent")
    mine = with_signals(url)
    joined(fork(launching(app, mine)))
    until(lambda: backends(url) == mine)
    app.launch_sync("strangers", "by the parent once more")
    assert backends(url) == mine
    all_arrived(url, 2)


def with_loop(url: str) -> None:
    """A parent with async connections, forked within a coroutine; children with a loop of their own."""
    app = Scoop("forks", database=url)

    def launch(number: int) -> None:
        async def main() -> None:
            for one in range(LAUNCHES):
                await app.launch("strangers", [number, one])
            await app.close()

        asyncio.run(main())

    async def main() -> None:
        await app.launch("strangers", "by the parent")
        mine = with_signals(url)
        joined(fork(launch))
        until(lambda: backends(url) == mine)
        await app.launch("strangers", "by the parent once more")
        assert backends(url) == mine
        await app.close()

    asyncio.run(main())
    all_arrived(url, 2)


def lent(url: str) -> None:
    """A connection is in use, of a thread that is not there in the child, and so are locks."""
    app = Scoop("forks", database=url)
    home = service_of(app).home
    app.announce_sync()
    lent, go_on = threading.Event(), threading.Event()

    def use() -> None:
        with home.blocking_driver() as driver, home._pools._lock, uuid7._lock:
            driver.raw.execute("begin")
            lent.set()
            go_on.wait(_LONG)
            driver.raw.execute("select 1")
            driver.raw.execute("commit")

    threads = [threading.Thread(target=use)]
    for thread in threads:
        thread.start()
    lent.wait(_LONG)
    joined(fork(launching(app, backends(url))))
    go_on.set()
    for thread in threads:
        thread.join()
    app.launch_sync("strangers", "by the parent")
    all_arrived(url, 1)


def identities(url: str) -> None:
    """No two processes are the same to others, and no two draw the same ids."""
    app = Scoop("forks", database=url)
    reading, writing = os.pipe()

    def tell(number: int) -> None:
        os.write(writing, "\n".join([service_of(app).home.worker_id, *(str(uuid7()) for _ in range(20)), ""]).encode())

    joined(fork(tell))
    os.close(writing)
    told = os.read(reading, 65536).decode().split()
    told += [service_of(app).home.worker_id, *(str(uuid7()) for _ in range(20))]
    assert len(told) == 21 * (CHILDREN + 1)
    assert len({uuid.UUID(one) for one in told}) == len(told)


def service(url: str) -> Scoop:
    app = Scoop("forks", database=url)
    saga = app.saga("greet", on="greetings")

    @saga.step
    async def hello(scope: Scope, message: Message) -> None:
        scope.set_result(message.payload)

    return app


def running(url: str) -> None:
    """A parent that runs relay and worker; its children launch and wait."""
    app = service(url)

    def launch_and_wait(number: int) -> None:
        app.launch_sync("greetings", number)

        async def main() -> None:
            handle = await app.launch("greetings", number)
            await handle.wait(_LONG)
            await app.close()

        asyncio.run(main())
        other = app.launch_sync("greetings", number)
        other.wait_sync(_LONG)

    async def main() -> None:
        async with app.running():
            await (await app.launch("greetings", "before")).wait(_LONG)
            mine = backends(url)
            children = fork(launch_and_wait)
            await asyncio.to_thread(joined, children)
            assert mine <= backends(url), "a child has ended a connection of its parent"
            await (await app.launch("greetings", "afterwards")).wait(_LONG)

    asyncio.run(main())
    ((committed,),) = rows(url, "select count(*) from run where state = 'committed'")
    assert committed >= 2 + 2 * CHILDREN, committed


def child_runs(url: str) -> None:
    """A parent that runs relay and worker; so does its child, and goes on when the parent's are gone."""
    app = service(url)
    ready, go_on = multiprocessing.get_context("fork").Event(), multiprocessing.get_context("fork").Event()

    def run(number: int) -> None:
        async def main() -> None:
            async with app.running():
                ready.set()
                await asyncio.to_thread(go_on.wait, _LONG)
                await (await app.launch("greetings", "in the child")).wait(_LONG)

        asyncio.run(main())

    async def main() -> list[int]:
        async with app.running():
            await (await app.launch("greetings", "before")).wait(_LONG)
            children = fork(run, 1)
            assert await asyncio.to_thread(ready.wait, _LONG)
        return children

    children = asyncio.run(main())
    go_on.set()
    joined(children)


def hearing(url: str) -> None:
    """A parent that hears of other processes goes on to hear; its children hear by themselves."""
    app = Scoop("forks", database=url)

    def hear(number: int) -> None:
        message_id, heard = uuid7(), threading.Event()
        with service_of(app).hints.awaiting(message_id, heard.set):
            until(lambda: service_of(app).hints.hears_of_ends)
            heard.clear()  # it is also called when this process begins to hear
            with psycopg.connect(url) as other:
                channel = service_of(app).hints.channel("ended")
                other.execute("select pg_notify(%s, %s)", (channel, message_id.hex))
            assert heard.wait(_LONG)

    hear(0)
    mine = with_signals(url)
    joined(fork(hear))
    until(lambda: backends(url) == mine)
    hear(0)
    assert backends(url) == mine
    app.close_sync()


def processes(url: str) -> None:
    app = Scoop("forks", database=url)
    app.launch_sync("strangers", "by the parent")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=launching(app, backends(url)), args=(number,)) for number in range(CHILDREN)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(_LONG)
        assert worker.exitcode == 0
    app.launch_sync("strangers", "by the parent once more")
    all_arrived(url, 2)


WHAT = {one.__name__: one for one in (blocking, with_loop, lent, identities, running, child_runs, hearing, processes)}

if __name__ == "__main__":
    WHAT[sys.argv[1]](sys.argv[2])
    print("OK")
