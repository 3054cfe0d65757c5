"""Which directory a person means by winner, base, or the id of a trial."""

from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.errors import Conflict, Invalid, invalid
from service.models import Sweep, Trial
from service.settings import Settings
from service.states import State

WINNER = "winner"
BASE = "base"


def model_path(session: Session, settings: Settings, sweep_id: str, checkpoint: str) -> str:
    """The checkpoint's directory, looked up in what the driver published and checked again on disk.

    Raises:
        Invalid: 422, no such sweep or checkpoint; the message names the choices.
        Conflict: 409, the sweep has not succeeded.
    """
    sweep = session.get(Sweep, sweep_id)
    if sweep is None:
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
    return _checked(settings.run_dir(sweep_id), choices[checkpoint], checkpoint)


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
