"""Which of two versions answers a request. A pure function of its key: gateways decide alike, and nothing is kept."""

import hashlib
from typing import Literal

Arm = Literal["champion", "candidate"]

_CUTS = 100 * 2**32  # places on the line from 0 % to 100 %; exact for every whole percent


def arm_of(key: str, *, salt: str, weight: int) -> Arm:
    """The version for this key at this weight (percent of the candidate).

    Each key has one place on the line from 0 % to 100 %, and the candidate has what lies below the weight: so while the
    weight grows, keys move to the candidate and never back.

    Args:
        key: who asks, if they are to keep to one version; else something that is new for each request.
        salt: of this roll-out, so that it is not the same people who meet every candidate first.
        weight: 0 (nobody) to 100 (everybody).
    """
    assert 0 <= weight <= 100, weight
    digest = hashlib.sha256(f"{salt}\0{key}".encode(errors="surrogatepass")).digest()
    place = int.from_bytes(digest[:8], "big") * _CUTS >> 64
    return "candidate" if place < weight * 2**32 else "champion"
