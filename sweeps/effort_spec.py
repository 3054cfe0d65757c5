"""What a sweep may take and how its winner is found: budget, finals, parallel work. Light."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from simpo.errors import ConfigError
from sweeps.strict import Strict


class Budget(Strict):
    """A hard stop that still returns the best so far: whichever limit is reached first ends the search."""

    trials: Annotated[int, Field(ge=1, le=10_000)] = 16
    steps: Annotated[int, Field(ge=1)] = 120
    """Optimiser steps of a trial at full budget."""
    wall_clock_s: Annotated[float, Field(gt=0)] | None = None
    """After so many seconds no trial starts and running ones stop; finals still run."""
    total_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimiser steps of all trials together: a trial starts only if it fits at full length. Steps of trials that were
    stopped early are free for others."""
    accelerator_hours: Annotated[float, Field(gt=0)] | None = None
    """Hours that trials and retrainings together may hold training processes, over all attempts; CPU-hours where there
    is no accelerator (`sweeps.hours`). Then no trial starts and running ones stop; finals still run."""


class Finals(Strict):
    """The finalists, chosen on rung data, meet on fresh prompts."""

    candidates: Annotated[int, Field(ge=1)] = 2
    prompts: Annotated[int, Field(ge=2)] = 500
    seeds: Annotated[int, Field(ge=1, le=20)] = 1
    """Training seeds of each finalist. More than 1: each is trained so many times less one again, at full budget, in
    another order of the same pairs (and with another draw of LoRA's first weights), the same for all finalists; the
    choice goes by the mean over seeds. Three or more: two say little of the spread between seeds."""
    extra: tuple[Literal["soup", "scale"], ...] = ()
    """Candidates without training. soup: the average of the finalists' weights. scale: base + s (best finalist - base)
    for each s of `scales`. They are measured as the finalists are, and may win."""
    scales: Annotated[tuple[Annotated[float, Field(gt=0, le=4)], ...], Field(min_length=1)] = (0.5, 0.75, 1.25)
    """For extra: [scale]. Below 1 lies between base and finalist, above 1 beyond the finalist."""

    @field_validator("extra")
    @classmethod
    def _each_once(cls, extra: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(extra)) != len(extra):
            raise ConfigError("names a kind twice")
        return extra

    @field_validator("scales")
    @classmethod
    def _other_than_the_finalist(cls, scales: tuple[float, ...]) -> tuple[float, ...]:
        if 1.0 in scales or len(set(scales)) != len(scales):
            raise ConfigError("must be different numbers, none of them 1: that is the finalist itself")
        return scales

    @model_validator(mode="after")
    def _fits_together(self) -> "Finals":
        if "soup" in self.extra and self.candidates < 2:
            raise ConfigError("a soup averages finalists: raise finals.candidates to 2 or more", "extra")
        return self

    @property
    def contested(self) -> bool:
        """Whether more is compared than the finalists as the search left them."""
        return self.seeds > 1 or bool(self.extra)


class Parallel(Strict):
    """How much runs at once."""

    trials: Annotated[int, Field(ge=1)] = 2
    workers_per_trial: Annotated[int, Field(ge=1)] = 1
    """More than 1: data-parallel workers through Ray Train, which may share the weights (train.sharding)."""
    gpus_per_worker: Annotated[float, Field(ge=0, le=16)] | None = None
    """What each holds of the cluster's GPUs: 1, a share of one (0.5: two trials a GPU), 0: it trains on the CPU.
    None: 1 where Ray has GPUs that torch can use, else 0."""

    @model_validator(mode="after")
    def _whole_gpus(self) -> Self:
        share = self.gpus_per_worker or 0.0
        if share != int(share) and (share > 1 or self.workers_per_trial > 1):
            raise ConfigError(
                "a share of a GPU is for trials of one worker, and below 1: use a whole number", "gpus_per_worker"
            )
        return self


def check_finals(
    finals: Finals, *, scheduler: str, sharded: bool, endpoint: bool, win_rate: bool, rung_prompts: int
) -> None:
    """Refuse finals that the rest of a spec cannot serve. Raises ConfigError with the field.

    endpoint: the judge lies behind a network. win_rate: it is the objective.
    """
    field = "finals.seeds" if finals.seeds > 1 else "finals.extra"
    if finals.seeds > 1 and scheduler == "pbt":
        raise ConfigError("pbt's winner is a line of descent, not a point to train again: use 1", field)
    if finals.extra and sharded:
        raise ConfigError(
            "averages whole weights in one process, and these are divided: use train.sharding: none", "finals.extra"
        )
    if finals.contested and endpoint:
        raise ConfigError(
            "an endpoint compares the finalists as the search left them, for every answer costs money: leave it out, "
            "or use a judge that scores (practice, reward_model) or none",
            field,
        )
    if finals.contested and win_rate and rung_prompts < 2:
        raise ConfigError("needs the spread over prompts: set evaluation.rung_prompts to 2 or more", field)
