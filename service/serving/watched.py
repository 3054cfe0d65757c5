"""What Prometheus learns of one answer on its way through the gateway: how long it took, and how much it was."""

from service.clock import Clock
from service.metrics import Metrics

_TOKEN = b'"finish_reason":null'  # of an event; in a text its quotation marks would be escaped
_OPENING = b'"role":"assistant"'


class Watched:
    """One request, from when it was let through."""

    def __init__(self, metrics: Metrics, clock: Clock, model: str) -> None:
        """`model`: name of the deployment."""
        self._metrics = metrics
        self._clock = clock
        self._model = model
        self._labels = metrics.inference_labels(model, "")
        self._at = clock.monotonic()
        self._speaks = False
        self._open = True
        metrics.answers_open.inc()

    def begin(self, status: int, version: str) -> None:
        """The head of the answer is there; `version`: who gives it."""
        self._labels = self._metrics.inference_labels(self._model, version)
        self._metrics.completed(*self._labels, str(status))

    def events(self, block: bytes) -> None:
        """Whole events of a stream."""
        tokens = block.count(_TOKEN) - block.count(_OPENING)
        if tokens <= 0:
            return
        now = self._clock.monotonic()
        if not self._speaks:
            self._metrics.first_token.labels(*self._labels).observe(now - self._at)
            self._speaks, tokens = True, tokens - 1
        for _ in range(tokens):  # those that came together share the time
            self._metrics.next_token.labels(*self._labels).observe((now - self._at) / tokens)
        self._at = now

    def close(self, read: int = 0, written: int = 0) -> None:
        """It is over, or nobody answered."""
        if self._open:
            self._open = False
            self._metrics.answers_open.dec()
        self._metrics.spent(*self._labels, prompt=read, completion=written)
