"""What goes along with a body, checked where it is launched: id, key, content type."""

from __future__ import annotations

import uuid
from typing import TypeGuard

from scoop_outbox.errors import PayloadError
from scoop_outbox.wire.headers import CONTENT_TYPE, key_text

KEY_LIMIT = 1024
CONTENT_TYPE_LIMIT = 255


def checked_id(message_id: object) -> uuid.UUID:
    """Return a message's id that a caller gives.

    Raises:
        PayloadError: it is none.
    """
    if isinstance(message_id, uuid.UUID) and message_id.int:
        return message_id
    raise PayloadError(f"a message's id is a uuid.UUID, of any version but the nil one, not {message_id!r:.60}")


def checked_content_type(value: str) -> str:
    """Return a media type that goes along with a body.

    Raises:
        PayloadError: it is too long, or cannot be stored.
    """
    # AMQP has so many bytes for it, and Postgres no text with NUL.
    if "\0" in value or len(value.encode()) > CONTENT_TYPE_LIMIT:
        raise PayloadError(
            f"header {CONTENT_TYPE!r}: a content type has at most {CONTENT_TYPE_LIMIT} bytes in UTF-8, without NUL, "
            f"not {value!r:.60}"
        )
    return value


def checked_key(key: object) -> str | None:
    """Return a key as it is stored.

    Raises:
        PayloadError: it is none, too long, or cannot be stored.
    """
    if key is None:
        return None
    if isinstance(key, bytes):
        if len(key) <= KEY_LIMIT:
            return key_text(key)
    elif is_text(key) and "\0" not in key and len(key.encode()) <= KEY_LIMIT:
        return key_text(key)
    raise PayloadError(
        f"a message key is text of at most {KEY_LIMIT} bytes in UTF-8, without NUL and lone surrogates, or that many "
        f"bytes, not {key!r:.60}"
    )


def is_text(value: object) -> TypeGuard[str]:
    """Tell whether a value is text that can be written in UTF-8."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False
