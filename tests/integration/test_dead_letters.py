"""Dead letters: seen, replayed and dropped, from the command line and from programs."""

import asyncio
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from scoop_outbox import DatabaseError, DefinitionError
from scoop_outbox.broker.protocol import Delivery
from scoop_outbox.cli import main
from scoop_outbox.message import uuid7
from scoop_outbox.operations.dead_letters import DeadLetters, Origin, Replay, ReplayStatus, Selection
from scoop_outbox.store.schema import DEFAULT_SCHEMA
from tests.fake_broker import FakeBroker, message
from tests.integration.taking_in import launch_below, service, take_all_in
from tests.waiting import until


def ask(url: str, question: str, *values: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, options=f"-c search_path={DEFAULT_SCHEMA}") as connection:
        return connection.execute(question.encode(), values).fetchall()


@pytest.fixture
def letters(database_url: str) -> Iterator[DeadLetters]:
    with DeadLetters(database_url) as opened:
        yield opened


def command(url: str, *arguments: str, answer: str | None = None) -> Result:
    return CliRunner().invoke(main, ["dead-letters", *arguments, "--database", url], input=answer)


async def bury(url: str, *deliveries: Delivery, name: str = "shop") -> None:
    """Let a service try to take in what cannot be taken in."""
    await take_all_in(url, FakeBroker(deliveries), service(url, name))


def bury_unpublishable(url: str, number: int, *, topic: str = "orders", key: str | None = None) -> uuid.UUID:
    """Write what a relay leaves of a message that a broker does not want."""
    message_id = uuid7()
    ask(
        url,
        """insert into dead_letter (message_id, topic, key, body, content_type, headers, origin, reason)
           values (%s, %s, %s, %s, 'application/json', %s, 'relay', 'too large') returning id""",
        message_id, topic, key, str(number).encode(), json.dumps({"h": "v", "scoop-context": '{"a": 1}'}),
    )  # fmt: skip
    return message_id


def outbox(url: str) -> list[tuple[Any, ...]]:
    return ask(url, "select message_id, topic, key, body, content_type, headers from outbox order by seq")


def left(url: str) -> list[int]:
    return [number for (number,) in ask(url, "select id from dead_letter order by id")]


async def test_they_are_listed_by_page_and_by_what_they_are(database_url: str, letters: DeadLetters) -> None:
    assert letters.page() == []
    bury_unpublishable(database_url, 1)
    bury_unpublishable(database_url, 2, topic="payments")
    await bury(database_url, message(3, scoop_id="?"))
    await bury(database_url, message(4, scoop_id="?", body=b"four"), name="books")
    assert [letter.id for letter in letters.page()] == [1, 2, 3, 4]
    assert [letter.id for letter in letters.page(limit=2)] == [1, 2]
    assert [letter.id for letter in letters.page(after=2, limit=1)] == [3]
    assert [letter.id for letter in letters.page(limit=100_000)] == [1, 2, 3, 4]
    for selection, numbers in (
        (Selection(origin=Origin.RELAY), [1, 2]),
        (Selection(topic="payments"), [2]),
        (Selection(service="books"), [4]),
        (Selection(Origin.INTAKE, "orders", "shop"), [3]),
        (Selection(Origin.RELAY, service="shop"), []),
    ):
        assert [letter.id for letter in letters.page(selection)] == numbers
        assert list(letters.numbers(selection)) == numbers
    last = letters.page()[-1]
    assert (last.origin, last.service, last.topic, last.position) == ("intake", "books", "orders", "orders[0]@4")
    assert (last.reason, last.size) == ("its header scoop-id is no UUID", 4)


async def test_one_is_shown_with_all_that_it_holds(database_url: str, letters: DeadLetters) -> None:
    odd = message(3, scoop_id="?", key=b"\xff", body=b"\x00\xff", content_type=None, headers={"tenant": "acme"})
    await bury(database_url, odd)
    contents = letters.read(1)
    assert contents is not None
    assert (contents.key, contents.body, contents.content_type) == ("\\xff", b"\x00\xff", "")
    assert contents.headers == {"tenant": "acme", "scoop-id": "?"}
    assert str(contents.letter.message_id) == odd.envelope.id
    assert letters.read(2) is None


