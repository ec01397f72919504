"""External participants: what a program says about the work of one, from outside."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any, Unpack

from scoop_outbox._log import get_logger
from scoop_outbox.answers import Answer
from scoop_outbox.client.service import Service
from scoop_outbox.core.plans.external import ExternalOrName, Word, completion, failing, judge, say, say_joined
from scoop_outbox.external import CompleteOptions, External, FailOptions
from scoop_outbox.store.connect import map_missing_tables
from scoop_outbox.store.external_transaction import AsyncTransaction, Transaction, run_joined, run_joined_blocking

log = get_logger(__name__)


class AsyncCompleteOptions(CompleteOptions, total=False):
    """What `Scoop.complete` is told."""

    session: AsyncTransaction | None


class BlockingCompleteOptions(CompleteOptions, total=False):
    """What `Scoop.complete_sync` is told."""

    session: Transaction | None


class AsyncFailOptions(FailOptions, total=False):
    """What `Scoop.fail` is told."""

    session: AsyncTransaction | None


class BlockingFailOptions(FailOptions, total=False):
    """What `Scoop.fail_sync` is told."""

    session: Transaction | None


async def complete(
    of: Service,
    target: uuid.UUID,
    name: ExternalOrName,
    *,
    session: AsyncTransaction | None = None,
    **said: Unpack[CompleteOptions],
) -> Answer:
    """Do what `Scoop.complete` says."""
    return await _settle(of, _completed(of, target, name, **said), session)


def complete_sync(
    of: Service,
    target: uuid.UUID,
    name: ExternalOrName,
    *,
    session: Transaction | None = None,
    **said: Unpack[CompleteOptions],
) -> Answer:
    """Do what `Scoop.complete_sync` says."""
    return _settle_sync(of, _completed(of, target, name, **said), session)


async def fail(
    of: Service,
    target: uuid.UUID,
    name: ExternalOrName,
    *,
    session: AsyncTransaction | None = None,
    **said: Unpack[FailOptions],
) -> Answer:
    """Do what `Scoop.fail` says."""
    return await _settle(of, _failed(of, target, name, **said), session)


def fail_sync(
    of: Service,
    target: uuid.UUID,
    name: ExternalOrName,
    *,
    session: Transaction | None = None,
    **said: Unpack[FailOptions],
) -> Answer:
    """Do what `Scoop.fail_sync` says."""
    return _settle_sync(of, _failed(of, target, name, **said), session)


def _completed(
    of: Service,
    target: uuid.UUID,
    name: ExternalOrName,
    *,
    result: Any = None,
    service: str | None = None,
    source: str | None = None,
) -> Word:
    return _declared(of, completion(target, name, result, service, source or of.name, of.servers.limits))


def _failed(
    of: Service,
    target: uuid.UUID,
    name: ExternalOrName,
    *,
    reason: str | None = None,
    error: BaseException | None = None,
    service: str | None = None,
    source: str | None = None,
) -> Word:
    return _declared(of, failing(target, name, reason, error, service, source or of.name))


def _declared(of: Service, word: Word) -> Word:
    return replace(word, declared=of.name) if isinstance(of.sagas.get(word.name), External) else word


async def _settle(service: Service, word: Word, session: AsyncTransaction | None) -> Answer:
    home = service.home
    async with home.driver() as driver:
        if session is None:
            return _logged(service, word, await driver.run(say(word, home.failures, service.hints)))
        whose = await driver.run(judge(word))
    if whose.answer is not Answer.ACCEPTED or whose.run is None:
        return _logged(service, word, whose.answer)
    if whose.to_come:
        return _logged(service, word, Answer.NOT_YET)
    plan = say_joined(word, whose.run, home.failures)
    with map_missing_tables(home.url):
        said = await run_joined(plan, session, home.queries, _nobody_is_told, home.whose)
    if said:
        return _logged(service, word, Answer.ACCEPTED)
    async with home.driver() as driver:  # somebody was faster
        return _logged(service, word, (await driver.run(judge(word))).answer)


def _settle_sync(service: Service, word: Word, session: Transaction | None) -> Answer:
    home = service.home
    with home.blocking_driver() as driver:
        if session is None:
            return _logged(service, word, driver.run(say(word, home.failures, service.hints)))
        whose = driver.run(judge(word))
    if whose.answer is not Answer.ACCEPTED or whose.run is None:
        return _logged(service, word, whose.answer)
    if whose.to_come:
        return _logged(service, word, Answer.NOT_YET)
    plan = say_joined(word, whose.run, home.failures)
    with map_missing_tables(home.url):
        said = run_joined_blocking(plan, session, home.queries, _nobody_is_told, home.whose)
    if said:
        return _logged(service, word, Answer.ACCEPTED)
    with home.blocking_driver() as driver:  # as above
        return _logged(service, word, driver.run(judge(word)).answer)


def _nobody_is_told() -> None:
    """Workers find the request by themselves."""


def _logged(service: Service, word: Word, answer: Answer) -> Answer:
    log.info(
        "run: work of an external participant ended (%s, service %s, message or run %s, saga %s: %s)",
        *(word.kind, service.name, word.target, word.name, answer),
        extra={"service": service.name, "target": word.target, "saga": word.name},
    )
    return answer
