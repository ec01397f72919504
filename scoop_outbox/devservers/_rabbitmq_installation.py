"""Find RabbitMQ's programs, and Erlang's, on this machine."""

import os
import shutil
from pathlib import Path
from typing import Final

from scoop_outbox.devservers._errors import ServerNotFoundError, ServerStartError

RABBITMQ_URL: Final = "SCOOP_OUTBOX_TEST_RABBITMQ_URL"

_SCRIPTS: Final = "SCOOP_RABBITMQ_BIN"


class RabbitNotFoundError(ServerNotFoundError):
    """No RabbitMQ could be found here; the message says what to install."""


class RabbitStartError(ServerStartError):
    """RabbitMQ was found and did not start, or a command to it failed; the message holds what it said."""


def find_scripts() -> Path:
    """Return the folder with RabbitMQ's own scripts.

    Those that a distribution puts into the PATH change the user, and want to be root for that.

    Raises:
        RabbitNotFoundError: there is none.
    """
    named = os.environ.get(_SCRIPTS)
    folders = [Path(named)] if named else [Path("/usr/lib/rabbitmq/bin"), *_beside_the_one_in_the_path()]
    for folder in folders:
        if os.access(folder / "rabbitmq-server", os.X_OK):
            return folder
    msg = (
        "No RabbitMQ here. Do one of these: install it (Debian: apt-get install rabbitmq-server); "
        f"set {_SCRIPTS} to the folder with its scripts rabbitmq-server and rabbitmqctl; start Docker, with "
        "pip install 'scoop-outbox[test]'; "
        f"or set {RABBITMQ_URL} to a server, as in amqp://user:password@127.0.0.1:5672/."
    )
    raise RabbitNotFoundError(msg)


def find_mapper() -> str:
    """Return Erlang's port mapper.

    Raises:
        RabbitNotFoundError: it is not in the PATH.
    """
    mapper = shutil.which("epmd")
    if mapper is None:
        msg = "RabbitMQ needs Erlang's epmd, which is not in the PATH: install Erlang whole."
        raise RabbitNotFoundError(msg)
    return mapper


def _beside_the_one_in_the_path() -> list[Path]:
    program = shutil.which("rabbitmq-server")
    return [Path(os.path.realpath(program)).parent] if program else []
