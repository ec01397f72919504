"""Database URLs: libpq's form and SQLAlchemy's, one host or several."""

from __future__ import annotations

import re
from itertools import zip_longest
from typing import Any
from urllib.parse import unquote

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from scoop_outbox.errors import DatabaseError

POOLER = "pooler"
"""The option that tells of a pooler; it is ours, and no server sees it."""
_SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")
# What stands between the user and the database's name, if there is a comma in it: SQLAlchemy knows one host there.
# Not what stands before an @: a password may hold commas, too.
_SEVERAL = re.compile(r"(?P<head>[\w+]+://(?:[^@]*@)?)(?P<hosts>[^/?@]*,[^/?@]*)/?(?P<tail>[^?@]*(?:\?.*)?)", re.DOTALL)
_HOST = re.compile(r"(?P<name>\[[^\[\]]+\]|[^:\[\]]*)(?::(?P<port>\d*))?")


def pooler_of(url: str) -> str | None:
    """Return what a database URL says of a pooler between here and the server, if it says anything.

    Raises:
        DatabaseError: it is not a PostgreSQL URL.
    """
    said = _made(url).query.get(POOLER)
    return said if said is None or isinstance(said, str) else said[-1]


def parse_url(url: str) -> URL:
    """Return a database URL for psycopg.

    Several hosts may stand where one does, with commas, as libpq has it, or in the options, as SQLAlchemy has it.

    Raises:
        DatabaseError: it is not a PostgreSQL URL. The message never shows a password.
    """
    return _made(url).difference_update_query([POOLER])


def _made(url: str) -> URL:
    head, hosts, ports = _several(url)
    try:
        parsed_url = make_url(head)
    except (sa.exc.ArgumentError, ValueError):
        raise DatabaseError(
            "the database URL cannot be parsed; it looks like postgresql://user:password@host:5432/database"
        ) from None
    if parsed_url.drivername not in _SCHEMES:
        raise DatabaseError(
            f"the database URL starts with {parsed_url.drivername}://, but sagas live in PostgreSQL: "
            "use postgresql://user:password@host:5432/database"
        )
    if hosts:
        if "host" in parsed_url.query or "port" in parsed_url.query:
            raise DatabaseError("the database URL names hosts twice, before the database and in its options: keep one")
        parsed_url = parsed_url.update_query_dict({"host": ",".join(hosts), "port": ",".join(ports)})
    return parsed_url.set(drivername="postgresql+psycopg")


def _several(url: str) -> tuple[str, list[str], list[str]]:
    """Take several hosts out of a URL: return it without them, their names, and their ports."""
    match = _SEVERAL.fullmatch(url)
    hosts = [] if match is None else [_HOST.fullmatch(host) for host in match["hosts"].split(",")]
    if match is None or None in hosts:
        return url, [], []
    found = [host for host in hosts if host is not None]
    names = [unquote(host["name"]).strip("[]") for host in found]
    return (
        f"{match['head']}/{(match['tail'] or '').removeprefix('/')}",
        names,
        [host["port"] or "5432" for host in found],
    )


def arguments(url: str) -> dict[str, Any]:
    """Return a database URL as psycopg's arguments, as SQLAlchemy makes them."""
    parsed_url = parse_url(url)
    _, named = parsed_url.get_dialect()().create_connect_args(parsed_url)
    return dict(named)


def redact_url(url: str) -> str:
    """Return a database URL without its password, for messages; its options may hold one too."""
    parsed_url = parse_url(url)
    plain = parsed_url.set(drivername="postgresql", query={}).render_as_string(hide_password=True)
    if parsed_url.host is not None:
        return plain
    named = arguments(url)
    hosts, ports = str(named.get("host", "")).split(","), str(named.get("port", "")).split(",")
    if any(host.startswith("/") for host in hosts):  # a socket's folder
        return plain
    several = ",".join(_pair(host, port) for host, port in zip_longest(hosts, ports, fillvalue=""))
    before, _, database = plain.rpartition("/")
    return f"{before}{'@' if parsed_url.username and not before.endswith('@') else ''}{several}/{database}"


def _pair(host: str, port: str) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"{name}:{port}" if port else name
