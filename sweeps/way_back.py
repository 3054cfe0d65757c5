"""Where a trial may go on after its process died: the newest rung that is whole, and what was passed over for it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from simpo.checkpoint import read_manifest
from simpo.errors import CheckpointError
from simpo.fit import TrainState

RUNG = "rung-"
"""Checkpoints that can be resumed are named so, with the step in six digits; the final one is only served."""


@dataclass(kw_only=True)
class WayBack:
    """What was found."""

    state: TrainState | None = None
    """Restored; None: nothing whole is left, or nothing was there."""
    source: str | None = None
    """The checkpoint it was restored from."""
    rungs: dict[int, float] = field(default_factory=dict)
    """Objective values at the rungs passed by then."""
    damaged: list[tuple[str, str]] = field(default_factory=list)
    """(path, reason) of newer checkpoints that could not be read."""


def way_back(places: Iterable[str], restore: Callable[[Path], TrainState], *, at_least: int = 0) -> WayBack:
    """Restore the newest rung under `places` that is whole; of equals, the one in the earlier place.

    restore: makes a state from a checkpoint; it is called again with the next one when it could not read the first.
    at_least: older steps than this one are of no use.
    """
    found = WayBack()
    rungs = [path for place in places for path in Path(place).glob(f"{RUNG}*")]
    for path in sorted(rungs, key=lambda rung: rung.name, reverse=True):
        if _step_of(path) < at_least:
            break
        try:
            passed: dict[str, Any] = read_manifest(path)["rungs"]
            found.state, found.source = restore(path), str(path)
        except (CheckpointError, SafetensorError, OSError, KeyError) as error:
            found.damaged.append((str(path), str(error)))
            continue
        found.rungs = {int(step): value for step, value in passed.items()}
        break
    return found


def _step_of(rung: Path) -> int:
    digits = rung.name.removeprefix(RUNG)
    return int(digits) if digits.isdecimal() else -1
