"""Signatures of what homes say to each other: that somebody said it who has one of the keys. See docs/protocol.md.

What is signed are the headers that make a message a child of another home's run, or a control message, and a digest of
the body. The keys are shared by all homes that cooperate: a signature tells that one of them has spoken, not which.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from scoop_outbox.errors import DefinitionError
from scoop_outbox.wire.headers import (
    CONTEXT,
    DEADLINES,
    EXPECTS,
    HOME,
    ID,
    LINEAGE,
    REPLY_TO,
    SIGNATURE,
    TOPIC,
    octets,
)

SIGNED = (ID, HOME, TOPIC, LINEAGE, EXPECTS, REPLY_TO, CONTEXT, DEADLINES)
"""The headers that are signed, in the order of the canonical form."""

VERSION = "v1"

UNSIGNED = "unsigned"
"""Among the keys: what carries no signature at all is taken in, too. It is for the roll-out of the first keys."""

SHORTEST_SECRET = 16
"""Bytes."""

_ESSENTIAL = (ID, HOME, TOPIC)
_SIZE = 8
_ABSENT = b"\xff" * _SIZE
_KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})+")
_FORM = re.compile(r"v1:([A-Za-z0-9._-]{1,64}):([A-Za-z0-9+/]{43}=)")


@dataclass(frozen=True, slots=True, repr=False)
class ControlKey:
    """A secret that homes share, and its name.

    Attributes:
        id: is written into signatures.
        secret: is never shown.
    """

    id: str
    secret: bytes

    def __repr__(self) -> str:
        """Show the name alone."""
        return f"ControlKey({self.id!r})"


@dataclass(frozen=True, slots=True)
class ControlKeys:
    """The keys of a process: the first one signs, and all of them verify.

    Attributes:
        keys: at least one.
        accepts_unsigned: whether what is not signed is taken in, too.
    """

    keys: tuple[ControlKey, ...]
    accepts_unsigned: bool = False

    def sign(self, headers: Mapping[str, str], body: bytes) -> str:
        """Return the value of the signature's header.

        Args:
            headers: all that the message will have on the wire.
            body: its bytes.
        """
        key = self.keys[0]
        return f"{VERSION}:{key.id}:{base64.b64encode(_mac(key, headers, body)).decode()}"

    def problem(self, headers: Mapping[str, str], body: bytes) -> str | None:
        """Say why a message is not to be believed, in words that follow its name; None when one of the keys signed it.

        Args:
            headers: as they came.
            body: as it came.
        """
        signature = headers.get(SIGNATURE)
        if signature is None:
            return None if self.accepts_unsigned else "it is not signed, and this home has control keys"
        found = _FORM.fullmatch(signature)
        if found is None:
            return "its signature has a form that is not known here"
        key = next((key for key in self.keys if key.id == found[1]), None)
        if key is None:
            return f"it is signed with the key {found[1]!r}, which is not among the control keys of this home"
        missing = [name for name in _ESSENTIAL if name not in headers]
        if missing:
            return f"it is signed without its header {missing[0]}"
        if not hmac.compare_digest(_mac(key, headers, body), base64.b64decode(found[2])):
            return f"its signature with the key {found[1]!r} is not that of this message"
        return None


def canonical_form(headers: Mapping[str, str], body: bytes) -> bytes:
    """Return the bytes that are signed: fields, each behind its length in 8 bytes, the highest first.

    The first field is the version, then come the values of `SIGNED`, then the SHA-256 of the body. What is absent has
    the length of 8 bytes 0xFF and nothing behind it.
    """
    values = [headers.get(name) for name in SIGNED]
    fields = [VERSION.encode(), *(None if value is None else _octets(value) for value in values)]
    fields.append(hashlib.sha256(body).digest())
    return b"".join(_ABSENT if field is None else len(field).to_bytes(_SIZE, "big") + field for field in fields)


def _octets(value: str) -> bytes:
    try:
        return octets(value)
    except UnicodeEncodeError:
        # No message on the wire has such a header. What is to be published and has one is refused by the adapter.
        return value.encode("utf-8", "surrogatepass")


def control_keys(given: str | Iterable[str]) -> ControlKeys | None:
    """Return the keys that are written as `id:secret`, or None if there are none.

    Args:
        given: keys, or a text of them, with commas, spaces or ends of lines between. A line that begins with `#` is a
            comment. A secret that consists of hexadecimal digits alone, an even number of them, is that; any other one
            is base64, in either alphabet.

    Raises:
        DefinitionError: one of them cannot be used. Nothing of what was given is shown but names of keys.
    """
    lines = given.splitlines() if isinstance(given, str) else given
    entries = [
        entry for line in lines if not line.lstrip().startswith("#") for entry in re.split(r"[\s,]+", line) if entry
    ]
    keys = [_key(number, entry) for number, entry in enumerate(entries, 1) if entry != UNSIGNED]
    if not keys:
        if entries:
            raise DefinitionError(f"control keys: {UNSIGNED!r} stands beside keys, never alone")
        return None
    ids = [key.id for key in keys]
    for one in ids:
        if ids.count(one) > 1:
            raise DefinitionError(f"control keys: {one!r} is there twice; each key has an id of its own")
    return ControlKeys(tuple(keys), UNSIGNED in entries)


def _key(number: int, entry: str) -> ControlKey:
    name, colon, secret = entry.partition(":")
    if not colon or not _KEY_ID.fullmatch(name):
        # Not shown: a secret may stand where the id belongs.
        raise DefinitionError(
            f"control keys: entry {number} is not id:secret; an id has 1 to 64 letters or digits of ASCII, or . _ - "
            "among them"
        )
    # Nor is the id below: whoever has mistaken one for the other would read the secret in a log.
    decoded = _decoded(secret)
    if decoded is None:
        raise DefinitionError(f"control keys: the secret of entry {number} is neither hexadecimal digits nor base64")
    if len(decoded) < SHORTEST_SECRET:
        raise DefinitionError(
            f"control keys: the secret of entry {number} has fewer than {SHORTEST_SECRET} bytes; openssl rand -hex 32 "
            "makes a good one"
        )
    return ControlKey(name, decoded)


def _decoded(secret: str) -> bytes | None:
    if _HEX.fullmatch(secret):
        return bytes.fromhex(secret)
    try:
        padded = secret.rstrip("=").translate(str.maketrans("-_", "+/"))
        return base64.b64decode(padded + "=" * (-len(padded) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def _mac(key: ControlKey, headers: Mapping[str, str], body: bytes) -> bytes:
    return hmac.digest(key.secret, canonical_form(headers, body), "sha256")
