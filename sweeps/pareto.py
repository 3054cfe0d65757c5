"""Several objectives: who is beaten by nobody. Pure functions; larger is better throughout. Light."""

from collections.abc import Sequence


def fronts(points: Sequence[Sequence[float]]) -> list[int]:
    """Front of each point, from 0: beaten by nobody; 1: by members of front 0 alone; and so on (Deb et al. 2002)."""
    found = [-1] * len(points)
    level = 0
    while -1 in found:
        left = [k for k, front in enumerate(found) if front == -1]
        unbeaten = [k for k in left if not any(dominates(points[other], points[k]) for other in left)]
        for k in unbeaten:
            found[k] = level
        level += 1
    return found


def dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether `first` is nowhere worse and somewhere better."""
    pairs = list(zip(first, second, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)
