"""What the API shows and, where it is not a spec, what it takes. Requests refuse unknown fields."""

from collections.abc import Mapping
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, RootModel
from pydantic_core import to_json

from service.admission import word_of
from service.clock import rfc3339
from service.models import Deployment
from sweeps.spec import RunSpec, SweepSpec

Json = dict[str, Any]
T = TypeVar("T")
NAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"


class Fault(BaseModel):
    """One fault of a request."""

    pointer: str
    """JSON pointer into the body; empty for the whole."""
    message: str


class Problem(BaseModel):
    """Every error of the native routes (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str
    retryable: bool
    errors: list[Fault] = []
    current_state: str | None = None
    allowed: list[str] | None = None
    existing: str | None = None
    scope: str | None = None
    """Of a 403: what the key lacks."""


class LineOut(BaseModel):
    """Where one that waits stands among those of its project."""

    place: int
    of: int
    after: str | None
    """Id of the one right before it."""


class SweepOut(BaseModel):
    """A sweep or a run."""

    id: str
    object: str
    name: str
    state: str
    reason: str
    """One word: why it is in this state."""
    message: str
    """The same in a sentence."""
    stale_since: str | None
    """While Ray does not answer: since when the state may be older than the facts."""
    desired: str
    """RUN or CANCEL"""
    priority: str
    """low, normal or high: within its project"""
    queue: LineOut | None = None
    """Of one that waits for a place, and only when read by its id."""
    phase: str | None
    """preparing, searching, finals or done"""
    progress: float | None
    """Share of the phase that is done."""
    attempt: int
    """Submissions to Ray so far."""
    trials: dict[str, int]
    """Trials by state."""
    best: Json | None
    """The leading trial: trial_id, value, params."""
    error: Json | None
    """Of a FAILED one, or of one that a quota ended: class (USER_ERROR or SYSTEM_ERROR), code, message, log_tail."""
    spec: Json
    spec_hash: str
    created_at: str
    started_at: str | None
    ended_at: str | None
    result: Json | None = None
    """Of a SUCCEEDED one, and only when read by its id."""


class PlanOut(BaseModel):
    """What a POST with validate_only would do."""

    object: Literal["plan"]
    kind: str
    """sweep, run or comparison"""
    name: str
    spec: Json
    """With every default."""
    spec_hash: str
    plan: Json
    """Counts; of a comparison: by method."""
    hours: Json | None = None
    """Of sweeps and runs: what earlier ones that are alike took; null where there is none."""


class EventOut(BaseModel):
    """One thing that happened."""

    id: str
    """Position in its parent's history."""
    object: Literal["event"]
    type: str
    level: Literal["info", "warn", "error"]
    created_at: str
    actor: str
    """Id of a key, or reconciler, or driver."""
    attempt: int | None
    message: str
    data: Json


class LeaderboardOut(BaseModel):
    """Ranked trials, best first."""

    object: Literal["leaderboard"]
    sweep: str
    final: bool
    """The driver's own ranking; before that the values so far."""
    objective: Json | None
    data: list[Json]


class TrialOut(BaseModel):
    """One point of the search space."""

    id: str
    object: Literal["trial"] = "trial"
    number: int
    state: str
    params: Json
    metrics: Json
    rungs: list[Json]
    step: int | None
    value: float | None
    reason: str
    attempt: int
    deployable: bool
    """It left a checkpoint that a deployment may name."""
    seconds: float | None
    created_at: str
    ended_at: str | None


IdleS = Annotated[int, Field(ge=1, le=30 * 86400)]


class DeploymentIn(BaseModel):
    """A wish to serve under a name: one checkpoint of a sweep or run, or whatever an alias of a model points at."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=NAME)]
    """What clients will send as `model`: 1-63 of a-z, 0-9 and inner -."""
    sweep: str | None = None
    """Id of a SUCCEEDED sweep or run."""
    checkpoint: str = "winner"
    """winner, base, or the id of a trial."""
    comparison: str | None = None
    """Instead of a sweep: id of a SUCCEEDED comparison."""
    method: str | None = None
    """Of the comparison: whose winner; default: the one that leads."""
    model: str | None = None
    """Instead of a sweep: MODEL@production or MODEL@candidate. The deployment follows the alias."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What generates the text; vllm where the service is set up for it (SIMPO_VLLM_PYTHON)."""
    min_replicas: Literal[0, 1] = 1
    """0: it sleeps while nobody asks; the next request waits until a replica is there again."""
    idle_s: IdleS | None = None
    """With `min_replicas: 0`: after so many seconds without a request; default: 600."""


