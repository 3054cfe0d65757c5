"""Opaque ids: a prefix that says what it is, then a ULID in lower case, so that ids sort by time of creation."""

import secrets
from datetime import datetime

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(prefix: str, now: datetime) -> str:
    """E.g. swp_01j8...: 48 bits of milliseconds, 80 random bits, 26 characters."""
    value = (int(now.timestamp() * 1000) << 80) | secrets.randbits(80)
    return f"{prefix}_" + "".join(_CROCKFORD[(value >> shift) & 31] for shift in range(125, -5, -5))


def submission_id(sweep_id: str, attempt: int) -> str:
    """The Ray job's id: deterministic, so that a submission whose answer got lost can be asked for by name.

    Ray turns a rejected id into a record that stays PENDING for ever, so only [a-z0-9-] stands in it; it starts with a
    letter and has at most 40 characters (KubeRay's rule).
    """
    return f"{sweep_id.replace('_', '-')}-a{attempt}"
