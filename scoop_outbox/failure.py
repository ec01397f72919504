"""Failures: data that travels between services as language-neutral JSON, and Python exceptions made of it.

A `Failure` is what is stored and sent. `Failure.of` makes one of any exception. `Failure.to_exception` makes
an exception of it, with a real `__cause__` and `__traceback__`, so that whatever prints it shows one traceback
across all services, root cause first, with the place where each message was launched.

Whatever failures are built of, they are bounded:

- `FRAME_LIMIT` frames: the outermost 16 and the innermost 47, around a mark;
- `MESSAGE_LIMIT` characters in a message, `NAME_LIMIT` in other texts; what was cut ends in a mark;
- `DEPTH_LIMIT` levels of causes: the outermost ones and the root causes, around a `CausesLeftOut`;
- `SIZE_LIMIT` bytes of JSON. What is larger gets the `LEAN` limits at every level. If that does not do, causes lose
  their frames and all but the beginning of their texts, which then end in three dots; a mark among the frames of the
  whole says so. Each of 5,000 causes keeps its type and the beginning of its message, `BRIEF_MESSAGE_LIMIT` bytes of
  JSON at the least. What has no room even then is counted by a `CausesLeftOut`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from scoop_outbox._failure import bounds
from scoop_outbox._failure.bounds import BRIEF_MESSAGE_LIMIT as BRIEF_MESSAGE_LIMIT  # noqa: PLC0414  # this module's interface
from scoop_outbox._failure.bounds import DEPTH_LIMIT as DEPTH_LIMIT  # noqa: PLC0414
from scoop_outbox._failure.bounds import FRAME_LIMIT as FRAME_LIMIT  # noqa: PLC0414
from scoop_outbox._failure.bounds import LEAN_MESSAGE_LIMIT as LEAN_MESSAGE_LIMIT  # noqa: PLC0414
from scoop_outbox._failure.bounds import MESSAGE_LIMIT as MESSAGE_LIMIT  # noqa: PLC0414
from scoop_outbox._failure.bounds import NAME_LIMIT as NAME_LIMIT  # noqa: PLC0414
from scoop_outbox._failure.bounds import REPEATED as REPEATED  # noqa: PLC0414
from scoop_outbox._failure.bounds import SIZE_LIMIT as SIZE_LIMIT  # noqa: PLC0414
from scoop_outbox._failure.root_cause import Origin, root_cause_text, root_causes
from scoop_outbox._failure.traceback import Frame as Frame  # noqa: PLC0414
from scoop_outbox._failure.traceback import (
    causes_of,
    cut_frames,
    frames_from_json,
    frames_of,
    message_of,
    text_of,
    traceback_of,
    type_of,
)

UNKNOWN_TYPE = "<unknown type>"
UNKNOWN_SOURCE = "<unknown source>"
NO_MESSAGE = "<no message>"
CAUSES_LEFT_OUT = "CausesLeftOut"
"""Type of the failure that stands for causes which were cut out of a failure."""


class Stored(NamedTuple):
    """Where a failure is kept, so that it can be referred to.

    Attributes:
        keeper: a home as one process has opened it. Nobody else takes the id for granted: elsewhere it is a copy.
        id: its row there.
    """

    keeper: uuid.UUID
    id: uuid.UUID


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something failed, as data. Immutable, hashable and compared by value.

    Attributes:
        type: the class of the original exception, or one of the neutral names that every language shares.
        message: its text.
        source: who recorded it: `saga[worker id]`, or what a person who cancels says about themselves.
        stack_trace: outermost frame first.
        causes: what it was caused by; several when several children failed.
        launched_at: where the message was launched whose handling failed. It tells how the failure got here
            and is no part of its value: equality ignores it.
        stored: where it is kept, if it is. What is read of it may have been cut; what is kept has not.
    """

    type: str
    message: str | None
    source: str
    stack_trace: tuple[Frame, ...] = ()
    causes: tuple[Failure, ...] = ()
    launched_at: Frame | None = field(default=None, compare=False)
    stored: Stored | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, error: BaseException, *, source: str, launched_at: Frame | None = None) -> Failure:
        """Return an exception as data, within the limits above.

        The cause comes first (`__cause__`, else a `__context__` that is not suppressed), then the members of
        an exception group. A `DistributedError`, at any level, is the failure it was made of: nothing is
        re-labelled while it travels. Notes of an exception are lines of its message.

        Args:
            error: what was raised; no exception, however odd its class, makes this fail.
            source: who records it.
            launched_at: where the message was launched that was being handled.
        """
        failure = error.failure if isinstance(error, DistributedError) else _bounded(error, source)
        return failure if launched_at is None else failure.with_launched_at(launched_at)

    @classmethod
    def child_rolled_back(cls, step: str, causes: Iterable[Failure], *, source: str) -> Failure:
        """Return the failure of a run whose children failed, and were rolled back, after `step`."""
        message = f"Child failure occurred while suspended in step [{step}]"
        return _bounded(cls(ChildRolledBack.__name__, message, source, causes=tuple(causes)))

    @classmethod
    def children_rolled_back(cls, causes: Iterable[Failure], *, source: str) -> Failure:
        """Return why children failed of which some could not be rolled back: that is told next to it."""
        return _bounded(cls(ChildRolledBack.__name__, None, source, causes=tuple(causes)))

    @classmethod
    def child_rollback_failed(cls, step: str, causes: Iterable[Failure], *, source: str) -> Failure:
        """Return the failure of a run whose children, launched by `step`, could not be rolled back."""
        message = f"Child rollback failure occurred while suspended in step [{step}]"
        return _bounded(cls(ChildRollbackFailed.__name__, message, source, causes=tuple(causes)))

    @classmethod
    def parent_said_so(cls, cause: Failure, *, source: str) -> Failure:
        """Return the failure of a run that its parent orders to roll back because of `cause`."""
        return _bounded(cls(ParentSaidSo.__name__, None, source, causes=(cause,)))

    @classmethod
    def gave_up(cls, causes: Iterable[Failure], *, source: str) -> Failure:
        """Return the failure of a run that was cancelled or is late."""
        return _bounded(cls(GaveUp.__name__, None, source, causes=tuple(causes)))

    def to_json(self) -> dict[str, Any]:
        """Return the stored form: a dict of what JSON knows; `launchedAt` is there only when known."""
        data: dict[str, Any] = {
            "message": self.message,
            "type": self.type,
            "source": self.source,
            "stackTrace": [frame.to_json() for frame in self.stack_trace],
            "causes": [cause.to_json() for cause in self.causes],
        }
        if self.launched_at is not None:
            data["launchedAt"] = self.launched_at.to_json()
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Failure:
        """Return the failure of a stored form, within the limits above.

        What `to_json` made comes back equal. From other producers, a missing type or source becomes a
        placeholder, and what makes no sense is as good as missing.
        """
        return _bounded(data)

    def dumps(self) -> str:
        """Return the stored form as JSON text of ASCII characters.

        NUL and lone surrogates cannot be part of a text in Postgres. As escapes, which a `json` column checks
        for their syntax only, they can. (`jsonb` decodes them, and refuses them.)
        """
        return json.dumps(self.to_json(), separators=(",", ":"))

    @classmethod
    def loads(cls, text: str | bytes) -> Failure:
        """Return the failure that JSON text describes, as `from_json` does.

        Raises:
            ValueError: the text is not JSON, is nested thousands of levels deep, or is no JSON object.
        """
        try:
            data = json.loads(text)
        except RecursionError:
            raise ValueError("the JSON of a failure is nested too deeply to be read") from None
        if isinstance(data, dict):
            return cls.from_json(data)
        raise ValueError(f"the JSON of a failure is an object, not {text[:80]!r}")

    def with_launched_at(self, frame: Frame | None) -> Failure:
        """Return the same failure, of a message that was launched at `frame`."""
        return self if frame == self.launched_at else replace(self, launched_at=frame, stored=None)

    def within_limits(self) -> Failure:
        """Return the same failure within the limits above, whatever it was put together of."""
        return _bounded(self)

    def contains(self, other: Failure) -> bool:
        """Tell whether `other` is this failure, or occurs among its causes at any level.

        What is kept in the same place is the same, however much of it was read. Otherwise the value counts; a failure
        of which only the mark of a repetition was kept counts as the one it repeats.
        """
        return self._same(other) or any(cause.contains(other) for cause in self.causes)

    def _same(self, other: Failure) -> bool:
        if self.stored is not None and self.stored == other.stored:
            return True
        if (self.type, self.message, self.source) != (other.type, other.message, other.source):
            return False
        if (REPEATED,) in (self.stack_trace, other.stack_trace):
            return True
        return (self.stack_trace, len(self.causes)) == (other.stack_trace, len(other.causes)) and all(
            map(Failure._same, self.causes, other.causes)
        )

    def to_exception(self, *, lazily: bool = False) -> DistributedError:
        """Return a new exception of this failure, to be raised or printed.

        Its class is that of the neutral type name (`ChildRolledBack` and its kin), else `DistributedError`.

        Args:
            lazily: whether the exceptions of its causes are made when somebody asks for them. That is less work when
                thousands of compensations are told of thousands of failures each. But the interpreter, when it prints
                an exception that nobody has caught, does not ask before Python 3.13.
        """
        return _exception_of(self, note_launch=True, lazily=lazily)

    def __str__(self) -> str:
        """Return `[source] type: message`."""
        return f"[{self.source}] {self.type}: {self.message if (self.message or '').strip() else NO_MESSAGE}"


