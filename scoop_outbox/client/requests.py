"""Requests: what a program asks of runs that go on."""

from __future__ import annotations

import uuid

from scoop_outbox._log import get_logger
from scoop_outbox.answers import Answer
from scoop_outbox.client.service import Service
from scoop_outbox.core.plans import requests
from scoop_outbox.core.statement import Plan

log = get_logger(__name__)


async def cancel(service: Service, target: uuid.UUID, reason: str | None, source: str | None) -> Answer:
    """Do what `Scoop.cancel` says."""
    async with service.home.driver() as driver:
        answer = await driver.run(_cancel(service, target, reason, source))
    return _logged(service, target, answer)


def cancel_sync(service: Service, target: uuid.UUID, reason: str | None, source: str | None) -> Answer:
    """Do what `Scoop.cancel_sync` says."""
    with service.home.blocking_driver() as driver:
        answer = driver.run(_cancel(service, target, reason, source))
    return _logged(service, target, answer)


def _cancel(service: Service, target: uuid.UUID, reason: str | None, source: str | None) -> Plan[Answer]:
    return requests.cancel(target, reason, source or service.name, service.home.failures, service.hints)


def _logged(service: Service, target: uuid.UUID, answer: Answer) -> Answer:
    log.info(
        "run: cancellation requested (service %s, message or run %s: %s)",
        *(service.name, target, answer),
        extra={"service": service.name, "target": target},
    )
    return answer
