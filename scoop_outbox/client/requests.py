"""Requests: what a program asks of runs."""

from __future__ import annotations

import uuid

from scoop_outbox._log import get_logger
from scoop_outbox.answers import Answer, RollbackAnswer
from scoop_outbox.client.service import Service
from scoop_outbox.core.plans import requests, rollback
from scoop_outbox.core.plans.rollback import IfActive, judge, store
from scoop_outbox.core.statement import Plan
from scoop_outbox.store.connect import map_missing_tables
from scoop_outbox.store.external_transaction import AsyncTransaction, Transaction, run_joined, run_joined_blocking

log = get_logger(__name__)


async def cancel(service: Service, target: uuid.UUID, reason: str | None, source: str | None) -> Answer:
    """Do what `Scoop.cancel` says."""
    async with service.home.driver() as driver:
        answer = await driver.run(_cancel(service, target, reason, source))
    _log_cancellation(service, target, answer)
    return answer


def cancel_sync(service: Service, target: uuid.UUID, reason: str | None, source: str | None) -> Answer:
    """Do what `Scoop.cancel_sync` says."""
    with service.home.blocking_driver() as driver:
        answer = driver.run(_cancel(service, target, reason, source))
    _log_cancellation(service, target, answer)
    return answer


def _cancel(service: Service, target: uuid.UUID, reason: str | None, source: str | None) -> Plan[Answer]:
    return requests.cancel(target, reason, source or service.name, service.home.failures, service.hints)


async def roll_back(
    service: Service,
    target: uuid.UUID,
    reason: str | None,
    source: str | None,
    if_active: IfActive,
    session: AsyncTransaction | None,
) -> RollbackAnswer:
    """Do what `Scoop.rollback` says."""
    home = service.home
    async with home.driver() as driver:
        plan = _roll_back(service, target, reason, source, if_active) if session is None else judge(target, if_active)
        answered = await driver.run(plan)
    if session is not None and answered.answer is Answer.ACCEPTED:
        storing = store(target, reason, source or service.name, home.failures)
        with map_missing_tables(home.url):
            stored = await run_joined(storing, session, home.queries, _nobody_is_told, home.whose)
        answered = answered if stored else RollbackAnswer(Answer.ALREADY_REQUESTED)
    _log_rollback(service, target, answered.answer)
    return answered


def roll_back_sync(
    service: Service,
    target: uuid.UUID,
    reason: str | None,
    source: str | None,
    if_active: IfActive,
    session: Transaction | None,
) -> RollbackAnswer:
    """Do what `Scoop.rollback_sync` says."""
    home = service.home
    with home.blocking_driver() as driver:
        plan = _roll_back(service, target, reason, source, if_active) if session is None else judge(target, if_active)
        answered = driver.run(plan)
    if session is not None and answered.answer is Answer.ACCEPTED:
        storing = store(target, reason, source or service.name, home.failures)
        with map_missing_tables(home.url):
            stored = run_joined_blocking(storing, session, home.queries, _nobody_is_told, home.whose)
        answered = answered if stored else RollbackAnswer(Answer.ALREADY_REQUESTED)
    _log_rollback(service, target, answered.answer)
    return answered


def _nobody_is_told() -> None:
    """Workers find the request by themselves."""


def _roll_back(
    service: Service, target: uuid.UUID, reason: str | None, source: str | None, if_active: IfActive
) -> Plan[RollbackAnswer]:
    asker = source or service.name
    return rollback.roll_back(target, reason, asker, if_active, service.home.failures, service.hints)


def _log_cancellation(service: Service, target: uuid.UUID, answer: Answer) -> None:
    log.info(
        "run: cancellation requested (service %s, message or run %s: %s)",
        *(service.name, target, answer),
        extra={"service": service.name, "target": target},
    )


def _log_rollback(service: Service, target: uuid.UUID, answer: Answer) -> None:
    log.info(
        "run: rollback requested (service %s, message or run %s: %s)",
        *(service.name, target, answer),
        extra={"service": service.name, "target": target},
    )
