"""The one table of states: what may follow what, and which verbs a person may use when."""

from collections.abc import Mapping
from enum import StrEnum


class State(StrEnum):
    """Of a sweep or run."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    CANCELLING = "CANCELLING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class TrialState(StrEnum):
    """Of one trial."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    PRUNED = "PRUNED"
    INFEASIBLE = "INFEASIBLE"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class AttemptState(StrEnum):
    """Of one submission of a sweep's driver."""

    CREATED = "CREATED"
    SUBMITTED = "SUBMITTED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    LOST = "LOST"
    CANCELLED = "CANCELLED"


class DeploymentState(StrEnum):
    """Of a deployment. READY only after Serve was seen to say so."""

    PENDING = "PENDING"
    READY = "READY"
    FAILED = "FAILED"
    DELETING = "DELETING"
    DELETED = "DELETED"


MOVES: Mapping[str, frozenset[str]] = {
    State.PENDING: frozenset({State.RUNNING, State.FAILED, State.CANCELLING, State.CANCELLED}),
    State.RUNNING: frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLING, State.CANCELLED}),
    State.CANCELLING: frozenset({State.CANCELLED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}
"""Of sweeps and runs. Terminal states are absorbing."""

DEPLOYMENT_MOVES: Mapping[str, frozenset[str]] = {
    # Serve may lose a model (its cluster restarted) and may bring a failed one back: these states mirror it.
    DeploymentState.PENDING: frozenset({DeploymentState.READY, DeploymentState.FAILED, DeploymentState.DELETING}),
    DeploymentState.READY: frozenset({DeploymentState.PENDING, DeploymentState.FAILED, DeploymentState.DELETING}),
    DeploymentState.FAILED: frozenset({DeploymentState.PENDING, DeploymentState.READY, DeploymentState.DELETING}),
    DeploymentState.DELETING: frozenset({DeploymentState.DELETED}),
    DeploymentState.DELETED: frozenset(),
}
"""Of deployments."""

_VERBS: Mapping[str, str] = {"cancel": State.CANCELLING, "delete": DeploymentState.DELETING}

LIVE = frozenset(str(state) for state, following in MOVES.items() if following)
TERMINAL = frozenset(str(state) for state, following in MOVES.items() if not following)
TRIAL_OVER = frozenset(str(state) for state in TrialState if state not in (TrialState.PENDING, TrialState.RUNNING))


def allowed_verbs(state: str, moves: Mapping[str, frozenset[str]] = MOVES) -> list[str]:
    """What a person may ask for in this state: the verbs whose target the table allows next."""
    return sorted(verb for verb, target in _VERBS.items() if target in moves[state])
