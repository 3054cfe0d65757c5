"""One finding: what was seen, how bad it is, and what to do."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["error", "warning", "info"]

SHOWN = 5
"""Rows named as examples of a finding."""
MANY = 0.01
"""Share of rows from which a mistake in them is no longer a stray one: warnings about form become errors."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that the doctor saw."""

    code: str
    """Stable name."""
    level: Level
    """error: training on this gives a wrong model or false figures. warning: look at it. info: good to know."""
    message: str
    """What was seen, with its figures."""
    remedy: str
    """What to do about it."""
    count: int
    """Rows concerned."""
    share: float
    """The same as a share of the rows looked at, from 0 to 1."""
    rows: tuple[str, ...] = ()
    """Ids of the first few: the row's own id where it has one, else its number in the source."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "rows": list(self.rows)}


def finding(
    code: str, level: Level, message: str, remedy: str, *, count: int, of: int, rows: Iterable[str] = ()
) -> Finding:
    """A finding about `count` of `of` rows; `message` may hold {rows} and {share}."""
    share = count / of if of else 0.0
    text = message.format(rows=f"{count} row{'' if count == 1 else 's'}", share=f"{share:.1%}")
    shown = tuple(row for row, _ in zip(rows, range(SHOWN), strict=False))
    return Finding(code=code, level=level, message=text, remedy=remedy, count=count, share=share, rows=shown)


def stray_or_many(count: int, of: int) -> Level:
    """warning for stray rows, error from a share of MANY on."""
    return "error" if of and count / of >= MANY else "warning"
