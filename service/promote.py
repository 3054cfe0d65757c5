"""Promotions, moved: evidence -> gate -> alias candidate -> approval -> alias production, and back.

Level-triggered: each step starts from the rows alone and is one transaction with its events, so a pass may be cut off
anywhere. The gate is applied here, to evidence that a driver published; whoever writes rows cannot skip it.
"""

import logging
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from service import events, registry, rows
from service.auth import Caller
from service.clock import Clock
from service.errors import ServiceError
from service.evaluations import Contender, evaluation_order
from service.models import Sweep
from service.models_registry import ModelVersion, Promotion, RegistryModel
from service.origins import origin_of
from service.settings import Settings
from service.states import LIVE, LIVE_PROMOTIONS, PROMOTION_MOVES, PromotionState, State
from service.store import Store
from service.winners import Chosen
from simpo.errors import SimPOError
from sweeps.gates import Decision, decide

log = logging.getLogger(__name__)

_EVENTS = {"PASS": "gate.passed", "FAIL": "gate.failed", "INCONCLUSIVE": "gate.inconclusive"}


class Promoter:
    """One pass over the promotions that are not settled. Used by one thread."""

    def __init__(self, store: Store, settings: Settings, clock: Clock, failpoint: Callable[[str], None]) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._failpoint = failpoint

    def step(self) -> bool:
        """Look at everything once. True when something moved, so that another look at once is worth it."""
        rolled_back = (Promotion.state == PromotionState.SUCCEEDED) & (Promotion.desired == "ROLLBACK")
        wanted = select(Promotion, Sweep).outerjoin(Sweep, Sweep.id == Promotion.evaluation_id)
        wanted = wanted.where(or_(Promotion.state.in_(LIVE_PROMOTIONS), rolled_back)).order_by(Promotion.id)
        with self._store.read() as session:
            found = [(row, evaluation) for row, evaluation in session.execute(wanted) if _due(row, evaluation)]
        for row, _ in found:
            self._failpoint("before_promotion")
            try:
                with self._store.write() as session:
                    self._move(session, row.id)
            except (ServiceError, SimPOError, ValidationError, OSError, KeyError, TypeError, ValueError) as error:
                log.exception("%s: cannot go on", row.id)
                self._give_up(row.id, f"{type(error).__name__}: {error}")
            self._failpoint("after_promotion")
        return bool(found)

    def _move(self, session: Session, promotion_id: str) -> None:
        row = session.scalars(select(Promotion).where(Promotion.id == promotion_id).with_for_update()).one()
        evaluation = None if row.evaluation_id is None else rows.lock_sweep(session, row.evaluation_id)
        if not _due(row, evaluation):
            return
        model = registry.lock_model(session, row.model_id)
        if row.state in LIVE_PROMOTIONS and row.desired == "ABORT":
            self._abort(session, row, evaluation)
        elif row.state == PromotionState.PENDING:
            self._begin(session, row, model)
        elif row.state == PromotionState.RUNNING:
            assert evaluation is not None
            self._watch(session, row, model, evaluation)
        elif row.state == PromotionState.AWAITING_APPROVAL:
            self._promote(session, row, model)
        else:
            self._roll_back(session, row, model)

    def _begin(self, session: Session, row: Promotion, model: RegistryModel) -> None:
        """Decide on what the sweep's own finals have shown, where that answers the question; else evaluate."""
        version = registry.version_of(session, model, row.n)
        evidence = self._of_finals(session, row, version)
        if evidence is not None:
            decision = self._decided(session, row, evidence, evaluation_id=None)
            if decision.state != "INCONCLUSIVE":
                self._settle(session, row, model, decision)
                return
        champion = None if row.champion is None else registry.version_of(session, model, row.champion)
        order = evaluation_order(
            session,
            self._settings,
            row.id.replace("_", "-"),
            _contender(model, version),
            None if champion is None else _contender(model, champion),
            row.gate,
        )
        now = self._clock.now()
        ourselves = Caller(key_id=events.RECONCILER, name=events.RECONCILER, project=row.project)
        evaluation = rows.create_sweep(session, order, ourselves, now)
        row.evaluation_id = evaluation.id
        self._to(session, row, PromotionState.RUNNING, "EVALUATING", "The evaluation waits for its turn.")
        facts = {"evaluation": evaluation.id, "against": order.spec["against"], "reference": order.spec["reference"]}
        events.append(session, row, "evaluation.started", f"{evaluation.id} is asked for.", facts, now=now)

    def _of_finals(self, session: Session, row: Promotion, version: ModelVersion) -> dict[str, Any] | None:
        """Evidence of the sweep's winner over its base, where there is no champion and it covers the whole gate."""
        if row.champion is not None:
            return None
        origin = origin_of(session, self._settings, version.sweep_id, version.checkpoint)
        evidence: dict[str, Any] | None = origin.result.get("evidence")
        if not evidence or origin.winner != version.checkpoint:
            return None
        named = {name for name, rule in row.gate["conditions"].items() if rule is not None}
        own_set = row.gate["capability"] in (None, "practice")
        return evidence if own_set and named <= set(evidence.get("figures") or {}) else None

    def _watch(self, session: Session, row: Promotion, model: RegistryModel, evaluation: Sweep) -> None:
        if evaluation.state in LIVE:
            row.message = evaluation.message
            return
        if evaluation.state != State.SUCCEEDED or evaluation.result is None:
            error = evaluation.error or {"message": f"The evaluation is {evaluation.state}."}
            self._to(session, row, PromotionState.FAILED, "EVALUATION_FAILED", str(error["message"]))
            events.append(
                session, row, "promotion.failed", row.message, error, now=self._clock.now(), level="error"
            )
            return
        decision = self._decided(session, row, evaluation.result["evidence"], evaluation_id=evaluation.id)
        self._settle(session, row, model, decision)

    def _decided(
        self, session: Session, row: Promotion, evidence: dict[str, Any], *, evaluation_id: str | None
    ) -> Decision:
        """Apply the gate, and say so with everything it saw."""
        decision = decide(row.gate["conditions"], evidence)
        row.evidence, row.decision = evidence, decision.as_dict()
        facts = {"evaluation": evaluation_id, "decision": row.decision, "evidence": evidence}
        words = "; ".join(decision.reasons) or "Every condition is kept."
        level = "info" if decision.state == "PASS" else "warn"
        events.append(session, row, _EVENTS[decision.state], words, facts, now=self._clock.now(), level=level)
        return decision

    def _settle(self, session: Session, row: Promotion, model: RegistryModel, decision: Decision) -> None:
        words = "; ".join(decision.reasons)
        if decision.state == "FAIL":
            self._to(session, row, PromotionState.FAILED, "GATE_FAILED", words)
        elif decision.state == "INCONCLUSIVE":
            self._to(session, row, PromotionState.HELD, "INCONCLUSIVE", f"Held at the cap of prompts: {words}")
        else:
            self._move_alias(session, row, model, registry.CANDIDATE, row.n)
            text = "Waits for approval." if row.desired == "GATE" else "Is approved."
            self._to(session, row, PromotionState.AWAITING_APPROVAL, "GATE_PASSED", text)

    def _promote(self, session: Session, row: Promotion, model: RegistryModel) -> None:
        if registry.aliases_of(session, model.id).get(registry.PRODUCTION) != row.champion:
            text = "Another version came into production since the evaluation: promote again."
            self._to(session, row, PromotionState.FAILED, "CHAMPION_CHANGED", text)
            events.append(session, row, "promotion.failed", text, now=self._clock.now(), level="error")
            return
        facts = self._move_alias(session, row, model, registry.PRODUCTION, row.n)
        self._to(session, row, PromotionState.SUCCEEDED, "PROMOTED", registry.moved_words(facts))
        facts = {"approval": row.approval, "approved_by": row.actor}
        events.append(session, row, "promotion.succeeded", row.message, facts, now=self._clock.now(), actor=row.actor)

    def _roll_back(self, session: Session, row: Promotion, model: RegistryModel) -> None:
        if registry.aliases_of(session, model.id).get(registry.PRODUCTION) != row.n or row.champion is None:
            row.desired, row.reason = "PROMOTE", "PROMOTED"  # another version came meanwhile: nothing is undone
            text = f"Not rolled back: version {row.n} is not in production any more."
            events.append(session, row, "promotion.rollback_refused", text, now=self._clock.now(), level="warn")
            return
        facts = self._move_alias(session, row, model, registry.PRODUCTION, row.champion)
        self._to(session, row, PromotionState.ROLLED_BACK, "ROLLED_BACK", registry.moved_words(facts))
        events.append(session, row, "promotion.rolled_back", row.message, now=self._clock.now(), actor=row.actor)

    def _abort(self, session: Session, row: Promotion, evaluation: Sweep | None) -> None:
        now = self._clock.now()
        if evaluation is not None and evaluation.state in LIVE:
            evaluation.desired = "CANCEL"
            events.append(session, evaluation, "job.cancel_requested", f"{row.id} was aborted.", now=now)
        self._to(session, row, PromotionState.CANCELLED, "ABORTED", "Aborted.")
        events.append(session, row, "promotion.aborted", "Aborted.", now=now, actor=row.actor)

    def _move_alias(
        self, session: Session, row: Promotion, model: RegistryModel, alias: str, n: int
    ) -> dict[str, Any]:
        now = self._clock.now()
        facts = registry.move_alias(session, model, alias, n, by=row.id, actor=row.actor, now=now)
        events.append(session, row, "alias.moved", registry.moved_words(facts), facts, now=now, actor=row.actor)
        return facts

    def _to(self, session: Session, row: Promotion, new: PromotionState, reason: str, message: str) -> None:
        assert new in PROMOTION_MOVES[row.state], f"{row.id}: {row.state} -> {new}"
        row.state, row.reason, row.message = new, reason, message
        if new not in LIVE_PROMOTIONS:
            row.ended_at = self._clock.now()

    def _give_up(self, promotion_id: str, message: str) -> None:
        with self._store.write() as session:
            row = session.scalars(select(Promotion).where(Promotion.id == promotion_id).with_for_update()).one()
            if row.state in LIVE_PROMOTIONS:
                self._to(session, row, PromotionState.FAILED, "CANNOT_GO_ON", message)
                events.append(session, row, "promotion.failed", message, now=self._clock.now(), level="error")


def _due(row: Promotion, evaluation: Sweep | None) -> bool:
    """Whether there is something to do. A pass over what waits writes nothing."""
    if row.desired in ("ABORT", "ROLLBACK") or row.state == PromotionState.PENDING:
        return True
    if row.state == PromotionState.RUNNING:
        return evaluation is not None and (evaluation.state not in LIVE or evaluation.message != row.message)
    return row.state == PromotionState.AWAITING_APPROVAL and row.desired == "PROMOTE"


def _contender(model: RegistryModel, version: ModelVersion) -> Contender:
    found = Chosen(sweep_id=version.sweep_id, checkpoint=version.checkpoint, path=version.model_path)
    return Contender(chosen=found, label=f"{model.name}, version {version.n}")
