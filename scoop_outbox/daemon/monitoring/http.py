"""A port that answers GET, on threads of its own: it answers though the event loop may stand still."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from scoop_outbox._log import get_logger
from scoop_outbox.errors import ScoopError

log = get_logger(__name__)

_OK, _NOT_FOUND, _UNAVAILABLE, _FAILED = 200, 404, 503, 500


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered: a status, the kind of the body, and the body."""

    status: int
    kind: str
    body: bytes

    @classmethod
    def of_problems(cls, what: str, problems: Mapping[str, str], notes: Mapping[str, str] | None = None) -> Answer:
        """Return 200 when there are no problems, else 503; the body is JSON and says which, and what is noted."""
        said = {what: not problems, "problems": dict(problems)} | ({"notes": dict(notes)} if notes else {})
        body = json.dumps(said) + "\n"
        return cls(_UNAVAILABLE if problems else _OK, "application/json", body.encode())


Answers = Callable[[str, str], Answer | None]
"""Called with the path and what kinds of body are accepted."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    answers: Answers

    def server_bind(self) -> None:
        """Bind without asking who we are: that may wait for a name server."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]


class _SixServer(_Server):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    timeout = 10  # whoever connects and asks nothing
    server: _Server

    def do_GET(self) -> None:
        """Answer a GET."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Answer a HEAD: as a GET, without the body."""
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        try:
            answer = self.server.answers(self.path.partition("?")[0], self.headers.get("Accept") or "")
        except Exception:
            log.exception("monitoring: request failed (%s)", self.path.partition("?")[0])
            answer = Answer(_FAILED, "text/plain; charset=utf-8", b"see the log\n")
        if answer is None:
            answer = Answer(_NOT_FOUND, "text/plain; charset=utf-8", b"/livez, /readyz and /metrics are here\n")
        try:
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.kind)
            self.send_header("Content-Length", str(len(answer.body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            if with_body:
                self.wfile.write(answer.body)
        except OSError:
            self.close_connection = True  # whoever asked has gone

    def version_string(self) -> str:
        """Name the server without its versions."""
        return "scoop-outbox"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is given
        """Say nothing: somebody asks every few seconds."""


@contextmanager
def serve_http(host: str, port: int, answers: Answers) -> Iterator[int]:
    """Answer on a port for as long as the block lasts, and yield its number.

    Args:
        host: the address to listen on.
        port: 0 is any that is free.
        answers: called on a thread for each request.

    Raises:
        ScoopError: it cannot be listened on.
    """
    try:
        server = (_SixServer if ":" in host else _Server)((host, port), _Handler)
    except (OSError, OverflowError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ScoopError(
            f"cannot listen on {host} port {port}: {reason}. Choose another with --port and --host"
        ) from error
    server.answers = answers
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="scoop_outbox port", daemon=True)
    thread.start()
    log.info(
        "monitoring: listening (%s port %d: /livez, /readyz, /metrics)",
        *(host, server.server_port),
        extra={"port": server.server_port},
    )
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
