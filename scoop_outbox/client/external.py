"""External participants: what a program says about the work of one, from outside."""

from __future__ import annotations

from scoop_outbox._log import get_logger
from scoop_outbox.answers import Answer
from scoop_outbox.client.service import Service
from scoop_outbox.core.plans.external import Word, judge, say, say_joined
from scoop_outbox.store.connect import map_missing_tables
from scoop_outbox.store.external_transaction import AsyncTransaction, Transaction, run_joined, run_joined_blocking

log = get_logger(__name__)


async def settle(service: Service, word: Word, session: AsyncTransaction | None) -> Answer:
    """Do what `Scoop.complete` and `Scoop.fail` say."""
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


def settle_sync(service: Service, word: Word, session: Transaction | None) -> Answer:
    """Do what `Scoop.complete_sync` and `Scoop.fail_sync` say."""
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
