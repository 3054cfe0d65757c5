"""From what a spec says of its judge to something that judges."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from simpo.errors import ConfigError
from simpo.evaluation.judge import Judge
from simpo.evaluation.verdicts import JudgeIdentity, PairwiseJudge, ScoringJudge
from simpo.practice import PracticeJudge
from sweeps.judges_http import HttpJudge
from sweeps.judges_reward import RewardModelJudge
from sweeps.judges_spec import Endpoint, RewardModel, endpoints_of
from sweeps.judges_store import JudgeStore

RECORD = "judge/answers.sqlite3"
"""Where a sweep's judgements lie, under its directory. All attempts share it: what one has paid for, the next one
reads, and the budget is that of the sweep."""

_KEY_FIELD = "judge.api_key_env"


@dataclass(frozen=True, kw_only=True)
class JudgeAccess:
    """What a judge behind a network needs and no spec may hold. Made at the edge, where a driver starts."""

    keys: Mapping[str, SecretStr] = field(default_factory=dict)
    """By the name of their environment variable."""
    public_only: bool = False
    """Refuse addresses of private networks and of this machine: specs come from people who do not own it."""

    @classmethod
    def of(cls, judge: Any, environment: Mapping[str, str], *, public_only: bool = False) -> "JudgeAccess":
        """The keys that a validated judge names.

        Who runs drivers binds a key to one address with a second variable, <NAME>_URL: then it is sent nowhere else,
        whatever a spec says. With `public_only` a key that is not bound is not handed out.
        Raises ConfigError: a key that is not set, not bound, or bound to another address.
        """
        keys = {}
        for endpoint in endpoints_of(judge):
            name, bound = endpoint.api_key_env, environment.get(f"{endpoint.api_key_env}_URL", "").rstrip("/")
            if name is None:
                continue
            if not environment.get(name):
                raise ConfigError(f"the environment variable {name} is not set where the driver runs", _KEY_FIELD)
            if bound and bound != endpoint.url:
                raise ConfigError(f"the key in {name} is for another address than {endpoint.url}", _KEY_FIELD)
            if public_only and not bound:
                raise ConfigError(f"set {name}_URL to the one address that the key in {name} is for", _KEY_FIELD)
            keys[name] = SecretStr(environment[name])
        return cls(keys=keys, public_only=public_only)


def judge_of(judge: Any) -> Judge | None:
    """What scores answers at rungs, for a judge of a valid spec; None without one, and for endpoints."""
    if judge is None or isinstance(judge, Endpoint):
        return None
    return RewardModelJudge(judge) if isinstance(judge, RewardModel) else PracticeJudge()


@contextlib.contextmanager
def pairwise_judge(judge: Any, run: Path, access: JudgeAccess) -> Iterator[PairwiseJudge]:
    """What compares answers in the finals of the sweep in `run`."""
    if isinstance(judge, Endpoint):
        key = None if judge.api_key_env is None else access.keys[judge.api_key_env]
        with JudgeStore(run / RECORD) as store:
            yield HttpJudge(judge, store=store, key=key, public_only=access.public_only)
        return
    scoring = judge_of(judge)
    assert scoring is not None
    kind = "reward_model" if isinstance(judge, RewardModel) else scoring.name
    decoding = judge.model_dump(include={"max_length", "dtype"}) if isinstance(judge, RewardModel) else {}
    yield ScoringJudge(scoring, JudgeIdentity(type=kind, model=scoring.name, decoding=decoding))


def check_judges(judge: Any, run: Path, access: JudgeAccess) -> None:
    """Find out whether the judges of a valid spec can be used, before anything slow begins: see `HttpJudge.check`.

    Raises JudgeError, ModelError.
    """
    for each in (judge, getattr(judge, "second", None)):
        if isinstance(each, Endpoint):
            with JudgeStore(run / RECORD) as store:
                key = None if each.api_key_env is None else access.keys[each.api_key_env]
                HttpJudge(each, store=store, key=key, public_only=access.public_only).check()
        else:
            judge_of(each)
