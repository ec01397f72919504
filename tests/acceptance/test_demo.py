"""The demonstration, run as its users run it: a command, with processes of its own."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from scoop_outbox.broker.protocol import Delivery
from scoop_outbox.demo import demonstration, runner, tables
from scoop_outbox.demo.carrier import Onlooker
from scoop_outbox.demo.count import read_closing_count
from scoop_outbox.demo.homes import Homes, NotAcquainted, connect
from scoop_outbox.demo.orders import app
from scoop_outbox.devservers._processes import _process_table, _running
from scoop_outbox.devservers.kafka import KAFKA_URL
from scoop_outbox.devservers.rabbitmq import RABBITMQ_URL
from tests.carriers import BUILTIN, KAFKA, RABBITMQ, REAL
from tests.waiting import until_blocking

DEMO = [sys.executable, "-m", "scoop_outbox", "demo"]


TITLES = {KAFKA: "Apache Kafka", RABBITMQ: "RabbitMQ"}


def run_demo(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DEMO, *arguments], env=os.environ | environment, capture_output=True, text=True, timeout=90, check=False
    )


@contextmanager
def started_demo(*arguments: str, folder: str) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"TMPDIR": folder, "PYTHONUNBUFFERED": "1"}
    for named in (KAFKA_URL, RABBITMQ_URL):
        environment.pop(named, None)
    with subprocess.Popen(
        [*DEMO, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def descendants(pid: int) -> list[int]:
    table = _process_table()
    found = [pid]
    for ancestor in found:
        found += [child for child, (parent, _) in table.items() if parent == ancestor]
    return found[1:]


def counted(output: str, status: str) -> list[int]:
    """The numbers in a row of the closing count: orders, reserved, paid, shipped, pieces."""
    row = re.search(rf"^{status} +(\d+) +(\d+) +(\d+) +(\d+) +(\d+) ", output, re.MULTILINE)
    assert row is not None, output
    return [int(number) for number in row.groups()]


@pytest.mark.parametrize("broker", [BUILTIN, *REAL])
def test_the_demonstration_adds_up_and_shows_an_order_that_failed_in_shipping(
    database_url: str, broker: str, request: pytest.FixtureRequest
) -> None:
    url = None if broker == BUILTIN else str(request.getfixturevalue(f"{broker}_url"))
    through = [] if url is None else ["--broker", url]

    ended = run_demo("--database", database_url, "--count", "12", *through)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stderr == ""
    shows_what_happened(ended.stdout)
    if url is None:
        assert "messages went over" not in ended.stdout
    else:
        with psycopg.connect(database_url) as connection:
            ((handled,),) = connection.execute("select count(*) from demo_shop.message").fetchall()
        went_over(TITLES[broker], url, ended.stdout, handled)


def shows_what_happened(output: str) -> None:
    """Check the count, the failure and its traceback, of the first twelve orders."""
    # The third has an expired card and the fifth a far-away address.
    orders, reserved, paid, shipped, _ = counted(output, "completed")
    assert orders == reserved == paid == shipped
    assert orders >= 8
    cancelled = counted(output, "cancelled")
    assert cancelled == [12 - orders, 0, 0, 0, 0]
    assert "It adds up" in output
    assert "failed: CannotDeliver" in output
    # The root cause comes first, with the line that raised it in another process; then who launched what.
    traceback = output[output.index("Traceback (most recent call last)") :]
    places = ["raise CannotDeliver(", 'launch(topic("shipping.label")', 'launch(topic("shipping.ship")']
    assert [traceback.count(place) for place in places] == [1, 1, 1]
    assert sorted(places, key=traceback.index) == places
    assert not re.search(r"\x1b\[", output)  # no colours where there is no terminal


def went_over(broker: str, url: str, output: str, handled: int) -> None:
    """Check what the demonstration says of a broker."""
    address = urlsplit(url)
    assert f"{broker} at {address.netloc.rpartition('@')[2]} carries all messages" in output
    assert address.password is None or address.password not in output
    topics = {
        topic: int(number)
        for topic, number in re.findall(r"^demo-shop-\w+[./](\w+\.\w+) +(\d+) *$", output, re.MULTILINE)
    }
    assert len(topics) == 6
    assert topics["orders.place"] == 12
    assert f"{sum(topics.values())} messages went over {broker}." in output
    assert handled == sum(topics.values())
    # The server is not the demonstration's own, and what it has created there stays.
    (left,) = re.findall(rf"^Left at {broker}, for you to delete: .*(demo-shop-\w+)…$", output, re.MULTILINE)
    assert output.count(left) > len(topics)


def test_services_with_a_database_each_show_the_same(kafka_url: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)  # Postgres may have to run as another user, who has to get here
    arguments = ("--homes", "each", "--broker", kafka_url, "--count", "12", "--keep")
    shown = ""
    with started_demo(*arguments, folder=str(tmp_path)) as process:
        assert process.stdout is not None
        while shown.count("  psql ") < len(tables.OWN):
            line = process.stdout.readline()
            assert line, shown
            shown += line
        urls = dict(zip(tables.OWN, re.findall(r"psql '(.+)'", shown), strict=True))

        handled = sum(lives_alone(service, url) for service, url in urls.items())

        process.send_signal(signal.SIGTERM)
        shown += process.stdout.read()
        assert process.wait(30) == 143
    shows_what_happened(shown)
    assert unwound(shown) == UNWOUND
    assert re.search(r"^In \d+ more the four homes told each other", shown, re.MULTILINE)
    went_over(TITLES[KAFKA], kafka_url, shown, handled)


def lives_alone(service: str, url: str) -> int:
    """Check that a service has a database, and a home, of its own, and return how many messages it has handled."""
    with psycopg.connect(url) as connection:
        assert connection.execute("select name from demo_shop.home").fetchall() == [(service,)]
        assert connection.execute("select distinct service from demo_shop.run").fetchall() == [(service,)]
        found = connection.execute("select tablename from pg_tables where schemaname = 'demo_shop'").fetchall()
        ((handled,),) = connection.execute("select count(*) from demo_shop.message").fetchall()
    theirs = {table.__tablename__ for owner, own in tables.OWN.items() if owner != service for table in own}
    assert {name for (name,) in found} & theirs == set()
    return int(handled)


@pytest.mark.parametrize(
    "arguments, what_to_do",
    [
        (["--homes", "each"], "make demo HOMES=each BROKER=kafka"),
        (["--homes", "each", "--broker", "postgresql://"], "pass --broker kafka or --broker rabbitmq"),
        (["--homes", "each", "--broker", "kafka", "--database", "postgresql://nowhere/shop"], "leave --database out"),
    ],
)
def test_homes_that_cannot_be_are_refused_before_anything_is_started(arguments: list[str], what_to_do: str) -> None:
    ended = run_demo(*arguments)

    assert ended.returncode == 1
    assert ended.stdout == ""
    assert what_to_do in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_homes_that_do_not_know_each_other_are_named(database_url: str) -> None:
    tables.create(database_url, "orders")
    async with await connect(database_url) as connection:
        apart = {"orders": database_url, "stock": "postgresql://elsewhere/stock"}
        with pytest.raises(NotAcquainted, match="after 0 s: orders and stock, stock and orders"):
            await Homes(apart, dict.fromkeys(apart, connection), {}).acquainted(0)


UNWOUND = ["send_mail", "pack", "capture", "authorize", "take_from_shelf", "take_from_shelf", "reserve_stock"]


def unwound(output: str) -> list[str]:
    """What is shown of an order that has failed in shipping: the steps that were undone, in order."""
    tree = output.partition("failed: CannotDeliver")[2].partition("What `await")[0]
    turns = {int(turn): what for turn, what in re.findall(r"─ +(\d+) (.*?)  ", tree)}
    what_happened = [turns[turn] for turn in sorted(turns)]
    assert what_happened[0] == "reserve_stock"
    failed = what_happened.index("choose_carrier raised CannotDeliver")
    return [what.removeprefix("undo ") for what in what_happened[failed:] if what.startswith("undo ")]


def test_compensations_are_shown_in_the_order_in_which_they_happened(database_url: str) -> None:
    ended = run_demo("--database", database_url, "--count", "5")

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert unwound(ended.stdout) == UNWOUND


async def test_a_closing_count_that_does_not_add_up_says_what_does_not(database_url: str) -> None:
    tables.create(database_url)
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        await connection.execute(
            """
            insert into demo_shop.orders (id, customer, units, total_cents, status)
            values ('A-1', '', 3, 500, 'completed'), ('A-2', '', 1, 100, 'cancelled'), ('A-3', '', 1, 100, 'confirmed');
            insert into demo_shop.reservations (order_id, sku, quantity, status)
            values ('A-1', 'MUG-BLUE', 2, 'reserved');
            insert into demo_shop.payments (order_id, bank_number, authorized_cents, captured_cents, status)
            values ('A-1', '', 500, 500, 'open'), ('A-2', '', 100, 100, 'open');
            """
        )
        count = await read_closing_count(dict.fromkeys(tables.OWN, connection), {"A-1", "A-4"}, {"A-2"})

    assert count.problems == (
        "order A-4 was launched and is in no table",
        "order A-1 is completed, but 2 of its 3 pieces are reserved",
        "order A-1 is completed, but it has 0 shipments",
        "order A-2 is cancelled, but EUR 1.00 are not refunded",
        "order A-2 is cancelled, but 1 payments are still open",
        "order A-3 is confirmed, but its launcher was told that it is launched",
        "of MUG-BLUE, 150 were delivered, but 150 are on the shelf and 2 reserved",
    )


def test_a_schema_that_the_demonstration_did_not_make_is_left_alone(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("create schema demo_shop; create table demo_shop.orders as select 1 as precious")

        ended = run_demo("--database", database_url)

        assert ended.returncode == 1
        assert "use another database" in ended.stderr
        assert "Traceback" not in ended.stderr
        assert connection.execute("select precious from demo_shop.orders").fetchall() == [(1,)]


def test_orders_that_are_none_are_refused_with_their_line(tmp_path: Path) -> None:
    file = tmp_path / "orders.jsonl"
    file.write_text('{"id": "A-1"}\n', encoding="utf-8")

    ended = run_demo("--orders", str(file))

    assert ended.returncode == 1
    assert f"line 1 of {file} is no order" in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_an_onlooker_who_has_not_seen_a_message_that_was_handled_says_which() -> None:
    class Silent:
        problem = None

        async def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
            await asyncio.sleep(0.01)
            return []

        async def acknowledge(self, deliveries: Sequence[Delivery]) -> None: ...
        async def pause(self) -> None: ...
        async def resume(self) -> None: ...
        async def close(self) -> None: ...

    async with Onlooker(Silent(), ["orders.place"]) as onlooker:
        assert await onlooker.missing(["a", "b"], within=0.1) == {"a", "b"}
        assert await onlooker.missing([]) == set()
        assert onlooker.counts == {"orders.place": 0}


async def test_a_process_that_is_not_ready_and_says_nothing_is_told_without_an_empty_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(runner, "_READY_SECONDS", 0.0)
    processes = runner.Processes(tmp_path, dict(os.environ))
    try:
        processes.start("relay", "relay")
        with pytest.raises(runner.ProcessEnded) as error:
            await processes.ready()
    finally:
        processes.stop()

    assert str(error.value).startswith("relay was not ready within 0 s; it has said nothing: ")
    assert str(error.value).endswith("run it once more")


async def test_orders_that_take_too_long_are_counted(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demonstration, "_LONGEST", 0.5)
    tables.create(database_url)
    app.configure(database=database_url)
    try:
        # Nobody works, so none of them can end.
        with pytest.raises(demonstration.DemonstrationError) as error:
            await demonstration._see_through(database_url, demonstration.read_orders(None, 3))
    finally:
        await app.close()

    assert str(error.value).startswith("0 of 3 orders have ended after 0 s; ")
    assert str(error.value).endswith("take fewer orders, with --count 20")


def test_what_is_no_broker_is_refused_before_anything_is_started() -> None:
    ended = run_demo("--broker", "kafak")

    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "'kafak' is no broker: say kafka or rabbitmq, or the URL of one that runs" in ended.stderr


def test_a_broker_that_cannot_be_started_here_says_what_to_do() -> None:
    nowhere = {"SCOOP_RABBITMQ_BIN": "/nonexistent", "DOCKER_HOST": "tcp://127.0.0.1:1", RABBITMQ_URL: ""}

    ended = run_demo("--broker", "rabbitmq", **nowhere)

    assert ended.returncode == 1
    assert "apt-get install rabbitmq-server" in ended.stderr
    assert "--broker amqp://" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    "broker, number, code",
    [
        (BUILTIN, signal.SIGINT, 130),
        (BUILTIN, signal.SIGTERM, 143),
        (BUILTIN, signal.SIGKILL, -signal.SIGKILL),
        (KAFKA, signal.SIGTERM, 143),
        (RABBITMQ, signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_a_signal_ends_the_demonstration_with_everything_it_started(
    broker: str, number: signal.Signals, code: int, request: pytest.FixtureRequest
) -> None:
    if broker != BUILTIN:
        request.getfixturevalue(f"{broker}_installed")
    through = [] if broker == BUILTIN else ["--broker", broker]
    with tempfile.TemporaryDirectory() as folder:
        # Postgres may have to run as another user, who has to get here.
        Path(folder).chmod(0o755)
        with started_demo(*through, folder=folder) as process:
            assert process.stdout is not None
            shown = ""
            while " s  orders " not in shown:
                line = process.stdout.readline()
                assert line, shown
                shown += line
            started = descendants(process.pid)
            # Four services, the relay, Postgres with processes of its own, and a watchdog for each of the two; then
            # the broker and its own.
            assert len(started) >= (9 if broker == BUILTIN else 11)

            process.send_signal(number)
            rest = process.stdout.read()

            assert process.wait(30) == code
            assert "Traceback" not in rest
            until_blocking(lambda: not _running(started), timeout=30)
            if number is not signal.SIGKILL:
                assert list(Path(folder).iterdir()) == []
