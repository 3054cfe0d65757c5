"""A judge behind any OpenAI-compatible endpoint: retries, rate limit, hard budget, a record that survives kills.

Our own served models judge like any other: give the address of the service's /v1 and the name of a deployment.

What cannot be had is a missing verdict with its reason; nothing here raises for one question's sake, and nothing turns
a failure into a preference. The key is sent to the endpoint and nowhere else: it is in no record, error, log or repr.
"""

import asyncio
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import httpx
from pydantic import SecretStr
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from simpo.errors import SimPOError
from simpo.evaluation.templates import TEMPLATES
from simpo.evaluation.verdicts import Comparison, JudgeIdentity, Verdict
from sweeps.judges_reach import NotPublic, client
from sweeps.judges_spec import Endpoint
from sweeps.judges_store import JudgeStore, Spent
from sweeps.judges_wire import (
    MAX_BYTES,
    TOP,
    Malformed,
    generated_tokens,
    most_expensive,
    price,
    read_answer,
    request_body,
    retry_after,
    verdict_of,
    without,
)

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 300.0
"""An endpoint that asks for a longer pause is taken as down."""
GIVE_UP_AFTER = 10
"""Questions in a row that failed for good: the endpoint is down, and the rest is not sent."""

_AGAIN = frozenset({408, 425, 429})
_HOPELESS = frozenset({401, 402, 403, 404, 405})
"""Statuses that every other request would get too: a wrong key, address or model, or an empty account."""


class JudgeError(SimPOError):
    """A judge that cannot be used at all: the field of the spec and the remedy."""