class ScalingIn(BaseModel):
    """Whether a deployment may sleep, from now on."""

    model_config = ConfigDict(extra="forbid")

    min_replicas: Literal[0, 1]
    """0: it sleeps while nobody asks."""
    idle_s: IdleS | None = None
    """After so many seconds; default: 600."""


class DeploymentOut(BaseModel):
    """A named model."""

    id: str
    object: Literal["deployment"] = "deployment"
    name: str
    state: str
    reason: str
    message: str
    stale_since: str | None
    """While Serve does not answer: since when the state may be older than the facts."""
    sweep: str
    """Id of the sweep, run or comparison that trained it."""
    checkpoint: str
    """Of a comparison: the method whose winner it is."""
    model: str | None
    """The alias that it follows."""
    model_version: int | None
    """Where that points; reason ROLLING: this version still loads, the one before answers."""
    engine: str
    min_replicas: int
    idle_s: int | None
    """Seconds without a request after which it sleeps (reason ASLEEP); null: never."""
    revision: int
    created_at: str
    ready_at: str | None
    ended_at: str | None


class PageOf(BaseModel, Generic[T]):
    """A page of a list."""

    object: Literal["list"] = "list"
    data: list[T]
    has_more: bool
    next: str | None


class SweepBody(RootModel[Json]):
    """A SweepSpec. Taken as it comes and validated by the route, so that faults are told in the spec's own words."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> Json:
        return handler(SweepSpec.__pydantic_core_schema__)


class RunBody(RootModel[Json]):
    """A RunSpec, likewise."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> Json:
        return handler(RunSpec.__pydantic_core_schema__)


# Plain dicts: a model for each row of a page took longer than its query. Tests compare them with the models.


def sweep_json(row: Any, trials: Mapping[str, int], *, whole: bool) -> Json:
    """A SweepOut. `row`: a Sweep, or its columns as `service.marks` reads them. `whole`: with the result."""
    return {
        "id": row.id,
        "object": row.kind,
        "name": row.name,
        "state": row.state,
        "reason": row.reason,
        "message": row.message,
        "stale_since": rfc3339(row.stale_since) if row.stale_since else None,
        "desired": row.desired,
        "priority": word_of(row.priority),
        "queue": None,
        "phase": row.phase,
        "progress": row.progress,
        "attempt": row.attempt,
        "trials": dict(trials),
        "best": row.best,
        "error": row.error,
        "spec": row.spec,
        "spec_hash": row.spec_hash,
        "created_at": rfc3339(row.created_at),
        "started_at": rfc3339(row.started_at) if row.started_at else None,
        "ended_at": rfc3339(row.ended_at) if row.ended_at else None,
        "result": row.result if whole else None,
    }


def sweep_text(row: Any, trials: Mapping[str, int]) -> bytes:
    """The same, without the result, as JSON's text; the row's spec is such a text already, which nobody reads here."""
    known = sweep_json(row, trials, whole=False)
    spec: str = known.pop("spec")
    return b'%b,"spec":%b}' % (to_json(known, inf_nan_mode="null")[:-1], spec.encode())


def trial_json(row: Any) -> Json:
    """A TrialOut of a Trial, or of a row that has its columns."""
    return {
        "id": row.trial_id,
        "object": "trial",
        "number": row.number,
        "state": row.state,
        "params": row.params,
        "metrics": row.metrics,
        "rungs": row.rungs,
        "step": row.step,
        "value": row.value,
        "reason": row.reason,
        "attempt": row.attempt,
        "deployable": row.checkpoint is not None,
        "seconds": row.seconds,
        "created_at": rfc3339(row.created_at),
        "ended_at": rfc3339(row.ended_at) if row.ended_at else None,
    }


def deployment_json(row: Deployment) -> Json:
    """One deployment. Its path stays inside: artifacts are named by sweep and checkpoint."""
    return DeploymentOut(
        id=row.id,
        name=row.name,
        state=row.state,
        reason=row.reason,
        message=row.message,
        stale_since=rfc3339(row.stale_since) if row.stale_since else None,
        sweep=row.sweep_id,
        checkpoint=row.checkpoint,
        model=row.follows,
        model_version=row.model_version,
        engine=row.engine,
        min_replicas=1 if row.idle_s is None else 0,
        idle_s=row.idle_s,
        revision=row.revision,
        created_at=rfc3339(row.created_at),
        ready_at=rfc3339(row.ready_at) if row.ready_at else None,
        ended_at=rfc3339(row.ended_at) if row.ended_at else None,
    ).model_dump(mode="json")
