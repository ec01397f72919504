"""Operators ask whether homes cooperate: `scoop-outbox doctor`, and `Doctor`."""

import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import replace

import pytest

from scoop_outbox import AsyncDoctor, Doctor
from scoop_outbox.app import service_of
from scoop_outbox.broker.protocol import Broker, Resource, Subscription
from scoop_outbox.core.plans.peers import Peer
from scoop_outbox.errors import BrokerError
from scoop_outbox.operations.doctor import Examination, Fault, Problem, ask_broker
from scoop_outbox.store.revisions import head
from tests.fake_broker import FakeBroker
from tests.homes.conftest import MakeHome
from tests.homes.homes import running
from tests.homes.test_seen import STOCK, child_in_stock, heard_of_stock, reported
from tests.integration.seeing import ask, command, printed
from tests.scenarios.shop import LONG, Gate, Shop, launches
from tests.waiting import until

OTHER = uuid.UUID(int=8)


def named(url: str, name: str = "orders", revision: int = 3) -> None:
    """Let the home have a name, and have told others who listens in it."""
    ask(url, "update home set name = %s, revision = %s", name, revision)


def peer(
    url: str, home: uuid.UUID = STOCK, name: str = "stock", *, confirmed: int = 3, lag: float | None = 0.5
) -> None:
    ask(
        url,
        "insert into peer (id, name, reply_to, revision, confirmed, lag) "
        "values (%s, %s, 'scoop.control.' || %s, 1, %s, make_interval(secs => %s))",
        *(home, name, name, confirmed, lag),
    )


def problems(url: str) -> list[Problem]:
    with Doctor(url) as opened:
        return list(opened.examine().problems)


def faults(url: str) -> list[Fault]:
    return [one.fault for one in problems(url)]


def the_only(url: str) -> Problem:
    (one,) = problems(url)
    return one


def test_a_home_that_is_alone_has_no_problems(database_url: str) -> None:
    text = printed(database_url, "doctor")
    assert re.fullmatch(rf"this home has no name, and cooperates with no other: id \S+, tables {head()}\n", text)
    named(database_url, revision=0)
    assert re.fullmatch(
        r"home orders: id \S+, tables \d+, no other home was told of it\n", printed(database_url, "doctor")
    )


def test_homes_that_know_each_other(database_url: str) -> None:
    named(database_url)
    peer(database_url)
    ask(database_url, "insert into peer_subscription (home, topic, service, saga) values (%s, 't', 's', 's')", STOCK)
    first, head_line, line = printed(database_url, "doctor").splitlines()
    assert first.endswith(f", tables {head()}, subscriptions at revision 3")
    fields = dict(zip(head_line.split("\t"), line.split("\t"), strict=True))
    assert re.fullmatch(r"\d\.\d{3} s", fields.pop("heard"))
    assert fields == {
        "home": "stock", "id": str(STOCK), "subscriptions": "1, revision 1", "knows ours": "yes", "lag": "0.500 s",
        "waited for there": "0", "silent": "-", "waited for here": "0",
    }  # fmt: skip
    found = json.loads(printed(database_url, "doctor", "--json"))
    assert (found["name"], found["control_topic"], found["problems"]) == ("orders", "scoop.control.orders", [])
    assert [one["name"] for one in found["peers"]] == ["stock"]


def test_a_home_that_does_not_know_who_listens_here(database_url: str) -> None:
    named(database_url)
    peer(database_url, confirmed=2)
    result = command(database_url, "doctor")
    assert (result.exit_code, result.stderr) == (1, "1 problem\n")
    last = result.stdout.splitlines()[-1]
    assert last.startswith("unconfirmed: home 'stock' knows revision 2 of who listens here, and 3 is the newest: ")
    assert "\t2 of 3\t" in result.stdout
    ask(database_url, "update peer set revision = 0")  # it was only heard of, and is told when it speaks
    assert faults(database_url) == []


@pytest.mark.parametrize("names, times", [(("stock", "stock"), 2), (("orders", "stock"), 2), (("orders", "orders"), 3)])
def test_homes_of_one_name(database_url: str, names: tuple[str, str], times: int) -> None:
    named(database_url)
    for home, name in zip((STOCK, OTHER), names, strict=True):
        peer(database_url, home, name)
    one = the_only(database_url)
    assert one.fault is Fault.NAMESAKE
    assert one.text.startswith(f"{times} homes are called {names[0]!r}, and each gets what another is told: ")
    assert ("(this one)" in one.text) == (names[0] == "orders")


async def test_a_home_that_is_silent(database_url: str) -> None:
    named(database_url)
    heard_of_stock(database_url)
    ask(database_url, "update peer set confirmed = 99")
    await child_in_stock(database_url)
    with Doctor(database_url) as opened:
        (known,) = opened.examine().peers
        assert (known.children, known.runs, known.name) == (1, 0, "stock")
        assert 0 < (known.silent or 0) < 60
    ask(database_url, "update peer set heard_at = clock_timestamp() - interval '42 min'")
    ask(database_url, "update step set ended_at = clock_timestamp() - interval '50 min'")
    one = the_only(database_url)
    assert (one.fault, one.home) == (Fault.SILENT, STOCK)
    assert (
        "was last heard of 42 min ago, and 1 children are waited for there, one of them silent for 50 min" in one.text
    )
    reported(database_url, "committed", is_open=False)
    assert faults(database_url) == []


