"""The engine of vLLM inside a real Serve replica: `make test-vllm`. Each start of vLLM takes a minute and more."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from service.local_process import members
from service.local_ray import RayHead
from service.serving.declared import DesiredDeployment, Replicas
from service.serving.deployer import ObservedDeployment, ServeDeployer
from simpo.checkpoint import save_checkpoint
from simpo.config import TokenPolicy
from simpo.generate import generate
from simpo.tokenize import encode_prompt, stop_token_ids
from tests.serving import vllm_venv
from tests.serving.deployer_contract import wait
from tests.serving.test_serve import ENGINE_TOLD, told_to_prometheus
from tests.serving.test_vllm import HEAD, VERDICT, held
from tests.serving.tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.vllm

PATIENCE_S = 600.0
HELLO: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture
def deployer(head: tuple[RayHead, str]) -> Iterator[ServeDeployer]:
    """On nodes that have vLLM."""
    ray, token = head
    port = httpx.URL(ray.serve_url).port
    assert port is not None
    replicas = Replicas(vllm_python=str(vllm_venv.make()))
    deployer = ServeDeployer(ray.dashboard_url, token, http_port=port, replicas=replicas)
    yield deployer
    deployer.apply([])
    until(lambda: vllm_of(ray) == [])
    deployer.close()


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"not reached in {PATIENCE_S:.0f} s"
        time.sleep(0.5)


def vllm_of(head: RayHead) -> list[int]:
    """Processes of vLLM's servers under a head: they call themselves so, or are called so."""
    return [each.pid for name in ("vllm.entrypoints", "VLLM::") for each in members(head.stack_id, name)]


def test_a_replica_answers_with_vllm_and_is_replaced_when_it_dies(
    head: tuple[RayHead, str], deployer: ServeDeployer, tmp_path: Path
) -> None:
    path = save_checkpoint(tmp_path / "model", model=tiny_model(**HEAD), tokenizer=tiny_tokenizer())
    wish = DesiredDeployment(id="dep-fast", name="fast", model_path=str(path), engine="vllm")
    prompt = encode_prompt(HELLO, tiny_tokenizer(), TokenPolicy())
    stop_ids = stop_token_ids(tiny_tokenizer(), TokenPolicy())
    (expected,) = generate(
        tiny_model(**HEAD), tiny_tokenizer(), [prompt], max_new_tokens=12, stop_ids=stop_ids, temperature=0
    )
    deployer.apply([wish])
    ready = ObservedDeployment(state="READY", revision=1)
    seen = wait(deployer, lambda s: "dep-fast" in s and s["dep-fast"].state != "PENDING", PATIENCE_S)
    assert seen == {"dep-fast": ready}
    base_url = f"{head[0].serve_url}{wish.route_prefix}/v1"
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:

        def text() -> str | None:
            answer = client.chat.completions.create(model="fast", messages=HELLO, temperature=0, max_tokens=12)
            return answer.choices[0].message.content

        def is_back() -> bool:
            try:
                return text() == expected.text
            except openai.APIError:  # its replica is about to be replaced, or the next one loads
                return False

        assert text() == expected.text
        chosen = client.chat.completions.create(model="fast", messages=HELLO, **held(VERDICT), seed=1).choices[0]
        assert isinstance(json.loads(chosen.message.content or "")["good"], bool)
        assert told_to_prometheus(head[0], 'model="fast"', 'engine="vllm"') >= ENGINE_TOLD
        before = vllm_of(head[0])
        assert before, "it runs beside the replica"
        for group in {os.getpgid(pid) for pid in before}:
            os.killpg(group, signal.SIGKILL)
        until(is_back)
        assert not set(before) & set(vllm_of(head[0])), "another vLLM answers"
        wait(deployer, lambda s: s == {"dep-fast": ready}, PATIENCE_S)
