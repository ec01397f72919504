"""Metrics: what a process counts, in the form that Prometheus reads. Nothing in them tells what messages hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from scoop_outbox.core.plans.peers import HomeGlance, LostChildren
from scoop_outbox.daemon.counters import Histogram, RunCounters
from scoop_outbox.daemon.daemons import Daemons
from scoop_outbox.daemon.intake.intake import Intake
from scoop_outbox.daemon.maintenance import Maintenance
from scoop_outbox.daemon.monitoring.snapshot import Snapshot
from scoop_outbox.daemon.relay.relay import Relay
from scoop_outbox.daemon.worker.worker import Worker

_PREFIX = "scoop_outbox_"


def exposition(daemons: Daemons | None, seen: Snapshot, accept: str) -> tuple[str, bytes]:
    """Return the kind and the text of all metrics.

    Args:
        daemons: whose; None while they start.
        seen: what was seen in the database.
        accept: which kinds are understood, as in the header of that name.
    """
    registry = CollectorRegistry()
    ProcessCollector(namespace=_PREFIX.rstrip("_"), registry=registry)
    registry.register(_Collector(daemons, seen))
    encode, kind = choose_encoder(accept)
    return kind, encode(registry)


class _Collector(Collector):
    def __init__(self, daemons: Daemons | None, seen: Snapshot) -> None:
        self._daemons = daemons
        self._seen = seen

    def describe(self) -> Iterator[Metric]:
        """Name nothing beforehand: this collector is asked once."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Read everything."""
        yield from _database(self._seen)
        yield from _homes(self._seen.homes)
        yield from _lost(self._seen.lost)
        if self._daemons is not None:
            if self._daemons.relay is not None:
                yield from _relay(self._daemons.relay)
            if self._daemons.intake is not None:
                yield from _intake(self._daemons.intake)
            if self._daemons.control is not None:
                yield from _control(self._daemons.control)
            if self._daemons.worker is not None:
                yield from _worker(self._daemons.worker)
                yield from _runs(self._daemons.service, self._daemons.worker.reports.counters)
            if self._daemons.maintenance is not None:
                yield from _maintenance(self._daemons.maintenance)
            yield _dead_letters(self._daemons)
            yield _unhandled(self._daemons)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(_PREFIX + name, text, value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(_PREFIX + name, text, value)


def _database(seen: Snapshot) -> Iterator[Metric]:
    yield _gauge("database_up", "1 if the database can be used.", float(seen.problem is None))
    if seen.waiting is not None:
        yield _gauge("outbox_rows", "Messages in the outbox, counted up to 10000.", seen.waiting)
        yield _gauge("outbox_oldest_age_seconds", "Age of the oldest message in the outbox.", seen.oldest)
    if seen.parked is not None:
        yield _gauge("runs_parked", "Parked runs of this service, counted up to 10000.", seen.parked)
        yield _gauge(
            "runs_rollback_failed",
            "Runs of this service whose rollback failed, counted up to 10000.",
            seen.stuck,
        )
        yield _gauge(
            "runs_interrupted", "Interrupted runs without progress since, counted up to 10000.", seen.interrupted
        )
    if seen.due is not None:
        yield _gauge("due_work", "Runs of this service that are due now, counted up to 10000.", seen.due)


def _relay(relay: Relay) -> Iterator[Metric]:
    counters = relay.counters
    yield _gauge("relay_shards", "Shards of the outbox that this relay owns.", relay.shards)
    yield _gauge("relay_problem", "1 while /readyz names a problem of the relay.", relay.problem is not None)
    published = CounterMetricFamily(_PREFIX + "published", "Messages acknowledged by the broker.", None, ["topic"])
    for topic, count in counters.published.copy().items():
        published.add_metric([topic], count)
    yield published
    yield _histogram("publish_seconds", "Seconds to publish a batch.", counters.seconds)
    yield _counter("publish_retriable", "Failed attempts to publish a message that are retried.", counters.retriable)


def _maintenance(maintenance: Maintenance) -> Iterator[Metric]:
    counts = maintenance.counts
    yield _counter("pruned_hierarchies", "Hierarchies pruned by this process.", counts.hierarchies)
    yield _counter("pruned_runs", "Runs of hierarchies pruned by this process.", counts.runs)
    yield _counter("pruned_unhandled", "Messages that nobody handled, pruned by this process.", counts.unhandled)
    yield _counter("erased_payloads", "Hierarchies whose payload was erased by this process.", counts.erased)
    yield _counter("archive_failures", "Calls of archive callbacks that raised.", maintenance.failed)


def _intake(intake: Intake) -> Iterator[Metric]:
    yield _counter("intake_taken_in", "Messages taken in, duplicates included.", intake.counters.taken_in)
    yield _counter("intake_forwarded", "Messages passed on to another home of the service.", intake.counters.forwarded)
    yield _gauge("intake_paused", "1 while intake is paused (backpressure, or no database).", intake.paused)
    yield _gauge("intake_problem", "1 while /readyz names a problem of intake.", intake.problem is not None)


def _control(control: Intake) -> Iterator[Metric]:
    yield _counter("control_taken_in", "Control messages taken in, duplicates included.", control.counters.taken_in)
    yield _gauge("control_paused", "1 while control messages are not taken in (no database).", control.paused)
    yield _gauge(
        "control_problem", "1 while /readyz names a problem of the control channel.", control.problem is not None
    )


def _homes(homes: Sequence[HomeGlance] | None) -> Iterator[Metric]:
    """Yield what is known of other homes, those of one name together: a label stands for one value."""
    if homes is None:
        return
    children: Counter[str] = Counter()
    heard: dict[str, float] = {}
    lags: dict[str, float] = {}
    for one in homes:
        children[one.name] += one.children
        if one.heard is not None:
            heard[one.name] = max(one.heard, heard.get(one.name, 0.0))
        if one.lag is not None:
            lags[one.name] = max(one.lag, lags.get(one.name, one.lag), key=abs)
    yield _by_home("children_open", "Children waited for in a home, among 10000 open ones.", children)
    yield _by_home("heard_seconds", "Seconds since a home was last heard of.", heard)
    yield _by_home("lag_seconds", "Seconds from what a home says to its intake here, by the clocks of both.", lags)
    unconfirmed = sum(one.unconfirmed for one in homes)
    yield _gauge("home_unconfirmed", "Homes that do not know yet who listens here.", unconfirmed)


def _lost(lost: Sequence[LostChildren] | None) -> Iterator[Metric]:
    if lost is None:
        return
    children: Counter[str] = Counter()
    for one in lost:
        children[one.name] += one.children
    yield _by_home(
        "children_lost", "Children that their home did not know when asked: their parents are stuck.", children
    )


def _by_home(name: str, text: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"{_PREFIX}home_{name}", text, None, ["home"])
    for home, value in values.items():
        family.add_metric([home], value)
    return family


def _worker(worker: Worker) -> Iterator[Metric]:
    counters = worker.counters
    yield _gauge("worker_busy_slots", "Slots in use: runs being executed.", worker.busy)
    yield _gauge("worker_slow_slots", "Slots whose step is being executed for long.", worker.slow_steps.now)
    slow = CounterMetricFamily(_PREFIX + "worker_slow_steps", "Executions that took long.", None, ["saga", "step"])
    for (saga, step), count in worker.slow_steps.counts.copy().items():
        slow.add_metric([saga, step], count)
    yield slow
    yield _counter("worker_claims", "Claims of runs.", counters.claims)
    yield _counter("worker_empty_claims", "Claims in vain: another worker held the run.", counters.empty_claims)
    interruptions = worker.interruptions
    interrupted = CounterMetricFamily(
        _PREFIX + "worker_interruptions",
        "Interruptions of runs.",
        None,
        ["saga", "kind"],
    )
    for (saga, kind), count in interruptions.counted.copy().items():
        interrupted.add_metric([saga, kind], count)
    yield interrupted
    alerts = CounterMetricFamily(
        _PREFIX + "alerts", "Calls of callbacks for stuck runs, by outcome.", None, ["outcome"]
    )
    for outcome, count in worker.alerts.counts.copy().items():
        alerts.add_metric([outcome], count)
    yield alerts


def _runs(service: str, counters: RunCounters) -> Iterator[Metric]:
    labels = ["service", "saga", "state"]
    counts = CounterMetricFamily(_PREFIX + "runs", "Runs that ended, or were parked, by state.", None, labels)
    for (saga, state), count in counters.counts.copy().items():
        counts.add_metric([service, saga, state], count)
    yield counts
    seconds = HistogramMetricFamily(
        _PREFIX + "run_seconds", "Seconds from the intake of the message to the end of the run.", labels=labels
    )
    for (saga, state), seen in counters.seconds.items():
        seconds.add_metric([service, saga, state], _buckets(seen), seen.total)
    yield seconds


def _dead_letters(daemons: Daemons) -> Metric:
    family = CounterMetricFamily(
        _PREFIX + "dead_letters", "Messages that became dead letters.", None, ["origin", "reason"]
    )
    if daemons.relay is not None:
        for reason, count in daemons.relay.counters.dead_letters.copy().items():
            family.add_metric(["relay", reason], count)
    if daemons.intake is not None:
        family.add_metric(["intake", "unusable"], daemons.intake.counters.dead_letters)
    if daemons.control is not None:
        family.add_metric(["control", "unusable"], daemons.control.counters.dead_letters)
    return family


def _unhandled(daemons: Daemons) -> Metric:
    family = CounterMetricFamily(
        _PREFIX + "unhandled_launches", "Messages launched on topics without a subscription.", None, ["topic"]
    )
    for topic, count in daemons.unhandled.items():
        family.add_metric([topic], count)
    return family


def _histogram(name: str, text: str, seen: Histogram) -> Metric:
    return HistogramMetricFamily(_PREFIX + name, text, _buckets(seen), seen.total)


def _buckets(seen: Histogram) -> list[tuple[str, float]]:
    buckets, below = [], 0
    for bound, count in zip((*map(str, seen.bounds), "+Inf"), list(seen.counts), strict=True):
        below += count
        buckets.append((bound, float(below)))
    return buckets
