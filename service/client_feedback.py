"""Feedback on answers through the client: `Client.feedback`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

Json = dict[str, Any]
Post = Callable[[str, Json | None], Json]
Call = Callable[[str, str], Json]
Pages = Callable[[str, dict[str, str]], Iterator[Json]]


class Feedback:
    """What people said of answers. All methods raise `ApiError`.

    An answer is {completion, model, content}, and `fingerprint` where it is known: the completion's `id`, `model`, text
    and `system_fingerprint`.
    """

    def __init__(self, post: Post, call: Call, pages: Pages) -> None:
        self._post = post
        self._call = call
        self._pages = pages

    def rate(self, messages: Sequence[Mapping[str, str]], answer: Mapping[str, str], rating: str) -> Json:
        """A thumb, up or down, for one answer to these messages, which the service keeps from now on."""
        return self._post("/v1/feedback", {**_talk(messages), "answer": dict(answer), "rating": rating})

    def prefer(
        self, messages: Sequence[Mapping[str, str]], answer: Mapping[str, str], rejected: Mapping[str, str]
    ) -> Json:
        """`answer` is better than `rejected`; both answer these messages."""
        return self._post("/v1/feedback", {**_talk(messages), "answer": dict(answer), "rejected": dict(rejected)})

    def iterate(self, **filters: str) -> Iterator[Json]:
        """Feedback of the project, newest first; filter: model."""
        yield from self._pages("/v1/feedback", {"limit": "200", **filters})

    def get(self, feedback_id: str) -> Json:
        """One by its id."""
        return self._call("GET", f"/v1/feedback/{quote(feedback_id, safe='')}")

    def withdraw(self, feedback_id: str) -> Json:
        """Take one's own back: the service forgets it, with its messages and answers."""
        return self._post(f"/v1/feedback/{quote(feedback_id, safe='')}/withdraw", None)

    def dataset(self, name: str | None = None, *, model: str | None = None, since: str | None = None) -> Json:
        """Make a dataset of preferences of it, and ask for the doctor's report. `since`: RFC 3339 with a zone."""
        return self._post("/v1/datasets/from_feedback", {"name": name, "model": model, "since": since})


def _talk(messages: Sequence[Mapping[str, str]]) -> Json:
    return {"messages": [dict(message) for message in messages]}
