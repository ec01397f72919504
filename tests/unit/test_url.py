"""Database URLs, as libpq and SQLAlchemy write them."""

from typing import Any

import pytest

from scoop_outbox.errors import DatabaseError
from scoop_outbox.store.url import arguments, parse_url, pooler_of, redact_url

SECRET = "s3cret"  # noqa: S105 - it is looked for in what is shown

WRITTEN: list[tuple[str, str, dict[str, Any]]] = [
    ("postgresql://u:{}@h:3/db", "postgresql://u:***@h:3/db", {"host": "h", "port": 3, "user": "u", "dbname": "db"}),
    ("postgres://u:{}@h/db", "postgresql://u:***@h/db", {"host": "h", "user": "u", "dbname": "db"}),
    ("postgresql+psycopg://h/db", "postgresql://h/db", {"host": "h", "dbname": "db"}),
    ("postgresql:///db?host=/run/postgresql", "postgresql:///db", {"host": "/run/postgresql", "dbname": "db"}),
    (
        "postgresql://u:{}@one:5433,two/db?target_session_attrs=read-write",
        "postgresql://u:***@one:5433,two:5432/db",
        {
            "host": "one,two", "port": "5433,5432", "user": "u", "dbname": "db",
            "target_session_attrs": "read-write",
        },
    ),
    (
        "postgresql://u:{}@/db?host=one:5433&host=two:5434",
        "postgresql://u:***@one:5433,two:5434/db",
        {"host": "one,two", "port": "5433,5434", "user": "u", "dbname": "db"},
    ),
    (
        "postgresql://u:{}@/db?host=one,two&port=1,2",
        "postgresql://u:***@one:1,two:2/db",
        {"host": "one,two", "port": "1,2", "user": "u", "dbname": "db"},
    ),
    ("postgresql://[::1]:5/db", "postgresql://[::1]:5/db", {"host": "::1", "port": 5, "dbname": "db"}),
    ("postgresql://[::1]:5,h/d", "postgresql://[::1]:5,h:5432/d", {"host": "::1,h", "port": "5,5432", "dbname": "d"}),
    ("postgresql://h,i", "postgresql://h:5432,i:5432/", {"host": "h,i", "port": "5432,5432"}),
    ("postgresql://h,i?sslmode=require", "postgresql://h:5432,i:5432/",
     {"host": "h,i", "port": "5432,5432", "sslmode": "require"}),
    ("postgresql://u:a,{}@h/db", "postgresql://u:***@h/db", {"host": "h", "user": "u", "dbname": "db"}),
    ("postgresql://u:1,{}@h/db", "postgresql://u:***@h/db", {"host": "h", "user": "u", "dbname": "db"}),
    ("postgresql://u:1,2:{}@h/db", "postgresql://u:***@h/db", {"host": "h", "user": "u", "dbname": "db"}),
    ("postgresql://u:s/1,{}@h/db", "postgresql://u:***@h/db", {"host": "h", "user": "u", "dbname": "db"}),
    ("postgresql://u,v@h/db", "postgresql://u%2Cv@h/db", {"host": "h", "user": "u,v", "dbname": "db"}),
    ("postgresql://h,i/db?user=u@v", "postgresql://h:5432,i:5432/db",
     {"host": "h,i", "port": "5432,5432", "user": "u@v", "dbname": "db"}),
    ("postgresql://u:{}@h,i/db?sslmode=require", "postgresql://u:***@h:5432,i:5432/db",
     {"host": "h,i", "port": "5432,5432", "user": "u", "dbname": "db", "sslmode": "require"}),
    ("postgresql://h/db?pooler=transaction", "postgresql://h/db", {"host": "h", "dbname": "db"}),
]  # fmt: skip


@pytest.mark.parametrize("url, text, named", WRITTEN)
def test_a_url_is_read_as_it_is_meant(url: str, text: str, named: dict[str, Any]) -> None:
    given = url.format(SECRET)
    found = arguments(given)
    found.pop("password", None)
    assert found == named
    assert redact_url(given) == text
    assert SECRET not in redact_url(given)


@pytest.mark.parametrize(
    "url, reason",
    [
        ("postgresql://u:{}@one,two:port/db", "cannot be parsed"),
        ("postgresql://u:{}@one,two/db?host=three", "names hosts twice"),
        ("mysql://u:{}@one,two/db", "sagas live in PostgreSQL"),
    ],
)
def test_a_url_that_cannot_be_read_is_refused_without_its_password(url: str, reason: str) -> None:
    with pytest.raises(DatabaseError, match=reason) as refused:
        parse_url(url.format(SECRET))
    assert SECRET not in str(refused.value)


def test_what_a_url_says_of_a_pooler() -> None:
    assert pooler_of("postgresql://h/db") is None
    assert pooler_of("postgresql://h,i/db?pooler=session") == "session"
