"""Which revisions of the tables there are, and whether a database has the one that this code needs."""

from __future__ import annotations

import functools
from pathlib import Path

from scoop_outbox._log import get_logger
from scoop_outbox.errors import DatabaseError
from scoop_outbox.store.url import redact_url

log = get_logger(__name__)

_VERSIONS = Path(__file__).parent / "migrations" / "versions"


@functools.cache
def known() -> tuple[str, ...]:
    """Return the revisions that this code knows, the first one first: its migrations are named after them."""
    return tuple(sorted(file.name.partition("_")[0] for file in _VERSIONS.glob("[0-9]*.py")))


def head() -> str:
    """Return the revision that this code needs."""
    return known()[-1]


def following(revision: str | None) -> str | None:
    """Return the revision to go to next.

    Args:
        revision: what the database has, None if it was never migrated.

    Returns:
        None if there is nothing to do: the database has the last one, or is newer than this code.
    """
    if revision is None:
        return known()[0]
    later = known()[known().index(revision) + 1 :] if revision in known() else ()
    return later[0] if later else None


def check(revision: str | None, url: str) -> None:
    """Refuse a database that is older than this code.

    One that is newer is only warned of: while a new version is deployed, migrated first, the old one goes on.

    Args:
        revision: what the database has, None if its migration has been interrupted.
        url: the database, for the message.

    Raises:
        DatabaseError: the database has to be migrated.
    """
    if revision == head():
        return
    if revision is None or revision in known():
        raise DatabaseError(
            f"the database {redact_url(url)} is at revision {revision}, but this version of scoop_outbox needs {head()}"
            ": run `scoop-outbox migrate --database URL`, or `await app.migrate()`"
        )
    note_newer(revision)


def note_newer(revision: str) -> None:
    """Warn of a database that is newer than this code."""
    log.warning(
        "database: newer than this code (revision %s; this code knows %s)",
        *(revision, head()),
        extra={"revision": revision},
    )
