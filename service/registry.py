"""The registry's rows: models by name, versions that never change, aliases that only the reconciler moves."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service import events
from service.auth import Caller
from service.errors import NotFound, invalid
from service.ids import new_id
from service.models_registry import ModelAlias, ModelVersion, RegistryModel
from service.winners import Chosen

CANDIDATE = "candidate"
"""The newest version that passed its gate."""
PRODUCTION = "production"
"""The champion: what a candidate is compared with, and what deployments follow."""
ALIASES = (CANDIDATE, PRODUCTION)


@dataclass(frozen=True, kw_only=True)
class Followed:
    """Where MODEL@ALIAS points now."""

    version: ModelVersion
    moved_by: str
    """Id of the promotion that moved it there."""


def model_named(session: Session, name: str) -> RegistryModel:
    """Raises NotFound (404)."""
    row = session.scalar(select(RegistryModel).where(RegistryModel.name == name))
    if row is None:
        raise NotFound(f"There is no model {name} in the registry.")
    return row


def model_for(session: Session, name: str, caller: Caller, now: datetime) -> RegistryModel:
    """The model of that name, locked; made where there is none."""
    mine = (RegistryModel.project == caller.project) & (RegistryModel.name == name)
    row = session.scalar(select(RegistryModel).where(mine).with_for_update())
    if row is None:
        row = RegistryModel(
            id=new_id("mdl", now),
            project=caller.project,
            name=name,
            created_by=caller.key_id,
            versions=0,
            event_seq=0,
            created_at=now,
        )
        session.add(row)
        events.append(session, row, "model.created", f"Model {name}.", {"name": name}, now=now, actor=caller.key_id)
        session.flush()
    return row


def lock_model(session: Session, model_id: str) -> RegistryModel:
    """The row, ours until the transaction ends."""
    return session.scalars(select(RegistryModel).where(RegistryModel.id == model_id).with_for_update()).one()


def register(session: Session, model: RegistryModel, chosen: Chosen, caller: Caller, now: datetime) -> ModelVersion:
    """The version of this checkpoint; a new one unless the model, which is locked, has it already."""
    same = (ModelVersion.sweep_id == chosen.sweep_id) & (ModelVersion.checkpoint == chosen.checkpoint)
    known = session.scalar(select(ModelVersion).where(ModelVersion.model_id == model.id, same))
    if known is not None:
        return known
    model.versions += 1
    version = ModelVersion(
        model_id=model.id,
        n=model.versions,
        sweep_id=chosen.sweep_id,
        checkpoint=chosen.checkpoint,
        model_path=chosen.path,
        created_by=caller.key_id,
        created_at=now,
    )
    session.add(version)
    facts = {"version": version.n, "sweep": chosen.sweep_id, "checkpoint": chosen.checkpoint}
    text = f"Version {version.n} of {model.name}."
    events.append(session, model, "model.version_registered", text, facts, now=now, actor=caller.key_id)
    session.flush()
    return version


def version_of(session: Session, model: RegistryModel, n: int) -> ModelVersion:
    """Raises NotFound (404)."""
    row = session.get(ModelVersion, (model.id, n))
    if row is None:
        raise NotFound(f"{model.name} has no version {n}.")
    return row


def aliases_of(session: Session, model_id: str) -> dict[str, int]:
    """Alias -> version."""
    rows = session.scalars(select(ModelAlias).where(ModelAlias.model_id == model_id).order_by(ModelAlias.alias))
    return {row.alias: row.n for row in rows}


def move_alias(
    session: Session, model: RegistryModel, alias: str, n: int, *, by: str, actor: str, now: datetime
) -> dict[str, Any]:
    """Point an alias of a locked model at a version, with an event of the model's. Returns the event's facts."""
    row = session.get(ModelAlias, (model.id, alias))
    facts = {"model": model.name, "alias": alias, "from": None if row is None else row.n, "to": n, "promotion": by}
    if row is None:
        session.add(ModelAlias(model_id=model.id, alias=alias, n=n, moved_at=now, moved_by=by))
    else:
        row.n, row.moved_at, row.moved_by = n, now, by
    events.append(session, model, "alias.moved", moved_words(facts), facts, now=now, actor=actor)
    return facts


def moved_words(facts: dict[str, Any]) -> str:
    """One sentence for a person."""
    before = "" if facts["from"] is None else f" from version {facts['from']}"
    return f"{facts['model']}@{facts['alias']} moved{before} to version {facts['to']}."


def followed(session: Session, project: str, reference: str) -> Followed | None:
    """Where a project's `name@alias` points; None while it points nowhere. Raises Invalid (422) for anything else."""
    name, at, alias = reference.partition("@")
    if not at or alias not in ALIASES:
        raise invalid([("/model", f"must be the name of a registered model and an alias, e.g. {name}@production")])
    joined = (
        select(ModelVersion, ModelAlias.moved_by)
        .join(RegistryModel, RegistryModel.id == ModelVersion.model_id)
        .join(ModelAlias, (ModelAlias.model_id == ModelVersion.model_id) & (ModelAlias.n == ModelVersion.n))
        .where(RegistryModel.project == project, RegistryModel.name == name, ModelAlias.alias == alias)
    )
    found = session.execute(joined).first()
    return None if found is None else Followed(version=found[0], moved_by=found[1])
