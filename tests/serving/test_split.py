"""The split of traffic: shares right, one key one version, and no way back while the weight grows."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.serving.split import arm_of

pytestmark = pytest.mark.quick

WEIGHTS = st.integers(0, 100)


@given(st.text(max_size=20), st.text(max_size=10), WEIGHTS, WEIGHTS)
def test_as_the_weight_grows_keys_move_to_the_candidate_alone(key: str, salt: str, one: int, other: int) -> None:
    before, after = (arm_of(key, salt=salt, weight=weight) for weight in sorted((one, other)))
    assert (before, after) != ("candidate", "champion")
    assert arm_of(key, salt=salt, weight=one) == arm_of(key, salt=salt, weight=one), "nothing else decides"


@given(st.text(max_size=20), st.text(max_size=10))
def test_nobody_at_none_and_everybody_at_all(key: str, salt: str) -> None:
    assert arm_of(key, salt=salt, weight=0) == "champion" and arm_of(key, salt=salt, weight=100) == "candidate"


@pytest.mark.parametrize("weight", [1, 10, 50, 90, 99])
def test_the_shares_are_right(weight: int) -> None:
    n = 4000
    drawn = Counter(arm_of(f"user-{i}", salt="dep_1:2", weight=weight) for i in range(n))
    share = weight / 100
    assert abs(drawn["candidate"] - n * share) < 4 * (n * share * (1 - share)) ** 0.5


def test_another_roll_out_draws_other_users_first() -> None:
    users = [f"user-{i}" for i in range(1000)]
    first, second = (
        {user for user in users if arm_of(user, salt=salt, weight=10) == "candidate"} for salt in ("dep_1:2", "dep_1:3")
    )
    assert len(first & second) < 30, "about 10 of 100 by chance"


def test_known_places_stay_where_they_are() -> None:
    """Gateways of two releases must agree: users would change versions while an upgrade rolls."""
    least = {}
    for user in ("ann", "bob", "\ud800", ""):
        arms = [arm_of(user, salt="dep_1:2", weight=weight) for weight in range(101)]
        least[user] = arms.index("candidate")
    assert least == {"ann": 64, "bob": 53, "\ud800": 15, "": 56}
