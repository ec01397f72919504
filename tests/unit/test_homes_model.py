"""The rules of cooperation between two homes, explored to the last state, against those of one home.

A model of one parent and one child: what the rows of `child`, `foreign_child` and `run` know, and who changes them
when. Whatever was said is heard at some time, and may be heard again at any time: that is a broker that loses nothing,
doubles and reorders. All states that can be reached are looked at. Tests of the statements themselves are in
tests/homes/test_control_messages.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pytest


class Said(NamedTuple):
    """A control message about the child, or, without a number, the message that it handles."""

    what: str
    generation: int = 0


NOTHING: frozenset[Said] = frozenset()


class State(NamedTuple):
    """What both homes know.

    Attributes:
        parent: where the parent stands: `waits`, `gives up`, `fails`, or how it has ended.
        row: what the parent's home knows of the child.
        open: whether the parent waits for it.
        generation: the number of the last report that counted.
        healing: whether the child goes on after its parent has stopped because of it.
        child: where the run stands; `tombstone`: it never starts; empty: nothing is known of it.
        asked: whether it has been asked to give up.
        reported: the number of the last report.
        mended: how often an operator has tried.
        said: all that was ever said.
        owed: what of it has not been heard yet.
        lost: how often something was lost.
    """

    parent: str = "waits"
    row: str = "waiting"
    open: bool = True
    generation: int = 0
    healing: bool = False
    child: str = ""
    asked: bool = False
    reported: int = 0
    mended: int = 0
    said: frozenset[Said] = frozenset({Said("message")})
    owed: frozenset[Said] = frozenset({Said("message")})
    lost: int = 0

    def say(self, one: Said) -> State:
        return self._replace(said=self.said | {one}, owed=self.owed | {one})


KNOWN = {"cancelled": "tombstone"}
ENDED = ("committed", "rolled_back", "rollback_failed")


class TwoHomes:
    """How it goes on from a state; subclasses leave a rule out.

    Attributes:
        mending: how often an operator tries to mend what could not be undone.
    """

    mending = 2

    def may(self, state: State) -> Iterator[State]:
        """All states that may come next."""
        yield from self.must(state)
        if state.parent == "waits" and state.open and state.row in ("waiting", "started"):
            yield self.cancels(state._replace(parent="gives up"))
        if state.child == "rollback_failed" and state.mended < self.mending:
            yield self.reports(state._replace(mended=state.mended + 1), "rolling_back")
        for one in state.said - state.owed:
            yield self.hears(state, one)

    def must(self, state: State) -> Iterator[State]:
        """States one of which comes at some time."""
        yield from self.parent_acts(state)
        yield from self.child_acts(state)
        for one in state.owed:
            yield self.hears(state._replace(owed=state.owed - {one}), one)

    def parent_acts(self, state: State) -> Iterator[State]:
        if state.open or state.parent in ("committed", "rolled_back"):
            return
        if state.parent == "rollback_failed":
            if state.healing and state.row == "rolled_back":
                yield state._replace(parent="rolled_back", healing=False)
        elif state.row == "committed" and state.parent == "waits":
            yield state._replace(parent="committed")
            yield state._replace(parent="fails")
        elif state.row == "committed":
            yield self.orders_back(state)
        elif state.row == "rollback_failed":
            yield state._replace(parent="rollback_failed")
        else:
            yield state._replace(parent="rolled_back")

    def child_acts(self, state: State) -> Iterator[State]:
        if state.child == "running":
            ends = ENDED[1:] if state.asked else ENDED
            for end in ends:
                yield self.reports(state, end)
        elif state.child == "rolling_back":
            for end in ENDED[1:]:
                yield self.reports(state, end)

    def reports(self, state: State, child: str) -> State:
        return self.tells(state._replace(child=child), child)

    def tells(self, state: State, what: str) -> State:
        number = state.reported + 1
        return state._replace(reported=number).say(Said(what, number))

    def cancels(self, state: State) -> State:
        return state._replace(row="cancelling").say(Said("cancel", state.generation))

    def orders_back(self, state: State) -> State:
        return state._replace(row="rolling_back", open=True).say(Said("roll_back", state.generation))

    def hears(self, state: State, one: Said) -> State:
        match one.what:
            case "message":
                return state if state.child else self.tells(state._replace(child="running"), "started")
            case "cancel":
                return self.is_cancelled(state, one)
            case "roll_back":
                assert state.child not in ("", "tombstone"), "nobody orders back what has never been there"
                return state._replace(child="rolling_back") if state.child == "committed" else state
            case _:
                return self.counts(state, one) if self.is_news(state, one) else state

    def is_cancelled(self, state: State, order: Said) -> State:
        if not state.child:
            return self.tells(state._replace(child="tombstone", reported=order.generation), "cancelled")
        return state._replace(asked=True) if state.child == "running" else state

    def is_news(self, state: State, news: Said) -> bool:
        """As `apply_news` finds the rows of which a report is news."""
        return news.generation > state.generation and (state.open or self.goes_back(state, news))

    def goes_back(self, state: State, news: Said) -> bool:
        """Whether what has ended goes on, which is only to be undone."""
        undone = news.what in ("rolling_back", "rolled_back", "rollback_failed")
        return undone and state.row in ("committed", "rollback_failed")

    def counts(self, state: State, news: Said) -> State:
        """As `apply_news` changes them."""
        row = state.row if news.what == "started" and state.row != "waiting" else news.what
        anew = not state.open or news.what == "rolling_back"
        return state._replace(
            row=row,
            open=news.what in ("started", "rolling_back"),
            generation=news.generation,
            healing=state.parent == "rollback_failed" if anew else state.healing,
        )


class OneHome(TwoHomes):
    """Parent and child share a home: whatever one of them does, the other knows in the same transaction."""

    def must(self, state: State) -> Iterator[State]:
        yield from self.parent_acts(state)
        yield from self.child_acts(state)
        if not state.child and state.row == "waiting":
            yield state._replace(child="running", row="started", said=NOTHING, owed=NOTHING)

    def cancels(self, state: State) -> State:
        if state.row == "waiting":
            return state._replace(row="cancelled", open=False, child="tombstone", said=NOTHING, owed=NOTHING)
        return state._replace(row="cancelling", asked=True)

    def orders_back(self, state: State) -> State:
        return state._replace(row="rolling_back", open=True, child="rolling_back")

    def tells(self, state: State, what: str) -> State:
        return self.counts(state, Said(what))


def explored(rules: TwoHomes) -> set[State]:
    """All states that can be reached."""
    begin = State(said=NOTHING) if isinstance(rules, Losing) else State()
    found, ahead = {begin}, [begin]
    while ahead:
        for one in set(rules.may(ahead.pop())) - found:
            found.add(one)
            ahead.append(one)
    return found


def final(rules: TwoHomes, states: Iterable[State]) -> set[State]:
    """Those of them from which it need not go on: all has been heard, and nobody has anything to do."""
    return {one for one in states if not set(rules.must(one)) - {one}}


def ends(states: Iterable[State]) -> set[tuple[str, str, str, int]]:
    """How parent and child end, what the one knows of the other, and how often somebody had to mend something."""
    return {(one.parent, one.row, one.child, one.mended) for one in states if one.parent in ENDED and not one.open}


def wrong(rules: TwoHomes, states: set[State]) -> list[State]:
    """States that must not be."""
    return [one for one in states if not is_sound(one)] + [
        one
        for one in final(rules, states)
        if one.open
        or one.parent not in ENDED
        or not agrees(one)
        or any(rules.hears(one, old) != one for old in one.said)
    ]


def agrees(state: State) -> bool:
    """Tell whether the parent's home knows what the child's home does, and the parent has ended accordingly."""
    stuck = state.parent == "rollback_failed"
    return stuck is (state.row == "rollback_failed") and state.child == KNOWN.get(state.row, state.row)


def is_sound(state: State) -> bool:
    """Tell what must hold at any time: who has ended has nothing below him that may still change by itself."""
    if state.parent == "committed":
        return state.child == "committed"
    if state.parent == "rolled_back":
        return state.child in ("rolled_back", "tombstone")
    return not (state.child == "tombstone" and any(one.what == "started" for one in state.said))


def test_two_homes_end_as_one_home_does() -> None:
    two, one = explored(TwoHomes()), explored(OneHome())
    assert wrong(TwoHomes(), two) == []
    assert ends(final(TwoHomes(), two)) == ends(final(OneHome(), one))
    assert len(ends(final(TwoHomes(), two))) > 5
    print(f"{len(two)} states, {len(final(TwoHomes(), two))} of them final")


def test_there_is_always_a_way_to_the_end() -> None:
    """No circle without a way out."""
    assert lost(TwoHomes(), explored(TwoHomes())) == set()


class Losing(TwoHomes):
    """Homes whose control channels lose something, and who ask after what has been silent for long.

    What is heard is forgotten: nothing comes twice, for that there are enough states above. Nobody asks after a child
    that could not be undone; if it is mended after its parent has stopped, and that is lost, somebody skips it.
    """

    mending = 1

    losses = 1

    def may(self, state: State) -> Iterator[State]:
        for one in super().may(state):
            yield one._replace(said=NOTHING)
        if state.open and not state.owed - {Said("message")}:  # which has been on its way for long
            yield self.asks(state)._replace(said=NOTHING)
        if state.lost < self.losses and state.row != "rollback_failed":
            for heard in state.owed - {Said("message")}:
                yield state._replace(owed=state.owed - {heard}, lost=state.lost + 1)

    def must(self, state: State) -> Iterator[State]:
        for one in super().must(state):
            yield one._replace(said=NOTHING)
        if state.open and not state.owed:
            yield self.asks(state)._replace(said=NOTHING)

    def asks(self, state: State) -> State:
        """Ask where a silent child stands, and say again what it was told."""
        asked = state.say(Said("where", state.generation))
        told = {"cancelling": "cancel", "rolling_back": "roll_back"}.get(state.row)
        return asked if told is None else asked.say(Said(told, state.generation))

    def hears(self, state: State, one: Said) -> State:
        if one.what == "where":
            return self.answers(state, one)
        if one.what == "roll_back" and state.child != "committed":
            return state
        return super().hears(state, one)

    def answers(self, state: State, question: Said) -> State:
        if not state.child:  # its message may be on its way
            return state
        return state.say(Said(STANDING.get(state.child, state.child), state.reported))


STANDING = {"running": "started", "tombstone": "cancelled"}


def lost(rules: TwoHomes, states: set[State]) -> set[State]:
    """States from which no final one is reached, though nothing more is lost and nobody mends anything."""
    before: dict[State, set[State]] = {one: set() for one in states}
    for one in states:
        for after in rules.must(one):
            before[after].add(one)
    ahead = list(final(rules, states))
    reached = set(ahead)
    while ahead:
        for one in before[ahead.pop()] - reached:
            reached.add(one)
            ahead.append(one)
    return states - reached


def test_what_is_lost_comes_back() -> None:
    rules = Losing()
    states = explored(rules)
    print(f"{len(states)} states, {len(final(rules, states))} of them final")
    assert wrong(rules, states) == []
    assert lost(rules, states) == set()
    assert ends(final(rules, states)) == {one for one in ends(final(OneHome(), explored(OneHome()))) if one[-1] < 2}


class OnlyAsking(Losing):
    """Who asks does not say again what the child was told."""

    def asks(self, state: State) -> State:
        return state.say(Said("where", state.generation))


class OnlyTelling(Losing):
    """Who says again what the child was told does not ask."""

    def asks(self, state: State) -> State:
        told = {"cancelling": "cancel", "rolling_back": "roll_back"}.get(state.row)
        return state if told is None else state.say(Said(told, state.generation))


class Presuming(Losing):
    """Who has never heard of a child says that it never will be."""

    def answers(self, state: State, question: Said) -> State:
        return super().answers(state, question) if state.child else state.say(Said("rollback_failed", 1))


@pytest.mark.parametrize("rules", [OnlyAsking, OnlyTelling, Presuming])
def test_neither_can_what_brings_it_back(rules: type[Losing]) -> None:
    states = explored(rules())
    assert wrong(rules(), states) or lost(rules(), states)


class WithoutNumbers(TwoHomes):
    """Reports count in whatever order they come."""

    def is_news(self, state: State, news: Said) -> bool:
        return state.open or self.goes_back(state, news)


class WithoutTombstones(TwoHomes):
    """A cancelled child that has not started leaves nothing behind."""

    def is_cancelled(self, state: State, order: Said) -> State:
        if not state.child:
            return state.say(Said("cancelled", order.generation + 1))
        return super().is_cancelled(state, order)


class InTurn(TwoHomes):
    """What has ended goes on only when it is told that it does, and not when it is told how that has ended."""

    def goes_back(self, state: State, news: Said) -> bool:
        return news.what == "rolling_back" and state.row in ("committed", "rollback_failed")


class WithoutHealing(TwoHomes):
    """That a child goes on after its parent has stopped is forgotten with its next report."""

    def counts(self, state: State, news: Said) -> State:
        healing = news.what == "rolling_back" and state.parent == "rollback_failed"
        return super().counts(state, news)._replace(healing=healing)


class Impatient(TwoHomes):
    """Who gives up does not wait for the answer of the home of a child that may not have started."""

    def cancels(self, state: State) -> State:
        after = super().cancels(state)
        return after._replace(row="cancelled", open=False) if state.row == "waiting" else after


@pytest.mark.parametrize("rules", [WithoutNumbers, WithoutTombstones, InTurn, WithoutHealing, Impatient])
def test_none_of_the_rules_can_be_left_out(rules: type[TwoHomes]) -> None:
    assert wrong(rules(), explored(rules()))