_CAUSE: Any = vars(BaseException)["__cause__"]
"""Where the interpreter keeps the cause of an exception."""


class DistributedError(Exception):
    """A failure that happened in a saga, perhaps in another service, perhaps in another language.

    Printed like any exception, it shows the traceback of the place where it was raised, after those of its
    causes, and where messages were launched. Errors with equal failures are equal.

    Attributes:
        failure: the failure as data.
        type: the class of the original exception, by name only: it need not exist here. Or a neutral name.
        source: who recorded it.
        message: the original text.
        origin: where its root cause happened, as far as it was looked up: `Handle.wait` does.
    """

    origin: Origin | None = None
    outermost = True  # its text names the root cause; in a traceback, that stands above the others

    def __init__(self, failure: Failure, *, lazily: bool = False) -> None:
        """Make one of `failure`; `Failure.to_exception` chooses the class as well."""
        super().__init__(failure)
        self.failure = failure
        self.type = failure.type
        self.source = failure.source
        self.message = failure.message
        frames = failure.stack_trace
        self._noting = True
        if not frames and failure.type in (ChildRolledBack.__name__, ChildRollbackFailed.__name__):
            # These have no stack of their own. What is looked for at this level is the launch that failed.
            places = dict.fromkeys(cause.launched_at for cause in failure.causes if cause.launched_at)
            frames = cut_frames(tuple(places), FRAME_LIMIT)
            # Several places do not tell which cause belongs to which: then each cause has its own in a note.
            self._noting = len(places) != 1
        self._causes: tuple[DistributedError, ...] | None = None
        self.__traceback__ = traceback_of(frames)
        if not lazily:
            self._explain()

    @property
    def causes(self) -> tuple[DistributedError, ...]:
        """What it was caused by. One is `__cause__`; several are the members of the group that is."""
        return self._explain()

    @property
    def __cause__(self) -> BaseException | None:
        """The cause, or the group of them, unless it was raised from something else."""
        self._explain()
        cause: BaseException | None = _CAUSE.__get__(self)
        return cause

    @__cause__.setter
    def __cause__(self, cause: BaseException | None) -> None:
        self._explain()
        _CAUSE.__set__(self, cause)

    def _explain(self) -> tuple[DistributedError, ...]:
        """Make the exceptions of the causes, once."""
        if self._causes is None:
            self._causes = made = tuple(_exception_of(cause, note_launch=self._noting) for cause in self.failure.causes)
            for cause in made:
                cause.outermost = False
            what = "children failed" if self.type == ChildRolledBack.__name__ else "causes"
            # Whoever has raised it from something else meanwhile has said what it was caused by.
            if made and _CAUSE.__get__(self) is None:
                _CAUSE.__set__(self, made[0] if len(made) == 1 else ExceptionGroup(f"{len(made)} {what}", made))
        return self._causes

    @property
    def root_cause(self) -> Failure:
        """What a step has raised, perhaps in another service, that it comes from."""
        return root_causes(self.failure)[0]

    def to_json(self) -> dict[str, Any]:
        """Return the stored form of the failure."""
        return self.failure.to_json()

    def __str__(self) -> str:
        return root_cause_text(self.failure, self.origin) if self.outermost else str(self.failure)

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickle knows nothing of causes and tracebacks; the failure has them all.
        kept = {"__notes__": list(getattr(self, "__notes__", ())), "origin": self.origin}
        return Failure.to_exception, (self.failure,), kept

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.failure)!r})"

    def __eq__(self, other: object) -> bool:
        return self.failure == other.failure if isinstance(other, DistributedError) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.failure)