async def test_a_home_that_is_not_known(database_url: str) -> None:
    named(database_url)
    heard_of_stock(database_url, None)
    await child_in_stock(database_url)
    ask(database_url, "update run set parent_home = %s", OTHER)
    found = problems(database_url)
    assert [(one.fault, one.home) for one in found] == [(Fault.UNKNOWN, STOCK), (Fault.UNKNOWN, OTHER)]
    assert ", 1 children are waited for there, and 0 runs here are for it" in found[0].text
    assert ", 0 children are waited for there, and 1 runs here are for it" in found[1].text
    ask(database_url, "update home set name = null")
    assert faults(database_url)[0] is Fault.UNNAMED


async def test_children_that_their_home_does_not_know(database_url: str) -> None:
    named(database_url)
    peer(database_url, confirmed=99)
    heard_of_stock(database_url, None)
    await child_in_stock(database_url)
    reported(database_url, "rollback_failed", is_open=False)
    failure = uuid.uuid4()
    ask(
        database_url,
        "insert into failure (id, causes, type, source, document) values (%s, '{}', 'UnknownRun', 's', '{}')",
        failure,
    )
    ask(database_url, "update child set obstacle = %s", failure)
    assert faults(database_url) == []
    ask(database_url, "update run set state = 'rollback_failed', obstacle = %s", failure)
    one = the_only(database_url)
    assert (one.fault, one.home) == (Fault.LOST, STOCK)
    ((run_id,),) = ask(database_url, "select id from run")
    assert one.text.startswith("home stock did not know 1 children when it was asked")
    assert one.text.endswith(f"scoop-outbox show {run_id}")
    ask(database_url, "update run set abandoned = true")
    assert faults(database_url) == []


@pytest.mark.parametrize(
    "lag, expected",
    [
        (None, None),
        (-0.5, None),
        (-90.0, "the clock of home 'stock' is ahead of ours by 90.0 s or more"),
        (30.0, None),
        (
            600.0,
            "what home 'stock' said last took 10 min until it was taken in here, or its clock is behind ours by that",
        ),
    ],
)
def test_clocks_that_differ(database_url: str, lag: float | None, expected: str | None) -> None:
    named(database_url)
    peer(database_url, lag=lag)
    found = "".join(one.text for one in problems(database_url))
    assert re.fullmatch(expected or "", found)


def test_dead_letters_of_the_control_channel(database_url: str) -> None:
    named(database_url)
    for origin, topic, service in (
        ("intake", "scoop.control.orders", "scoop.control.orders"),
        ("intake", "orders", "shop"),
        ("relay", "scoop.control.stock", None),
        ("relay", "scoop.homes", None),
        ("relay", "orders", None),
    ):
        ask(
            database_url,
            "insert into dead_letter (topic, body, content_type, headers, origin, reason, service) "
            "values (%s, '', '', '{}', %s, 'broken', %s)",
            *(topic, origin, service),
        )
    intake, relay = problems(database_url)
    assert intake.text.startswith("1 control messages that other homes have said could not be taken in; the newest: ")
    assert intake.text.endswith("it is dead letter 1, see scoop-outbox dead-letters show 1")
    assert relay.text.startswith(
        "2 control messages to other homes were not published; the newest: it is dead letter 4"
    )


def test_tables_that_are_older(database_url: str) -> None:
    ask(database_url, "alter table home drop column prefix")
    ask(database_url, "update alembic_version set version_num = '0023'")
    text = f"the tables are at revision 0023, and this library needs {head()}: scoop-outbox migrate"
    assert the_only(database_url) == Problem(Fault.TABLES, text)


async def test_a_broker_that_cannot_be_asked(database_url: str) -> None:
    class Down(FakeBroker):
        async def topology(
            self, topics: Sequence[str], subscription: Subscription | None, *, create: bool
        ) -> list[Resource]:
            raise BrokerError("nobody answers")

    named(database_url)
    peer(database_url)
    async with AsyncDoctor(database_url) as opened:
        found = await ask_broker(Down(), await opened.examine())
    assert [one.text for one in found.problems] == ["the broker cannot be asked: nobody answers"]


async def test_homes_that_cooperate_have_no_problems(make_home: MakeHome) -> None:
    """Over each broker. What is missing there is found."""
    orders, stock, gate = make_home("orders"), make_home("stock"), Gate()
    orders.saga("root", "R", None, launches("C"))
    stock.saga("child", "C", gate)
    async with running(orders, stock):
        handle = await orders.app.launch("R", None)
        await until(lambda: gate.entered, LONG)
        await until(lambda: orders.ask("select from scoop_outbox.child where state = 'started'"), LONG)
        found = await examined(orders, known=("stock", 1, 0))
        await examined(stock, known=("orders", 0, 1))
        ghost = Peer(OTHER, "ghost", None, 1, 1, 0.0, 0.0, 0, 0, None, 0)
        (missing,) = (await ask_broker(broker_of(orders), replace(found, peers=(ghost,)))).problems
        assert (missing.fault, missing.home) == (Fault.BROKER, OTHER)
        expected = r"home 'ghost' is told nothing, for at the broker is missing: .*scoop.control.ghost"
        assert re.match(expected, missing.text)
        gate.open = True
        await handle.wait(LONG)


async def examined(shop: Shop, *, known: tuple[str, int, int]) -> Examination:
    """A home in which nothing is wrong, and that knows another one: its name, children there, and runs for it."""
    async with AsyncDoctor(service_of(shop.app).home.url) as opened:
        found = await ask_broker(broker_of(shop), await opened.examine())
    assert found.problems == ()
    (one,) = found.peers
    assert (one.name, one.children, one.runs) == known
    assert one.lag is not None
    assert -1 < one.lag < LONG
    return found


def broker_of(shop: Shop) -> Broker:
    broker = service_of(shop.app).broker
    assert broker is not None
    return broker
