"""Bounds of a failure: how much of it is kept, and what goes first when there is too much.

Every level is built within the first of `BOUNDS` that has room for all of it. Frames and long texts go before causes:
of a fan-out of which thousands failed, each child is still there with its type and the beginning of its message. Only
when the last of them has no room either are causes left out, the deeper ones first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from scoop_outbox._failure.traceback import Frame, cut, cut_frames, levels

FRAME_LIMIT = 64
MESSAGE_LIMIT = 64 * 1024
LEAN_FRAME_LIMIT = 8
LEAN_MESSAGE_LIMIT = 1024
BRIEF_MESSAGE_LIMIT = 24
"""Bytes of JSON that are kept of a message and its mark at the very least, whatever else there is."""
NAME_LIMIT = 1024
BRIEF_NAME_LIMIT = 40
DEPTH_LIMIT = 32
SIZE_LIMIT = 960 * 1024
"""Kafka refuses messages of more than 1 MiB unless told otherwise, and a failure travels in one. Within this, 5,000
children keep `BRIEF_MESSAGE_LIMIT` and `BRIEF_NAME_LIMIT` bytes each, and what JSON puts around them."""

_BUDGET = SIZE_LIMIT - 32 * 1024
"""Bytes of JSON for failures; the rest of `SIZE_LIMIT` is for the place of the launch."""
_MARKS = 8 * 1024
"""Bytes that are kept free for marks by whatever is cut, so that it is not cut again where it is read."""
_OUTER = DEPTH_LIMIT // 2
_INNER = DEPTH_LIMIT - _OUTER - 1
_ETC = "..."

REPEATED = Frame("<already shown in full>", None, None, _ETC)
"""The only frame of a failure whose frames and causes are those of the same failure elsewhere in the tree."""
DETAILS_LEFT_OUT = Frame("<frames, long texts and places of launch left out below>", None, None, _ETC)
"""The only frame of a failure with so many causes that nothing but the beginning of their texts was kept."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is kept of one failure.

    Attributes:
        frames: how many.
        message: characters of its message, or, if brief, bytes of JSON.
        name: likewise, of its type and its source.
        brief: whether places are left out, and texts end in three dots instead of saying how long they were.
    """

    frames: int
    message: int
    name: int = NAME_LIMIT
    brief: bool = False


_LEAN = Bounds(LEAN_FRAME_LIMIT, LEAN_MESSAGE_LIMIT)
BOUNDS = (
    Bounds(FRAME_LIMIT, MESSAGE_LIMIT),
    _LEAN,
    *(Bounds(0, message, name, brief=True) for message, name in ((256, 128), (96, 96), (48, 64))),
    Bounds(0, BRIEF_MESSAGE_LIMIT, BRIEF_NAME_LIMIT, brief=True),
)


class Part(Protocol):
    """What a failure holds."""

    @property
    def type(self) -> str: ...
    @property
    def message(self) -> str | None: ...
    @property
    def source(self) -> str: ...
    @property
    def stack_trace(self) -> tuple[Frame, ...]: ...
    @property
    def launched_at(self) -> Frame | None: ...
    def dumps(self) -> str: ...


F = TypeVar("F", bound=Part)


@dataclass(frozen=True, slots=True)
class Kit(Generic[F]):
    """What the failures of a kind of node are built with.

    Attributes:
        alone: returns the failure of a node, without its causes.
        causes: returns the nodes below a node.
        key: tells nodes apart: those that have an equal one are the same failure.
        remake: returns a failure with other values of some attributes.
        more: stands for causes that were left out.
    """

    alone: Callable[[Any], F]
    causes: Callable[[Any], Sequence[Any]]
    key: Callable[[Any], Hashable]
    remake: Callable[..., F]
    more: F


def bounded(root: Any, kit: Kit[F]) -> F:
    """Return the failure that is built of `root`, within the first bounds that it fits in, or the last ones."""
    known: dict[int, F] = {}

    def alone(node: Any) -> F:
        # Asked once: the text of an exception is the work of its class.
        if id(node) not in known:
            known[id(node)] = kit.alone(node)
        return known[id(node)]

    for bounds in BOUNDS[:-1]:
        builder = Builder(kit, alone, bounds, _BUDGET if bounds is BOUNDS[0] else _BUDGET - _MARKS)
        failure = builder.build(root)
        if not builder.spent:
            return failure
    return Builder(kit, alone, BOUNDS[-1], _BUDGET - _MARKS).build(root)


@dataclass
class Builder(Generic[F]):
    """Builds one failure. It recurses `DEPTH_LIMIT` levels at most, however deep its input goes."""

    kit: Kit[F]
    alone: Callable[[Any], F]
    bounds: Bounds
    left: int
    spent: bool = False
    path: set[int] = field(default_factory=set)
    seen: set[Hashable] = field(default_factory=set)

    def build(self, root: Any) -> F:
        """Return the failure of `root`, of whose causes some are left out if there is no room for them."""
        self.seen.add(self.kit.key(root))
        own = self._cut(self.alone(root), self.bounds if not self.bounds.brief else _LEAN)
        self._take(own)
        if self.bounds.brief:
            frames = tuple(frame for frame in own.stack_trace if frame != DETAILS_LEFT_OUT)
            own = self.kit.remake(own, stack_trace=(*frames, DETAILS_LEFT_OUT))
        return self._with_causes(root, own, 1)

    def _take(self, failure: F) -> bool:
        size = len(failure.dumps()) + 1
        if size > self.left:
            self.spent = True
            return False
        self.left -= size
        return True

    def _with_causes(self, node: Any, own: F, depth: int) -> F:
        self.path.add(id(node))
        causes = self._build_all(self.kit.causes(node), depth)
        self.path.discard(id(node))
        return self.kit.remake(own, causes=causes) if causes else own

    def _build_all(self, nodes: Sequence[Any], depth: int) -> tuple[F, ...]:
        """Return the failures of the causes of one failure: room for all of them first, then for what is below."""
        if self.spent and self.bounds is not BOUNDS[-1]:
            return ()  # it is built anew
        chosen: list[tuple[Any, F, bool]] = []
        nodes = [node for node in nodes if id(node) not in self.path]  # what it is a cause of is no cause of it
        for node in nodes:
            if depth == DEPTH_LIMIT:
                return (self.kit.more,)
            below = levels(node, self.kit.causes) if depth == _OUTER else []
            if len(below) > DEPTH_LIMIT - _OUTER:
                message = "levels of causes are left out here"
                roots = self._build_all(below[-_INNER], depth + 1)
                chosen.append((None, self.kit.remake(self.kit.more, message=message, causes=roots), False))
                continue
            key = self.kit.key(node)
            own = self._cut(self.alone(node), self.bounds)
            repeated = key in self.seen
            if repeated and (own.stack_trace or self.kit.causes(node)):
                own = self.kit.remake(own, stack_trace=(REPEATED,))
            if not self._take(own):
                if depth == 1 or not self.bounds.brief:  # deeper, the root's mark says it
                    message = f"{len(nodes) - len(chosen)} more causes are left out here"
                    chosen.append((None, self.kit.remake(self.kit.more, message=message), False))
                break
            self.seen.add(key)
            chosen.append((node, own, not repeated))
        return tuple(self._with_causes(node, own, depth + 1) if deeper else own for node, own, deeper in chosen)

    def _cut(self, own: F, bounds: Bounds) -> F:
        if bounds.brief:
            return self.kit.remake(
                own,
                type=_within(own.type, bounds.name, tail=True),  # the class is at the end of its name
                message=None if own.message is None else _within(own.message, bounds.message),
                source=_within(own.source, bounds.name),
                stack_trace=(),
                launched_at=None,
                causes=(),
            )
        return self.kit.remake(
            own,
            type=cut(own.type, bounds.name),
            message=None if own.message is None else cut(own.message, bounds.message),
            source=cut(own.source, bounds.name),
            stack_trace=tuple(frame.cut(NAME_LIMIT) for frame in cut_frames(own.stack_trace, bounds.frames)),
            launched_at=own.launched_at and own.launched_at.cut(NAME_LIMIT),
            causes=(),
        )


def _within(text: str, limit: int, *, tail: bool = False) -> str:
    """Return the beginning or the end of a text, as much as `limit` bytes of JSON hold, and a mark if it was cut."""
    # No character takes less than a byte, so what is longer does not fit.
    if len(text) <= limit and len(json.dumps(text)) - 2 <= limit:
        return cut(text, limit)
    room = limit - len(_ETC)
    kept = text[-room:] if tail else text[:room]
    while len(json.dumps(kept)) - 2 > room:
        # Twelve bytes at the most are taken by what was one character.
        gone = max((len(json.dumps(kept)) - 2 - room) // 12, 1)
        kept = kept[gone:] if tail else kept[:-gone]
    return _ETC + kept if tail else cut(kept, limit) + _ETC
