"""What Prometheus is told: one registry a process, few labels, no ids in any of them.

Counters follow what was committed: a transaction that rolls back counts nothing. What stands in the database (how many
wait, and why) is asked for when Prometheus asks, by the processes that reconcile (`gauges`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from service.clock import Clock
from service.event_types import EVENT_TYPES
from service.models import Event

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_HTTP_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_PASS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TOKEN_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_KEPT = 1024
_MAX_MODELS = 100  # names and versions with figures of their own
_ATTEMPTS = {
    "job.submitted": "submitted",
    "attempt.lost": "lost",
    "attempt.failed": "failed",
    "job.restarted": "restarted",
}
_TRIALS = {
    "trial.completed": "completed",
    "trial.pruned": "pruned",
    "trial.infeasible": "infeasible",
    "trial.failed": "failed",
}
_DRIVER = "driver"  # actor of what came out of a journal


class Metrics:
    """Everything that this process counts."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.registry = CollectorRegistry()
        for standard in (ProcessCollector, PlatformCollector, GCCollector):
            standard(registry=self.registry)
        self.requests = self._counter("simpo_http_requests", "Requests answered.", "method", "route", "status")
        self.request_seconds = self._histogram(
            "simpo_http_request_seconds", "From a request to the first byte of its answer.", _HTTP_S, "method", "route"
        )
        self.in_flight = self._gauge("simpo_http_requests_in_flight", "Requests not answered to the end, streams too.")
        self.watchers = self._gauge("simpo_sse_watchers", "Open streams of events.")
        self.passes = self._histogram(
            "simpo_reconcile_pass_seconds", "Passes of the reconciler's loops, by the one that leads.", _PASS_S, "loop"
        )
        self.failed_passes = self._counter("simpo_reconcile_failures", "Passes that ended in an error.", "loop")
        self.last_pass = self._gauge(
            "simpo_reconcile_last_pass_timestamp_seconds", "When the last whole pass ended, seconds since 1970.", "loop"
        )
        self.leads = self._gauge("simpo_reconcile_leader", "1 where this process has the loop's lease.", "loop")
        self.events = self._counter("simpo_events", "Events stored.", "type")
        self.ingested = self._counter("simpo_ingested_records", "Records of drivers' journals stored.")
        self.attempts = self._counter("simpo_attempts", "What became of attempts.", "outcome")
        self.trials = self._counter("simpo_trials_ended", "Trials that came to their end.", "outcome")
        self.webhook_attempts = self._counter(
            "simpo_webhook_attempts", "Attempts to deliver: delivered, retried, dead or late.", "outcome"
        )
        self.webhook_seconds = self._histogram("simpo_webhook_attempt_seconds", "How long they took.", _HTTP_S)
        self.answers = self._counter(
            "simpo_inference_requests", "Completions that a model answered, by status.", "model", "version", "status"
        )
        self.answers_open = self._gauge("simpo_inference_in_flight", "Completions not answered to the end.")
        self.first_token = self._histogram(
            "simpo_inference_first_token_seconds", "To a stream's first token.", _TOKEN_S, "model", "version"
        )
        self.next_token = self._histogram(
            "simpo_inference_next_token_seconds", "From a stream's token to its next.", _TOKEN_S, "model", "version"
        )
        self.inference_tokens = self._counter(
            "simpo_inference_tokens", "Tokens that models read (prompt) and wrote.", "model", "version", "kind"
        )
        self.limited = self._counter("simpo_inference_limited", "Completions refused by a limit.")
        self._models: set[tuple[str, str]] = set()
        # Finding what counts for some labels takes prometheus_client longer than counting.
        self._request_of = lru_cache(_KEPT)(self.requests.labels)
        self._request_seconds_of = lru_cache(_KEPT)(self.request_seconds.labels)
        self._answer_of = lru_cache(_KEPT)(self.answers.labels)
        self._tokens_of = lru_cache(_KEPT)(self.inference_tokens.labels)
        self.database_errors = self._counter("simpo_database_errors", "Statements that failed.", "kind")
        for label in (*_ATTEMPTS.values(), "adopted"):
            self.attempts.labels(label)
        for label in _TRIALS.values():
            self.trials.labels(label)
        for label in ("delivered", "retried", "dead", "late"):
            self.webhook_attempts.labels(label)

    def answered(self, method: str, route: str, status: str, seconds: float) -> None:
        """Count a request. `seconds`: to the first byte of its answer."""
        self._request_of(method, route, status).inc()
        self._request_seconds_of(method, route).observe(seconds)

    def completed(self, model: str, version: str, status: str) -> None:
        """Count a completion whose answer has begun."""
        self._answer_of(model, version, status).inc()

    def spent(self, model: str, version: str, *, prompt: int, completion: int) -> None:
        """Count the tokens of a completion."""
        for kind, tokens in (("prompt", prompt), ("completion", completion)):
            if tokens:
                self._tokens_of(model, version, kind).inc(tokens)

    def told(self, events: Sequence[Event]) -> None:
        """Count events that were committed."""
        for event in events:
            self.events.labels(event.type if event.type in EVENT_TYPES else "other").inc()
            if event.actor == _DRIVER:
                self.ingested.inc()
            if event.type in _ATTEMPTS:
                adopted = event.type == "job.submitted" and event.data.get("adopted")
                self.attempts.labels("adopted" if adopted else _ATTEMPTS[event.type]).inc()
            if event.type in _TRIALS:
                self.trials.labels(_TRIALS[event.type]).inc()

    @contextmanager
    def one_pass(self, loop: str) -> Iterator[None]:
        """Around a pass of a loop by the process that leads."""
        started = self._clock.monotonic()
        try:
            yield
        except Exception:
            self.failed_passes.labels(loop).inc()
            raise
        self.passes.labels(loop).observe(self._clock.monotonic() - started)
        self.last_pass.labels(loop).set(self._clock.now().timestamp())

    def inference_labels(self, model: str, version: str) -> tuple[str, str]:
        """Labels of a deployment and of the version that answers; beyond a hundred of them all are `other`."""
        labels = (model, version)
        if labels not in self._models:
            if len(self._models) >= _MAX_MODELS:
                return ("other", "other")
            self._models.add(labels)
        return labels

    def add(self, collector: Collector) -> None:
        """Ask this one too, whenever Prometheus asks."""
        self.registry.register(collector)

    def exposition(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, words: str, *labels: str) -> Counter:
        return Counter(name, words, labels, registry=self.registry)

    def _gauge(self, name: str, words: str, *labels: str) -> Gauge:
        return Gauge(name, words, labels, registry=self.registry)

    def _histogram(self, name: str, words: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, words, labels, registry=self.registry, buckets=buckets)
