"""`simpo quickstart`: the product's whole path once, through its public face, with nothing left running.

check the inputs -> start the stack -> POST a sweep, watch it -> deploy winner and base -> ask both -> report -> stop
"""

import platform
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from service.cli_jobs import follow_to_end, result_lines, why
from service.cli_models import side_by_side
from service.cli_session import UserError, WorkFailed
from service.client import Client
from service.client_errors import ClientError
from service.interrupts import shielded, terminable
from service.local import LocalStack, LocalStackError
from service.peak_memory import PeakMemory
from simpo.errors import DataError
from simpo.practice_task import examples
from sweeps.report import read_story, report_json, write_report
from sweeps.spec import PRACTICE

MARKER = ".simpo-quickstart"
"""A file in directories that a quickstart may empty: it was made by one."""

NAME = "quickstart"
_MODELS = ("base", "winner")
_FILE_SUFFIXES = frozenset({".json", ".jsonl", ".gz", ".parquet", ".csv", ".txt"})
_READY_TIMEOUT_S = 180.0
_PACKAGES = ("simpo", "torch", "transformers", "ray", "optuna")


@dataclass(frozen=True, kw_only=True)
class Quickstart:
    """What the person asked for."""

    home: Path
    """Everything is made in here; emptied first."""
    seed: int = 0
    """Same seed, same winner."""
    trials: int = 14
    """Points of the search."""
    steps: int | None = None
    """Optimiser steps of a full trial; None: what suits the data."""
    data: str | None = None
    """Preferences to learn from: a file, a directory, a hub id. None: the practice task."""
    eval: str | None = None
    """Held-out preferences; None: a part of `data`."""
    model: str | None = None
    """Base model: a directory or a hub id. None: one made on the spot."""
    keep: bool = False
    """Leave the service and both models running."""


def run(order: Quickstart, console: Console) -> dict[str, Any]:
    """All of it; returns what report.json holds.

    Raises UserError or DataError for bad input, before anything is started, and WorkFailed with the place of the logs.
    The stack is stopped whatever happens, unless it is to be kept and all went well.
    """
    questions = check_inputs(order)
    prepare_home(order.home)
    screen = _Screen(console, steps=5)
    if order == Quickstart(home=order.home, seed=order.seed, keep=order.keep):
        screen.say("Five steps; about five minutes on two idle cores, twice that where they are busy.")
    stack = LocalStack(order.home)
    done = False
    try:
        with terminable():
            facts = _run_on(stack, order, questions, screen)
        done = True
    except (ClientError, LocalStackError) as error:
        raise WorkFailed(f"{error} (logs: {stack.logs})") from error
    finally:
        if not (done and order.keep):
            with shielded():
                screen.say("stopping everything")
                stack.down()
    return facts


def check_inputs(order: Quickstart) -> list[Any]:
    """Refuse early what would fail late; returns three prompts to ask in the end.

    Raises UserError naming the option, DataError naming file and line.
    """
    if order.eval and not order.data:
        raise UserError("--eval: needs --data FILE, the preferences to learn from")
    if order.trials < 1:
        raise UserError(f"--trials: must be at least 1, not {order.trials}")
    if order.model and _looks_local(order.model) and not (Path(order.model) / "config.json").is_file():
        raise UserError(f"--model: {order.model} is no model directory (no config.json in it): check the path")
    held_out = examples("eval", 3, seed=order.seed, longer_share=0.0)
    questions: list[Any] = [[{"role": "user", "content": example.instruction}] for example in held_out]
    for option, source in (("--data", order.data), ("--eval", order.eval)):
        if source is None:
            continue
        if _looks_local(source) and not Path(source).exists():
            raise UserError(f"{option}: there is no {source}: check the path")
        if not _looks_local(source):
            continue
        from simpo.records import load_preferences  # noqa: PLC0415  # lazy: pyarrow, needed with --data only

        try:
            records = load_preferences(source)
        except DataError as error:
            raise UserError(f"{option}: {error}") from error
        questions = [_question(row.prompt) for row in records.rows[:3]]
    return questions


def spec_for(order: Quickstart) -> dict[str, Any]:
    """The sweep that a quickstart POSTs: what is not said here is the default of the service."""
    spec: dict[str, Any] = {
        "name": NAME,
        "base_model": _full_path(order.model) if order.model else PRACTICE,
        "dataset": {"train": PRACTICE},
        "method": "simpo",
        "budget": {"trials": order.trials, "steps": order.steps or 120},
        "seed": order.seed,
    }
    if order.data:
        spec["dataset"] = {"train": _full_path(order.data), "eval": _full_path(order.eval) if order.eval else None}
        spec["budget"]["steps"] = order.steps or 60
    return spec


