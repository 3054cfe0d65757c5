"""The data plane for real: a private Ray head, Serve's REST API, a tiny checkpoint, OpenAI's official client."""

import json
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import httpx
import openai
import pytest

from service.local_ray import RayHead
from service.serving.declared import DesiredDeployment, route_prefix
from service.serving.deployer import Deployer, ObservedDeployment
from simpo.config import TokenPolicy
from simpo.generate import generate
from simpo.tokenize import encode_prompt, stop_token_ids
from sweeps.store import open_store
from sweeps.trees import push_tree
from tests.serving import serve_service
from tests.serving.deployer_contract import DeployerContract, wait
from tests.serving.test_adapters import PROMPTS, Adapters
from tests.serving.tiny import tiny_model, tiny_tokenizer
from tests.sweeps.s3_double import S3Double

pytestmark = pytest.mark.ray


@pytest.fixture
def deployer(serve_deployer: Deployer) -> Deployer:
    return serve_deployer


@pytest.fixture
def good_model(good_checkpoint: Path) -> Path:
    return good_checkpoint


@pytest.fixture
def bad_model(pickled_checkpoint: Path) -> Path:
    return pickled_checkpoint


class TestServeDeployer(DeployerContract):
    """The contract on Ray Serve, and what the deployed model answers meanwhile."""

    @pytest.fixture(autouse=True)
    def _origin(self, head: tuple[RayHead, str]) -> None:
        self.origin = head[0].serve_url

    def answers(self, name: str) -> None:
        """Serve lists it, and the official client gets from it what the trainer's code generates."""
        base_url = f"{self.origin}{route_prefix(name)}/v1"
        prompt = encode_prompt([{"role": "user", "content": "hello"}], tiny_tokenizer(), TokenPolicy())
        stop_ids = stop_token_ids(tiny_tokenizer(), TokenPolicy())
        (expected,) = generate(
            tiny_model(), tiny_tokenizer(), [prompt], max_new_tokens=12, stop_ids=stop_ids, temperature=0
        )
        with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
            assert [model.id for model in client.models.list()] == [name]
            whole = client.chat.completions.create(
                model=name, messages=[{"role": "user", "content": "hello"}], temperature=0, max_tokens=12
            )
            assert whole.choices[0].message.content == expected.text
            assert whole.choices[0].finish_reason == expected.finish_reason
            assert whole.usage is not None and whole.usage.completion_tokens == len(expected.token_ids)
            stream = client.chat.completions.create(
                model=name,
                messages=[{"role": "user", "content": "hello"}],
                temperature=0,
                max_tokens=12,
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = list(stream)
            assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected.text
            assert chunks[-1].usage == whole.usage
            with pytest.raises(openai.BadRequestError, match="suffix is not supported"):
                client.completions.create(model=name, prompt="x", suffix="y")


def test_adapters_of_one_base_answer_from_one_process(
    head: tuple[RayHead, str], deployer: Deployer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    adapters = Adapters(tmp_path_factory.mktemp("adapters"))

    def wish(number: int, name: str) -> DesiredDeployment:
        path = str(adapters.saved(number))
        return DesiredDeployment(id=f"dep-{name}", name=name, model_path=path, base=str(adapters.base))

    ann, bob = wish(1, "ann"), wish(2, "bob")
    base_url = f"{head[0].serve_url}{ann.route_prefix}/v1"

    def text(client: openai.OpenAI, name: str) -> str:
        return client.completions.create(model=name, prompt=PROMPTS[1], temperature=0, max_tokens=8).choices[0].text

    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        deployer.apply([ann])
        wait(deployer, lambda seen: seen.get("dep-ann") == ObservedDeployment(state="READY", revision=1))
        assert text(client, "ann") == adapters.merged_answers(1, [PROMPTS[1]], 8)[0]
        with pytest.raises(openai.NotFoundError, match="'bob' is not served here; use 'ann'"):
            text(client, "bob")
        deployer.apply([ann, bob])

        def both_ready(seen: Mapping[str, ObservedDeployment]) -> bool:
            assert seen["dep-ann"].state == "READY"
            assert text(client, "ann") == adapters.merged_answers(1, [PROMPTS[1]], 8)[0], "it answers meanwhile"
            return seen["dep-bob"].state == "READY"

        wait(deployer, both_ready)
        assert text(client, "bob") == adapters.merged_answers(2, [PROMPTS[1]], 8)[0]
        assert [model.id for model in client.models.list()] == ["ann", "bob"]
        for model in ("ann", "bob"):
            assert told_to_prometheus(head[0], f'model="{model}"', 'engine="transformers"') == ENGINE_TOLD
        deployer.apply([bob])
        wait(deployer, lambda seen: set(seen) == {"dep-bob"} and seen["dep-bob"].state == "READY")
    deployer.apply([])
    wait(deployer, lambda seen: seen == {})


ENGINE_TOLD = {
    "ray_simpo_engine_answers_total",
    "ray_simpo_engine_generated_tokens_total",
    "ray_simpo_engine_prompt_tokens_total",
    *(f"ray_simpo_engine_{of}_token_seconds_{part}" for of in ("first", "next") for part in ("bucket", "count", "sum")),
    "ray_simpo_engine_requests_running",
    "ray_simpo_engine_requests_waiting",
}
"""Of an engine that has answered, and has not read two prompts that begin alike."""


def told_to_prometheus(head: RayHead, *labels: str) -> set[str]:
    """Metrics of the engine, once all of ENGINE_TOLD are there: those of one model, and those that know no model.

    Asked as Prometheus does: Ray's file says where its nodes answer.
    """
    deadline = time.monotonic() + 300  # replicas tell their node every 10 s, on a machine that has time
    while True:
        found = [line for line in exported(head) if line.startswith("ray_simpo_engine_")]
        mine = [line for line in found if 'model="' not in line or all(label in line for label in labels)]
        assert all('application="' in line and 'replica="' in line for line in mine)
        if (
            told := {line.partition("{")[0] for line in mine} - {"ray_simpo_engine_reused_tokens_total"}
        ) >= ENGINE_TOLD:
            return told
        assert time.monotonic() < deadline, ENGINE_TOLD - told
        time.sleep(0.5)


def exported(head: RayHead) -> list[str]:
    """All lines of all targets; the file names some that no process of this head listens at."""
    lines: list[str] = []
    for each in json.loads(head.metrics_targets.read_text()):
        for target in each["targets"]:
            with suppress(httpx.TransportError):
                lines += httpx.get(f"http://{target}/metrics", trust_env=False).text.splitlines()
    return lines


def test_a_checkpoint_in_a_bucket_is_fetched_and_answers(
    head: tuple[RayHead, str], deployer: Deployer, good_checkpoint: Path, s3: S3Double
) -> None:
    where = f"s3://{s3.bucket()}/simpo/sweeps/swp_1"
    push_tree(open_store(where), "attempts/1/trials/trl_0001/final", good_checkpoint)
    kept = DesiredDeployment(id="dep-kept", name="kept", model_path=f"{where}/attempts/1/trials/trl_0001/final")
    gone = DesiredDeployment(id="dep-gone", name="gone", model_path=f"{where}/attempts/1/trials/trl_0002/final")
    deployer.apply([kept, gone])
    seen = wait(deployer, lambda s: len(s) == 2 and all(each.state != "PENDING" for each in s.values()))
    assert seen["dep-kept"] == ObservedDeployment(state="READY", revision=1)
    assert seen["dep-gone"].state == "FAILED"
    assert f"{gone.model_path}: the store has no such checkpoint" in seen["dep-gone"].message
    base_url = f"{head[0].serve_url}{route_prefix('kept')}/v1"
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        assert client.completions.create(model="kept", prompt="x", temperature=0, max_tokens=3).usage is not None
    copies = [path for path in (head[0].temp_dir / "t").glob("simpo-models-*/*") if path.is_dir()]
    assert len(copies) == 1, "of what was fetched, and nothing of what was not"
    deployer.apply([])
    wait(deployer, lambda seen: seen == {})


def test_the_token_is_asked_for(head: tuple[RayHead, str]) -> None:
    ray, token = head
    serve_service.wait(lambda: ray.answers(token))  # a busy head may be slow to
    assert not ray.answers("f" * 32)


def test_files_of_ray_are_their_owners_alone(head: tuple[RayHead, str]) -> None:
    assert stat.S_IMODE(head[0].temp_dir.stat().st_mode) == 0o700
