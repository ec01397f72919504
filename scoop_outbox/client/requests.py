"""Requests: what a program asks of runs."""

from __future__ import annotations

import uuid

from scoop_outbox._log import get_logger
from scoop_outbox.answers import Answer, RollbackAnswer
from scoop_outbox.client.service import Service
from scoop_outbox.core.plans import requests, rollback
from scoop_outbox.core.plans.rollback import IfActive
from scoop_outbox.core.statement import Plan

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
    service: Service, target: uuid.UUID, reason: str | None, source: str | None, if_active: IfActive
) -> RollbackAnswer:
    """Do what `Scoop.rollback` says."""
    async with service.home.driver() as driver:
        answered = await driver.run(_roll_back(service, target, reason, source, if_active))
    _log_rollback(service, target, answered.answer)
    return answered


def roll_back_sync(
    service: Service, target: uuid.UUID, reason: str | None, source: str | None, if_active: IfActive
) -> RollbackAnswer:
    """Do what `Scoop.rollback_sync` says."""
    with service.home.blocking_driver() as driver:
        answered = driver.run(_roll_back(service, target, reason, source, if_active))
    _log_rollback(service, target, answered.answer)
    return answered


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
