"""The documents agree with the code: programs print what is shown, links resolve, commands and names exist."""

import asyncio
import re
from pathlib import Path
from typing import Any

import click
import psycopg
import pytest

from scoop_outbox import BlockingScope, DistributedError, Message, Retry, Scoop
from scoop_outbox.cli import main
from scoop_outbox.store.schema import tables
from tests.docs.markdown import DOCUMENTS, ROOT, Program, anchors, blocks, commands, comparable, links, programs, run

DOCS = ROOT / "docs"
GUIDE = programs(DOCS / "guide.md")
PRINTING = [program for program in GUIDE if program.prints is not None]

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


@pytest.mark.parametrize("program", PRINTING, ids=lambda program: program.file)
def test_programs_of_the_guide_print_what_it_shows(program: Program, database_url: str, tmp_path: Path) -> None:
    for other in GUIDE:
        (tmp_path / other.file).write_text(other.code, encoding="utf-8")

    printed = run(program, tmp_path, database_url)

    assert program.prints is not None
    assert comparable(printed) == comparable(program.prints)


def test_a_reader_can_run_the_programs_of_the_guide_on_one_database() -> None:
    # Subscriptions are durable: a program would wait for the sagas of an earlier one that listens on its topic.
    topics = [set(re.findall(r'on="([\w.-]+)"', program.code)) for program in GUIDE]

    assert len(PRINTING) >= 12
    assert len(set().union(*topics)) == sum(map(len, topics))


@each_document
def test_links_resolve(document: Path) -> None:
    for link in links(document):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target), link


@each_document
def test_commands_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for words in commands(document):
        match words:
            case ["make", *rest] if rest:
                assert all(word in targets for word in rest if re.fullmatch(r"[a-z]+", word)), words
            case ["scoop-outbox", name, *rest] if re.fullmatch(r"[a-z-]+", name) and not name.startswith("-"):
                command = main.commands.get(name)
                assert command is not None, words
                if isinstance(command, click.Group) and rest and re.fullmatch(r"[a-z]+", rest[0]):
                    command = command.commands[rest[0]]
                known = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
                used = {word.partition("=")[0] for word in rest if word.startswith("--")}
                assert used <= {*known, "--help"}, words
            case _:
                pass


@each_document
def test_environment_variables_exist(document: Path) -> None:
    named = set(re.findall(r"\bSCOOP_[A-Z_]+\b", document.read_text(encoding="utf-8")))
    known = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "scoop_outbox").rglob("*.py"))

    assert {name for name in named if name not in known} == set()


def test_every_table_is_explained() -> None:
    names = {table.name for table in tables().tables.values()}
    for document in ("operations.md", "architecture.md"):
        text = (DOCS / document).read_text(encoding="utf-8")
        assert {name for name in names if f"`{name}`" not in text} == set(), document


ODD = "nul \0, lone \ud800, 'quoted', \"too\", \\u0000, 50% %(off)s\n" + "x" * 5000


def fill_oddly(url: str) -> None:
    """Leave rows of every kind, with all that names, messages and keys may hold."""
    service, saga = 'o\'clock\n"50%"', "größe \\u0000 {}"
    app = Scoop(service, database=url)

    def fails(*_: object) -> None:
        raise ValueError(ODD)

    def launches(scope: BlockingScope, _: Message) -> None:
        scope.launch("broken", ODD.replace("\ud800", ""))

    broken = app.saga(saga, on="broken")
    broken.add_step(ODD.replace("\0", "").replace("\ud800", "")[:200], lambda *_: None, compensate=fails,
                    compensate_retry=Retry(attempts=1))  # fmt: skip
    broken.add_step("fail", fails)
    app.saga("above", on="above").add_step("launch", launches)
    app.saga("parked", on="parked").add_step("park", lambda *_: None)

    async def run() -> None:
        async with app.running():
            for topic in ("broken", "above"):
                with pytest.raises(DistributedError):
                    await (await app.launch(topic, None, key="\n'k\"")).wait(20)
            await (await app.launch("parked", None)).wait(20)

    asyncio.run(run())
    app.launch_sync("broken", None, headers={"odd": ODD.replace("\ud800", "")})  # stays in the outbox
    with psycopg.connect(url) as connection:
        connection.execute("update scoop_outbox.run set state = 'parked', reason = %s where saga = 'parked'", [saga])
        connection.execute(
            "insert into scoop_outbox.mailbox (service, saga, run_id, due) select service, saga, id, created_at "
            "from scoop_outbox.run"
        )
        connection.execute("update scoop_outbox.child set open = true")
        connection.execute(
            "insert into scoop_outbox.dead_letter (topic, body, content_type, headers, origin, reason) "
            "values ('t', '\\x00', 'x', '{\"a\": \"\\u0000\\ud800\"}', 'relay', 'too large')"
        )
        # Another home, which waits for the root here, and in which children of it are.
        elsewhere = "5e0f5d0c-2c0d-4c5e-9d5b-0d6a8f3f7c11"
        connection.execute(
            "insert into scoop_outbox.peer (id, name, reply_to) values (%s, 'stock', 'scoop.control.stock')",
            [elsewhere],
        )
        connection.execute("update scoop_outbox.child set home = %s, reported_at = clock_timestamp()", [elsewhere])
        connection.execute("update scoop_outbox.run set parent_home = %s where saga = 'above'", [elsewhere])
        connection.execute(
            "insert into scoop_outbox.foreign_child (message_id, service, saga, run_id, home) "
            "select id, service, saga, id, %s from scoop_outbox.run where saga = 'above'",
            [elsewhere],
        )


