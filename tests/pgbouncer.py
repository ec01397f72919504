"""A PgBouncer in front of the Postgres of the tests."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from sqlalchemy import make_url

from scoop_outbox.devservers._errors import ServerNotFoundError, ServerStartError
from scoop_outbox.devservers._server import free_ports

_START_SECONDS = 30.0
_PROGRAM = "pgbouncer"
_MISSING = "PgBouncer is not installed: apt-get install pgbouncer"
_SETTINGS = """
[databases]
* = host={host} port={port} user={user} password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
auth_type = any
pool_mode = {mode}
max_client_conn = 500
default_pool_size = {size}
unix_socket_dir =
{more}
"""


@contextmanager
def pgbouncer(server: str, *, mode: str = "transaction", size: int = 20) -> Iterator[str]:
    """Start a PgBouncer in front of a server, and yield the URL that leads through it.

    Raises:
        ServerNotFoundError: there is no PgBouncer.
        ServerStartError: it does not start; the message holds its log.
    """
    program = shutil.which(_PROGRAM) or shutil.which(_PROGRAM, path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise ServerNotFoundError(_MISSING)
    url = make_url(server)
    (own_port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="scoop-outbox-pgbouncer-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # it is not root for long
        settings, log = folder / "pgbouncer.ini", folder / "log"
        more = "user = nobody" if os.geteuid() == 0 else ""
        values = {"host": url.host, "port": url.port, "user": url.username, "password": url.password or ""}
        settings.write_text(_SETTINGS.format(**values, own_port=own_port, mode=mode, size=size, more=more), "utf-8")
        with log.open("wb") as output:
            process = subprocess.Popen([program, settings], stdout=output, stderr=subprocess.STDOUT)
        try:
            through = url.set(host="127.0.0.1", port=own_port, username="anybody", password=None)
            shown = through.render_as_string(hide_password=False)
            _wait_until_answers(shown, process, log)
            yield shown
        finally:
            process.terminate()
            process.wait()


def _wait_until_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            psycopg.connect(url, connect_timeout=5).close()
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise ServerStartError(f"PgBouncer does not start: {log.read_text('utf-8')[-2000:]}") from None
            time.sleep(0.02)
        else:
            return
