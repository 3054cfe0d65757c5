"""A comparison's data, base and held-out sets: prepared once, and handed to each method's sweep as its own.

    <out>/shared/                    what `sweeps.prepare` makes for the first method, the base model among it
    <out>/sweeps/<method>/prepared/  the same files (hard links), with this method's plan and reference, sealed for it

Each sweep would have prepared the very same bytes: it stays an ordinary sweep, also without this folder. Methods that
train on the chosen answers alone have a plan of their own, of the same pairs in the same order.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from simpo.model import load_model
from simpo.objectives import OBJECTIVES
from simpo.packing import PackedPlan, TokenPair, build_plan
from simpo.reference import ReferenceCost, reference_of
from sweeps.prepare import Progress, prepare, read_inputs
from sweeps.prepared import Facts, load_facts, load_plan, save_facts
from sweeps.run_dir import RunDir
from sweeps.spec import SweepSpec, spec_hash

HELD_OUT = ("rungs.safetensors", "rungs.json", "report.safetensors", "report.json")


def prepare_shared(root: Path, sweeps: Mapping[str, SweepSpec], progress: Progress, *, threads: int) -> Facts:
    """Fill `<root>/shared`, or find it filled. Raises what `sweeps.prepare` raises."""
    directory, leader = root / "shared", leading(sweeps)
    facts = load_facts(directory)
    if facts is None or facts.spec_hash != spec_hash(leader):
        shutil.rmtree(directory, ignore_errors=True)
        splits = read_inputs(leader, directory)
        facts = prepare(leader, splits, directory, progress, threads=threads, references=references(root))
    return facts


def leading(sweeps: Mapping[str, SweepSpec]) -> SweepSpec:
    """The sweep that is prepared for: one that trains on both answers, if any does, for the others' plans follow."""
    both = [sweep for sweep in sweeps.values() if not OBJECTIVES[sweep.method].chosen_only]
    return both[0] if both else next(iter(sweeps.values()))


def references(root: Path) -> Path:
    """Where the comparison's reference log-probabilities are kept: where its sweeps look for them."""
    return RunDir(root / "sweeps" / "any").references


def seal_for(run: RunDir, sweep: SweepSpec, root: Path, facts: Facts) -> None:
    """Give a method's sweep its prepared folder, unless it has it. `facts`: of the shared one."""
    target, shared = run.prepared, root / "shared"
    mine = load_facts(target)
    if mine is not None and mine.spec_hash == spec_hash(sweep) and mine.base == facts.base:
        return
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in HELD_OUT:
        _link(shared / name, target / name)
    objective, plan = OBJECTIVES[sweep.method], load_plan(shared)
    if _chosen_only(plan) == objective.chosen_only:
        _link(shared / "plan.safetensors", target / "plan.safetensors")
    else:
        plan = _plan_of_chosen(sweep, plan)
        plan.save(target / "plan.safetensors")
    cost = ReferenceCost()
    if objective.needs_reference:
        base = load_model(facts.base, dtype=sweep.train.dtype)
        mismatched, store = objective.needs_kl_batch, references(root)
        reference = reference_of(base, plan, mismatched=mismatched, store=store, seed=sweep.seed)
        reference.save(target / "reference.safetensors")
        cost = reference.cost
    told = replace(facts, spec_hash=spec_hash(sweep), reference=cost.as_dict(), warnings=list(cost.warnings))
    save_facts(target, told)


def _chosen_only(plan: PackedPlan) -> bool:
    return not plan.pairs.lengths_N3[:, 2].any()


def _plan_of_chosen(sweep: SweepSpec, plan: PackedPlan) -> PackedPlan:
    pairs = [TokenPair(*(part.tolist() for part in parts)) for parts in plan.pairs.parts()]
    return build_plan(
        pairs,
        batch_pairs=sweep.train.batch_pairs,
        steps=sweep.budget.steps,
        token_budget=sweep.train.token_budget,
        seed=sweep.seed,
        chosen_only=True,
    )


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
