"""Live control through the client: `Client.edits`. Each call stores one edit; `wait` brings the driver's answer."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal
from urllib.parse import quote

from service.client_errors import WaitTimeout

Json = dict[str, Any]
Post = Callable[[str, Json | None], Json]
Call = Callable[[str, str], Json]
Pages = Callable[[str, dict[str, str]], Iterator[Json]]


class Edits:
    """Of the sweeps, or the runs, of one service. What asks answers with the edit as stored: `id`, `state` pending.

    All raise `ApiError`: 422 for what no driver could apply, 404 for what is not there, 409 for a sweep that is over.
    """

    def __init__(
        self,
        post: Post,
        call: Call,
        pages: Pages,
        sleep: Callable[[float], None],
        clock: Callable[[], float],
        *,
        kind: Literal["sweeps", "runs"] = "sweeps",
    ) -> None:
        """`kind`: whose. A run takes `pause` and `resume`; it has no search that anything else could change."""
        self._kind = kind
        self._post = post
        self._call = call
        self._pages = pages
        self._sleep = sleep
        self._clock = clock

    def pause(self, sweep_id: str) -> Json:
        """Start no further trial, hold the running ones before their next step."""
        return self._post(f"{self._path(sweep_id)}/pause", None)

    def resume(self, sweep_id: str) -> Json:
        """Go on after a pause."""
        return self._post(f"{self._path(sweep_id)}/resume", None)

    def extend(
        self,
        sweep_id: str,
        *,
        trials: int | None = None,
        wall_clock_s: float | None = None,
        total_steps: int | None = None,
        accelerator_hours: float | None = None,
    ) -> Json:
        """Raise limits of the budget; each value is the new total."""
        limits = {"trials": trials, "wall_clock_s": wall_clock_s, "total_steps": total_steps}
        limits["accelerator_hours"] = accelerator_hours
        given = {key: value for key, value in limits.items() if value is not None}
        return self._post(f"{self._path(sweep_id)}/extend", given)

    def space(self, sweep_id: str, axes: Mapping[str, Any]) -> Json:
        """Other ranges, choices or constants for named axes, for trials that nobody has asked yet."""
        return self._post(f"{self._path(sweep_id)}/space", {"axes": dict(axes)})

    def stop_trial(self, sweep_id: str, trial_id: str) -> Json:
        """End one running trial, as PRUNED."""
        return self._post(f"{self._path(sweep_id)}/trials/{quote(trial_id, safe='')}/stop", None)

    def clone_trial(self, sweep_id: str, trial_id: str, params: Mapping[str, Any] | None = None) -> Json:
        """Train a trial's point once more; `params`: what is to be different."""
        where = f"{self._path(sweep_id)}/trials/{quote(trial_id, safe='')}"
        return self._post(f"{where}/clone", {"params": dict(params or {})})

    def add_point(self, sweep_id: str, params: Mapping[str, Any]) -> Json:
        """Train a point of one's own, with a value for every axis."""
        return self._post(f"{self._path(sweep_id)}/points", {"params": dict(params)})

    def iterate(self, sweep_id: str) -> Iterator[Json]:
        """All of a sweep's, by number."""
        yield from self._pages(f"{self._path(sweep_id)}/edits", {"limit": "200"})

    def get(self, sweep_id: str, edit_id: str) -> Json:
        """One by its id."""
        return self._call("GET", f"{self._path(sweep_id)}/edits/{quote(edit_id, safe='')}")

    def wait(self, sweep_id: str, edit_id: str, *, timeout_s: float = 60.0, poll_s: float = 0.5) -> Json:
        """The edit once it is applied or refused. Raises `WaitTimeout`."""
        deadline = self._clock() + timeout_s
        while True:
            edit = self.get(sweep_id, edit_id)
            if edit["state"] != "pending":
                return edit
            if self._clock() >= deadline:
                raise WaitTimeout("edits", edit_id, "pending", str(edit.get("message") or ""), timeout_s)
            self._sleep(poll_s)

    def _path(self, sweep_id: str) -> str:
        return f"/v1/{self._kind}/{quote(sweep_id, safe='')}"
