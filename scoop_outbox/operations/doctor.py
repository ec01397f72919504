"""Doctor: whether this home and others know each other, and what keeps them from cooperating. Needs no application."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from scoop_outbox.broker.protocol import Broker
from scoop_outbox.core.plans.home import read_home
from scoop_outbox.core.plans.homes import Identity, read_identity
from scoop_outbox.core.plans.peers import LostChildren, Peer, examine_peers, is_elsewhere, read_trouble
from scoop_outbox.core.plans.subscriptions import read_revision
from scoop_outbox.core.statement import Plan, Rows
from scoop_outbox.daemon.announcer import control_subscription
from scoop_outbox.errors import BrokerError
from scoop_outbox.progress import dead_letter_text
from scoop_outbox.store.revisions import head, known
from scoop_outbox.store.schema import DEFAULT_SCHEMA
from scoop_outbox.store.standalone import AsyncOpenedDatabase, OpenedDatabase

SILENT = 1500.0
"""Seconds after which a home is silent in which children are open: it is asked after these each ten minutes."""
ASKED = 600.0
"""Seconds after which a child is silent, and its home is asked after it."""
AHEAD = -1.0
"""A lag below that is no rounding: the clock of the other home is ahead."""
BEHIND = 60.0
"""A lag above that is worth a look: the clock of the other home is behind, or what it says is long on its way."""


_MOVED = (
    "this database is not the one in which the home was named, so no worker cooperates in it: it is a copy, or was "
    "restored from a backup. If it is the home from now on: scoop-outbox home moved"
)


class Fault(StrEnum):
    """What is wrong.

    Attributes:
        TABLES: the tables are older than this library.
        UNNAMED: this home has no name, and children are waited for in others.
        MOVED: this database is not the one in which the home was named: a copy, or restored from a backup.
        NAMESAKE: two homes have one name.
        UNKNOWN: a home is waited for, or waits, that is not known here.
        UNCONFIRMED: a home has not said that it knows who listens here now.
        SILENT: nothing has been heard for long of a home in which children are waited for.
        LOST: a home did not know children when it was asked.
        CLOCK: the clocks differ, or what is said is long on its way.
        DEAD_LETTER: what was said could not be understood, or not be published.
        BROKER: something that homes need is missing at the broker, or it cannot be asked.
    """

    TABLES = "tables"
    UNNAMED = "unnamed"
    MOVED = "moved"
    NAMESAKE = "namesake"
    UNKNOWN = "unknown"
    UNCONFIRMED = "unconfirmed"
    SILENT = "silent"
    LOST = "lost"
    CLOCK = "clock"
    DEAD_LETTER = "dead_letter"
    BROKER = "broker"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong.

    Attributes:
        text: what, in words, and what to do.
        home: the id of the other home, if it is about one.
    """

    fault: Fault
    text: str
    home: uuid.UUID | None = None


@dataclass(frozen=True, slots=True)
class Examination:
    """This home, the others as they are known here, and what is wrong.

    Attributes:
        id: of this home.
        name: of this home; None: it cooperates with no other.
        control_topic: the topic on which it is told something.
        homes_topic: the topic on which all homes are told something.
        tables: the revision of the tables.
        revision: of the list of who listens here, as other homes were told it; 0 when they were not.
        peers: the other homes.
        problems: what is wrong; empty when nothing is.
    """

    id: uuid.UUID
    name: str | None
    control_topic: str | None
    homes_topic: str
    tables: str | None
    revision: int
    peers: tuple[Peer, ...]
    problems: tuple[Problem, ...]


class Doctor(OpenedDatabase):
    """Looks at one home. Use it in a `with` block, or close it.

    Args:
        database: a PostgreSQL URL.
        schema: the schema of our tables.

    Raises:
        DatabaseError: the URL is not usable. Every method raises it too, when the database cannot be used.
        DefinitionError: the name of the schema is not usable.
    """

    def __init__(self, database: str, *, schema: str = DEFAULT_SCHEMA) -> None:
        """Open nothing yet."""
        super().__init__(database, schema, "doctor")

    def examine(self) -> Examination:
        """Return what this home knows of itself and of others, and what is wrong. Nothing is changed or locked."""
        return self._run(_examine())


class AsyncDoctor(AsyncOpenedDatabase):
    """Looks at one home, for coroutines. Use it in an `async with` block, or close it.

    Args:
        database: a PostgreSQL URL.
        schema: the schema of our tables.

    Raises:
        DatabaseError: the URL is not usable. Every method raises it too, when the database cannot be used.
        DefinitionError: the name of the schema is not usable.
    """

    def __init__(self, database: str, *, schema: str = DEFAULT_SCHEMA) -> None:
        """Open nothing yet."""
        super().__init__(database, schema, "doctor")

    async def examine(self) -> Examination:
        """Return what this home knows of itself and of others, and what is wrong. Nothing is changed or locked."""
        return await self._run(_examine())