class ChildRolledBack(DistributedError):
    """One or more children failed, and everything they did was rolled back."""


class ChildRollbackFailed(DistributedError):
    """One or more children failed to roll back: an operator has to look at them."""


class ParentSaidSo(DistributedError):
    """The parent ordered the rollback; the cause is its reason."""


class GaveUp(DistributedError):
    """The run was cancelled, or missed its deadline; the causes say which."""


class CancellationRequested(DistributedError):
    """Somebody asked to cancel; the message is their reason."""


class RollbackRequested(DistributedError):
    """Somebody asked to roll back; the message is their reason."""


_CLASSES = {kind.__name__: kind for kind in DistributedError.__subclasses__()}

for _kind in (DistributedError, *_CLASSES.values()):
    # Where users import them from; it is what tracebacks print in front of the name.
    _kind.__module__ = "scoop_outbox"


def _exception_of(failure: Failure, *, note_launch: bool, lazily: bool = False) -> DistributedError:
    error = _CLASSES.get(failure.type, DistributedError)(failure, lazily=lazily)
    if note_launch and failure.launched_at is not None:
        error.add_note(f"launched at {failure.launched_at}")
    return error


_Node = BaseException | Failure | Mapping[str, Any]
"""What a failure is built of."""


def _bounded(root: _Node, source: str = UNKNOWN_SOURCE) -> Failure:
    """Return the failure built of `root` within the limits; `source` is that of exceptions."""
    more = Failure(CAUSES_LEFT_OUT, "more causes are left out here", "scoop_outbox")
    kit = bounds.Kit(lambda node: _alone(_inner(node), source), _causes_of, _key, replace, more)
    return bounds.bounded(root, kit)


def _inner(node: _Node) -> _Node:
    return node.failure if isinstance(node, DistributedError) else node


def _key(node: _Node) -> Hashable:
    node = _inner(node)
    return (node.stored or node) if isinstance(node, Failure) else id(node)


def _causes_of(node: _Node) -> Sequence[_Node]:
    node = _inner(node)
    if isinstance(node, Failure):
        return node.causes
    if isinstance(node, BaseException):
        return causes_of(node)
    causes = node.get("causes")
    return [cause for cause in causes if isinstance(cause, Mapping)] if isinstance(causes, list) else ()


def _alone(node: _Node, source: str) -> Failure:
    """Return the failure of a node, whose causes do not matter."""
    if isinstance(node, Failure):
        return node
    if isinstance(node, BaseException):
        return Failure(type_of(node), message_of(node), source, frames_of(node.__traceback__))
    launched_at = node.get("launchedAt")
    return Failure(
        text_of(node.get("type"), UNKNOWN_TYPE),
        text_of(node.get("message"), None),
        text_of(node.get("source"), UNKNOWN_SOURCE),
        frames_from_json(node.get("stackTrace")),
        launched_at=Frame.from_json(launched_at) if isinstance(launched_at, Mapping) else None,
    )
