"""The settings of a Kafka whose brokers also are its controllers."""

import base64
import secrets
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from scoop_outbox.devservers._kafka_node import KafkaNode
from scoop_outbox.devservers._server import LOOPBACK

SETTINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "process.roles": "broker,controller",
        "listener.security.protocol.map": "CLIENT:PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "INTERNAL",
        "auto.create.topics.enable": "false",
        # Three seconds that every new group would wait for further members.
        "group.initial.rebalance.delay.ms": "0",
        # A broker that was killed is let in again only once it has been missed.
        "broker.session.timeout.ms": "3000",
        "broker.heartbeat.interval.ms": "500",
        "group.min.session.timeout.ms": "1000",
        # With the newer protocol of groups it is the broker that says how soon a member hears of others.
        "group.consumer.min.heartbeat.interval.ms": "500",
        "group.consumer.heartbeat.interval.ms": "500",
        # Every partition is a folder with files: with the usual 50 of each the first group waits for seconds.
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.num.partitions": "1",
        "share.coordinator.state.topic.num.partitions": "1",
        "log.retention.ms": "-1",
        "log.cleaner.dedupe.buffer.size": "4194304",
    }
)


def new_cluster_id() -> str:
    """Return an id as Kafka makes them."""
    return base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")


def settings_of_nodes(nodes: Sequence[KafkaNode]) -> dict[str, str]:
    """Return the settings that all nodes of a cluster share."""
    voters = ",".join(f"{node.number}@{LOOPBACK}:{node.ports.controller}" for node in nodes)
    return {**SETTINGS, "controller.quorum.voters": voters, **replication(len(nodes))}


def replication(nodes: int) -> dict[str, str]:
    """Return how often everything is kept, with so many nodes."""
    replicas, in_sync = str(min(nodes, 3)), str(min(nodes, 3) // 2 + 1)
    return {
        "default.replication.factor": replicas,
        "min.insync.replicas": in_sync,
        "offsets.topic.replication.factor": replicas,
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": in_sync,
    }