async def test_what_could_not_be_published_goes_back_into_the_outbox_as_it_was(
    database_url: str, letters: DeadLetters
) -> None:
    with_key, without = bury_unpublishable(database_url, 1, key="k"), bury_unpublishable(database_url, 2)
    assert [letters.replay(number).status for number in (1, 2)] == [ReplayStatus.REPLAYED] * 2
    headers = {"h": "v", "scoop-context": '{"a": 1}'}
    assert outbox(database_url) == [
        (with_key, "orders", "k", b"1", "application/json", headers),
        (without, "orders", None, b"2", "application/json", headers),
    ]
    assert left(database_url) == []
    # In the shard of its key, where the order of the key is kept.
    shards = ask(database_url, "select shard, abs(hashtext(coalesce(key, message_id::text)) %% 8) from outbox")
    assert all(one == other for one, other in shards)


async def test_what_could_not_be_published_is_handled_after_its_replay(database_url: str, letters: DeadLetters) -> None:
    app = service(database_url)
    message_id = bury_unpublishable(database_url, 1)
    letters.replay(1)
    async with app.running():
        await app.handle(message_id).wait(10)
    assert ask(database_url, "select state, context from run") == [("committed", {"a": 1})]


async def test_what_could_not_be_taken_in_is_taken_in_again_for_that_service(
    database_url: str, letters: DeadLetters
) -> None:
    for name in ("shop", "books"):
        service(database_url, name)
    # A type that the service did not know, and now does.
    ask(
        database_url,
        """insert into dead_letter
               (message_id, topic, key, body, content_type, headers, origin, service, position, reason)
           values (%s, 'orders', 'k', '{"sku": 1}', 'application/json', '{"h": "v", "scoop-context": "{}"}',
                   'intake', 'shop', 'orders[0]@3', 'a message on topic orders does not fit Order') returning 1""",
        uuid7(),
    )
    answer = letters.replay(1)
    assert (answer.status, answer.reason) == (ReplayStatus.REPLAYED, "taken in by shop")
    assert left(database_url) == []
    assert ask(database_url, "select service, saga, context from run") == [("shop", "a", {})]
    assert ask(database_url, "select key, headers from message") == [("k", {"h": "v"})]
    assert ask(database_url, "select count(*) from mailbox") == [(1,)]


DEFECTIVE: dict[str, dict[str, Any]] = {
    "id": {"scoop_id": "?"},
    "lineage": {"scoop_lineage": "?"},
    "json": {"body": b"{"},
    "deep": {"body": b"[" * 100_000},
    "postgres": {"scoop_context": '{"a": NaN}'},
    "surrogate": {"scoop_context": '{"a": "\udcff"}'},
}


@pytest.mark.parametrize("defect", DEFECTIVE.values(), ids=DEFECTIVE)
async def test_what_is_still_defective_is_refused_and_stays(
    database_url: str, letters: DeadLetters, defect: dict[str, Any]
) -> None:
    await bury(database_url, message(1, **defect))
    before = letters.read(1)
    answer = letters.replay(1)
    assert answer.status is ReplayStatus.REFUSED
    assert answer.reason
    assert letters.read(1) == before
    assert ask(database_url, "select count(*) from message") == [(0,)]


TOO_LARGE = """
    create function scoop_outbox.is_too_large() returns trigger language plpgsql as
        $$ begin raise exception 'row is too big' using errcode = 'program_limit_exceeded'; end $$;
    create trigger is_too_large before insert on scoop_outbox.message
        for each row execute function scoop_outbox.is_too_large();
"""


async def test_what_is_too_large_for_the_database_is_refused_and_stays(database_url: str, letters: DeadLetters) -> None:
    await bury(database_url, message(1, scoop_id="?"))
    ask(database_url, "update dead_letter set headers = '{}' returning 1")
    with psycopg.connect(database_url) as connection:
        connection.execute(TOO_LARGE)
    assert letters.replay(1) == Replay(1, ReplayStatus.REFUSED, "it cannot be stored: ProgramLimitExceeded")
    assert left(database_url) == [1]


async def test_what_has_been_taken_in_meanwhile_is_not_started_twice(database_url: str, letters: DeadLetters) -> None:
    app = service(database_url)
    one = message(1)
    await take_all_in(database_url, FakeBroker([one]), app)
    ask(
        database_url,
        """insert into dead_letter (message_id, topic, body, content_type, headers, origin, service, position, reason)
           values (%s, 'orders', '1', 'application/json', '{}', 'intake', 'shop', 'p', 'r') returning 1""",
        one.envelope.id,
    )
    assert letters.replay(1) == Replay(1, ReplayStatus.REPLAYED, "taken in by shop already")
    assert ask(database_url, "select count(*) from run") == [(1,)]
    assert left(database_url) == []


