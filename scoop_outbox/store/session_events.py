"""The events of a lent session: its listeners hear of a commit when the step's transaction has been committed.

A lent session works inside the transaction of its step. What it commits, by itself or because the callback has
returned, is a savepoint; it was told to the listeners of `after_commit` as if it were the end. An e-mail was sent of an
order that the database refused a moment later, when a deferred constraint was checked. So they hear of the step's own
end, once: `after_commit` behind its commit, `after_rollback` when it is undone. All other events are as in any session.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from scoop_outbox._log import get_logger
from scoop_outbox.scope import Scope
from scoop_outbox.store.stop import ends_the_worker

log = get_logger(__name__)


class _HeldBack:
    """The listeners of a session's commits; the session calls them in vain. Everything else is SQLAlchemy's."""

    def __init__(self, dispatch: Any) -> None:
        self._dispatch = dispatch

    def __call__(self, session: Session) -> None:
        pass

    def for_modify(self, _: object) -> Any:
        return self._dispatch.after_commit.for_modify(self._dispatch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dispatch.after_commit, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._dispatch.after_commit)

    def __len__(self) -> int:
        return len(self._dispatch.after_commit)


class _Dispatch:
    """SQLAlchemy's registry of a session's listeners, with those of commits held back."""

    after_commit: _HeldBack
    all_of_them: Any

    def __init__(self, dispatch: Any) -> None:
        self.__dict__.update(all_of_them=dispatch, after_commit=_HeldBack(dispatch))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.all_of_them, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.all_of_them, name, value)


def hold_back(session: Session) -> None:
    """Have listeners hear nothing of this session's commits but by `tell`."""
    session.__dict__["dispatch"] = _Dispatch(session.dispatch)


def is_held_back(session: Session) -> bool:
    """Tell whether listeners hear of this session's commits by `tell`."""
    return isinstance(session.dispatch, _Dispatch)


def tell(session: Session, *, committed: bool) -> None:
    """Tell the listeners of a session how the transaction of its step has ended.

    What they raise is logged: there is nobody else to be told, and what has been committed stays so. That goes for
    `SystemExit`, too: it ended the process of the worker. Only a stop that is meant for the worker is passed on.
    """
    name = _event(committed=committed)
    for listener in _listeners(session, name):
        try:
            listener(session)
        except BaseException as error:
            if ends_the_worker(error):
                raise
            scope = session.info.get("scope")  # unless the callback has emptied it
            saga, run_id, step = (scope.saga, scope.run_id, scope.step) if isinstance(scope, Scope) else (None,) * 3
            log.exception(
                "run: session listener failed (%s of saga %r, run %s, step %r: its transaction is %s all the same)",
                *(name, saga, run_id, step, "committed" if committed else "rolled back"),
                extra={"saga": saga, "run_id": run_id, "step": step},
            )


async def async_tell(session: AsyncSession, *, committed: bool) -> None:
    """Do as `tell`, where SQLAlchemy expects its listeners to be called."""
    if _listeners(session.sync_session, _event(committed=committed)):
        await session.run_sync(tell, committed=committed)


def _event(*, committed: bool) -> str:
    return "after_commit" if committed else "after_rollback"


def _listeners(session: Session, name: str) -> list[Any]:
    dispatch: Any = session.dispatch
    return list(getattr(dispatch.all_of_them, name))
