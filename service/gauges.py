"""Metrics that stand in the database: asked for when Prometheus asks, at most every few seconds.

Every process that reconciles exports the same figures, so a query takes `max by (...)` of them, not the sum.
"""

import logging
import threading
from collections.abc import Iterable

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service.clock import Clock
from service.models import Deployment, Sweep
from service.models_registry import Promotion
from service.models_webhooks import Webhook, WebhookDelivery
from service.states import LIVE, DeliveryState, State
from service.store import Store

log = logging.getLogger(__name__)

_KEPT_S = 5.0


class Gauges(Collector):
    """Rows by state. Says nothing while the database does not answer: no figure is better than an old one."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._known: list[GaugeMetricFamily] = []
        self._until = float("-inf")

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """One query a table."""
        with self._lock:
            if self._clock.monotonic() >= self._until:
                try:
                    with self._store.read() as session:
                        self._known = list(self._families(session))
                except SQLAlchemyError as error:
                    log.warning("metrics without the database's: %s", type(error).__name__)
                    return []
                self._until = self._clock.monotonic() + _KEPT_S
            return list(self._known)

    def _families(self, session: Session) -> Iterable[GaugeMetricFamily]:
        jobs = GaugeMetricFamily(
            "simpo_jobs", "Sweeps, runs, evaluations, comparisons; those not over by reason.", None,
            ["kind", "state", "reason"],
        )  # fmt: skip
        live = select(Sweep.kind, Sweep.state, Sweep.reason, func.count()).where(Sweep.state.in_(LIVE))
        for kind, state, reason, number in session.execute(live.group_by(Sweep.kind, Sweep.state, Sweep.reason)):
            jobs.add_metric([kind, state, reason], number)
        over = select(Sweep.kind, Sweep.state, func.count()).where(Sweep.state.not_in(LIVE))
        for kind, state, number in session.execute(over.group_by(Sweep.kind, Sweep.state)):
            jobs.add_metric([kind, state, ""], number)
        yield jobs
        oldest = session.scalar(select(func.min(Sweep.created_at)).where(Sweep.state == State.PENDING))
        waited = 0.0 if oldest is None else max(0.0, (self._clock.now() - oldest).total_seconds())
        yield GaugeMetricFamily("simpo_queue_oldest_seconds", "How long the oldest PENDING one waits.", waited)
        yield _by_state(session, Deployment, "simpo_deployments", "Deployments.")
        yield _by_state(session, Promotion, "simpo_promotions", "Promotions.")
        yield _by_state(session, Webhook, "simpo_webhooks", "Webhooks.")
        mine = (WebhookDelivery.webhook_id == Webhook.id) & (WebhookDelivery.state == DeliveryState.PENDING)
        waiting = select(func.count()).select_from(Webhook).join(WebhookDelivery, mine)
        yield GaugeMetricFamily("simpo_webhook_backlog", "Deliveries that wait.", session.scalar(waiting) or 0)


def _by_state(
    session: Session, table: type[Deployment] | type[Promotion] | type[Webhook], name: str, words: str
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, words, None, ["state"])
    for state, number in session.execute(select(table.state, func.count()).group_by(table.state)):
        family.add_metric([state], number)
    return family