def prepare_home(home: Path) -> None:
    """An empty home. Raises UserError when it holds what no quickstart made, or a stack that runs."""
    if home.exists():
        if not home.is_dir():
            raise UserError(f"--home: {home} is a file: name a directory")
        if any(home.iterdir()) and not (home / MARKER).is_file():
            raise UserError(f"--home: {home} holds other things: name a new directory, a quickstart empties its own")
        if LocalStack(home).status().state != "stopped":
            raise UserError(f"--home: a stack is running in {home}: end it with simpo down --home {home}")
        shutil.rmtree(home)
    home.mkdir(parents=True)
    (home / MARKER).touch()


def _run_on(stack: LocalStack, order: Quickstart, questions: list[Any], screen: "_Screen") -> dict[str, Any]:
    seconds: dict[str, float] = {}
    started = time.monotonic()
    if order.data and not order.model:
        screen.say("without --model the base is tiny and made here from your answers: compare accuracy, not prose")
    with screen.step("starting Ray and the service", seconds, "starting"):
        running = stack.up(port=0, progress=lambda stage, sentence: screen.say(sentence))
    with PeakMemory(stack.memory_bytes) as memory, Client(running.url, running.key) as client:
        with screen.step("searching", seconds, "submitting"):
            sweep = client.create_sweep(spec_for(order))
            ended = follow_to_end(client, "sweeps", sweep)
            if ended.state != "SUCCEEDED":
                raise WorkFailed(f"the sweep is {ended.state}: {why(ended)} (logs: {stack.logs})")
            for line in result_lines(ended.body):
                screen.say(line)
        # The sweep tells the times of its own phases; the rest of this step went into getting there and back.
        seconds["submitting"] -= sum((ended.body["result"].get("seconds") or {}).values())
        with screen.step("deploying base and winner", seconds, "deploying"):
            _deploy(client, ended.id, stack, screen)
        with screen.step("asking both", seconds, "answering"):
            answers = [_ask(client, question, order.seed) for question in questions]
            screen.console.print(
                side_by_side(
                    [(a["prompt"], a["base"], a["winner"]) for a in answers], left=_MODELS[0], right=_MODELS[1]
                )
            )
        seconds = {key: round(value, 2) for key, value in seconds.items()}
        seconds["total"] = round(time.monotonic() - started, 2)
    with screen.step("writing the report", {}, "report"):
        facts = report_json(
            story := read_story(order.home / "store" / "sweeps" / ended.id),
            seconds=seconds,
            peak_memory_bytes=memory.peak_bytes,
            versions={"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
            answers=answers,
        )
        html, data = write_report(story, facts, order.home)
        screen.say(f"{html} and {data.name}")
    return facts


def _deploy(client: Client, sweep_id: str, stack: LocalStack, screen: "_Screen") -> None:
    wanted = [client.deploy(name, sweep=sweep_id, checkpoint=name) for name in _MODELS]
    settled = frozenset({"READY", "FAILED"})
    for deployment in wanted:
        ready = client.wait("deployments", deployment.id, until=settled, timeout_s=_READY_TIMEOUT_S)
        if ready.state == "FAILED":
            raise WorkFailed(f"deployment {ready.name} is FAILED: {why(ready)} (logs: {stack.logs})")
        screen.say(f"{ready.name} is {ready.state}")


def _ask(client: Client, question: Any, seed: int) -> dict[str, str]:
    """One prompt, both answers, under the sampling that the judge judged."""
    answers = {}
    for model in _MODELS:
        talk = client.complete if isinstance(question, str) else client.chat
        answers[model] = "".join(talk(model, question, temperature=1.0, max_tokens=64, seed=seed))
    return {"prompt": question if isinstance(question, str) else question[-1]["content"], **answers}


def _question(prompt: Any) -> Any:
    """A record's prompt as the API takes it: plain text, or turns."""
    return prompt if isinstance(prompt, str) else [{"role": turn.role, "content": turn.content} for turn in prompt]


def _looks_local(source: str) -> bool:
    """Whether a source can only be meant as a path, and not as a hub id (org/name, org/name:split)."""
    hub_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:\w+)?", source)
    return Path(source).exists() or hub_id is None or Path(source).suffix in _FILE_SUFFIXES


def _full_path(source: str) -> str:
    return str(Path(source).absolute()) if Path(source).exists() else source


class _Screen:
    """Progress for a person: numbered steps with their time; the same in a log."""

    def __init__(self, console: Console, *, steps: int) -> None:
        self.console = console
        self._steps = steps
        self._step = 0

    def say(self, text: str) -> None:
        """One line below the current step."""
        self.console.print(f"      {text}", markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def step(self, title: str, seconds: dict[str, float], key: str) -> Iterator[None]:
        """A numbered step; its time goes into `seconds`."""
        self._step += 1
        self.console.print(f"[bold]({self._step}/{self._steps})[/bold] {title}", highlight=False)
        began = time.monotonic()
        yield
        seconds[key] = time.monotonic() - began
        self.say(f"{seconds[key]:.1f} s")
