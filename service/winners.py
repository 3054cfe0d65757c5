"""Which directory a person means by winner, base, or the id of a trial."""

import json
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.errors import Conflict, Invalid, invalid
from service.models import COMPARISON, EVALUATION, Sweep, Trial
from service.run_dirs import place_in_bucket
from service.serving.declared import TRANSFORMERS
from service.settings import Settings, variable_of
from service.states import State
from sweeps.working_copy import is_remote

_ADAPTER = "adapter/adapter_model.safetensors"  # as simpo.checkpoint and PEFT call it
WINNER = "winner"
BASE = "base"


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """One checkpoint of a sweep."""

    sweep_id: str
    checkpoint: str
    """Id of the trial, or base: what `winner` stands for is looked up. A winner that no trial has trained (a soup, a
    scaled finalist) stays `winner`."""
    path: str
    """Its directory, or s3://BUCKET/PREFIX of it."""


def chosen(session: Session, settings: Settings, sweep_id: str, checkpoint: str) -> Chosen:
    """The checkpoint under the name that it keeps. Raises as `model_path`."""
    path = model_path(session, settings, sweep_id, checkpoint)
    best = (session.get_one(Sweep, sweep_id).result or {}).get("best") or {}
    name = str(best["trial_id"]) if checkpoint == WINNER and "recipe" not in best else checkpoint
    return Chosen(sweep_id=sweep_id, checkpoint=name, path=path)


def model_path(session: Session, settings: Settings, sweep_id: str, checkpoint: str) -> str:
    """The checkpoint's directory, looked up in what the driver published and checked again on disk.

    Of a sweep in an object store its URI, by what the driver published alone: who fetches it finds out whether it is
    there (the API may have no keys).

    Raises:
        Invalid: 422, no such sweep or checkpoint; the message names the choices.
        Conflict: 409, the sweep has not succeeded.
    """
    sweep = session.get(Sweep, sweep_id)
    if sweep is None or sweep.kind in (EVALUATION, COMPARISON):
        raise invalid([("/sweep", f"there is no sweep or run {sweep_id!r}")])
    if sweep.state != State.SUCCEEDED or sweep.result is None:
        raise Conflict(
            f"{sweep_id} is {sweep.state}: only a SUCCEEDED {sweep.kind} can be deployed.",
            code="sweep_not_succeeded",
            facts={"current_state": sweep.state},
        )
    choices = _choices(session, sweep)
    if checkpoint not in choices:
        raise invalid([("/checkpoint", f"{checkpoint!r} is none of: {', '.join(choices)}")])
    place = place_in_bucket(settings, sweep_id, choices[checkpoint])
    return place or _checked(settings.run_dir(sweep_id), choices[checkpoint], checkpoint)


def is_there(path: str) -> bool:
    """Whether a checkpoint that was chosen once can still be served, as far as it can be seen from here."""
    return is_remote(path) or (Path(path) / "config.json").is_file()


def refuse_missing_engine(settings: Settings, engine: str) -> None:
    """Raises Invalid (422) for an engine that is not set up."""
    if engine != TRANSFORMERS and settings.vllm_python is None:
        variable = variable_of("vllm_python")
        raise invalid([("/engine", f"{engine} is not set up here: {variable} must name a Python that has it")])


def method_winner(session: Session, settings: Settings, comparison_id: str, method: str | None) -> Chosen:
    """The winner of one of a comparison's methods, None: of the one that leads. `checkpoint` is the method's name.

    Raises:
        Invalid: 422, no such comparison or method, or a method without a winner; the message names the choices.
        Conflict: 409, the comparison has not succeeded.
    """
    row = session.get(Sweep, comparison_id)
    if row is None or row.kind != COMPARISON:
        raise invalid([("/comparison", f"there is no comparison {comparison_id!r}")])
    if row.state != State.SUCCEEDED or row.result is None:
        raise Conflict(
            f"{comparison_id} is {row.state}: only a SUCCEEDED comparison can be deployed.",
            code="comparison_not_succeeded",
            facts={"current_state": row.state},
        )
    ranked = row.result["comparison"]["leaderboard"]
    won = {str(each["name"]): str(each["best"]["checkpoint"]) for each in ranked if each.get("best")}
    name = next(iter(won), "") if method is None else method
    if name not in won:
        raise invalid([("/method", f"{name!r} is none of those that have a winner: {', '.join(won) or 'none has'}")])
    # Each method's sweep has a run directory of its own below the comparison's.
    path = _checked(settings.run_dir(comparison_id) / "sweeps" / name, won[name], name)
    return Chosen(sweep_id=comparison_id, checkpoint=name, path=path)


def shared_base(settings: Settings, path: str) -> str | None:
    """The base whose replicas can serve a checkpoint: it must hold an adapter, and the base must be where it was.

    None: it has replicas of its own. So has what lies in an object store.
    """
    if is_remote(path) or settings.max_adapters == 0 or settings.deploy_by != "serve":
        return None
    try:
        manifest = json.loads((Path(path) / "manifest.json").read_text())
        # A soup of adapters keeps their recipe, and holds whole weights.
        holds = "lora" in manifest and _ADAPTER in manifest["files"]
        base = manifest["base"]["source"] if holds else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return base if isinstance(base, str) and (Path(base) / "config.json").is_file() else None


def _choices(session: Session, sweep: Sweep) -> dict[str, str]:
    """Name -> checkpoint, as the driver wrote it."""
    result = sweep.result or {}
    choices: dict[str, str] = {}
    for name, part in ((WINNER, result.get("best")), (BASE, result.get("base"))):
        if part and part.get("checkpoint"):
            choices[name] = str(part["checkpoint"])
    query = select(Trial.trial_id, Trial.checkpoint).where(Trial.sweep_id == sweep.id, Trial.checkpoint.is_not(None))
    kept = session.execute(query.order_by(Trial.number))
    return choices | {trial_id: checkpoint for trial_id, checkpoint in kept if checkpoint is not None}


def _checked(run_dir: Path, checkpoint: str, name: str) -> str:
    """Absolute and there. A trial's may not lead out of the run directory; the base model may lie anywhere."""
    path = (run_dir / checkpoint).resolve()
    if name != BASE and not path.is_relative_to(run_dir.resolve()):
        raise _missing(name)
    if not (path / "config.json").is_file():
        raise _missing(name)
    return str(path)


def _missing(name: str) -> Invalid:
    where = "is not a directory on this machine" if name == BASE else "is no longer in the run directory"
    return invalid([("/checkpoint", f"the checkpoint {name!r} {where}: choose another one")])