async def test_what_no_saga_handles_stays_a_dead_letter(database_url: str, letters: DeadLetters) -> None:
    await bury(database_url, message(1, **next(iter(DEFECTIVE.values()))))
    ask(
        database_url,
        """update dead_letter set topic = 'another', body = '1', content_type = 'application/json', headers = '{}'
           returning 1""",
    )
    answer = letters.replay(1)
    assert (answer.status, answer.reason) == (
        ReplayStatus.REFUSED,
        "no saga of shop is subscribed to 'another': start the service with one, then replay this",
    )
    assert ask(database_url, "select (select count(*) from dead_letter), (select count(*) from message)") == [(1, 0)]


async def test_a_parent_waits_for_a_child_that_could_not_be_published_until_its_replay(
    database_url: str, letters: DeadLetters
) -> None:
    app = service(database_url, on="below")
    app.saga("parent", on="orders").add_step("launch", launch_below)
    to_dead_letter = """
        with gone as (delete from outbox where topic = 'below' returning *)
        insert into dead_letter (message_id, topic, key, body, content_type, headers, origin, reason)
        select message_id, topic, key, body, content_type, headers, 'relay', 'no such topic' from gone returning id"""
    async with app.running(worker=False):
        root = await app.launch("orders", 1)
        await until(lambda: ask(database_url, "select 1 from run"))
    async with app.running(relay=False):
        await until(lambda: ask(database_url, to_dead_letter))
    async with app.running():
        assert not (await app.status(root.id)).ended
        assert (await asyncio.to_thread(letters.replay, 1)).status is ReplayStatus.REPLAYED
        await root.wait(10)


def test_only_one_of_several_replays_a_letter(database_url: str) -> None:
    for number in range(20):
        bury_unpublishable(database_url, number)

    def replay_all(_: int) -> list[ReplayStatus]:
        with DeadLetters(database_url) as letters:
            return [letters.replay(number).status for number in range(1, 21)]

    with ThreadPoolExecutor(4) as threads:
        verdicts = [status for one in threads.map(replay_all, range(4)) for status in one]
    assert verdicts.count(ReplayStatus.REPLAYED) == 20
    assert verdicts.count(ReplayStatus.UNKNOWN) == 60
    assert len(outbox(database_url)) == 20


def test_dropping_says_what_was_there(database_url: str, letters: DeadLetters) -> None:
    for number in range(3):
        bury_unpublishable(database_url, number)
    assert letters.drop([1, 3, 99]) == [1, 3]
    assert left(database_url) == [2]


def test_a_database_that_cannot_be_used_says_why(database_url: str) -> None:
    with DeadLetters(database_url, schema="elsewhere") as letters, pytest.raises(DatabaseError, match="migrate"):
        letters.page()
    with DeadLetters("postgresql://127.0.0.1:1/nowhere") as letters, pytest.raises(DatabaseError, match="connect"):
        letters.read(1)
    with pytest.raises(DefinitionError):
        DeadLetters(database_url, schema="")


# -- the command line ---------------------------------------------------------------------------------------------


async def test_list_shows_a_line_for_each(database_url: str) -> None:
    assert command(database_url, "list").stderr == "no dead letters\n"
    bury_unpublishable(database_url, 1)
    await bury(database_url, message(2, scoop_id="?"))
    result = await asyncio.to_thread(command, database_url, "list")
    header, first, second = [line.split("\t") for line in result.stdout.splitlines()]
    assert header == ["id", "when", "origin", "service", "topic", "position", "size", "reason"]
    assert [*first[:1], *first[2:]] == ["1", "relay", "-", "orders", "-", "1", "too large"]
    assert [*second[:1], *second[2:]] == [
        "2", "intake", "shop", "orders", "orders[0]@2", "1", "its header scoop-id is no UUID",
    ]  # fmt: skip
    page = await asyncio.to_thread(command, database_url, "list", "--limit", "1", "--origin", "intake", "--after", "1")
    assert page.stdout.splitlines()[1:] == result.stdout.splitlines()[2:]
    assert page.stderr == "next page: --after 2\n"


