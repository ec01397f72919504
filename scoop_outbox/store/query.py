"""A statement as the server gets it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from psycopg.abc import Buffer
from psycopg.abc import Transformer as Dumps
from psycopg.adapt import PyFormat
from psycopg.pq import Format

from scoop_outbox.store.arrays import ELEMENTS, Element, array

LONG = {"read_outbox"}
"""Statements with long answers, which have bodies in them."""
_PARAMETER = re.compile(rb"%(?:\((\w+)\)(?:s(?:::(\w+)\[\])?|(b))|(%))")


class Query:
    """A statement as the server gets it: `$1` instead of `%(name)s`, and the names in order."""

    __slots__ = ("arrays", "dumped", "formats", "name", "order", "result", "text")

    def __init__(self, name: str, text: bytes) -> None:
        """Translate the named parameters; a name that occurs twice is one parameter."""
        order: dict[bytes, int] = {}
        elements: dict[int, Element] = {}
        binaries: set[int] = set()

        def number(match: re.Match[bytes]) -> bytes:
            named, of, binary, percent = match.groups()
            if percent:
                return b"%"
            place = order.setdefault(named, len(order))
            if binary:
                binaries.add(place)
            if of is None:
                return b"$%d" % (place + 1)
            elements[place] = ELEMENTS[of.decode()]
            return b"$%d::%s[]" % (place + 1, of)

        self.name = b"scoop_" + name.encode()
        self.text = _PARAMETER.sub(number, text)
        self.order = tuple(key.decode() for key in order)
        self.arrays = tuple((place, self.order[place], element) for place, element in elements.items())
        # Text, and no types: the server knows the types of its columns, so each statement is prepared once.
        self.dumped = [PyFormat.BINARY if place in binaries else PyFormat.TEXT for place in range(len(order))]
        binaries.update(elements)
        self.formats = [Format.BINARY if place in binaries else Format.TEXT for place in range(len(order))]
        # Bodies would be twice as long in text. Numbers and times are as quick in either form.
        self.result = Format.BINARY if name in LONG else Format.TEXT

    def dump(self, params: Mapping[str, Any], transformer: Dumps) -> list[Buffer | None]:
        """Return the parameters in the formats of the statement."""
        if not self.arrays:
            return list(transformer.dump_sequence([params[key] for key in self.order], self.dumped))
        values: list[Any] = [params[key] for key in self.order]
        for place, _, _ in self.arrays:
            values[place] = None
        dumped = list(transformer.dump_sequence(values, self.dumped))
        for place, key, element in self.arrays:
            dumped[place] = array(params[key], element)
        return dumped
