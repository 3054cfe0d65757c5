"""Opaque ids: a prefix that says what it is, then a ULID in lower case, so that ids sort by time of creation."""

import secrets
import threading
from datetime import datetime

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"


class _Ulids:
    """48 bits of milliseconds, 80 random bits; within a millisecond of one process each is one more than the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def next(self, milliseconds: int) -> int:
        with self._lock:
            fresh = (milliseconds << 80) | secrets.randbits(80)
            same = self._last >> 80 == milliseconds
            self._last = self._last + 1 if same else fresh
            return self._last


_ulids = _Ulids()


def new_id(prefix: str, now: datetime) -> str:
    """E.g. swp_01j8...: the prefix and 26 characters that sort in the order of creation."""
    return f"{prefix}_" + _written(_ulids.next(int(now.timestamp() * 1000)))


def first_id(prefix: str, moment: datetime) -> str:
    """What sorts before every id that was made at that moment or later, and after every earlier one."""
    return f"{prefix}_" + _written(int(moment.timestamp() * 1000) << 80)


def dashed_id(prefix: str, now: datetime) -> str:
    """The same with a dash, as OpenAI writes its ids: ftjob-01j8..."""
    return new_id(prefix, now).replace("_", "-", 1)


def submission_id(sweep_id: str, attempt: int) -> str:
    """The Ray job's id: deterministic, so that a submission whose answer got lost can be asked for by name.

    Ray turns a rejected id into a record that stays PENDING for ever, so only [a-z0-9-] stands in it; it starts with a
    letter and has at most 40 characters (KubeRay's rule).
    """
    return f"{sweep_id.replace('_', '-')}-a{attempt}"


def _written(value: int) -> str:
    return "".join(_CROCKFORD[(value >> shift) & 31] for shift in range(125, -5, -5))