async def test_show_prints_text_as_text_and_bytes_as_digits(database_url: str) -> None:
    await bury(
        database_url,
        message(1, scoop_id="?", body=b'{"name": "gr\xc3\xbcn"}', headers={"evil": "a\nb\x1b[2J"}),
        message(2, scoop_id="?", body=bytes(range(256)), key=b"k", content_type="application/avro"),
    )
    text = (await asyncio.to_thread(command, database_url, "show", "1")).stdout
    assert text.endswith('\n\n{"name": "grün"}\n')
    assert "header:       evil: a\\nb\\x1b[2J\n" in text
    assert "reason:       its header scoop-id is no UUID\n" in text
    digits = (await asyncio.to_thread(command, database_url, "show", "2")).stdout
    assert "\n00000040  40 41 42 43 44 45 46 47 48 49 4a 4b 4c 4d 4e 4f  @ABCDEFGHIJKLMNO\n" in digits
    assert "key:          k\n" in digits
    raw = await asyncio.to_thread(command, database_url, "show", "2", "--raw")
    assert raw.stdout_bytes == bytes(range(256))
    missing = await asyncio.to_thread(command, database_url, "show", "3")
    assert (missing.exit_code, missing.stderr) == (1, "Error: there is no dead letter 3\n")


async def test_replay_says_what_became_of_each(database_url: str) -> None:
    bury_unpublishable(database_url, 1)
    await bury(database_url, message(2, scoop_id="?"))
    result = await asyncio.to_thread(command, database_url, "replay", "1", "2", "3")
    assert result.stdout.splitlines() == [
        "1\treplayed\tback in the outbox",
        "2\trefused\tits header scoop-id is no UUID",
        "3\tunknown\tthere is no such dead letter",
    ]
    assert result.stderr == "1 replayed, 1 refused, 1 unknown\n"
    assert result.exit_code == 1
    assert left(database_url) == [2]


async def test_replay_of_all_that_is_selected(database_url: str) -> None:
    for number in range(5):
        bury_unpublishable(database_url, number, topic=f"topic {number % 2}")
    result = command(database_url, "replay", "--all", "--topic", "topic 0", "--origin", "relay")
    assert (result.exit_code, result.stderr) == (0, "3 replayed, 0 refused, 0 unknown\n")
    assert left(database_url) == [2, 4]
    again = command(database_url, "replay", "--all", "--topic", "topic 0")
    assert (again.exit_code, again.stdout, again.stderr) == (0, "", "0 replayed, 0 refused, 0 unknown\n")


def test_drop_asks_before_it_drops_all(database_url: str) -> None:
    for number in range(3):
        bury_unpublishable(database_url, number)
    refused = command(database_url, "drop", "--all", answer="n\n")
    assert refused.exit_code == 1
    assert "drop 3 dead letters for good?" in refused.stdout + refused.stderr
    assert left(database_url) == [1, 2, 3]
    named = command(database_url, "drop", "2", "9")
    assert (named.exit_code, named.stdout) == (1, "2\tdropped\n9\tunknown\tthere is no such dead letter\n")
    everything = command(database_url, "drop", "--all", "--yes")
    assert (everything.exit_code, everything.stdout) == (0, "1\tdropped\n3\tdropped\n")
    assert left(database_url) == []


@pytest.mark.parametrize("arguments, complaint", [
    (("replay",), "no dead letters selected"),
    (("drop",), "no dead letters selected"),
    (("replay", "1", "--all"), "not both"),
    (("drop", "1", "--topic", "t"), "need --all"),
    (("show", "0"), "not in the range"),
    (("list", "--limit", "5000"), "not in the range"),
    (("list", "--origin", "elsewhere"), "is not one of"),
])  # fmt: skip
def test_what_cannot_be_meant_is_refused(database_url: str, arguments: tuple[str, ...], complaint: str) -> None:
    result = command(database_url, *arguments)
    assert result.exit_code == 2
    assert complaint in result.stderr


def test_without_a_database_it_says_so() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "SCOOP_OUTBOX_DATABASE"}
    done = subprocess.run(
        [sys.executable, "-m", "scoop_outbox", "dead-letters", "list"],
        env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no database: pass --database" in done.stderr


def test_a_replay_that_is_killed_loses_nothing(database_url: str) -> None:
    ids = {bury_unpublishable(database_url, number) for number in range(300)}
    replaying = subprocess.Popen(
        [sys.executable, "-m", "scoop_outbox", "dead-letters", "replay", "--all", "--database", database_url],
        stdout=subprocess.PIPE,
    )
    assert replaying.stdout is not None
    replaying.stdout.readline()
    replaying.kill()
    replaying.communicate()
    dead = {one for (one,) in ask(database_url, "select message_id from dead_letter")}
    waiting = [one for (one,) in ask(database_url, "select message_id from outbox")]
    assert len(waiting) == len(set(waiting)) > 0
    assert dead, "it was killed too late to tell anything"
    assert dead | set(waiting) == ids
    assert dead & set(waiting) == set()
    assert command(database_url, "replay", "--all").exit_code == 0
    assert len(outbox(database_url)) == 300
