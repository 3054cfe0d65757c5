"""The one table of states: what may follow what, and which verbs a person may use when."""

from collections.abc import Mapping
from enum import StrEnum


class State(StrEnum):
    """Of a sweep or run."""

    VALIDATING = "VALIDATING"
    """Its data is looked at first (fine-tuning jobs)."""
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


class EditState(StrEnum):
    """Of an edit of a sweep."""

    PENDING = "pending"
    """Nobody has answered it yet."""
    APPLIED = "applied"
    REFUSED = "refused"


class DeploymentState(StrEnum):
    """Of a deployment. READY only after Serve was seen to say so."""

    PENDING = "PENDING"
    READY = "READY"
    FAILED = "FAILED"
    DELETING = "DELETING"
    DELETED = "DELETED"


class CanaryState(StrEnum):
    """Of a candidate beside the champion of a deployment."""

    PENDING = "PENDING"
    """It loads; nobody is answered by it."""
    READY = "READY"
    """It answers its share of the requests."""
    PROMOTING = "PROMOTING"
    """It answers all requests, until the champion's replicas have taken its checkpoint over."""
    PROMOTED = "PROMOTED"
    FAILED = "FAILED"
    """It could not be loaded."""
    ABORTED = "ABORTED"
    ROLLED_BACK = "ROLLED_BACK"


class DatasetState(StrEnum):
    """Of a dataset."""

    READY = "READY"
    DELETED = "DELETED"


class Validation(StrEnum):
    """Of the doctor's look at a dataset."""

    NONE = "NONE"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    """There is a report, whatever it says."""
    FAILED = "FAILED"
    """None could be made."""


class TuningState(StrEnum):
    """Of a fine-tuning job, around the states of its sweep."""

    TRAINING = "TRAINING"
    """Its sweep goes on, or is over and not looked at yet."""
    DEPLOYING = "DEPLOYING"
    """Its winner is on the way behind its name."""
    SUCCEEDED = "SUCCEEDED"
    """The name answers, or did."""
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class PromotionState(StrEnum):
    """Of a promotion. More words than a sweep's: a person must see whether something is asked of him."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    """The evaluation runs."""
    AWAITING_APPROVAL = "AWAITING_APPROVAL"
    """The gate passed, `candidate` points at the version."""
    SUCCEEDED = "SUCCEEDED"
    """`production` points at the version."""
    HELD = "HELD"
    """INCONCLUSIVE at the cap: neither promoted nor refused."""
    FAILED = "FAILED"
    """The gate said no, or nothing could be measured."""
    CANCELLED = "CANCELLED"
    ROLLED_BACK = "ROLLED_BACK"


class WebhookState(StrEnum):
    """Of a webhook."""

    ACTIVE = "ACTIVE"
    DISABLED = "DISABLED"
    """Told of nothing until somebody enables it; its reason says why."""
    DELETED = "DELETED"


class DeliveryState(StrEnum):
    """Of one event on its way to one webhook."""

    PENDING = "PENDING"
    DELIVERED = "DELIVERED"
    DEAD = "DEAD"
    """Given up. It can be asked for again."""


MOVES: Mapping[str, frozenset[str]] = {
    State.VALIDATING: frozenset({State.PENDING, State.FAILED, State.CANCELLING, State.CANCELLED}),
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

PROMOTION_MOVES: Mapping[str, frozenset[str]] = {
    PromotionState.PENDING: frozenset(
        {PromotionState.RUNNING, PromotionState.AWAITING_APPROVAL, PromotionState.FAILED, PromotionState.CANCELLED}
    ),
    PromotionState.RUNNING: frozenset(
        {PromotionState.AWAITING_APPROVAL, PromotionState.HELD, PromotionState.FAILED, PromotionState.CANCELLED}
    ),
    PromotionState.AWAITING_APPROVAL: frozenset(
        {PromotionState.SUCCEEDED, PromotionState.FAILED, PromotionState.CANCELLED}
    ),
    PromotionState.SUCCEEDED: frozenset({PromotionState.ROLLED_BACK}),
    PromotionState.HELD: frozenset(),
    PromotionState.FAILED: frozenset(),
    PromotionState.CANCELLED: frozenset(),
    PromotionState.ROLLED_BACK: frozenset(),
}
"""Of promotions. A gate cannot be skipped: only AWAITING_APPROVAL leads to SUCCEEDED."""

_VERBS: Mapping[str, str] = {"cancel": State.CANCELLING, "delete": DeploymentState.DELETING}
_PROMOTION_VERBS: Mapping[str, str] = {
    "approve": PromotionState.SUCCEEDED,
    "abort": PromotionState.CANCELLED,
    "rollback": PromotionState.ROLLED_BACK,
}

LIVE_PROMOTIONS = ("PENDING", "RUNNING", "AWAITING_APPROVAL")
LIVE = frozenset(str(state) for state, following in MOVES.items() if following)
TERMINAL = frozenset(str(state) for state, following in MOVES.items() if not following)
TRIAL_OVER = frozenset(str(state) for state in TrialState if state not in (TrialState.PENDING, TrialState.RUNNING))


def allowed_verbs(state: str, moves: Mapping[str, frozenset[str]] = MOVES) -> list[str]:
    """What a person may ask for in this state: the verbs whose target the table allows next."""
    return sorted(verb for verb, target in _VERBS.items() if target in moves[state])


def promotion_verbs(state: str) -> list[str]:
    """What a person may ask of a promotion in this state."""
    return sorted(verb for verb, target in _PROMOTION_VERBS.items() if target in PROMOTION_MOVES[state])
