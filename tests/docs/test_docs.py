"""The documents agree with the code: programs print what is shown, links resolve, commands and names exist."""

import re
from pathlib import Path

import click
import psycopg
import pytest

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


def test_the_queries_of_the_operations_guide_can_be_asked(database_url: str) -> None:
    grants, *queries = [content for _, content in blocks(DOCS / "operations.md", "sql")]
    with psycopg.connect(database_url) as connection:
        connection.execute("create role shop")
        connection.execute(grants.encode())
        connection.execute("set role shop")
        for query in ";".join(block.rstrip("; \n") for block in queries).split(";"):
            connection.execute(query.encode()).fetchall()
        connection.rollback()


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
    modules = [ROOT / "scoop_outbox" / "headers.py", *(ROOT / "adapters").glob("*/scoop_*/*.py")]
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
