"""A connection to RabbitMQ, opened once: whoever uses it opens another when it is lost."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from typing import Any

import aiormq
import pamqp.frame
from aiormq.connection import FrameReceiver, exception_by_code
from aiormq.exceptions import (
    AMQPConnectionError,
    AMQPError,
    AuthenticationError,
    ChannelAccessRefused,
    ChannelInvalidStateError,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    ConnectionNotAllowed,
    ProbableAuthenticationError,
)
from pamqp import commands
from pamqp.base import Frame
from pamqp.frame import FrameTypes
from yarl import URL

from scoop_outbox.broker import BrokerError, StrayCancellationError, own_cancellation_only
from scoop_outbox_rabbitmq.frames import tolerate
from scoop_outbox_rabbitmq.settings import Settings

REFUSED = (ChannelAccessRefused, ChannelNotFoundEntity, ChannelLockedResource, ChannelPreconditionFailed)
"""With one of these the broker closes a channel because of what was asked on it."""

LOST = (AMQPError, ChannelInvalidStateError, RuntimeError, OSError, EOFError, TimeoutError, StrayCancellationError)
"""With one of these a connection or channel is lost. The client cancels what waits for one that it gives up."""

_CLOSING = 2.0
_ABORTING = 1.0
_FORBIDDEN = 403
_MOST_CHANNELS = 65535
_NO_EARLIER_LIMIT = 4


Hosts = deque[tuple[str, int]]
"""Host and port of each node, in the order in which they are tried."""


class UnreachableError(Exception):
    """No connection just now; another attempt may succeed."""


class Link(aiormq.Connection):
    """One connection, with the user's limits, that gives up a silent broker after the heartbeat time."""

    # RabbitMQ sends a heartbeat twice in that time: two of them are missing then.
    HEARTBEAT_GRACE_MULTIPLIER = 1
    # No limit: a publish that waits for room, while its channel is closed by the broker, would be written behind the
    # client's consent to that, and cost the whole connection. The publisher has a window of its own.
    FRAME_BUFFER_SIZE = 0

    def __init__(self, settings: Settings, host: tuple[str, int], name: str) -> None:
        """Connect nothing yet."""
        options: dict[str, Any] = {}
        if settings.secure and settings.server_name:
            options["server_hostname"] = settings.server_name
        # Whatever the client may show of its URL, the password is only read from it.
        super().__init__(
            URL.build(
                scheme="amqps" if settings.secure else "amqp",
                user=settings.user,
                password=settings.password,
                host=host[0],
                port=host[1],
                path="/",
                query={
                    "heartbeat": str(settings.heartbeat),
                    "name": name,
                    "auth": "external" if settings.external else "plain",
                },
            ),
            context=settings.tls(),
            **options,
        )
        self.vhost = settings.vhost
        self._writer: asyncio.StreamWriter | None = None
        self._limits = {"frame_max": settings.frame_max, "channel_max": settings.channel_max}

    async def _rpc(  # type: ignore[override]  # the client calls it on the instance
        self,
        request: Frame,
        writer: asyncio.StreamWriter,
        frame_receiver: FrameReceiver,
        wait_response: bool = True,  # noqa: FBT001, FBT002 - as in the client
    ) -> FrameTypes | None:
        """Speak the opening of a connection: with limits of the user's, and with the broker's reasons in errors."""
        self._writer = writer
        writer.write(pamqp.frame.marshal(request, 0))
        await writer.drain()
        if not wait_response:
            return None
        _, _, frame = await frame_receiver.get_frame()
        if isinstance(frame, commands.Connection.Close):
            if frame.reply_code == _FORBIDDEN:
                raise ProbableAuthenticationError(frame.reply_text)
            raise exception_by_code(frame)
        if isinstance(frame, commands.Connection.OpenOk):
            tolerate(frame_receiver)
        if isinstance(frame, commands.Connection.Tune):
            for name, wanted in self._limits.items():
                offered = getattr(frame, name)
                if wanted is not None and (not offered or wanted < offered):
                    setattr(frame, name, wanted)
        return frame

    @property
    def version(self) -> tuple[int, ...]:
        """The broker's version; empty when it does not say one."""
        text = (self.server_properties or {}).get("version", "")
        parts = str(text).split("-")[0].split(".")
        return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else ()

    @property
    def end(self) -> BaseException | None:
        """Why the connection was closed; None while it is open, or when nobody said why."""
        if not self._closing.done() or self._closing.cancelled():
            return None
        return self._closing.exception()

    @property
    def limits_deliveries(self) -> bool:
        """Whether a quorum queue drops what was delivered too often unless it is told not to."""
        return self.version >= (_NO_EARLIER_LIMIT,)

    async def blocked(self, within: float) -> bool:
        """Tell whether the broker takes nothing that is published, and will not within so many seconds."""
        ready = asyncio.ensure_future(self.ready())
        try:
            done, _ = await asyncio.wait((ready,), timeout=within)
        finally:
            ready.cancel()
        return not done

    def free_channel(self) -> int | None:
        """Return the number that another channel may have; None when the broker allows no other one.

        The client counts on from its highest one, beyond what is allowed: that costs the connection.
        """
        most = self.connection_tune.channel_max or _MOST_CHANNELS
        return next((number for number in range(1, most + 1) if number not in self.channels), None)

    def abort(self) -> None:
        """Drop the connection, and what has not been written yet."""
        if self._writer is not None:
            self._writer.transport.abort()


