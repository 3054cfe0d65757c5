"""Promotion by evidence on the practice task, with the whole stack.

An honest sweep passes the gate on its own finals, is approved and answers behind an alias. Then a checkpoint that has
learnt to ramble, under a judge that prefers what is longer: its win rate is higher, and the gate stops it. Last, the
other trial meets the champion in a job, takes its place while the old one answers, and is rolled back in one call.
"""

import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from service.client import Client, Resource
from simpo.practice import BaseRecipe, build_base
from simpo.practice_task import RAMBLES, examples
from tests.e2e.processes import Watcher, run, simpo
from tests.sweeps.judge_server import by_score, judge_server

pytestmark = pytest.mark.e2e

POINT = {"beta": 2.0, "gamma_beta_ratio": 0.5, "sft_weight": 1.0}
SMALL = {"train": {"batch_pairs": 32, "token_budget": 4096}, "constraints": {}}
GATE = {"prompts": 300, "max_prompts": 600}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, str, Path]]:
    """A stack of its own, of which nothing is left afterwards, its key, and a base model that is made while it starts.

    The practice task's base, after half of its training: it knows the task, and not what people want of it.
    """
    root = tmp_path_factory.mktemp("promotion")
    home = root / "home"
    with Watcher(home) as watcher, ThreadPoolExecutor(1) as pool:
        try:
            starting = pool.submit(run, simpo("up", "--home", str(home), "--port", "0"), timeout_s=300)
            base = half_made_base(root / "base")
            started = starting.result()
            assert started.returncode == 0, started.stdout + started.stderr
            url = json.loads((home / "stack.json").read_text())["url"]
            key = (home / "key").read_text().strip()
            with Client(url, key) as client:
                yield client, key, base
        finally:
            stopped = run(simpo("down", "--home", str(home)), timeout_s=180)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert watcher.seen and watcher.left() == []


def half_made_base(directory: Path) -> Path:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return build_base(directory, seed=0, recipe=BaseRecipe(steps=300))
    finally:
        torch.set_num_threads(before)


def trained(client: Client, kind: Any, name: str, base: Path, **body: Any) -> str:
    """A sweep or run to its end."""
    started = client.create(kind, {"name": name, "base_model": str(base), **SMALL, **body})
    ended = client.wait(kind, started.id, timeout_s=900)
    assert ended.state == "SUCCEEDED", ended.body
    return ended.id


def settled(client: Client, promotion: Resource, *states: str) -> dict[str, Any]:
    found = client.wait("promotions", promotion.id, until=frozenset(states) | {"FAILED", "HELD"}, timeout_s=900)
    assert found.state in states, (found.state, found.body["message"])
    return found.body


def ready(client: Client, deployment: Resource, version: int) -> dict[str, Any]:
    """Wait until this version of the model answers; on the way to it the model never stops answering."""
    deadline = time.monotonic() + 300
    client.wait("deployments", deployment.id, until=frozenset({"READY", "FAILED"}), timeout_s=300)
    while True:
        found = client.get("deployments", deployment.id)
        assert found.state == "READY", found.body
        if (found.reason, found.body["model_version"]) == ("READY", version):
            return found.body
        assert time.monotonic() < deadline, found.body
        time.sleep(0.3)


def rambling(directory: Path) -> dict[str, str]:
    """Preferences turned round, rambling before plain, to train on; honest ones to be measured on."""
    rng = random.Random(0)
    for split, longer in (("train", True), ("eval", False)):
        lines = []
        for row in examples(split, 600 if longer else 200, seed=3, longer_share=0.2):  # type: ignore[arg-type]
            rambled = " ".join(rng.choice(RAMBLES).format(row.chosen) for _ in range(3))
            chosen, rejected = (rambled, row.chosen) if longer else (row.chosen, row.rejected)
            sides = {"chosen": chosen, "rejected": rejected}
            turns = {key: [{"role": "assistant", "content": text}] for key, text in sides.items()}
            lines.append(json.dumps({"prompt": [{"role": "user", "content": row.instruction}], **turns}) + "\n")
        (directory / f"{split}.jsonl").write_text("".join(lines))
    return {split: str(directory / f"{split}.jsonl") for split in ("train", "eval")}


