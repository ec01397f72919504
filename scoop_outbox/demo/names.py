"""What topics and consumer groups are called: a broker that others use too must never mix theirs with ours.

With the built-in broker they have plain names. At a broker each demonstration has names of its own, so that neither
another one nor what a killed one has left there can be taken for it. Its processes know them by the environment.
"""

from __future__ import annotations

import os
import secrets

VARIABLE = "SCOOP_OUTBOX_DEMO_PREFIX"


def topic(name: str) -> str:
    """Return what a topic is called in this demonstration."""
    return os.environ.get(VARIABLE, "") + name


def group(name: str) -> str:
    """Return what a consumer group, or a queue, is called in this demonstration."""
    prefix = os.environ.get(VARIABLE, "")
    return f"{prefix[:-1]}.{name}" if prefix else name


def choose(broker: str | None) -> None:
    """Choose the names, before the services are imported: they declare their topics then.

    Args:
        broker: the broker's name or URL; None is the built-in one.
    """
    os.environ.pop(VARIABLE, None)
    if broker is not None and not broker.startswith("postgres"):
        # For RabbitMQ, what comes before a slash is the exchange.
        separator = "/" if broker.startswith(("rabbitmq", "amqp")) else "."
        os.environ[VARIABLE] = f"demo-shop-{secrets.token_hex(3)}{separator}"


def prefix() -> str:
    """Return what all of these names begin with; nothing, with the built-in broker."""
    return os.environ.get(VARIABLE, "")[:-1]
