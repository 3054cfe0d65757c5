"""What a `Client` has for each topic: one property, made of the calls of the client that it belongs to."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import httpx

from service.client_datasets import Datasets
from service.client_edits import Edits
from service.client_feedback import Feedback
from service.client_people import Audit, Keys, Projects
from service.client_quotas import Quotas
from service.client_rollout import Rollout
from service.client_webhooks import Webhooks

Json = dict[str, Any]


class _Calls(Protocol):
    """What a client can do."""

    _sleep: Callable[[float], None]
    _clock: Callable[[], float]

    def _post(self, path: str, body: Json | None, *, key: str | None = None) -> Json: ...
    def _call(self, method: str, path: str, params: Mapping[str, str] | None = None) -> Json: ...
    def _pages(self, path: str, params: dict[str, str]) -> Iterator[Json]: ...
    def _send(self, method: str, path: str, **request: Any) -> httpx.Response: ...


class Topics:
    """Of `service.client.Client`, which inherits them."""

    @property
    def audit(self: _Calls) -> Audit:
        """Who changed what, and who was refused."""
        return Audit(self._send, self._pages)

    @property
    def datasets(self: _Calls) -> Datasets:
        """Uploads, and what is done with them."""
        return Datasets(self._send, self._pages)

    @property
    def edits(self: _Calls) -> Edits:
        """Changes of a sweep that is on its way: pause, more budget, single trials."""
        return Edits(self._post, self._call, self._pages, self._sleep, self._clock)

    @property
    def run_edits(self: _Calls) -> Edits:
        """The same of a run, which can be paused and resumed."""
        return Edits(self._post, self._call, self._pages, self._sleep, self._clock, kind="runs")

    @property
    def feedback(self: _Calls) -> Feedback:
        """What people said of answers, and the dataset that it makes."""
        return Feedback(self._post, self._call, self._pages)

    @property
    def keys(self: _Calls) -> Keys:
        """API keys of the project."""
        return Keys(self._post, self._call, self._pages)

    @property
    def projects(self: _Calls) -> Projects:
        """Projects of the installation."""
        return Projects(self._post, self._call, self._pages)

    @property
    def quotas(self: _Calls) -> Quotas:
        """What projects may take, what they take, and how full the installation is."""
        return Quotas(self._call, self._send)

    @property
    def rollout(self: _Calls) -> Rollout:
        """Candidates beside the champions of deployments."""
        return Rollout(self._post, self._call, self._send)

    @property
    def webhooks(self: _Calls) -> Webhooks:
        """Addresses that are told of events."""
        return Webhooks(self._post, self._call, self._pages, self._send, self._sleep, self._clock)