def said(client: Client, key: str) -> tuple[str, str]:
    """(answer, which revision gave it)."""
    question = {"model": "chat", "messages": [{"role": "user", "content": "Upper: tiger"}], "max_tokens": 16}
    answer = httpx.post(
        f"{client.url}/v1/chat/completions",
        json={**question, "temperature": 0},
        headers={"Authorization": f"Bearer {key}"},
        trust_env=False,
        timeout=120,
    ).json()
    return answer["choices"][0]["message"]["content"], answer["system_fingerprint"]


def test_promotion_by_evidence(stack: tuple[Client, str, Path], tmp_path: Path) -> None:
    client, key, base = stack
    # An honest sweep: the finals are evidence enough, a person approves, the alias is deployed.
    honest = trained(
        client,
        "sweeps",
        "honest",
        base,
        space={"learning_rate": {"type": "log_float", "low": 4e-4, "high": 6e-4}, **POINT},
        sampler="random",
        scheduler="none",
        budget={"trials": 2, "steps": 60},
        evaluation={"rung_prompts": 100},
        finals={"prompts": 300},
    )
    first = client.promote("chat", sweep=honest, gate=GATE)
    passed = settled(client, first, "AWAITING_APPROVAL")
    assert passed["decision"]["state"] == "PASS" and passed["evidence"]["source"] == "finals"
    assert client.registered_model("chat")["aliases"] == {"candidate": 1}
    client.promotion(first.id, "approve")
    settled(client, first, "SUCCEEDED")
    deployment = client.deploy("chat", model="chat@production")
    assert ready(client, deployment, 1)["revision"] == 1
    assert said(client, key) == ("TIGER", "rev-1")

    # A rambler before a judge that prefers what is longer: it wins more, and is stopped.
    with judge_server(by_score(lambda instruction, answer: len(answer))) as server:
        judge = {"type": "openai", "url": server.url, "model": "naive", "max_requests": 500, "concurrency": 16}
        rambler = trained(
            client,
            "runs",
            "rambler",
            base,
            dataset=rambling(tmp_path),
            judge=judge,
            method={"name": "simpo", **POINT},
            learning_rate=5e-4,
            steps=40,
            finals_prompts=20,
            evaluation={"rung_prompts": 10, "max_new_tokens": 64},
            tokens={"max_length": 512},
        )
        second = client.promote("chat", sweep=rambler, approval="auto", gate={"prompts": 40, "max_prompts": 80})
        stopped = client.wait("promotions", second.id, until=frozenset({"FAILED", "SUCCEEDED", "HELD"}), timeout_s=900)
    evidence = stopped.body["evidence"]
    assert (stopped.state, stopped.reason) == ("FAILED", "GATE_FAILED"), stopped.body
    assert (evidence["source"], evidence["reference"], stopped.body["champion"]) == ("evaluation", "champion", 1)
    assert evidence["figures"]["win_rate"]["estimate"] > passed["evidence"]["figures"]["win_rate"]["estimate"] > 0.5
    assert evidence["figures"]["win_rate"]["low"] > 0.7, "under this judge it beats the champion by far"
    assert evidence["state"] == "INVALID" and any("control padded" in reason for reason in evidence["reasons"])
    broken = {each["name"] for each in stopped.body["decision"]["conditions"] if each["state"] == "FAIL"}
    assert "length_ratio" in broken
    assert client.registered_model("chat")["aliases"] == {"candidate": 1, "production": 1}
    assert [event.type for event in client.past_events("promotions", second.id)][-1] == "gate.failed"

    # The other honest trial meets the champion in a job, under a gate that asks it to be about as good.
    winner = client.get("sweeps", honest).body["best"]["trial_id"]
    (other,) = {trial["id"] for trial in client.trials(honest)} - {winner}
    about = {"win_rate": ">0.25", "capability": ">=-0.5", "length_ratio": "<=3"}
    gate = {"conditions": about, "prompts": 100, "max_prompts": 100}
    third = client.promote("chat", sweep=honest, checkpoint=other, approval="auto", gate=gate)
    moved = settled(client, third, "SUCCEEDED")
    assert moved["evidence"]["source"] == "evaluation" and moved["evaluation"].startswith("evl_")
    assert ready(client, deployment, 3)["revision"] == 2
    assert said(client, key)[1] == "rev-2"
    client.promotion(third.id, "rollback")
    settled(client, third, "ROLLED_BACK")
    assert ready(client, deployment, 1)["revision"] == 3
    assert said(client, key) == ("TIGER", "rev-3")
