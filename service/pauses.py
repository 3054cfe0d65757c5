"""Back-off: how long to leave something alone that did not work."""

from service.clock import Clock

_FIRST_S = 0.5
_LONGEST_S = 30.0


class Pauses:
    """Doubling pauses by key, kept in memory: a fresh process tries at once."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until: dict[str, tuple[float, float]] = {}  # key -> (length, end), seconds

    def over(self, key: str) -> bool:
        """True when nothing forbids another try now."""
        return self._clock.monotonic() >= self._until.get(key, (0.0, 0.0))[1]

    def longer(self, key: str) -> None:
        """Pause, twice as long as the last time."""
        length = min(2 * self._until.get(key, (_FIRST_S / 2, 0.0))[0], _LONGEST_S)
        self._until[key] = (length, self._clock.monotonic() + length)

    def clear(self, key: str) -> None:
        """It worked: the next trouble starts with a short pause again."""
        self._until.pop(key, None)
