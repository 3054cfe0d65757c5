"""Every type of event, with what it says. The list grows, and nothing leaves it: programs wait for these words."""

import re
from collections.abc import Iterable, Mapping, Sequence

EVENT_TYPES: Mapping[str, str] = {
    "job.validating": "A fine-tuning job was accepted; its data is looked at.",
    "job.validated": "Its data is in order.",
    "job.not_validated": "Nobody could look at its data; it goes on.",
    "job.queued": "A sweep, run, evaluation or comparison was accepted and waits for its turn.",
    "job.submitted": "An attempt is with Ray.",
    "job.started": "Its driver began.",
    "job.phase": "It came into another phase, or further in one.",
    "job.resumed": "An attempt took up what its predecessors left.",
    "job.stopped": "The driver was told to stop, and did.",
    "job.finished": "The driver wrote its result.",
    "job.restarted": "An attempt ended without a result; the next one resumes.",
    "job.cancel_requested": "Somebody asked for its end.",
    "job.cancelling": "Its driver is being stopped.",
    "job.cancelled": "It was cancelled.",
    "job.succeeded": "It has a result.",
    "job.failed": "It failed; `data` tells whose fault it was.",
    "job.deploying": "A fine-tuning job's winner is on the way behind its name.",
    "job.deployed": "The name answers.",
    "job.not_deployed": "The winner could not be deployed.",
    "attempt.failed": "The driver gave up, and said why.",
    "attempt.lost": "The driver is gone without a word.",
    "reference.ready": "Reference log-probabilities are there.",
    "reference.warning": "They look odd.",
    "trial.created": "A point of the space is to be trained.",
    "trial.started": "Its training began, or began again.",
    "trial.progress": "Newest metrics of a trial, a few times a minute.",
    "trial.rung": "A trial reached a budget at which trials are compared.",
    "trial.pruned": "A trial was ended early.",
    "trial.completed": "A trial was trained to its end.",
    "trial.infeasible": "A trial broke a constraint.",
    "trial.failed": "A trial failed.",
    "replicate.rung": "A finalist is trained again from another seed.",
    "checkpoint.damaged": "A checkpoint did not fit its manifest; the one before was taken.",
    "best.updated": "Another trial leads.",
    "budget.spent": "A limit of the budget is reached.",
    "eval.completed": "A finalist was judged, or an evaluation has its figures.",
    "method.finished": "A method of a comparison has its result.",
    "method.spent": "What a method of a comparison took of accelerator-hours.",
    "sweep.edited": "Somebody asked for a change of a running sweep.",
    "control.applied": "The driver made the change.",
    "control.refused": "The driver refused it.",
    "promotion.requested": "A version is to take the champion's place.",
    "promotion.approve_requested": "Somebody approved it.",
    "promotion.abort_requested": "Somebody stopped it.",
    "promotion.rollback_requested": "Somebody wants the version before.",
    "promotion.succeeded": "The version is in production.",
    "promotion.failed": "It will not be.",
    "promotion.aborted": "It was stopped.",
    "promotion.rolled_back": "The version before is in production again.",
    "promotion.rollback_refused": "There is no way back any more.",
    "evaluation.started": "A promotion asked for an evaluation.",
    "gate.passed": "The candidate passed its gate.",
    "gate.failed": "It did not.",
    "gate.inconclusive": "The figures leave it open.",
    "alias.moved": "An alias of a model points at another version.",
    "model.created": "The registry has another model.",
    "model.version_registered": "A model has another version.",
    "deployment.requested": "A model is to be served.",
    "deployment.pending": "It waits for Serve, perhaps again.",
    "deployment.ready": "It answers.",
    "deployment.failed": "It cannot be served.",
    "deployment.rolled_out": "Another revision answers.",
    "deployment.weight_changed": "What it follows points at another version, or its candidate has another share.",
    "deployment.scaling_changed": "It may sleep while nobody asks, or may not any more.",
    "deployment.canary_requested": "A candidate is to come beside the champion.",
    "deployment.canary_ready": "The candidate answers its share.",
    "deployment.canary_failed": "It could not be loaded, and answers nobody.",
    "deployment.canary_promoting": "It answers everybody, and becomes the champion.",
    "deployment.canary_promoted": "It is the champion.",
    "deployment.canary_aborted": "Somebody took it away.",
    "deployment.canary_rolled_back": "It was taken back; `data.verdict` has the figures of both versions.",
    "deployment.rollback_requested": "Somebody wants the champion of before.",
    "deployment.rolled_back": "A revision could not be loaded: the one before goes on answering.",
    "deployment.delete_requested": "Somebody wants it gone.",
    "deployment.deleting": "It is being taken away.",
    "deployment.deleted": "It is gone.",
    "dataset.created": "Data was uploaded.",
    "dataset.validation_requested": "Somebody wants the doctor's report.",
    "dataset.validated": "The report is there.",
    "dataset.validation_failed": "None could be made.",
    "dataset.deleted": "Data was deleted.",
    "webhook.created": "A webhook was made. Those of webhooks are their own history: they are told to nobody.",
    "webhook.test": "Somebody wants to see a delivery: told to that webhook alone.",
    "webhook.retry_requested": "Somebody wants a delivery that was given up to be tried again.",
    "webhook.rotated": "It has a new secret.",
    "webhook.enabled": "It is told of events again.",
    "webhook.disabled": "It is told of nothing any more.",
    "webhook.deleted": "It is gone.",
}


def known_patterns() -> list[str]:
    """All that a webhook may ask for."""
    told = [kind for kind in EVENT_TYPES if is_told(kind)]
    return ["*", *sorted({kind.partition(".")[0] + ".*" for kind in told}), *told]


def unknown_patterns(patterns: Iterable[str]) -> list[str]:
    """Those that no event could ever match."""
    known = set(known_patterns())
    return [pattern for pattern in patterns if pattern not in known]


def matches(patterns: Sequence[str], kind: str) -> bool:
    """Whether a type is one of these: the type itself, `trial.*` for all that begin so, `*` for all."""
    family = kind.partition(".")[0] + ".*"
    return any(pattern in ("*", family, kind) for pattern in patterns)


def is_told(kind: str) -> bool:
    """Whether webhooks hear of it. Their own history is nobody else's: a broken one would otherwise tell of itself."""
    return re.match(r"webhook\.", kind) is None
