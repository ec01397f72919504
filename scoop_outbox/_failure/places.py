"""Places: how the file of a frame is named to others, without the folders of the machine that it lies on.

A failure travels to other services and stays in databases for years. The path of a build machine tells its readers
nothing, and strangers too much. What stays is what the module's name says: the same on every machine, whether the
program lies in a folder, in `site-packages`, in a namespace package of several folders, or in a zip file. Python finds
such a file on `sys.path`, and so it still prints the source line of a frame, where it has that file.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

_MAIN = "__main__"
_PACKAGE = "__init__"


def file_of(file: str, names: Mapping[str, Any]) -> str:
    """Return the name of a file of code, with slashes on every system.

    It is relative to the folder that the module's package lies in. What is no module's file is named relative to the
    working directory, or to a folder of `sys.path`; what lies in none of them keeps its last name. A name in pointed
    brackets, as code has that comes from no file, stays as it is.

    Args:
        file: as the code knows it.
        names: the global names of the code, which tell what module it is.
    """
    module = names.get("__name__")
    if module == _MAIN:
        # `python -m shop.orders` is that module, whatever it calls itself.
        module = getattr(names.get("__spec__"), "name", None) or module
    return _shown(file, module if isinstance(module, str) else "")


@functools.lru_cache(4096)
def _shown(file: str, module: str) -> str:
    if not file or (file.startswith("<") and file.endswith(">")):
        return file
    path = PurePath(file)
    known = _of_module(path, module.split("."))
    if known is not None:
        return known.as_posix()
    if not path.is_absolute():
        return path.as_posix()
    below = (path.relative_to(folder).as_posix() for folder in _folders() if path.is_relative_to(folder))
    return next(below, path.name)


def _of_module(path: PurePath, module: list[str]) -> PurePath | None:
    """Return the end of a path that says what the module's name says; None if the file is not called like it."""
    folders, last = path.parts[:-1], path.stem
    named = list(folders) if last == _PACKAGE and module[-1] != _PACKAGE else [*folders, last]
    if named[-len(module) :] != module:
        return None
    return PurePath(*named[-len(module) : -1], *path.parts[len(named) - 1 :])


def _folders() -> Iterator[PurePath]:
    """Yield the folders that files are named relative to, the one that says most first."""
    try:
        working = [os.getcwd()]  # noqa: PTH109 - sys.path holds text
    except OSError:  # it has been deleted
        working = []
    for folder in (*working, *sorted(sys.path, key=len, reverse=True)):
        path = PurePath(folder)
        # Relative to the root, as in a container that has no working directory, is as good as absolute.
        if path.is_absolute() and path.name:
            yield path