QUERIES = [
    (f"{document.relative_to(ROOT)}", query)
    for document in DOCUMENTS
    for _, content in blocks(document, "sql")
    for query in content.rstrip("; \n").split(";\n")
]


def test_every_documented_query_can_be_asked_whatever_the_rows_hold(database_url: str) -> None:
    fill_oddly(database_url)
    answers: dict[str, list[tuple[Any, ...]]] = {}
    with psycopg.connect(database_url) as connection:
        (run_id,) = connection.execute("select id from scoop_outbox.run where saga = 'above'").fetchone() or (None,)
        connection.execute("create role shop")
        for _, query in QUERIES:
            # What is documented for one run is asked for one that is there.
            asked = re.sub(r"'[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}'", f"'{run_id}'", query)
            cursor = connection.execute(asked.encode())
            if cursor.description is not None:
                answers[query] = cursor.fetchall()
        connection.execute("set role shop")
        for query in answers:
            connection.execute(query.encode()).fetchall()
        connection.rollback()

    assert len(answers) >= 5
    assert [query for query, rows in answers.items() if not rows] == []
    (people,) = (rows for query, rows in answers.items() if "runs that need a person" in query)
    assert sorted(row[3] for row in people) == ["parked", *["rollback_failed"] * 3]
    obstacles = [row[5] for row in people if row[2] != "above" and row[3] == "rollback_failed"]
    assert len(obstacles) == 2
    assert all(told.startswith("ValueError: nul \\x00, lone \\ud800, 'quoted'") for told in obstacles)


def test_every_module_has_its_place_in_the_architecture() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    package = ROOT / "scoop_outbox"
    folders = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    modules = {path.stem for path in package.glob("*.py") if not path.stem.startswith("_")}

    assert {name for name in folders | modules if f"`{name}`" not in text} == set()


def test_every_command_and_option_is_explained() -> None:
    text = (DOCS / "operations.md").read_text(encoding="utf-8")

    commands = dict(main.commands)
    for name, command in main.commands.items():
        if isinstance(command, click.Group):
            commands |= {f"{name} {inner}": one for inner, one in command.commands.items()}
    for name, command in commands.items():
        assert f"scoop-outbox {name}" in text
        if name == "demo":
            continue
        for param in command.params:
            if isinstance(param, click.Option):
                assert f"`{param.opts[0]}" in text, f"{name} {param.opts[0]}"


def test_every_header_of_ours_is_explained() -> None:
    modules = [ROOT / "scoop_outbox" / "wire" / "headers.py", *(ROOT / "adapters").glob("*/scoop_*/*.py")]
    text = "\n".join(path.read_text("utf-8") for path in modules)
    used = set(re.findall(r'^[A-Z_]+ = "(scoop-[a-z-]+[a-z])"$', text, re.MULTILINE))
    explained = set(re.findall(r"`(scoop-[a-z-]+)`", (DOCS / "protocol.md").read_text(encoding="utf-8")))

    assert used
    assert used <= explained


def test_decisions_are_numbered_and_complete() -> None:
    decisions = sorted((DOCS / "decisions").glob("[0-9]*.md"))

    assert [path.name[:4] for path in decisions] == [f"{number:04}" for number in range(1, len(decisions) + 1)]
    for path in decisions:
        text = path.read_text(encoding="utf-8")
        parts = re.findall(r"^## (\w+)", text, re.MULTILINE)
        assert parts == ["Context", "Decision", "Consequences", "Evidence"], path.name
        assert path.name in "".join(document.read_text(encoding="utf-8") for document in DOCUMENTS if document != path)
