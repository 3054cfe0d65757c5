"""What a replica tells Prometheus of its engine, by answers of a script; `test_serve` asks a real Ray for it."""

import asyncio
import itertools
from typing import Any

import httpx
import pytest

from service.serving.engine_metrics import EngineMetrics
from service.serving.engines.base import EngineError, Occupancy, Piece
from tests.serving.instruments import Told
from tests.serving.test_data_plane import ScriptedEngine, data_plane, post

pytestmark = pytest.mark.quick


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def metrics(told: Told) -> EngineMetrics:
    """Each look at the clock is a second later."""
    seconds = itertools.count()
    return EngineMetrics(told.kit, engine="scripted", clock=lambda: float(next(seconds)))


def ask(engine: ScriptedEngine, metrics: EngineMetrics, **more: Any) -> httpx.Response:
    body = {"model": "winner", "prompt": "hello", **more}
    return asyncio.run(post(data_plane(engine, metrics=metrics), "/v1/completions", json=body))


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_counted_with_its_times(told: Told, metrics: EngineMetrics, stream: bool) -> None:
    assert ask(ScriptedEngine(), metrics, stream=stream).status_code == 200
    of = {"engine": "scripted", "model": "winner", "version": "rev-3"}
    assert told.of("simpo_engine_prompt_tokens", **of) == [5]
    assert told.of("simpo_engine_generated_tokens", **of) == [2, 1, 1]
    assert told.of("simpo_engine_first_token_seconds", **of) == [1.0]
    assert told.of("simpo_engine_next_token_seconds", **of) == [1.0, 1.0]
    assert told.of("simpo_engine_answers", **of, end="stop") == [1] == told.of("simpo_engine_answers")


def test_tokens_that_come_together_share_the_time(told: Told, metrics: EngineMetrics) -> None:
    script = [Piece(text="a", num_tokens=1), Piece(text="bc", num_tokens=2, finish_reason="length")]
    ask(ScriptedEngine(script), metrics)
    assert told.of("simpo_engine_next_token_seconds") == [0.5, 0.5]
    assert told.of("simpo_engine_answers", end="length") == [1]


def test_each_choice_counts_its_prompt(told: Told, metrics: EngineMetrics) -> None:
    ask(ScriptedEngine(), metrics, n=3)
    assert told.of("simpo_engine_prompt_tokens") == [5, 5, 5]
    assert told.of("simpo_engine_answers", end="stop") == [1, 1, 1]


def test_what_fails_is_refused_or_abandoned_is_told_apart(told: Told, metrics: EngineMetrics) -> None:
    assert ask(ScriptedEngine([EngineError("out of memory")]), metrics).status_code == 500
    assert told.of("simpo_engine_answers", end="failed") == [1]
    full = ScriptedEngine()
    full.room = 1
    assert ask(full, metrics, n=2).status_code == 503
    assert told.of("simpo_engine_answers", end="refused") == [2]
    assert told.of("simpo_engine_prompt_tokens") == [5], "nothing was read for them"

    async def leave() -> None:
        pieces = metrics.watch(ScriptedEngine().stream([1], None), "winner", "rev-3", 1)  # type: ignore[arg-type]
        await anext(pieces)
        await pieces.aclose()
        await pieces.aclose()

    asyncio.run(leave())
    assert told.of("simpo_engine_answers", end="abandoned") == [1]


def test_how_full_it_is(told: Told, metrics: EngineMetrics) -> None:
    for running, waiting, reused in ((0, 0, 0), (8, 3, 100), (2, 0, 140), (0, 0, 10)):
        metrics.sample(Occupancy(running=running, waiting=waiting, reused_tokens=reused))
    assert told.of("simpo_engine_requests_running", engine="scripted") == [0, 8, 2, 0]
    assert told.of("simpo_engine_requests_waiting") == [0, 3, 0, 0]
    assert told.of("simpo_engine_reused_tokens") == [100, 40], "an engine that began anew takes nothing back"


def test_a_hundred_models_have_figures_of_their_own(told: Told, metrics: EngineMetrics) -> None:
    for number in range(103):
        metrics.refused(f"model-{number}", "rev-1", 1)
    assert len(told.values["simpo_engine_answers"]) == 101
    assert told.of("simpo_engine_answers", model="other", version="other") == [1, 1, 1]
    metrics.refused("model-7", "rev-1", 1)
    assert told.of("simpo_engine_answers", model="model-7") == [1, 1]
