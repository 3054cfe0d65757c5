"""What schemathesis cannot know by itself; loaded by it (SCHEMATHESIS_HOOKS)."""

import itertools
import json
import re
from typing import Any

import schemathesis
from hypothesis import strategies as st
from schemathesis import CheckContext, GenerationMode, HookContext
from schemathesis.generation.meta import TestPhase

_ROWS = st.lists(st.fixed_dictionaries({"prompt": st.text(), "chosen": st.text(), "rejected": st.text()}), min_size=1)
_FILE = _ROWS.map(lambda rows: "\n".join(map(json.dumps, rows)).encode())
for _kind in ("application/jsonl", "application/x-ndjson", "application/jsonlines", "application/octet-stream"):
    schemathesis.openapi.media_type(_kind, _FILE)

FACTS = (
    "there is no (sweep|run|comparison|dataset|trial|file|model|scope)",
    "^(sweep: )?name either a sweep, or a",
    "is for a (sweep|comparison): |give a role, or a list of scopes|is past: give a time to come",
    "This Idempotency-Key was used for another request",
    "The file's|^line [0-9]+ |holds no row|is a damaged gzip file|The gzip file is damaged|There is no row in it",
    "a[rn]? (zip|parquet|zstd|xz|bzip2) ",
    "must be the id of an event",  # schemathesis does not follow the patterns of headers
    "metadata|is not supported|is not understood here",
    "points nowhere|must be like MODEL@|must look like|^there is no pair: ",
    "must be a plain file name|upload JSON lines",
    "of the public internet|must name a host|must use (a )?port|must begin with https|can be read in two ways",
)
"""What a request may be refused for though it fits its schema: what is or is not there, and files' contents."""

RULES = (
    "must be greater than low|must lead from low|holds a value twice|must be a finite number|whole steps",
    "has no axis|has no hyperparameter|unknown (figure|probe)|names no axis|is no other axis|every trial needs",
    "this combination is refused|not both|must be (in|at least|above|below|a number|greater|one of|true|rising)",
    "needs a judge|needs price_in|needs generated text|need generated text|needs the spread|must be another judge",
    "only (truncation|draw)|would only draw|population \\* generations|cannot share|is required with truncation",
    "fall on steps|use fewer rungs|compares trials by one number|waits for whole generations|the steps of",
    "is continuous|searches numbers|searches for one number|cannot be told|learns nothing from|needs the same axes",
    "warmup_fraction \\+ decay_fraction|names a kind twice|names a metric twice|different numbers, none of them 1",
    "averages finalists|averages whole weights|pbt's winner|an endpoint compares|nobody to share with",
    "random trial|is more than the|lays down every trial's point|is what the rule|stands twice|no trial fits",
    "as .* it must|practice scores only|must be at least|must be https|must not (hold|have)|names an address|is no URL",
    "parallel.workers_per_trial|is not searched|give one of them|a comparison asks for the best|is never|is the rest",
    "is neither practice|must hold win_rate|here earlier sweeps are named|to raise|must be the name of an environment",
    "is required: percent of|^send one of rating|^the last message must be the user's|^both answers are the same text",
    "is no plain path|must be the text of a Jinja template|belong into|multipl|at most|is not [a-z]+, the type",
)
"""Rules between the fields of a spec, which JSON Schema does not speak of."""

_UNSAID = re.compile("|".join((*FACTS, *RULES)), re.IGNORECASE)


SOUND: dict[str, dict[str, Any]] = {
    "/v1/sweeps": {},
    "/v1/runs": {"learning_rate": 1e-4},
    "/v1/comparisons": {"methods": ["simpo", "dpo"]},
    "/v1/keys": {},
    "/v1/projects": {},
}
"""What is accepted under any name. Drawn by chance such a body is rare, and without one there is nothing to walk to."""
_places = itertools.count()


@schemathesis.hook
def before_call(context: HookContext, case: Any, **kwargs: Any) -> None:
    """In a walk, POST what is accepted. Lists, no streams: a stream of what is not over does not end, `test_events.py`
    reads those."""
    asked = case.query or {}
    walks = case.meta is not None and case.meta.phase.name == TestPhase.STATEFUL
    if walks and case.method.upper() == "POST" and case.path in SOUND:
        case.body = {"name": f"walk-{next(_places)}", **SOUND[case.path]}
        asked.pop("validate_only", None)
    if str(asked.get("stream")).lower() in ("true", "1", "yes", "on", "t", "y"):
        asked["stream"] = "false"
    if "text/event-stream" in str((case.headers or {}).get("accept")):
        case.headers["accept"] = "application/json"


@schemathesis.check
def refused_for_what_no_schema_says(ctx: CheckContext, response: Any, case: Any) -> None:
    """A request that fits the document is refused only for facts and for rules between fields."""
    if response.status_code not in (400, 422) or case.meta is None:
        return
    if case.meta.generation.mode != GenerationMode.POSITIVE:
        return
    body = response.json()
    detail = body["error"]["message"] if "error" in body else body["detail"]
    faults = [fault["message"] for fault in body.get("errors", [])] or [detail]
    unexpected = [fault for fault in faults if not _UNSAID.search(fault)]
    assert not unexpected, f"The schema lets pass what is refused: {unexpected}"
