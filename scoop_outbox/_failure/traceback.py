"""Stack frames as data, and Python tracebacks made of them.

The traceback of a failure in another process is rebuilt of real traceback objects, so that whatever prints
tracebacks (the interpreter, `traceback`, `logging`, pytest) prints the remote frames unasked.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType, FunctionType, TracebackType
from typing import Any, TypeVar

from scoop_outbox._failure.places import file_of

T = TypeVar("T")
D = TypeVar("D", str, None)

UNKNOWN_FILE = "<unknown filename>"
UNKNOWN_CLASS = "<unknown class>"
UNKNOWN_FUNCTION = "<unknown function>"

_LINES = range(-(2**31), 2**31)
"""Line numbers that are kept. Negative ones have a meaning elsewhere: native code has line -2 in Java."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A place in a program, in terms that other languages have too.

    Attributes:
        file_name: for Python a path relative to the folder of the package, or to the working directory.
        line_number: counted from 1.
        class_name: what the function belongs to: the module for Python.
        function_name: the qualified name for Python.
    """

    file_name: str | None
    line_number: int | None
    class_name: str | None
    function_name: str | None

    @classmethod
    def of_caller(cls, depth: int) -> Frame:
        """Return the place `depth` frames above the caller; 0 is the caller itself.

        Cheap enough for every launch: no source is read. If the stack is not that deep, all is unknown.
        """
        try:
            frame = sys._getframe(depth + 1)  # noqa: SLF001  # inspect.stack() reads source files: 1000 times slower
        except ValueError:
            return cls(None, None, None, None)
        return cls._of(frame.f_code, frame.f_lineno, frame.f_globals)

    @classmethod
    def _of(cls, code: CodeType, line: int | None, names: Mapping[str, Any]) -> Frame:
        module = names.get("__name__")
        file = file_of(code.co_filename, names)
        return cls(file, line, module if isinstance(module, str) else None, code.co_qualname)

    def to_json(self) -> dict[str, Any]:
        """Return the stored form."""
        return {
            "fileName": self.file_name,
            "lineNumber": self.line_number,
            "className": self.class_name,
            "functionName": self.function_name,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Frame:
        """Return the frame of a stored form; what is missing or makes no sense is unknown."""
        line = data.get("lineNumber")
        return cls(
            text_of(data.get("fileName"), None),
            line if isinstance(line, int) and not isinstance(line, bool) and line in _LINES else None,
            text_of(data.get("className"), None),
            text_of(data.get("functionName"), None),
        )

    def __str__(self) -> str:
        """Return `file:line in function`, on one line whatever the names contain."""
        file, function = _labels(self)
        return f"{file}:{self.line_number if self.line_number is not None else '?'} in {function}"

    def cut(self, limit: int) -> Frame:
        """Return the frame with names of at most `limit` characters."""
        names = (self.file_name, self.class_name, self.function_name)
        if all(name is None or len(name) <= limit for name in names):
            return self
        file, owner, function = (name if name is None else cut(name, limit) for name in names)
        return Frame(file, self.line_number, owner, function)


LEFT_OUT = Frame("<frames left out>", None, None, "...")
"""Stands where frames were cut out of a stack."""

_HIDDEN = frozenset({"scoop_outbox", "asyncio", "concurrent", "contextlib", "threading"})
_SHOWN = ("scoop_outbox.demo", "scoop_outbox.testing", "scoop_outbox.devservers")
"""Modules of ours that hold sagas: what runs there is the user's code, so to speak."""


def text_of(value: object, missing: D) -> str | D:
    """Return a field of foreign JSON as text, and what is `missing` as that."""
    if value is None:
        return missing
    return value if isinstance(value, str) else str(value)


def frames_from_json(data: object) -> tuple[Frame, ...]:
    """Return the frames of a stored stack."""
    return tuple(Frame.from_json(f) for f in data if isinstance(f, Mapping)) if isinstance(data, list) else ()


def cut(text: str, limit: int) -> str:
    """Return `text` as JSON gives it back, at most `limit` characters of it and a mark if it was cut."""
    try:
        text.encode()
    except UnicodeEncodeError:
        # Two halves of a surrogate pair come back as the character they make up; lone ones stay.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    if len(text) <= limit:
        return text
    mark = f"... [cut, {len(text)} characters]"
    return text[: max(limit - len(mark), 0)] + mark


def cut_frames(frames: tuple[Frame, ...], limit: int) -> tuple[Frame, ...]:
    """Return at most `limit` frames: a few of the outermost, which tell how it began, and the innermost."""
    if len(frames) <= limit:
        return frames
    outer = limit // 4
    return (*frames[:outer], LEFT_OUT, *frames[len(frames) - (limit - outer - 1) :])


