"""A search without training: trials whose worth is a function of their point, ended in any order."""

import random
from typing import Any

from sweeps.outcome import Ask, Outcome
from sweeps.spec import SweepSpec, parse_spec
from sweeps.study import Study


def search_spec(**changes: Any) -> SweepSpec:
    """16 trials of 100 steps over gamma_beta_ratio and the learning rate, without a scheduler; with changes."""
    body = {"name": "x", "objective": "accuracy", "constraints": {}, "scheduler": "none", "space": {"beta": 2.0}}
    return parse_spec(body | {"budget": {"trials": 16, "steps": 100}} | changes)


def worth(params: Any) -> float:
    """At most 1, where gamma_beta_ratio is 0.4."""
    return 1 - abs(float(params["gamma_beta_ratio"]) - 0.4)


def trained(ask: Ask) -> Outcome:
    """Obeys cut-offs and generations as a trial does; what is large in the margin is small in the accuracy."""
    value, others = worth(ask.params), {"margin": float(ask.params["gamma_beta_ratio"])}
    if ask.until is not None:
        return Outcome(state="PRUNED", step=ask.until, value=value, rungs={ask.until: value})
    rungs: dict[int, float] = {}
    for step in (25, 50):
        rungs[step] = value + step / 1000
        if rungs[step] < ask.cutoffs.get(step, -1):
            return Outcome(state="PRUNED", step=step, value=rungs[step], rungs=rungs)
    return Outcome(state="COMPLETE", step=100, value=value, rungs=rungs, others=others)


def searched(study: Study, shuffle: int = 0, parallel: int = 4) -> Study:
    """The study, run to its end by so many at once, who end in a shuffled order."""
    order, live = random.Random(shuffle), list[Ask]()
    while not study.finished:
        while len(live) < parallel and (ask := study.ask()) is not None:
            live.append(ask)
        assert live or study.finished, "nobody runs, and nobody may start"
        if live:
            ask = live.pop(order.randrange(len(live)))
            study.complete(ask.number, trained(ask))
    study.close()
    return study


def asks_of(study: Study) -> list[Ask]:
    """What was asked, in order."""
    return [study.asks[number] for number in sorted(study.asks)]
