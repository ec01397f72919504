"""Kafka as the broker of scoop_outbox: the entry point of the scheme `kafka`."""

from scoop_outbox_kafka.broker import KafkaBroker, open_broker

__all__ = ["KafkaBroker", "open_broker"]
