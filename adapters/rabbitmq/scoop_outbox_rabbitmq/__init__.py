"""RabbitMQ as the broker of scoop_outbox. See docs/rabbitmq.md."""

from scoop_outbox_rabbitmq.broker import RabbitBroker, open_broker

__all__ = ["RabbitBroker", "open_broker"]
