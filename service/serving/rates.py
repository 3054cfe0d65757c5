"""Limits of inference by a sliding window of two counters: arithmetic alone.

What a window of S seconds that ends now holds is about `previous` (1 - e / S) + `current`: `current` came since the
span of S seconds of the calendar began, e seconds ago, and `previous` in the span before. Two sums a window are all
there is, so processes share a limit by adding; a token bucket would let twice its size through within one window.
"""

from dataclasses import dataclass
from typing import Any, Literal, Self

MINUTE_S = 60
DAY_S = 86_400
What = Literal["requests", "tokens"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One limit."""

    what: What
    """Completions asked for, or tokens that they read and wrote."""
    span_s: int
    """Length of its window."""
    limit: int
    """At most within the window."""

    @property
    def words(self) -> str:
        """E.g. tokens per minute."""
        return f"{self.what} per {'minute' if self.span_s == MINUTE_S else 'day'}"


@dataclass(frozen=True, kw_only=True)
class RateLimits:
    """What one key, or one project, may ask of models. None: no limit."""

    requests_per_minute: int | None = None
    """Completions within 60 s."""
    tokens_per_minute: int | None = None
    """Tokens read and written within 60 s."""
    tokens_per_day: int | None = None
    """Within 24 h."""

    @classmethod
    def of(cls, row: Any) -> Self:
        """Of a row with these columns, or of None; what is negative is no limit."""
        given = {name: getattr(row, name, None) for name in cls.__dataclass_fields__}
        return cls(**{name: value for name, value in given.items() if value is not None and value >= 0})

    def rules(self) -> tuple[Rule, ...]:
        """Those that hold."""
        each: tuple[tuple[What, int, int | None], ...] = (
            ("requests", MINUTE_S, self.requests_per_minute),
            ("tokens", MINUTE_S, self.tokens_per_minute),
            ("tokens", DAY_S, self.tokens_per_day),
        )
        return tuple(
            Rule(what=what, span_s=span_s, limit=limit) for what, span_s, limit in each if limit is not None
        )


NO_LIMITS = RateLimits()


@dataclass(frozen=True, kw_only=True)
class Window:
    """What was taken lately, under one rule."""

    rule: Rule
    previous: int
    """In the whole span before this one."""
    current: int
    """In this span so far."""
    elapsed_s: float
    """Seconds since this span began."""

    @property
    def used(self) -> float:
        """Within the window that ends now."""
        return self.previous * (1 - self.elapsed_s / self.rule.span_s) + self.current

    @property
    def left(self) -> int:
        """What may still be taken now."""
        return max(0, int(self.rule.limit - self.used + 1e-9))

    @property
    def reset_s(self) -> float:
        """Until all of it may be taken again."""
        rest = self.rule.span_s - self.elapsed_s
        if self.current > 0:
            return rest + self.rule.span_s
        return rest if self.previous > 0 else 0.0

    def room_in_s(self, need: int) -> float | None:
        """Seconds until `need` fits, if nothing else comes; 0: now; None: never, for it is more than the limit."""
        room = self.rule.limit - need
        if room < 0:
            return None
        if self.used <= room + 1e-9:
            return 0.0
        span_s, rest = self.rule.span_s, self.rule.span_s - self.elapsed_s
        if self.current <= room:  # enough of the span before leaves the window within this one
            return span_s * (1 - (room - self.current) / self.previous) - self.elapsed_s
        return rest + span_s * (1 - room / self.current)


def in_openais_words(seconds: float) -> str:
    """A duration as OpenAI's headers have it: 17ms, 1s, 6m0s, 2h0m0s."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms" if seconds > 0 else "0s"
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