async def ask_broker(broker: Broker, found: Examination) -> Examination:
    """Return an examination to which is added what homes need and is missing at the broker. Creates nothing."""
    problems: list[Problem] = []
    named = [(None, found.name), *((one.id, one.name) for one in found.peers)]
    prefix = found.homes_topic.removesuffix("homes")
    for home, name in named:
        if name is None:
            continue
        control = control_subscription(Identity(found.id, name, prefix))
        try:
            resources = await broker.topology((), control, create=False)
        except BrokerError as error:
            problems.append(Problem(Fault.BROKER, f"the broker cannot be asked: {error}"))
            break
        missing = [one.text for one in resources if one.exists is False]
        if missing:
            whose = "this home" if home is None else f"home {name!r}"
            text = f"{whose} is told nothing, for at the broker is missing: {'; '.join(missing)}"
            problems.append(Problem(Fault.BROKER, text, home))
    return replace(found, problems=(*found.problems, *problems))


def _examine() -> Plan[Examination]:
    tables = yield from read_revision()
    if tables in known()[:-1]:  # there may be nothing to look at
        text = f"the tables are at revision {tables}, and this library needs {head()}: scoop-outbox migrate"
        home = yield from read_home()
        return Examination(home, None, None, "", tables, 0, (), (Problem(Fault.TABLES, text),))
    identity = yield from read_identity()
    peers = yield from examine_peers()
    lost, letters = yield from read_trouble(identity)
    moved = identity.name is not None and (yield from is_elsewhere())
    problems = [
        *([Problem(Fault.MOVED, _MOVED)] if moved else []),
        *_about_itself(identity, peers),
        *(problem for peer in peers for problem in _about(peer, identity)),
        *_lost(lost),
        *_dead_letters(letters),
    ]
    return Examination(
        identity.id,
        identity.name,
        identity.control_topic,
        identity.homes_topic,
        tables,
        identity.revision,
        tuple(peers),
        tuple(problems),
    )


def _about_itself(identity: Identity, peers: Sequence[Peer]) -> Iterator[Problem]:
    if identity.name is None and any(one.children or one.runs for one in peers):
        text = "this home has no name, and runs in others are waited for: give it the name that it had (home=)"
        yield Problem(Fault.UNNAMED, text)
    names = Counter(one.name for one in peers if one.name is not None)
    names.update([identity.name] if identity.name is not None else [])
    for name, times in names.items():
        if times > 1:
            ids = [str(one.id) for one in peers if one.name == name]
            ids += [f"{identity.id} (this one)"] if name == identity.name else []
            text = f"{times} homes are called {name!r}, and each gets what another is told: {', '.join(sorted(ids))}"
            yield Problem(Fault.NAMESAKE, text)


def _about(peer: Peer, identity: Identity) -> Iterator[Problem]:
    if peer.name is None:
        text = (
            f"home {peer.id} is not known here, {peer.children} children are waited for there, and {peer.runs} runs "
            "here are for it: it has to say something, or this database was restored from a backup older than that"
        )
        yield Problem(Fault.UNKNOWN, text, peer.id)
        return
    if peer.revision and peer.confirmed < identity.revision:
        text = (
            f"home {peer.name!r} knows revision {peer.confirmed} of who listens here, and {identity.revision} is the "
            "newest: what it launches may not be waited for. Is a worker of it alive, and one here?"
        )
        yield Problem(Fault.UNCONFIRMED, text, peer.id)
    if peer.children and (peer.heard or 0.0) > SILENT and (peer.silent is None or peer.silent > ASKED):
        text = (
            f"home {peer.name!r} was last heard of {_minutes(peer.heard)} ago, and {peer.children} children are waited "
            f"for there, one of them silent for {_minutes(peer.silent)}: is a worker of it alive, and one here?"
        )
        yield Problem(Fault.SILENT, text, peer.id)
    if peer.lag is not None and peer.lag < AHEAD:
        text = f"the clock of home {peer.name!r} is ahead of ours by {-peer.lag:.1f} s or more"
        yield Problem(Fault.CLOCK, text, peer.id)
    if peer.lag is not None and peer.lag > BEHIND:
        text = (
            f"what home {peer.name!r} said last took {_minutes(peer.lag)} until it was taken in here, or its clock is "
            "behind ours by that"
        )
        yield Problem(Fault.CLOCK, text, peer.id)


def _lost(lost: Sequence[LostChildren]) -> Iterator[Problem]:
    for one in lost:
        text = (
            f"home {one.name} did not know {one.children} children when it was asked, and their parents are "
            f"stuck: scoop-outbox show {one.parent}"
        )
        yield Problem(Fault.LOST, text, one.home)


def _dead_letters(rows: Rows) -> Iterator[Problem]:
    what = {"intake": "that other homes have said could not be taken in", "relay": "to other homes were not published"}
    for origin, count, newest in rows:
        text = f"{count} control messages {what[origin]}; the newest: {dead_letter_text(newest)}"
        yield Problem(Fault.DEAD_LETTER, text)


def _minutes(seconds: float | None) -> str:
    return "an unknown time" if seconds is None else f"{seconds / 60:.0f} min"
