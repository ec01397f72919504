"""A broker of few words, for what a real one cannot be brought to do when a test wants it."""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar, Self

import pamqp.frame
from pamqp import commands
from pamqp.base import Frame
from pamqp.body import ContentBody
from pamqp.common import FieldTable
from pamqp.header import ContentHeader

_HEAD = 7
_PROTOCOL_HEADER = 8


class Peer:
    """One connection to a fake broker, as the broker sees it.

    Attributes:
        published: the bodies that have arrived in full.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.published: list[bytes] = []
        self.publishes: defaultdict[int, int] = defaultdict(int)
        self._reader, self._writer = reader, writer
        self._coming: dict[int, tuple[int, bytearray]] = {}

    def send(self, channel: int, *frames: Frame) -> None:
        """Write frames."""
        for frame in frames:
            self._writer.write(pamqp.frame.marshal(frame, channel))

    async def skip_protocol_header(self) -> None:
        """Read what comes before the first frame."""
        await self._reader.readexactly(_PROTOCOL_HEADER)

    async def next(self) -> tuple[int, Any]:
        """Read a frame and its channel."""
        head = await self._reader.readexactly(_HEAD)
        size = int.from_bytes(head[3:], "big")
        _, channel, frame = pamqp.frame.unmarshal(head + await self._reader.readexactly(size + 1))
        return channel, frame

    def complete(self, channel: int, frame: object) -> int | None:
        """Take a part of a message; return the number of the message once all of it is there."""
        if isinstance(frame, ContentHeader):
            self.publishes[channel] += 1
            self._coming[channel] = (frame.body_size, bytearray())
        elif isinstance(frame, ContentBody):
            self._coming[channel][1].extend(frame.value)
        else:
            return None
        size, body = self._coming[channel]
        if len(body) < size:
            return None
        self.published.append(bytes(body))
        return self.publishes[channel]


class FakeBroker:
    """Opens what it is asked to open and confirms what it gets, but for what a test does with a frame itself.

    Args:
        meanwhile: is called with each frame before it is answered; when it returns true, the frame is not answered.
        frame_max: as offered to clients.
        refusal: what it says to whoever wants to open a connection.
    """

    _ANSWERS: ClassVar[dict[type, Callable[[Any], Frame]]] = {
        commands.Channel.Open: lambda _: commands.Channel.OpenOk(),
        commands.Channel.Close: lambda _: commands.Channel.CloseOk(),
        commands.Confirm.Select: lambda _: commands.Confirm.SelectOk(),
        commands.Exchange.Declare: lambda _: commands.Exchange.DeclareOk(),
        commands.Basic.Qos: lambda _: commands.Basic.QosOk(),
        commands.Basic.Consume: lambda frame: commands.Basic.ConsumeOk(frame.consumer_tag),
        commands.Connection.Close: lambda _: commands.Connection.CloseOk(),
    }

    def __init__(
        self,
        meanwhile: Callable[[Peer, int, Any], object] = lambda *_: False,
        *,
        frame_max: int = 131_072,
        refusal: commands.Connection.Close | None = None,
    ) -> None:
        self.peers: list[Peer] = []
        self._meanwhile = meanwhile
        self._frame_max = frame_max
        self._refusal = refusal
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1")
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @property
    def url(self) -> str:
        """The URL of a broker with this one alone."""
        return f"amqp://me:secret@{self.address}/"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        peer = Peer(reader, writer)
        self.peers.append(peer)
        try:
            with suppress(EOFError, OSError):
                await self._talk(peer)
        finally:
            writer.transport.abort()

    async def _talk(self, peer: Peer) -> None:
        await peer.skip_protocol_header()
        capabilities: FieldTable = {"publisher_confirms": True, "basic.nack": True, "connection.blocked": True}
        peer.send(0, commands.Connection.Start(server_properties={"capabilities": capabilities}, mechanisms="PLAIN"))
        await peer.next()
        peer.send(0, commands.Connection.Tune(channel_max=0, frame_max=self._frame_max, heartbeat=60))
        await peer.next()
        await peer.next()
        if self._refusal is not None:
            peer.send(0, self._refusal)
            await peer.next()
            return
        peer.send(0, commands.Connection.OpenOk())
        while True:
            channel, frame = await peer.next()
            number = peer.complete(channel, frame)
            outcome = self._meanwhile(peer, channel, frame)
            if asyncio.iscoroutine(outcome):
                outcome = await outcome
            if outcome:
                continue
            if number is not None:
                peer.send(channel, commands.Basic.Ack(number))
            elif type(frame) in self._ANSWERS:
                peer.send(channel, self._ANSWERS[type(frame)](frame))
