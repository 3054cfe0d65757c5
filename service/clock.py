"""Time as the control plane sees it: passed in, so that tests own it."""

import time
from datetime import UTC, datetime
from typing import Annotated, Any, Protocol

from pydantic import AwareDatetime, BeforeValidator


def _no_number(value: Any) -> Any:
    """Pydantic reads "0.5" and 3600 as seconds since 1970: nobody means that."""
    if isinstance(value, int | float) or (isinstance(value, str) and "-" not in value):
        raise ValueError("must be a time with its zone, like 2026-09-01T09:30:00Z")
    return value


Moment = Annotated[AwareDatetime, BeforeValidator(_no_number)]
"""A time in a request: RFC 3339, with a zone."""


class Clock(Protocol):
    """Wall time for records, monotonic time for durations. The two are never mixed: wall clocks jump."""

    def now(self) -> datetime:
        """Aware UTC."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never runs backwards."""


class SystemClock:
    """The machine's own."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()


def rfc3339(moment: datetime) -> str:
    """2026-09-01T09:30:00.000Z"""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
