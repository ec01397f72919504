"""Reads what a broker sends, also messages whose headers the client cannot decode.

The client gives up the connection over such a message, and gets it again on the next one, for ever: one message
of one producer would keep a queue from being read. Here it arrives, with its headers as bytes.
"""

from __future__ import annotations

import asyncio
import struct

import pamqp.frame
from aiormq.connection import FrameReceiver, ReceivedFrame
from aiormq.exceptions import AMQPConnectionError, InvalidFrameError
from pamqp.commands import Basic
from pamqp.exceptions import PAMQPException
from pamqp.header import ContentHeader

UNREADABLE = "amqp-unreadable-properties"
"""The header that holds the properties and headers of a message that nobody could decode."""

# The last one is said of tables within tables.
_UNDECODABLE = (PAMQPException, ValueError, OverflowError, struct.error, KeyError, IndexError, RecursionError)

_HEAD = struct.Struct(">BHI")
_CONTENT_HEADER = 2
_BODY_SIZE = struct.Struct(">4xQ")


def tolerate(receiver: FrameReceiver) -> None:
    """Let the client read frames this way from now on."""
    reader = receiver.reader

    async def get_frame() -> ReceivedFrame:
        try:
            head = await reader.readexactly(_HEAD.size)
            kind, channel, size = _HEAD.unpack(head)
            rest = await reader.readexactly(size + 1)
        except asyncio.IncompleteReadError as error:
            raise AMQPConnectionError("the broker has closed the connection") from error
        except OSError as error:
            raise AMQPConnectionError(f"the connection was lost: {error}") from error
        try:
            return pamqp.frame.unmarshal(head + rest)
        except _UNDECODABLE as error:
            if kind == _CONTENT_HEADER and size >= _BODY_SIZE.size:
                return len(head + rest), channel, _unreadable(rest[:-1])
            raise InvalidFrameError(str(error)) from error

    receiver.get_frame = get_frame  # type: ignore[method-assign]


def _unreadable(payload: bytes) -> ContentHeader:
    (body_size,) = _BODY_SIZE.unpack_from(payload)
    properties = Basic.Properties(headers={UNREADABLE: bytearray(payload[_BODY_SIZE.size :])})
    return ContentHeader(body_size=body_size, properties=properties)
