"""The control keys of a process: as a program gives them, or as its environment does."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from scoop_outbox.errors import DefinitionError
from scoop_outbox.wire import signature
from scoop_outbox.wire.signature import ControlKeys

CONTROL_KEYS_VARIABLE = "SCOOP_OUTBOX_CONTROL_KEYS"
CONTROL_KEYS_FILE_VARIABLE = "SCOOP_OUTBOX_CONTROL_KEYS_FILE"
"""Names a file of keys: an environment can be read by every program that the process starts."""


def control_keys(given: str | Iterable[str] | None) -> ControlKeys | None:
    """Return the control keys of this process; None when nothing is signed.

    Args:
        given: by the program. The environment's unless given.

    Raises:
        DefinitionError: they cannot be used, or the file cannot be read. No secret is in the text.
    """
    if given is not None:
        return signature.control_keys(given)
    text, file = os.environ.get(CONTROL_KEYS_VARIABLE), os.environ.get(CONTROL_KEYS_FILE_VARIABLE)
    if text and file:
        raise DefinitionError(f"control keys: both {CONTROL_KEYS_VARIABLE} and {CONTROL_KEYS_FILE_VARIABLE} are set")
    return signature.control_keys(_read(Path(file)) if file else text or "")


def _read(file: Path) -> str:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DefinitionError(f"control keys: {file} cannot be read: {error.strerror}") from error
    # What is no text is no key either, and is refused with its number.
    text = content.decode("utf-8", "replace")
    if not text.strip():
        raise DefinitionError(f"control keys: {file} is empty")
    return text
