"""How large a message may be: said where it is launched, and not where it is in everybody's way.

A body of 560 MB went into the database and did not come out again: its run was executed for ever.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from scoop_outbox.errors import DefinitionError, PayloadError

MIB = 1024 * 1024
MAX_BODY = CEILING = 64 * MIB
"""The limit unless it is set, and the highest one: a body of 128 MiB was not handled in two minutes, and with 256 MiB
the server ended the connection, for it has a body in memory several times."""
TOGETHER = 2 * CEILING
"""Most bytes of bodies, contexts and headers that one callback may launch: they are written by one statement."""


def written(text: str) -> int:
    """Return how many bytes text of a header takes in the statement that launches it.

    It is JSON within JSON there, so that each quote and each backslash is escaped twice. Seventy contexts of 16 MB, of
    which nobody had taken account, broke the connection.
    """
    once = json.dumps(text)
    return len(once) - 2 + once.count("\\") + once.count('"') - 2


@dataclass(frozen=True, slots=True)
class Limits:
    """How large what a service launches and takes in may be, in bytes.

    Attributes:
        max_body: what the service says.
        client: what the broker's client takes, where that is known without asking the broker.
    """

    max_body: int = MAX_BODY
    client: int | None = None

    def __post_init__(self) -> None:
        """Refuse a limit that no message keeps, or that the database does not.

        Raises:
            DefinitionError: it is one.
        """
        if not 1 <= self.max_body <= CEILING:
            raise DefinitionError(f"max_body={self.max_body}: it is a number of bytes from 1 to {CEILING} (64 MiB)")

    @property
    def most(self) -> int:
        """The most bytes that `check` lets pass."""
        return self.max_body if self.client is None else min(self.max_body, self.client)

    def check(self, size: int, what: str) -> None:
        """Refuse what is too large to be launched.

        Raises:
            PayloadError: it is; with its size and what to do.
        """
        if size > self.max_body:
            larger = f", or pass a larger max_body to Scoop(), up to {CEILING}" if self.max_body < CEILING else ""
            raise PayloadError(
                f"{what} takes {size} bytes, and max_body is {self.max_body}: keep it where it is and launch what "
                f"tells where that is{larger}"
            )
        if self.client is not None and size > self.client:
            raise PayloadError(
                f"{what} takes {size} bytes, and the broker's client sends no more than {self.client}: keep it where "
                "it is and launch what tells where that is, or change that setting of the client, and the broker's"
            )

    def check_together(self, size: int, who: str) -> None:
        """Refuse what is too much for one statement; `who` launches it, in words.

        Raises:
            PayloadError: it is.
        """
        if size > TOGETHER:
            raise PayloadError(
                f"{who} bodies, contexts and headers of {size} bytes in all, and {TOGETHER} is the most: launch less "
                "at once"
            )

    def defect(self, size: int) -> str | None:
        """Say why a body that came in is too large; None when it is not."""
        if size <= self.max_body:
            return None
        larger = ": pass a larger one to Scoop(), then replay this" if size <= CEILING else ""
        return f"its body has {size} bytes, and max_body of this service is {self.max_body}{larger}"
