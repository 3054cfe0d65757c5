"""OpenAI's files and fine-tuning jobs: the shapes that its clients parse, and what stands in them besides."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from service.fine_tuning import AUTO, TYPES, file_id
from service.models import Event, Sweep, Trial
from service.models_data import Dataset, FineTuningJob
from service.schemas import Json
from service.states import State, TuningState

PURPOSE = "fine-tune"
_METHOD: Json = {"required": ["type"], "properties": {"type": {"enum": sorted(TYPES)}}}

_STATUS = {
    State.VALIDATING: "validating_files",
    State.PENDING: "queued",
    State.RUNNING: "running",
    State.CANCELLING: "running",
    State.SUCCEEDED: "running",  # until the winner answers under its name
    State.FAILED: "failed",
    State.CANCELLED: "cancelled",
}
_OVER = {
    TuningState.SUCCEEDED: "succeeded",
    TuningState.FAILED: "failed",
    TuningState.CANCELLED: "cancelled",
    TuningState.DEPLOYING: "running",
}


class JobIn(BaseModel):
    """POST /v1/fine_tuning/jobs. What OpenAI knows and we do not honour is refused by name."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, Field(min_length=1)]
    """practice, a model's directory, a hub id, or the name of a deployment."""
    training_file: Annotated[str, Field(min_length=1)]
    validation_file: str | None = None
    method: Annotated[Json, Field(json_schema_extra=_METHOD)] | None = None
    """{type: simpo, simpo: {hyperparameters: {...}}}; without one: supervised."""
    hyperparameters: Json | None = None
    """Of supervised, as older clients write them."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    suffix: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")] | None = None
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
        ]
        | None
    ) = None
    integrations: list[Any] | None = None


def file_json(row: Dataset) -> Json:
    """A dataset as OpenAI's file."""
    return {
        "id": file_id(row.id),
        "object": "file",
        "bytes": row.bytes,
        "created_at": seconds(row.created_at),
        "expires_at": None,
        "filename": row.filename,
        "purpose": PURPOSE,
        "status": "processed",
        "status_details": None,
        "dataset": row.id,
        "sha256": row.sha256,
        "rows": row.rows,
    }


def job_json(job: FineTuningJob, sweep: Sweep) -> Json:
    """A job: OpenAI's fields, then our own words for where it is."""
    hyperparameters = _chosen(job, sweep)
    state = State.RUNNING if job.state == TuningState.DEPLOYING else sweep.state
    deploying = job.state == TuningState.DEPLOYING
    succeeded = job.state == TuningState.SUCCEEDED
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": seconds(job.created_at),
        "finished_at": seconds(job.ended_at) if job.ended_at else None,
        "model": job.model,
        "fine_tuned_model": job.fine_tuned_model if succeeded else None,
        "organization_id": "simpo",
        "status": status_of(job, sweep),
        "error": job.error,
        "hyperparameters": hyperparameters,
        "method": {"type": job.method, job.method: {"hyperparameters": hyperparameters}},
        "training_file": file_id(job.training_file),
        "validation_file": file_id(job.validation_file) if job.validation_file else None,
        "result_files": [],
        "trained_tokens": (sweep.result or {}).get("trained_tokens") if succeeded else None,
        "estimated_finish": None,
        "seed": job.seed,
        "suffix": job.suffix,
        "metadata": job.labels,
        "integrations": [],
        "state": state,
        "reason": "DEPLOYING" if deploying else sweep.reason,
        "message": f"{job.fine_tuned_model} is on its way." if deploying else sweep.message,
        "kind": sweep.kind,
        "sweep": sweep.id,
        "deployment": job.deployment_id,
    }


def status_of(job: FineTuningJob, sweep: Sweep) -> str:
    """OpenAI's word. A sweep that is over counts when the job has seen it."""
    over = _OVER.get(TuningState(job.state))
    if over is not None:
        return over
    live = sweep.state not in (State.FAILED, State.CANCELLED)
    return _STATUS[State(sweep.state)] if live else "running"


def tuning_event_json(event: Event) -> Json:
    """An event of the job's sweep in OpenAI's form."""
    return {
        "id": event_cursor(event.seq),
        "object": "fine_tuning.job.event",
        "created_at": seconds(event.created_at),
        "level": event.level,
        "message": event.message,
        "type": "metrics" if event.data.get("metrics") else "message",
        "data": {**event.data, "event": event.type},
    }


def event_cursor(seq: int) -> str:
    """Monotonic within a job."""
    return f"ftevent-{seq:08d}"


def checkpoint_json(job: FineTuningJob, sweep: Sweep, trial: Trial) -> Json:
    """A trial's checkpoint. Its metrics keep their names: accuracy is of preferences, not of tokens."""
    best = (sweep.result or {}).get("best") or {}
    won = job.state == TuningState.SUCCEEDED and best.get("trial_id") == trial.trial_id
    return {
        "id": f"ftckpt-{trial.trial_id}",
        "object": "fine_tuning.job.checkpoint",
        "created_at": seconds(trial.ended_at or trial.created_at),
        "fine_tuning_job_id": job.id,
        "fine_tuned_model_checkpoint": job.fine_tuned_model if won else f"{sweep.id}:{trial.trial_id}",
        "step_number": trial.step or 0,
        "metrics": {"step": trial.step, "value": trial.value, **trial.metrics},
        "sweep": sweep.id,
        "trial": trial.trial_id,
        "params": trial.params,
    }


def seconds(moment: datetime) -> int:
    """Unix time, as OpenAI writes moments."""
    return int(moment.timestamp())


def _chosen(job: FineTuningJob, sweep: Sweep) -> Json:
    """With what the search chose in the place of auto, once it has."""
    shown = dict(job.hyperparameters)
    if sweep.state != State.SUCCEEDED:
        return shown
    params = ((sweep.result or {}).get("best") or {}).get("params") or {}
    return {key: params.get(key, value) if value == AUTO else value for key, value in shown.items()}
