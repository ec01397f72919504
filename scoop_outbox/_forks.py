"""Forks: what a child process must not go on with begins anew there.

A web server that loads its application and then forks, or `multiprocessing`, gives each child a copy of everything:
connections that are the parent's, locks that a thread held which does not exist any more, daemons that do not run.
"""

from __future__ import annotations

import itertools
import os
import weakref
from typing import Protocol


class BeginsAnew(Protocol):
    """Something that a forked child must not use as its parent left it."""

    def begin_anew(self) -> None:
        """Forget what is the parent's. Called in a child, while it has one thread only; waits for nothing."""


_all: weakref.WeakValueDictionary[int, BeginsAnew] = weakref.WeakValueDictionary()
_numbers = itertools.count()


def begins_anew(one: BeginsAnew) -> None:
    """Have `one` begin anew in each child that is forked from now on, for as long as it lives.

    Behind those that asked for it earlier, on which it may rely.
    """
    _all[next(_numbers)] = one


def _in_child() -> None:
    for one in list(_all.values()):
        one.begin_anew()


if hasattr(os, "register_at_fork"):  # there are systems without forks
    os.register_at_fork(after_in_child=_in_child)
