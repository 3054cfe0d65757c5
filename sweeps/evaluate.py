"""The life of one evaluation, from spec.json to result.json: claim, answer, judge, decide; more prompts while open.

It runs as a sweep's driver does: one Ray job, one claimed attempt, a journal, a heartbeat, a result published last.
An INCONCLUSIVE gate buys twice the prompts, up to the cap. Looking again and again would let chance pass in the end, so
the looks share one error: with k planned looks each interval has level 1 - 0.05 / k (Bonferroni).
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import transformers

from simpo.errors import DataError
from simpo.evaluation.capability import load_capability
from simpo.evaluation.controls import make_controls
from simpo.evaluation.evidence import evidence_of, figures_of
from simpo.evaluation.judged import JudgedWinRate, judge_with_controls
from simpo.evaluation.verdicts import Comparison, PairwiseJudge
from simpo.memory import keep_freed_pages
from simpo.records import Preference
from sweeps.checkpoint_cache import CheckpointCache
from sweeps.defaults import PRACTICE
from sweeps.evaluation_data import Side, held_out_rows
from sweeps.evaluation_spec import EvaluationSpec, Subject, evaluation_hash, parse_evaluation
from sweeps.gates import Decision, decide
from sweeps.judged_finals import SELF_PROMPTS, shares_of
from sweeps.judges import JudgeAccess, check_judges, pairwise_judge
from sweeps.judges_spec import JudgeEndpoint
from sweeps.measure import right_answers
from sweeps.pulse import Pulse
from sweeps.run_dir import Attempt, Record, RunDir
from sweeps.stopping import Stop, ending_told, stoppable
from sweeps.working_copy import is_remote

ERROR = 0.05
"""Over all looks of an evaluation together, two-sided."""
_MOST_PAIRS = 1000
_NO_JUDGE: contextlib.AbstractContextManager[PairwiseJudge | None] = contextlib.nullcontext()


def run_evaluation(
    run: RunDir,
    *,
    number: int | None = None,
    listeners: Sequence[Callable[[Record], None]] = (),
    access: JudgeAccess | None = None,
    cache: CheckpointCache | None = None,
) -> dict[str, Any]:
    """Run one attempt of the evaluation in `run` and return its result. `number` None: the next free one.

    cache: where checkpoints go that are fetched from an object store.

    Raises AttemptClaimed, SimPOError (the user's to mend), Stopped (a signal, or a higher claim).
    """
    spec = parse_evaluation(run.read_spec(), source=str(run.spec_path))
    attempt = run.claim_next() if number is None else run.claim(number)
    attempt.listeners.extend(listeners)
    keep_freed_pages()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    started = {"spec_hash": evaluation_hash(spec), "name": spec.name, "against": spec.against}
    attempt.append("job.started", f"attempt {attempt.number} of {spec.name} starts", started)
    with stoppable(at_once=False) as stop, Pulse(attempt, stop.superseded) as pulse, ending_told(attempt, stop):
        began = time.monotonic()
        with _fetched(spec, cache or CheckpointCache()) as here:
            evidence, decision = _Evaluation(here, attempt, stop, access or JudgeAccess()).run()
        result = {
            "attempt": attempt.number,
            "spec_hash": evaluation_hash(spec),
            "state": "SUCCEEDED",
            "evidence": evidence,
            "decision": decision.as_dict(),
            "seconds": {"evaluating": round(time.monotonic() - began, 3)},
            "peak_memory_bytes": pulse.peak_memory_bytes,
        }
        attempt.publish_result(result)
        attempt.append("job.finished", f"the gate says {decision.state}", {"state": decision.state})
    return result


def looks_of(first: int, most: int) -> list[int]:
    """Prompts in all at each look: doubled until the cap. E.g. 400, 1000 -> [400, 800, 1000]."""
    looks = [min(first, most)]
    while looks[-1] < most:
        looks.append(min(2 * looks[-1], most))
    return looks


@contextlib.contextmanager
def _fetched(spec: EvaluationSpec, cache: CheckpointCache) -> Iterator[EvaluationSpec]:
    """The same, with checkpoints that lie in an object store by their copies on this node. Raises as `hold`."""
    with contextlib.ExitStack() as held:

        def here(subject: Subject) -> Subject:
            if not is_remote(subject.path):
                return subject
            copy = cache.hold(subject.path)
            held.callback(copy.close)
            return subject.model_copy(update={"path": str(copy.path)})

        yield spec.model_copy(update={name: here(getattr(spec, name)) for name in ("candidate", "reference", "base")})


class _Evaluation:
    """The three models, and what was seen of them so far."""

    def __init__(self, spec: EvaluationSpec, attempt: Attempt, stop: Stop, access: JudgeAccess) -> None:
        self.spec, self.attempt, self.stop, self.access = spec, attempt, stop, access
        self.scores: dict[str, Any] = {}
        self.right: dict[str, list[bool]] = {}
        self.resampled: list[tuple[str, str]] = []

    def run(self) -> tuple[dict[str, Any], Decision]:
        spec, sweep, root = self.spec, self.spec.sweep, self.attempt.run.root
        check_judges(sweep.judge, root, self.access)
        self._tell(0.0, "reading the held-out data")
        self.items = None if spec.gate.capability in (None, PRACTICE) else load_capability(str(spec.gate.capability))
        self.sides = {name: Side(source=getattr(spec, name).path, sweep=sweep) for name in ("candidate", "reference")}
        self.sides["base"] = self.sides["reference"]
        if spec.base.path != spec.reference.path:
            self.sides["base"] = Side(source=spec.base.path, sweep=sweep)
        rows = held_out_rows(sweep, self.attempt.prepared, spec.gate.max_prompts)
        usable = set.intersection(*(side.usable(rows) for side in self.sides.values()))
        self.rows = [row for index, row in enumerate(rows) if index in usable][: spec.gate.max_prompts]
        if len(self.rows) < 2:
            raise DataError("fewer than two held-out rows are usable by both models: give more data")
        looks = looks_of(spec.gate.prompts, self._affordable(len(self.rows)))
        judging = _NO_JUDGE if sweep.judge is None else pairwise_judge(sweep.judge, root, self.access)
        with judging as judge:
            for place, prompts in enumerate(looks):
                evidence, decision = self._look(judge, prompts, level=1 - ERROR / len(looks))
                evidence |= {"looks": place + 1, "planned_looks": len(looks)}
                data = {"what": "gate", "prompts": prompts, "decision": decision.as_dict()}
                self.attempt.append("eval.completed", f"{decision.state} on {prompts} prompts", data)
                if not decision.more_prompts_may_help:
                    break
        self._tell(1.0, f"the gate says {decision.state}")
        return evidence, decision

    def _affordable(self, prompts: int) -> int:
        """Of the prompts, as many as the judge's budget of requests allows for with its controls."""
        judge = self.spec.sweep.judge
        if not isinstance(judge, JudgeEndpoint):
            return prompts
        return max(1, shares_of(judge.max_requests, prompts=prompts, finalists=1)[1])

    def _look(self, judge: PairwiseJudge | None, prompts: int, *, level: float) -> tuple[dict[str, Any], Decision]:
        rows = self.rows[:prompts]
        for place, name in enumerate(("candidate", "reference", "base")):
            self._tell(place / 4, f"{name}: answering {prompts} prompts" if name != "base" else "scoring the base")
            self._meet(name, rows)
        self._tell(0.75, "judging")
        judged = None if judge is None else self._judged(judge, rows)
        candidate, reference = self.sides["candidate"], self.sides["reference"]
        figures = figures_of(
            candidate.behaviour(self.scores["candidate"], self._right("candidate", rows)),
            reference.behaviour(self.scores["reference"], self._right("reference", rows)),
            self.sides["base"].behaviour(self.scores["base"], None),
            reference_lengths=[len(pair.chosen) for pair in candidate.pairs(rows)],
            judged=judged,
            level=level,
        )
        facts = {"source": "evaluation", "reference": self.spec.against, "prompts": prompts}
        labels = {"candidate_label": self.spec.candidate.label, "reference_label": self.spec.reference.label}
        evidence = evidence_of(figures, judged, level=level, **facts, **labels)
        return evidence, decide(self.spec.gate.conditions, evidence)

    def _meet(self, name: str, rows: Sequence[Preference]) -> None:
        """Answers to new prompts; at the first look also what does not depend on their number."""
        self.stop.check()
        side = self.sides[name]
        asked = name != "base" and len(side.generations) < len(rows)
        if not asked and name in self.scores:
            return
        # A drop is told in the candidate's own tokens, which are those of the base that it was trained from.
        pairs = self.sides["candidate" if name == "base" else name].pairs(self.rows[:_MOST_PAIRS])
        if name == "base" and side is self.sides["reference"] and pairs == side.pairs(self.rows[:_MOST_PAIRS]):
            self.scores[name] = self.scores["reference"]
            return
        model = side.load()
        if name not in self.scores:
            self.scores[name] = side.scores(model, pairs)
            if self.items is not None and name != "base":
                self.right[name] = side.passed(model, self.items)
            if name == "reference":
                asked_twice = [row.prompt for row in self.rows[:SELF_PROMPTS]]
                both = [side.sampled(model, asked_twice, seed=self.spec.sweep.seed + more) for more in (101, 102)]
                self.resampled = [(a.text, b.text) for a, b in zip(*both, strict=True)]
        if asked:
            side.answer(model, rows)

    def _judged(self, judge: PairwiseJudge, rows: Sequence[Preference]) -> JudgedWinRate:
        """All pairs so far: a judge that costs money has the earlier ones on record."""
        self.stop.check()
        instructions = [row.instruction for row in rows]
        texts = [[each.text for each in self.sides[name].generations] for name in ("candidate", "reference")]
        pairs = [Comparison(*each) for each in zip(instructions, *texts, strict=True)]
        # The controls are drawn from the first look's rows, so that they too are asked for once.
        few = self.rows[: self.spec.gate.prompts]
        asked, chosen = [row.instruction for row in few], [row.chosen for row in few]
        controls = make_controls(asked, chosen, resampled=self.resampled, seed=self.spec.sweep.seed)
        return judge_with_controls(judge, pairs, controls, seed=self.spec.sweep.seed)

    def _right(self, name: str, rows: Sequence[Preference]) -> list[bool] | None:
        if self.spec.gate.capability != PRACTICE:
            return self.right.get(name)
        answers = [each.text for each in self.sides[name].generations]
        return right_answers(self.spec.sweep, [row.instruction for row in rows], answers)

    def _tell(self, progress: float, message: str) -> None:
        self.stop.check()
        self.attempt.append("job.phase", message, {"phase": "evaluating", "progress": progress})
