"""What a RabbitMQ for tests is told: its configuration, environment, password and certificates, in its folder."""

import os
import secrets
from pathlib import Path
from typing import Final, NamedTuple

from scoop_outbox.devservers._server import LOOPBACK, write_secret
from scoop_outbox.devservers._tls import Certificates, certificates

USER: Final = "scoop"
MAX_MESSAGE_SIZE: Final = 16 * 1024 * 1024
"""Bytes of the largest body that a server takes."""
# What the scripts of RabbitMQ and Erlang need of the caller's environment; all the rest could change what they do.
_ENVIRONMENT: Final = ("PATH", "TMPDIR")
_KEEP_TO_LOOPBACK: Final = "-kernel inet_dist_use_interface {127,0,0,1}"


class Ports(NamedTuple):
    """Where a server, its distribution and its port mapper listen."""

    client: int
    distribution: int
    mapper: int


class RabbitSettings:
    """The settings of one server.

    Args:
        folder: the folder that holds everything the server owns.
        tls: listen for TLS, and for nothing else.
        client_certificate: refuse a client without a certificate of the server's authority.

    Attributes:
        tls: whether it listens for TLS.
        password: that of the administrator, once it was read or chosen.
    """

    def __init__(self, folder: Path, *, tls: bool, client_certificate: bool) -> None:
        self._folder = folder
        self._client_certificate = client_certificate
        self.tls = tls or client_certificate
        self.password = ""

    def certificates(self) -> Certificates:
        """Return the certificates, which are made when they are first asked for.

        Raises:
            RuntimeError: the server does not listen for TLS.
        """
        if not self.tls:
            msg = "The server has no certificates: start it with tls=True."
            raise RuntimeError(msg)
        return certificates(self._folder / "tls")

    def read_or_choose_password(self) -> None:
        """Read the password that the data in the folder were made with, or choose one when there are none."""
        file = self._folder / "password"
        if not (self._folder / "data").exists():
            write_secret(file, secrets.token_urlsafe(24))
        self.password = file.read_text(encoding="utf-8")

    def write(self, ports: Ports) -> None:
        """Write the files that the server reads when it starts."""
        settings = {
            **self._listener(f"{LOOPBACK}:{ports.client}"),
            "default_user": USER,
            "default_pass": self.password,
            "default_user_tags.administrator": "true",
            "log.console": "true",
            "log.console.level": "info",
            "log.file": "false",
            # A test machine may be short of both, and a server that blocks its producers proves nothing.
            "vm_memory_high_watermark.relative": "0.6",
            "disk_free_limit.absolute": "50MB",
            # As RabbitMQ 4 has it. Versions before take 128 MiB: a busy machine takes long to refuse more than that.
            "max_message_size": str(MAX_MESSAGE_SIZE),
        }
        text = "".join(f"{name} = {value}\n" for name, value in settings.items())
        write_secret(self._folder / "rabbitmq.conf", text)
        (self._folder / "enabled_plugins").write_text("[].\n", encoding="ascii")

    def _listener(self, address: str) -> dict[str, str]:
        if not self.tls:
            return {"listeners.tcp.default": address}
        files = self.certificates()
        return {
            "listeners.tcp": "none",
            "listeners.ssl.default": address,
            "ssl_options.cacertfile": str(files.authority),
            "ssl_options.certfile": str(files.server),
            "ssl_options.keyfile": str(files.server_key),
            "ssl_options.verify": "verify_peer",
            "ssl_options.fail_if_no_peer_cert": "true" if self._client_certificate else "false",
        }

    def environment(self, ports: Ports) -> dict[str, str]:
        """Return the environment of the server, of its port mapper and of ``rabbitmqctl``."""
        folder = self._folder
        return {
            **{name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            # Where Erlang keeps the cookie that the node and rabbitmqctl know each other by.
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "RABBITMQ_NODENAME": "scoop@localhost",
            "RABBITMQ_DIST_PORT": str(ports.distribution),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_MNESIA_DIR": str(folder / "data" / "node"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _KEEP_TO_LOOPBACK,
            "RABBITMQ_CTL_ERL_ARGS": _KEEP_TO_LOOPBACK,
            "ERL_EPMD_PORT": str(ports.mapper),
            "ERL_EPMD_ADDRESS": LOOPBACK,
        }
