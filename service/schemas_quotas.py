"""What the API takes and shows of quotas."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.schemas_people import LimitsOut, RateLimit

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Hours = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Unlimited = Literal["unlimited"]


class QuotaIn(BaseModel):
    """A change of a project's quotas: what is left out stays; null is the installation's default."""

    model_config = ConfigDict(extra="forbid")

    concurrent_sweeps: Count | Unlimited | None = None
    """Sweeps, runs, evaluations and comparisons on the cluster at once."""
    concurrent_trials: Count | Unlimited | None = None
    """Trials that these may train at once: the sum of their parallel.trials."""
    accelerator_hours: Hours | Unlimited | None = None
    """Hours of training processes within the period; 0: nothing starts."""
    period: Literal["month", "total"] | None = None
    """month: of the calendar, UTC."""
    requests_per_minute: RateLimit | Unlimited | None = None
    """Completions by all its keys together within 60 s. Null, here and in the two below, is no limit."""
    tokens_per_minute: RateLimit | Unlimited | None = None
    """Tokens that these read and write within 60 s."""
    tokens_per_day: RateLimit | Unlimited | None = None
    """Within 24 h."""


class Amounts(BaseModel):
    """One value for each quota; null: without limit."""

    concurrent_sweeps: int | None
    concurrent_trials: int | None
    accelerator_hours: float | None


class InLineOut(BaseModel):
    """One that waits for a place."""

    id: str
    kind: str
    """sweep, run, eval or cmp"""
    name: str
    priority: Literal["low", "normal", "high"]
    place: int
    of: int
    after: str | None
    reason: str
    """QUOTA: a limit of the project holds it. QUEUED: the installation is full, or it has not been looked at yet."""
    message: str


class QuotasOut(BaseModel):
    """What a project may take, what it takes, and who of it waits."""

    object: Literal["quotas"] = "quotas"
    project: str
    limits: Amounts
    period: Literal["month", "total"]
    """Of accelerator_hours."""
    inference: LimitsOut
    """What all its keys together may ask of models."""
    used: Amounts
    promised_hours: float
    """What running sweeps may still take of their own budgets, where hours are limited."""
    left: Amounts
    said: dict[str, Any]
    """What an operator said: null for each that is the installation's default."""
    waiting: int
    queue: list[InLineOut]
    """The first twenty."""


class RunningOut(BaseModel):
    """Counts of what is not over."""

    running: int
    waiting: int


class SweepCapacity(RunningOut):
    """Of the installation."""

    limit: int
    """SIMPO_MAX_RUNNING_SWEEPS"""


class CapacityOut(BaseModel):
    """How full the installation is."""

    object: Literal["capacity"] = "capacity"
    sweeps: SweepCapacity
    trials: int
    """That train at this moment, retrainings included."""
    project: RunningOut
    """Of `sweeps`, the caller's own."""
