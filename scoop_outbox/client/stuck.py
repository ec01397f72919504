"""Stuck runs: what a program does about runs that are parked, or whose rollback has failed."""

from __future__ import annotations

import asyncio
import time
import uuid

from scoop_outbox._log import get_logger
from scoop_outbox.answers import Answer
from scoop_outbox.client.service import Service
from scoop_outbox.core.plans import stuck
from scoop_outbox.core.plans.stuck import PAUSES, Action, Origin
from scoop_outbox.core.statement import Plan

log = get_logger(__name__)


async def act(service: Service, action: Action, run_id: uuid.UUID, note: str | None, source: str | None) -> Answer:
    """Do what `Scoop.retry`, `Scoop.skip` and `Scoop.abandon` say."""
    answer = Answer.BUSY
    for pause in (0.0, *PAUSES):
        await asyncio.sleep(pause)
        async with service.home.driver() as driver:
            answer = await driver.run(_plan(service, action, run_id, note, source))
        if answer is not Answer.BUSY:
            break
    return _logged(service, action, run_id, answer)


def act_sync(service: Service, action: Action, run_id: uuid.UUID, note: str | None, source: str | None) -> Answer:
    """Do what `Scoop.retry_sync`, `Scoop.skip_sync` and `Scoop.abandon_sync` say."""
    answer = Answer.BUSY
    for pause in (0.0, *PAUSES):
        time.sleep(pause)
        with service.home.blocking_driver() as driver:
            answer = driver.run(_plan(service, action, run_id, note, source))
        if answer is not Answer.BUSY:
            break
    return _logged(service, action, run_id, answer)


def _plan(service: Service, action: Action, run_id: uuid.UUID, note: str | None, source: str | None) -> Plan[Answer]:
    origin = Origin(source or service.name, note)
    return stuck.carry_out(action, run_id, origin, service.home.failures, service.hints)


def _logged(service: Service, action: Action, run_id: uuid.UUID, answer: Answer) -> Answer:
    log.info(
        "run: action requested (%s, service %s, run %s: %s)",
        *(action, service.name, run_id, answer),
        extra={"service": service.name, "run_id": run_id},
    )
    return answer
