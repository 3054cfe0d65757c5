"""What a spec may say of a judge, where keys come from, and where requests may go."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from simpo.errors import ConfigError
from simpo.evaluation.templates import TEMPLATES
from simpo.evaluation.verdicts import Comparison
from sweeps.faults import SpecError
from sweeps.judged_finals import shares_of
from sweeps.judges import JudgeAccess
from sweeps.judges_reach import NotPublic, PublicOnly, is_public
from sweeps.judges_spec import MIN_REQUESTS, Endpoint, checked_url
from sweeps.judges_wire import most_expensive, price, request_body, retry_after, without
from sweeps.spec import SweepSpec, parse_spec, spec_hash

pytestmark = pytest.mark.quick

KEY = "sk-very-secret-0123456789"
JUDGE: dict[str, Any] = {"type": "openai", "url": "https://api.example.com/v1", "model": "m", "max_requests": 500}


def _spec(judge: Any, **changes: Any) -> SweepSpec:
    return parse_spec({"name": "x", "dataset": "a.jsonl", "base_model": "org/model", "judge": judge, **changes})


@pytest.mark.parametrize(
    ("judge", "field", "words"),
    [
        ("gpt", "judge", "must be 'practice'"),
        (3, "judge", "type: openai or type: reward_model"),
        ({"type": "gpt"}, "judge", "type: openai or type: reward_model"),
        ({"type": "openai"}, "judge.url", "is required"),
        ({**JUDGE, "max_requests": MIN_REQUESTS - 1}, "judge.max_requests", f"at least {MIN_REQUESTS}"),
        ({**JUDGE, "api_key": KEY}, "judge.api_key", "unknown key"),
        ({**JUDGE, "api_key_env": KEY}, "judge.api_key_env", "ends in _API_KEY"),
        ({**JUDGE, "api_key_env": "AWS_SECRET_ACCESS_KEY"}, "judge.api_key_env", "ends in _API_KEY"),
        ({**JUDGE, "api_key_env": "SIMPO_API_KEY"}, "judge.api_key_env", "ends in _API_KEY"),
        ({**JUDGE, "url": f"https://me:{KEY}@h/v1"}, "judge.url", "must not hold credentials"),
        ({**JUDGE, "url": f"https://h/v1?key={KEY}"}, "judge.url", "query or fragment"),
        ({**JUDGE, "url": "file:///etc/passwd"}, "judge.url", "https://host/v1"),
        ({**JUDGE, "url": "http://169.254.169.254/latest"}, "judge.url", "no server's"),
        ({**JUDGE, "url": "http://[::ffff:169.254.169.254]/v1"}, "judge.url", "no server's"),
        ({**JUDGE, "url": "http://api.example.com/v1", "api_key_env": "A_API_KEY"}, "judge.url", "must be https"),
        ({**JUDGE, "max_cost": 1.0}, "judge.max_cost", "price_in and price_out"),
        ({**JUDGE, "mode": "stars"}, "judge.mode", "'text' or 'logprobs'"),
        ({**JUDGE, "second": {"type": "openai"}}, "judge.second.url", "is required"),
        ({**JUDGE, "second": JUDGE}, "judge.second.model", "must be another judge"),
        ({**JUDGE, "second": {**JUDGE, "second": JUDGE}}, "judge.second.second", "unknown key"),
        ({"type": "reward_model"}, "judge.model", "is required"),
        ({"type": "reward_model", "model": "m", "code": True}, "judge.code", "unknown key"),
    ],
)
def test_refusals_name_the_field_and_never_echo_a_key(judge: Any, field: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        _spec(judge)
    assert caught.value.faults[0][0] == field
    assert words in caught.value.faults[0][1]
    assert KEY not in str(caught.value) and KEY not in repr(caught.value)


def test_an_endpoint_judges_the_finals_and_a_reward_model_the_rungs_too() -> None:
    endpoint = _spec(JUDGE)
    assert (endpoint.objective.metric, endpoint.evaluation.rung_prompts) == ("accuracy", 200)
    assert _spec({"type": "reward_model", "model": "org/rm"}).objective.metric == "win_rate"
    with pytest.raises(SpecError, match="an endpoint judges the finals alone: use accuracy or margin"):
        _spec(JUDGE, objective="win_rate")
    with pytest.raises(SpecError, match="at least 1 with a judge"):
        _spec(JUDGE, evaluation={"rung_prompts": 0}, constraints={})
    run = parse_spec({"name": "x", "learning_rate": 1e-6, "dataset": "a.jsonl", "base_model": "o/m", "judge": JUDGE})
    assert run.objective.metric == "accuracy"


def test_a_judge_survives_the_round_trip() -> None:
    second = {**JUDGE, "model": "other", "api_key_env": "OTHER_API_KEY"}
    spec = _spec({**JUDGE, "url": JUDGE["url"] + "/", "api_key_env": "OPENAI_API_KEY", "second": second})
    again = parse_spec(spec.model_dump(mode="json"))
    assert again == spec and spec_hash(again) == spec_hash(spec)
    assert again.judge.url == JUDGE["url"]  # type: ignore[union-attr]


def test_keys_come_from_the_environment_and_stay_out_of_sight() -> None:
    judge = _spec({**JUDGE, "api_key_env": "OPENAI_API_KEY"}).judge
    access = JudgeAccess.of(judge, {"OPENAI_API_KEY": KEY})
    assert access.keys["OPENAI_API_KEY"].get_secret_value() == KEY
    assert KEY not in repr(access) and KEY not in str(access.keys) and KEY not in str(judge)
    assert JudgeAccess.of("practice", {}).keys == {}
    with pytest.raises(ConfigError, match="OPENAI_API_KEY is not set"):
        JudgeAccess.of(judge, {})


def test_a_key_can_be_bound_to_one_address() -> None:
    judge = _spec({**JUDGE, "api_key_env": "OPENAI_API_KEY"}).judge
    bound = {"OPENAI_API_KEY": KEY, "OPENAI_API_KEY_URL": "https://api.example.com/v1/"}
    assert JudgeAccess.of(judge, bound, public_only=True).keys
    elsewhere = _spec({**JUDGE, "url": "https://evil.example/v1", "api_key_env": "OPENAI_API_KEY"}).judge
    with pytest.raises(ConfigError, match="for another address"):
        JudgeAccess.of(elsewhere, bound)
    with pytest.raises(ConfigError, match="set OPENAI_API_KEY_URL"):
        JudgeAccess.of(judge, {"OPENAI_API_KEY": KEY}, public_only=True)


@pytest.mark.parametrize(
    "url", ["http://localhost:8000/v1", "http://10.0.0.1/v1", "http://serve.simpo.svc/v1", "http://serve:8000/v1"]
)
def test_a_key_may_go_over_http_inside_a_network(url: str) -> None:
    assert _spec({**JUDGE, "url": url, "api_key_env": "A_API_KEY"}).judge is not None


def test_urls_are_canonical() -> None:
    assert checked_url("https://h:8443/v1/") == "https://h:8443/v1"
    for wrong in (
        "",
        "https://",
        "https://h\\@e/v1",
        "https://h /v1",
        "https://h:port/v1",
        "ftp://h",
        "https://\uff41/v1",
    ):
        with pytest.raises(ConfigError):
            checked_url(wrong)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        *(("93.184.216.34", True), ("2606:2800:220:1::1", True)),
        *((each, False) for each in ("127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "0.0.0.0")),
        *((each, False) for each in ("100.64.0.1", "224.0.0.1", "::1", "fe80::1%eth0", "fd00::1", "::")),
        *((each, False) for each in ("::ffff:127.0.0.1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2001:0:7f00::1")),
        *((each, False) for each in ("::127.0.0.1", "::ffff:0:127.0.0.1", "fec0::1", "4000::1")),
    ],
)
def test_addresses_that_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public


class _Inner(httpx.AsyncBaseTransport):
    def __init__(self) -> None:
        self.seen: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        return httpx.Response(302, headers={"location": "http://169.254.169.254/"})


def _post(addresses: list[list[str]], url: str = "https://judge.example/v1") -> tuple[_Inner, int]:
    """Through PublicOnly, with a resolver that answers otherwise each time it is asked."""
    inner = _Inner()

    async def resolve(host: str, port: int) -> list[str]:
        assert (host, port) == ("judge.example", 443)
        return addresses.pop(0)

    async def post() -> int:
        async with httpx.AsyncClient(transport=PublicOnly(inner, resolve)) as http:
            return (await http.post(url, json={})).status_code

    return inner, asyncio.run(post())


def test_the_connection_goes_to_the_address_that_was_checked() -> None:
    inner, status = _post([["93.184.216.34"], ["127.0.0.1"]])  # rebinding: the second answer is never asked for
    (request,) = inner.seen
    assert (request.url.host, request.headers["host"]) == ("93.184.216.34", "judge.example")
    assert request.extensions["sni_hostname"] == "judge.example"
    assert status == 302, "and a redirect is not followed"
    inner, _ = _post([["2606:2800:220:1::1"]])
    assert str(inner.seen[0].url) == "https://[2606:2800:220:1::1]/v1"


@pytest.mark.parametrize("addresses", [[], ["127.0.0.1"], ["93.184.216.34", "10.0.0.1"], ["::ffff:169.254.169.254"]])
def test_a_host_with_an_inner_address_is_not_connected_to(addresses: list[str]) -> None:
    with pytest.raises(NotPublic, match=r"judge\.example"):
        _post([addresses])


def test_the_most_a_request_can_cost_is_never_less_than_it_costs() -> None:
    endpoint = Endpoint.model_validate({**JUDGE, "price_in": 2.0, "price_out": 8.0, "max_tokens": 100})
    body = request_body(endpoint, TEMPLATES["text"], Comparison("q", "\u00e4\u00f6\u00fc\U0001f600" * 50, "b"))
    utf8 = sum(len(message["content"].encode()) for message in body["messages"])
    assert most_expensive(endpoint, body) >= price(endpoint, utf8, 100) > 0
    free = Endpoint.model_validate(JUDGE)
    assert most_expensive(free, body) == price(free, 10, 10) == 0.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("Thu, 26 Nov 2026 00:00:09 GMT", 9.0),
        ("Wed, 25 Nov 2026 00:00:00 GMT", 0.0),
        ("soon", None),
        ("nan", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_a_number_or_a_date(header: str | None, seconds: float | None) -> None:
    assert retry_after(header, now=datetime(2026, 11, 26, tzinfo=UTC)) == seconds


def test_a_key_is_taken_out_wherever_it_stands() -> None:
    output = {"text": f"a {KEY} b", "top": [[KEY, -0.1], ["x", -1]], "finish": KEY}
    assert without(KEY, output) == {"text": "a (key) b", "top": [["(key)", -0.1], ["x", -1]], "finish": "(key)"}
    assert without("", output) == output


@pytest.mark.parametrize("finalists", [1, 2, 8])
@pytest.mark.parametrize("budget", [MIN_REQUESTS, 1000, 10_000])
def test_the_budget_is_shared_out_within_itself(budget: int, finalists: int) -> None:
    choice, pairs = shares_of(budget, prompts=500, finalists=finalists)
    controls = 60 + (40 if finalists > 1 else 0) + choice // (20 * max(2, finalists)) * 5
    assert 1 + 2 * (choice + pairs + controls) <= budget
    assert pairs >= 30 and (choice >= 30 or finalists == 1)