async def open_link(settings: Settings, name: str, hosts: Hosts | None = None) -> Link:
    """Return a connection to the first host that lets us in.

    Args:
        settings: where, and as whom.
        name: what the broker's operators see.
        hosts: those of the settings; one that does not answer goes to their end, also when whoever waits here gives
            up. Who keeps them begins with another one next time.

    Raises:
        UnreachableError: none answers.
        BrokerError: none lets us in, and one of them will never do so like this.
    """
    reasons, refusals = [], []
    shown = f"{settings.name} {name}" if settings.name else name
    hosts = hosts if hosts is not None else deque(settings.hosts)
    for _ in range(len(hosts)):
        host = hosts[0]
        where = f"{host[0]}:{host[1]}"
        hosts.rotate(-1)
        try:
            link = await _connected(settings, host, shown)
        except LOST as error:
            refusal = _refusal(error, settings, where)
            if refusal is None:
                reasons.append(f"{where}: {_reason(error)}{_hint(error, settings)}")
            else:
                # Another one may let us in: its certificate is not the one that has expired, its node is not full.
                refusals.append(refusal)
        except ValueError as error:
            # So say those who look a name up or write it into a URL, and nobody caught it.
            refusals.append(BrokerError(f"the host {host[0]!r} in the broker URL cannot be connected to: {error}"))
        else:
            hosts.rotate(1)
            return link
    if refusals:
        raise refusals[0]
    raise UnreachableError(f"RabbitMQ cannot be reached ({'; '.join(reasons)})")


async def _connected(settings: Settings, host: tuple[str, int], shown: str) -> Link:
    link = Link(settings, host, shown)
    try:
        with own_cancellation_only():
            async with asyncio.timeout(settings.timeout):
                await link.connect()
                await link.ready()
    except BaseException:
        await close(link)
        raise
    return link


async def close(link: Link) -> None:
    """Close a connection, whatever state it is in and whether or not the broker answers.

    The client is not cancelled for it: it waits until all is written, and once more when it is cancelled. A broker
    that is short of memory reads nothing, and a batch took as long as that.
    """
    closing = asyncio.ensure_future(link.close())
    closing.add_done_callback(_retrieve)
    try:
        await asyncio.wait((closing,), timeout=_CLOSING)
    finally:
        if not closing.done():
            link.abort()
    await asyncio.wait((closing,), timeout=_ABORTING)


def _retrieve(closing: asyncio.Future[None]) -> None:
    # Whatever was wrong, the connection is closed; nobody need be told that nobody has asked.
    if not closing.cancelled():
        closing.exception()


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    text = str(error.__cause__ or error)
    return text or type(error).__name__


def _hint(error: BaseException, settings: Settings) -> str:
    if isinstance(error.__cause__, ConnectionResetError) and settings.secure and settings.certfile is None:
        # What the broker says of that is often lost with the connection.
        return ", perhaps because it asks for a certificate: settings certfile and keyfile"
    return ""


def _refusal(error: BaseException, settings: Settings, where: str) -> BrokerError | None:
    cause = error.__cause__
    if isinstance(error, ProbableAuthenticationError):
        return BrokerError(
            f"RabbitMQ at {where} refuses user {settings.user!r}: name or password in the broker URL is wrong, or the "
            "user may not come from here (the user guest only from the broker's own machine); "
            "rabbitmqctl authenticate_user USER tells"
        )
    if isinstance(error, AuthenticationError):
        return BrokerError(
            f"RabbitMQ at {where} does not offer this way to authenticate; it offers {error.args[0]}. "
            "The setting auth is plain or external"
        )
    if isinstance(error, ConnectionNotAllowed):
        return BrokerError(
            f"RabbitMQ at {where} does not let user {settings.user!r} into virtual host {settings.vhost!r}: {error}. "
            "See rabbitmqctl list_vhosts; then rabbitmqctl set_permissions -p VHOST USER CONFIGURE WRITE READ"
        )
    if isinstance(cause, ssl.SSLCertVerificationError):
        return BrokerError(
            f"the certificate of RabbitMQ at {where} is not trusted: {cause.verify_message}. "
            "The setting cafile names the authority that has signed it"
        )
    if isinstance(cause, ssl.SSLError):
        return BrokerError(
            f"no TLS with RabbitMQ at {where} ({cause.reason}): is this its TLS port, usually 5671? "
            "Does it ask for a certificate (settings certfile and keyfile)?"
        )
    return None


def explain(error: BaseException) -> str:
    """Return what a broker or the client said of a lost channel or connection, in one line."""
    if isinstance(error, asyncio.CancelledError | StrayCancellationError):
        return "the broker has been silent for too long"  # the client gives up so
    if isinstance(error, AMQPConnectionError | AMQPError) and error.args:
        return " ".join(str(part) for part in error.args if part not in (None, ""))
    return _reason(error)
