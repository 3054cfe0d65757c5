"""What people may wish of promotions. Rows only: the reconciler (`service.promote`) moves them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service import events, registry
from service.auth import Caller
from service.errors import Conflict, NotFound, illegal_transition
from service.evaluations import gate_of, gate_on
from service.ids import new_id
from service.models_registry import Promotion, RegistryModel
from service.origins import origin_of
from service.reach import check_reach
from service.settings import Settings
from service.states import LIVE_PROMOTIONS, PromotionState, promotion_verbs
from service.winners import chosen, method_winner

_WISHES = {"approve": "PROMOTE", "abort": "ABORT", "rollback": "ROLLBACK"}


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A validated request for a promotion."""

    model: str
    sweep: str | None
    """With `checkpoint`: what becomes a version."""
    checkpoint: str
    comparison: str | None
    """With `method`, or None for the one that leads: what becomes a version. Neither of both: `version` is one."""
    method: str | None
    version: int | None
    gate: Any
    approval: str


def create_promotion(
    session: Session, settings: Settings, wish: Wish, caller: Caller, now: datetime
) -> tuple[Promotion, RegistryModel]:
    """Store a wish with its first event; the model and its version are made where they are missing.

    Raises Invalid (422), NotFound (404), Conflict (409): the checkpoint is not there, another promotion is at work, the
    version is in production.
    """
    check_reach(session, settings, {"gate": wish.gate})
    gate = gate_of(wish.gate)
    if wish.version is None:
        if wish.comparison is not None:
            found = method_winner(session, settings, wish.comparison, wish.method)
        else:
            assert wish.sweep is not None  # the request's own check
            found = chosen(session, settings, wish.sweep, wish.checkpoint)
        model = registry.model_for(session, wish.model, caller, now)
        version = registry.register(session, model, found, caller, now)
    else:
        model = registry.lock_model(session, registry.model_named(session, wish.model).id)
        version = registry.version_of(session, model, wish.version)
    written = gate_on(gate, origin_of(session, settings, version.sweep_id, version.checkpoint))
    _check_free(session, model)
    champion = registry.aliases_of(session, model.id).get(registry.PRODUCTION)
    if champion == version.n:
        raise Conflict(f"Version {version.n} of {model.name} is in production already.", code="already_in_production")
    row = Promotion(
        id=new_id("prm", now),
        project=caller.project,
        model_id=model.id,
        n=version.n,
        champion=champion,
        created_by=caller.key_id,
        approval=wish.approval,
        gate=written.model_dump(mode="json"),
        desired="PROMOTE" if wish.approval == "auto" else "GATE",
        actor=caller.key_id,
        state=PromotionState.PENDING,
        reason="QUEUED",
        message="Waits for its turn.",
        event_seq=0,
        created_at=now,
    )
    session.add(row)
    facts = {"model": model.name, "version": version.n, "champion": champion, "approval": wish.approval}
    facts |= {"gate": row.gate}
    events.append(session, row, "promotion.requested", "Accepted.", facts, now=now, actor=caller.key_id)
    session.flush()
    return row, model


def want(session: Session, promotion_id: str, verb: str, caller: Caller, now: datetime) -> Promotion:
    """Record a person's wish. Raises NotFound, or Conflict (409) for what the state does not allow."""
    row = session.scalar(select(Promotion).where(Promotion.id == promotion_id).with_for_update())
    if row is None:
        raise no_such_promotion(promotion_id)
    if row.desired == _WISHES[verb] and verb in promotion_verbs(row.state):
        return row  # said already, not done yet
    if verb not in promotion_verbs(row.state):
        raise illegal_transition("promotion", row.state, verb, promotion_verbs(row.state))
    if verb == "rollback":
        _check_reversible(session, row)
    row.desired, row.actor = _WISHES[verb], caller.key_id
    row.reason = f"{verb.upper()}_REQUESTED"
    events.append(session, row, f"promotion.{verb}_requested", f"{verb} requested.", now=now, actor=caller.key_id)
    return row


def no_such_promotion(promotion_id: str) -> NotFound:
    """404."""
    return NotFound(f"There is no promotion {promotion_id}.")


def _check_free(session: Session, model: RegistryModel) -> None:
    at_work = select(Promotion.id).where(Promotion.model_id == model.id, Promotion.state.in_(LIVE_PROMOTIONS))
    if existing := session.scalar(at_work):
        raise Conflict(
            f"{existing} is at work for {model.name}: wait for it, approve it, or abort it.",
            code="promotion_in_progress",
            facts={"existing": existing},
        )


def _check_reversible(session: Session, row: Promotion) -> None:
    production = registry.aliases_of(session, row.model_id).get(registry.PRODUCTION)
    if production != row.n:
        raise Conflict(
            f"Version {row.n} is no longer in production, version {production} is: roll back its promotion.",
            code="not_in_production",
        )
    if row.champion is None:
        raise Conflict("Nothing was in production before this version.", code="nothing_before")