class HttpJudge:
    """Implements `PairwiseJudge`. `backoff_s`: the longest first pause after a failure; it doubles each time."""

    def __init__(
        self,
        settings: Endpoint,
        *,
        store: JudgeStore,
        key: SecretStr | None = None,
        public_only: bool = False,
        backoff_s: float = 1.0,
    ) -> None:
        self.settings = settings
        self.template = TEMPLATES[settings.mode]
        self.identity = _identity(settings, self.template.hash)
        self.trouble = ""
        """Why the last question that failed did, in words that hold no secret."""
        self._store = store
        self._key = key
        self._public_only = public_only
        self._digest = _hash(self.identity.as_dict())
        self._backoff = wait_random_exponential(multiplier=backoff_s, max=30.0)
        self._next_s = 0.0
        self._failed_in_a_row = 0
        self._down = False

    def compare(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """One verdict a comparison, in order; equal questions are asked once. Not from within a running event loop."""
        return asyncio.run(self._compare(comparisons))

    def check(self) -> None:
        """Ask one plain question, so that a wrong address, model or key shows before anything slow is begun.

        Raises JudgeError. The answer is on record: a later attempt does not pay for it again.
        """
        (verdict,) = self.compare([Comparison("Which is larger, 17 or 4?", "17", "4")])
        if verdict.reason == "error":
            keyless = "" if self.settings.api_key_env is None else f" and the key in {self.settings.api_key_env}"
            raise JudgeError(f"gave no answer ({self.trouble}): check the address, the model{keyless}", "judge.url")
        if verdict.reason == "unparsable" and self.settings.mode == "logprobs":
            raise JudgeError("gave no label with its probability: use mode: text", "judge.mode")

    def spent(self) -> Spent:
        """Requests and cost on record, over all attempts."""
        return self._store.spent(self._digest)

    async def _compare(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        distinct = dict.fromkeys(comparisons)
        at_once = asyncio.Semaphore(self.settings.concurrency)
        timeout_s, connections = self.settings.timeout_s, self.settings.concurrency
        async with client(
            self.settings.url, public_only=self._public_only, timeout_s=timeout_s, connections=connections
        ) as http:
            verdicts = await asyncio.gather(*(self._verdict(each, http, at_once) for each in distinct))
        found = dict(zip(distinct, verdicts, strict=True))
        first: set[Comparison] = set()
        answers = []
        for each in comparisons:
            # What was paid for a question counts once, whoever else asked it too.
            answers.append(replace(found[each], cached=True, requests=0, cost=0.0) if each in first else found[each])
            first.add(each)
        return answers

    async def _verdict(self, comparison: Comparison, http: httpx.AsyncClient, at_once: asyncio.Semaphore) -> Verdict:
        key = _hash([self._digest, self.template.hash, vars(comparison)])
        async with at_once:
            recorded = self._store.answer(key)
            if recorded is not None:
                return replace(verdict_of(recorded, self.template), cached=True)
            question = _Question(key=key, body=request_body(self.settings, self.template, comparison))
            if self._down:
                return Verdict(reason="error")
            try:
                output = await self._ask(question, http)
            except _NoBudget:
                return Verdict(reason="budget", requests=question.requests, cost=question.cost)
            except _Failed as failure:
                self._note(failure)
                return Verdict(reason="error", requests=question.requests, cost=question.cost)
        self._failed_in_a_row = 0
        return replace(verdict_of(output, self.template), requests=question.requests, cost=question.cost)

    async def _ask(self, question: "_Question", http: httpx.AsyncClient) -> dict[str, Any]:
        """The answer's output. Raises _NoBudget, or _Failed when no further attempt is left or would help."""
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self.settings.attempts),
            wait=self._pause,
            retry=retry_if_exception_type(_Again),
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                return await self._send(question, http)
        raise AssertionError("the loop returns or raises")

    async def _send(self, question: "_Question", http: httpx.AsyncClient) -> dict[str, Any]:
        await self._turn()
        if self._down:
            raise _Failed(self.trouble)
        most = most_expensive(self.settings, question.body)
        request = self._store.reserve(
            self._digest, most, max_requests=self.settings.max_requests, max_cost=self.settings.max_cost
        )
        if request is None:
            raise _NoBudget
        question.requests += 1
        # Until it is known better: whoever is killed or times out now may have been charged.
        cost: float | None = None
        output: dict[str, Any] | None = None
        try:
            status, pause_s, content = await self._exchange(question.body, http)
            if status != httpx.codes.OK:
                cost = 0.0  # refused requests are not charged
                raise self._refusal(status, pause_s)
            answer = read_answer(content, mode=self.settings.mode)
            cost = most if answer.tokens is None else price(self.settings, *answer.tokens)
            output = without(self._secret, answer.output)
            return output
        except (httpx.ConnectError, httpx.ConnectTimeout, NotPublic) as error:
            cost = 0.0
            raise (_Failed if isinstance(error, NotPublic) else _Again)(_words(error)) from None
        except (TimeoutError, httpx.HTTPError, httpx.InvalidURL, Malformed) as error:
            # From None: an httpx error holds its request, and that holds the key.
            raise _Again(_words(error)) from None
        finally:
            self._store.settle(request, cost, key=question.key, output=output)
            question.cost += most if cost is None else cost

    async def _exchange(self, body: object, http: httpx.AsyncClient) -> tuple[int, float | None, bytes]:
        """(status, seconds of Retry-After, content). The content of anything but a 200 is not read."""
        headers = {"Authorization": f"Bearer {self._secret}"} if self._secret else {}
        url = f"{self.settings.url}/chat/completions"
        async with (
            asyncio.timeout(self.settings.timeout_s),
            http.stream("POST", url, json=body, headers=headers) as response,
        ):
            content = bytearray()
            if response.status_code == httpx.codes.OK:
                async for part in response.aiter_bytes():
                    content += part
                    if len(content) > MAX_BYTES:
                        raise Malformed(f"more than {MAX_BYTES} bytes")
            return response.status_code, retry_after(response.headers.get("retry-after")), bytes(content)

    def _refusal(self, status: int, pause_s: float | None) -> "_Failed":
        if status in _AGAIN or status >= 500:
            if pause_s is not None and pause_s > LONGEST_WAIT_S:
                return _Failed(f"HTTP {status}, and it asks to wait {pause_s:.0f} s")
            if pause_s:  # holds for all that have not been sent yet
                self._next_s = max(self._next_s, asyncio.get_running_loop().time() + pause_s)
            return _Again(f"HTTP {status}", pause_s or 0.0)
        return _Hopeless(f"HTTP {status}") if status in _HOPELESS else _Failed(f"HTTP {status}")

    async def _turn(self) -> None:
        """Wait for this request's place in the rate limit, and for what a Retry-After has asked of all."""
        now, rate = asyncio.get_running_loop().time(), self.settings.requests_per_minute
        begins = max(now, self._next_s)
        if rate is not None:
            self._next_s = begins + 60.0 / rate
        await asyncio.sleep(begins - now)

    def _pause(self, state: RetryCallState) -> float:
        assert state.outcome is not None
        error = state.outcome.exception()
        assert isinstance(error, _Again)
        return max(error.pause_s, self._backoff(state))

    def _note(self, failure: "_Failed") -> None:
        self.trouble = str(failure)
        self._failed_in_a_row += 1
        hopeless = isinstance(failure, _Hopeless) or self._failed_in_a_row >= GIVE_UP_AFTER
        if hopeless and not self._down:
            self._down = True
            log.warning("judge %s at %s is given up: %s", self.settings.model, self.settings.url, self.trouble)

    @property
    def _secret(self) -> str:
        return "" if self._key is None else self._key.get_secret_value()


class _Question:
    """One comparison on its way."""

    def __init__(self, *, key: str, body: dict[str, Any]) -> None:
        self.key = key
        self.body = body
        self.requests = 0
        self.cost = 0.0


class _Failed(Exception):
    """This question has no answer."""


class _Hopeless(_Failed):
    """Nor has any other."""


class _Again(_Failed):
    """Worth another attempt, after a pause."""

    def __init__(self, words: str, pause_s: float = 0.0) -> None:
        super().__init__(words, pause_s)
        self.pause_s = pause_s

    def __str__(self) -> str:
        return str(self.args[0])


class _NoBudget(Exception):
    """A cap is reached."""


def _identity(settings: Endpoint, template_hash: str) -> JudgeIdentity:
    decoding: dict[str, Any] = {
        "temperature": settings.temperature,
        settings.token_parameter: generated_tokens(settings),
    }
    if settings.mode == "logprobs":
        decoding["top_logprobs"] = TOP
    return JudgeIdentity(
        type="openai",
        model=settings.model,
        url=settings.url,
        mode=settings.mode,
        template_hash=template_hash,
        decoding=decoding,
    )


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _words(error: Exception) -> str:
    """What kind of failure it was; the text of a library's error may quote what was sent."""
    if isinstance(error, Malformed):
        return f"no chat completion: {error}"
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return "time-out"
    return str(error) if isinstance(error, NotPublic) else type(error).__name__
