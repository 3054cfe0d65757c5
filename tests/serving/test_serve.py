"""The data plane for real: a private Ray head, Serve's REST API, a tiny checkpoint, OpenAI's official client."""

import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import openai
import pytest

from service.local_process import kill_all, members
from service.local_ray import RayHead
from service.serving.deployer import Deployer, DesiredDeployment, ObservedDeployment, ServeDeployer, route_prefix
from simpo.config import TokenPolicy
from simpo.generate import generate
from simpo.tokenize import encode_prompt, stop_token_ids
from tests.serving.deployer_contract import DeployerContract, wait
from tests.serving.test_adapters import PROMPTS, Adapters
from tests.serving.tiny import tiny_checkpoint, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RayHead, str]]:
    """A private Ray head and its token."""
    head, token = RayHead.plan(secrets.token_hex(4)), secrets.token_hex(16)
    log = tmp_path_factory.mktemp("serve") / "ray.log"
    try:
        head.start(token, log)
        deadline = time.monotonic() + 90
        while not head.answers(token):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield head, token
    finally:
        assert kill_all(head.stack_id) == []
        head.remove()
    assert members(head.stack_id) == [] and not head.temp_dir.exists()


@pytest.fixture(scope="module")
def good_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "good")


@pytest.fixture(scope="module")
def bad_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tiny_checkpoint(tmp_path_factory.mktemp("models") / "bad")
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    return directory


@pytest.fixture(scope="module")
def deployer(head: tuple[RayHead, str]) -> Iterator[Deployer]:
    ray, token = head
    port = httpx.URL(ray.serve_url).port
    assert port is not None
    deployer = ServeDeployer(ray.dashboard_url, token, http_port=port)
    yield deployer
    deployer.close()


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
        deployer.apply([bob])
        wait(deployer, lambda seen: set(seen) == {"dep-bob"} and seen["dep-bob"].state == "READY")
    deployer.apply([])
    wait(deployer, lambda seen: seen == {})


def test_the_token_is_asked_for(head: tuple[RayHead, str]) -> None:
    ray, token = head
    assert ray.answers(token)
    assert not ray.answers("f" * 32)


def test_files_of_ray_are_their_owners_alone(head: tuple[RayHead, str]) -> None:
    assert stat.S_IMODE(head[0].temp_dir.stat().st_mode) == 0o700
