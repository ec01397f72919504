"""How statements are loaded from their files."""

from importlib import resources
from pathlib import Path

import pytest

from scoop_outbox.store import queries
from scoop_outbox.store.schema import SHARDS


def test_the_schema_is_filled_in_as_an_identifier() -> None:
    for schema in ("scoop_outbox", "Odd Name", 'with "quotes"', "o'clock"):
        text = queries.load(schema)["read_revision"].decode()
        quoted = schema.replace('"', '""')
        assert f'from "{quoted}".alembic_version' in text


def test_comments_and_placeholders_are_gone() -> None:
    for name, text in queries.load("scoop_outbox").items():
        assert text, name
        assert b"--" not in text, name
        assert b"{" not in text, name


def test_the_number_of_shards_is_filled_in() -> None:
    assert f"%% {SHARDS})".encode() in queries.load("scoop_outbox")["launch"]


def test_a_statement_is_defined_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "sql"
    folder.mkdir()
    (folder / "a.sql").write_text("-- An essay.\n\n-- name: one\nselect 1\n")
    (folder / "b.sql").write_text("-- An essay.\n\n-- name: one\nselect 2\n")
    monkeypatch.setattr(resources, "files", lambda _: tmp_path)
    with pytest.raises(ValueError, match=r"'one' is defined twice, the second time in b\.sql"):
        queries.load.__wrapped__("scoop_outbox")


def test_a_part_stands_in_every_statement_that_uses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "sql"
    folder.mkdir()
    text = (
        "-- An essay.\n\n-- part: late\n-- Why.\nwhere late\n\n-- name: one\nselect 1\n-- use: late\n\n-- name: two\n"
    )
    (folder / "a.sql").write_text(f"{text}select (\n    select 2\n    -- use: late\n)\n")
    monkeypatch.setattr(resources, "files", lambda _: tmp_path)
    loaded = {name: " ".join(text.decode().split()) for name, text in queries.load.__wrapped__("scoop_outbox").items()}
    assert loaded == {"one": "select 1 where late", "two": "select ( select 2 where late )"}


def test_a_part_of_all_files_and_a_statement_of_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "sql"
    folder.mkdir()
    (folder / "parts.sql").write_text("-- An essay.\n\n-- part: late\nlate\n")
    (folder / "a.sql").write_text(
        "-- An essay.\n\n-- name: one other\nselect 1\n-- only: other\nwhere\n-- use: late\n-- both\n;\n"
    )
    monkeypatch.setattr(resources, "files", lambda _: tmp_path)
    loaded = {name: " ".join(text.decode().split()) for name, text in queries.load.__wrapped__("scoop_outbox").items()}
    assert loaded == {"one": "select 1 ;", "other": "select 1 where late ;"}