def frames_of(traceback: TracebackType | None) -> tuple[Frame, ...]:
    """Return the frames of a traceback, outermost first, beginning with the user's first frame.

    What called the user's function is the same in every traceback and tells nothing: the engine's frames, and
    those of the standard library between them. A traceback of nothing else is kept whole: the engine failed.
    """
    frames = []
    while traceback is not None:
        frame = traceback.tb_frame
        frames.append(Frame._of(frame.f_code, traceback.tb_lineno, frame.f_globals))  # noqa: SLF001
        traceback = traceback.tb_next
    # asyncio's frames in a stack that does not begin in the engine are the user's business.
    if frames and _package(frames[0]) == "scoop_outbox":
        for index, place in enumerate(frames):
            if _package(place) not in _HIDDEN:
                return tuple(frames[index:])
    return tuple(frames)


def type_of(error: BaseException) -> str:
    """Return the name of an exception's class as tracebacks print it."""
    kind = type(error)
    plain = kind.__module__ in ("builtins", "__main__")
    return kind.__qualname__ if plain else f"{kind.__module__}.{kind.__qualname__}"


def message_of(error: BaseException) -> str | None:
    """Return the text of an exception, with its notes as further lines, or None when it has none."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  # a class of the user's, which may do anything
        text = f"<{type(error).__qualname__} without a message: its __str__ raised>"
    notes = getattr(error, "__notes__", ())
    lines = [text, *(note for note in notes if isinstance(note, str))] if isinstance(notes, list) else [text]
    return "\n".join(lines) or None


def causes_of(error: BaseException) -> tuple[BaseException, ...]:
    """Return what an exception was caused by, as tracebacks show it, then the members of a group."""
    above = error.__cause__
    if above is None and not error.__suppress_context__:
        above = error.__context__
    members = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return members if above is None else (above, *members)


def levels(root: T, causes: Callable[[T], Iterable[T]]) -> list[list[T]]:
    """Return `root`, its causes, their causes and so on, each one once."""
    found: list[list[T]] = []
    seen: set[int] = set()
    level = [root]
    while level:
        found.append(level)
        seen.update(map(id, level))
        below = {id(cause): cause for one in level for cause in causes(one)}
        level = [cause for key, cause in below.items() if key not in seen]
    return found


def _package(frame: Frame) -> str | None:
    module = frame.class_name
    if module is None or any(module == shown or module.startswith(f"{shown}.") for shown in _SHOWN):
        return None
    return module.partition(".")[0]


def traceback_of(frames: Sequence[Frame]) -> TracebackType | None:
    """Return a traceback that shows `frames`, outermost first; the files need not exist here.

    Source lines are printed for Python files that do exist here. Exceptions may share one, as the children of a fan-out
    that failed in the same place do: whoever raises an exception puts a new entry before those that it has.
    """
    return _traceback_of(tuple(frames))


@functools.lru_cache(256)
def _traceback_of(frames: tuple[Frame, ...]) -> TracebackType | None:
    built: TracebackType | None = None
    for frame in reversed(frames):
        built = _traceback_entry(frame, built)
    return built


def _failing_code() -> CodeType:
    """Return code that fails without looking up a name, and has no columns.

    With columns, tracebacks would underline part of a source line that has nothing to do with this code.
    """
    tree = ast.parse("0 / 0")
    for node in ast.walk(tree):
        if isinstance(node, ast.expr | ast.stmt):
            node.col_offset = node.end_col_offset = -1
    return compile(tree, "<remote>", "exec")


_FAILING = _failing_code()


def _traceback_entry(frame: Frame, below: TracebackType | None) -> TracebackType | None:
    file, function = _labels(frame)
    code = _FAILING.replace(
        co_filename=file,
        co_name=function,
        co_qualname=function,
        co_firstlineno=max(frame.line_number or 0, 0),
    )
    try:
        FunctionType(code, {"__name__": frame.class_name or UNKNOWN_CLASS})()
    except ZeroDivisionError as error:
        # The first entry is this function.
        entry = error.__traceback__.tb_next if error.__traceback__ is not None else None
        if entry is not None:
            entry.tb_next = below
        return entry
    return below


def _labels(frame: Frame) -> tuple[str, str]:
    """Return how file and function are shown."""
    file = _printable(frame.file_name or UNKNOWN_FILE)
    function = _printable(frame.function_name or UNKNOWN_FUNCTION)
    bracketed = file.startswith("<") and file.endswith(">")
    if frame.file_name and (bracketed or file.endswith(".py")):
        return file, function
    # A frame of another language. To show source lines, Python reads the files that tracebacks name. Whoever
    # sends a failure must not choose what is read here (/dev/zero never ends). It never reads `<names>`.
    owner = _printable(frame.class_name or UNKNOWN_CLASS)
    return file if bracketed else f"<{file}>", f"{owner}.{function}"


def _printable(text: str) -> str:
    """Return a name that can be part of a code object and of a line: no NUL, lone surrogate or line break."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def keep_root(original: Exception | None, replacement: BaseException) -> None:
    """Make what a handler was called for the root of what it raised instead (behaviour Q5)."""
    seen: set[int] = set()
    while replacement is not original and id(replacement) not in seen:
        seen.add(id(replacement))
        above = replacement.__context__ if replacement.__cause__ is None else replacement.__cause__
        if above is None:
            replacement.__context__ = original
            return
        replacement = above
