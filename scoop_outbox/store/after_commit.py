"""Tells somebody that a session of SQLAlchemy has committed what was launched in it.

A session may live as long as its process, and launch in each of its transactions. One listener for each launch made a
commit slower with each of them, and the last one took forty milliseconds: so a session is listened to once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

from scoop_outbox.store.session_events import is_held_back

Tell = Callable[[], None]


def once_committed(session: Session, tell: Tell) -> None:
    """Call `tell` once, when what the session does now has been committed, and not if it is rolled back."""
    watched = _watched.get(session)
    if watched is None:
        watched = _watched[session] = _Launches(session)
    watched.add(session, tell)


class _Launches:
    """Who is to be told of the transactions of a session, by the transaction or savepoint in which there was a launch.

    Holds neither the session nor its transactions: a session that nobody ends has to be able to go away.
    """

    def __init__(self, session: Session) -> None:
        self._told: weakref.WeakKeyDictionary[SessionTransaction, dict[Tell, None]] = weakref.WeakKeyDictionary()
        self._told_at_the_end: dict[Tell, None] = {}
        event.listen(session, "after_commit", self._committed)
        event.listen(session, "after_soft_rollback", self._rolled_back)

    def add(self, session: Session, tell: Tell) -> None:
        if is_held_back(session):
            # A step's own: it hears of the commit when its transactions are gone. Whether the launch was in a savepoint
            # that was undone is not asked then: to tell too much is harmless.
            self._told_at_the_end[tell] = None
            return
        transaction = session.get_nested_transaction() or session.get_transaction()
        if transaction is not None:
            self._told.setdefault(transaction, {})[tell] = None

    def _committed(self, session: Session) -> None:
        at_the_end, self._told_at_the_end = self._told_at_the_end, {}
        for tell in at_the_end:
            tell()
        # Told of the end of a savepoint as well, whose launches are then those of what is around it.
        savepoint = session.get_nested_transaction()
        transaction = session.get_transaction() if savepoint is None else savepoint
        told = {} if transaction is None else self._told.pop(transaction, {})
        if savepoint is None:
            for tell in told:
                tell()
        elif told and savepoint.parent is not None:
            self._told.setdefault(savepoint.parent, {}).update(told)

    def _rolled_back(self, _: Session, transaction: SessionTransaction) -> None:
        self._told.pop(transaction, None)


_watched: weakref.WeakKeyDictionary[Session, _Launches] = weakref.WeakKeyDictionary()
