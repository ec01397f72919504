"""Links that can fail: TCP proxies between homes and their servers, which a test cuts, slows down and resets.

A link that is cut keeps its connections and what was sent, and passes nothing on, as a network does that has lost its
way for a while. They run in a thread of their own; a test calls them from wherever it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

UP, DOWN = "up", "down"
"""The ways: to the server, and back."""
_CHUNK = 65536
_RESET = struct.pack("ii", 1, 0)


class Link:
    """A port that leads to a server.

    Args:
        loop: where it runs.
        target: host and port of the server.

    Attributes:
        port: where it listens, on 127.0.0.1.
        connections: how many there have been.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, target: tuple[str, int]) -> None:
        self.port = 0
        self.connections = 0
        self._loop = loop
        self._target = target
        self._flows = {UP: asyncio.Event(), DOWN: asyncio.Event()}
        self._delay = 0.0
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def cut(self, *ways: str) -> None:
        """Pass nothing on, one way or both."""
        flows = [self._flows[way] for way in ways or (UP, DOWN)]

        def cut() -> None:
            for flow in flows:
                flow.clear()

        self._call(cut)

    def slow(self, seconds: float) -> None:
        """Pass on later whatever comes."""
        self._call(lambda: setattr(self, "_delay", seconds))

    def reset(self) -> None:
        """Break all connections, with whatever is under way in them."""
        self._call(self._break_all)

    def heal(self) -> None:
        """Pass everything on at once, also what was held back."""

        def heal() -> None:
            self._delay = 0.0
            for flow in self._flows.values():
                flow.set()

        self._call(heal)

    def _call(self, function: Callable[[], object]) -> None:
        async def call() -> None:
            function()

        asyncio.run_coroutine_threadsafe(call(), self._loop).result(10)

    async def open(self, port: int) -> None:
        """Listen."""
        for flow in self._flows.values():
            flow.set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Listen no more, and break what is open."""
        if self._server is not None:
            self._server.close()
        self._break_all()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _break_all(self) -> None:
        for one in self._open:
            _break(one)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            there, back = await asyncio.open_connection(*self._target)
        except OSError:
            _break(writer)
            return
        pair = {writer, back}
        self._open |= pair
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, back, UP))
                group.create_task(self._pump(there, writer, DOWN))
        finally:
            self._open -= pair
            for one in pair:
                one.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, way: str) -> None:
        try:
            while data := await source.read(_CHUNK):
                if self._delay:
                    await asyncio.sleep(self._delay)
                await self._flows[way].wait()
                sink.write(data)
                await sink.drain()
            sink.close()
        except OSError:
            _break(sink)


def _break(writer: asyncio.StreamWriter) -> None:
    """Break a connection by a reset: what was written and not read yet is lost."""
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


class Network:
    """All links of a test."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)
        self._thread.start()
        self.links: list[Link] = []

    def link(self, host: str, port: int, listen: int = 0) -> Link:
        """Lead a port to a server."""
        link = Link(self._loop, (host, port))
        asyncio.run_coroutine_threadsafe(link.open(listen), self._loop).result(10)
        self.links.append(link)
        return link

    def heal(self) -> None:
        """Let everything pass everywhere."""
        for link in self.links:
            link.heal()

    def close(self) -> None:
        """End."""
        for link in self.links:
            asyncio.run_coroutine_threadsafe(link.close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """Links that are gone after the test."""
    network = Network()
    try:
        yield network
    finally:
        network.close()
