"""Where a server comes from: one that is named, a container, what is installed here; in that order."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from scoop_outbox.devservers._docker import docker_answers


class Started(Protocol):
    """A server that runs."""

    @property
    def url(self) -> str:
        """Where, and as whom."""


@contextmanager
def found(
    variable: str,
    check: Callable[[str], None],
    container: Callable[[], AbstractContextManager[str]],
    installed: Callable[[Path], AbstractContextManager[Started]],
    *,
    memory: Path | None = None,
    named: bool = False,
) -> Iterator[str]:
    """Find or start a server, and yield its URL for as long as the block lasts.

    What was started here is stopped and removed at the end; a server that was named is left as it is.

    Args:
        variable: the variable of the environment that may name a server.
        check: raises if the server that is named cannot be used.
        container: runs one, where a Docker engine answers.
        installed: starts one with what is installed, with its data in the folder that it is given.
        memory: where to make that folder; the system's place for temporary ones without it.
        named: whether somebody has said which installed one to use; then no container is looked for.
    """
    url = os.environ.get(variable)
    if url:
        check(url)
        yield url
    elif not named and docker_answers():
        with container() as url:
            yield url
    else:
        folder = tempfile.TemporaryDirectory(prefix="scoop-outbox-", dir=memory)
        with folder as name, installed(Path(name)) as server:
            yield server.url
