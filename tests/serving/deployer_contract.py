"""What every Deployer promises; run on the fake and on the real Ray Serve."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from service.serving.declared import DesiredDeployment
from service.serving.deployer import Deployer, ObservedDeployment
from simpo.errors import ConfigError

Seen = dict[str, ObservedDeployment]


class DeployerContract:
    """Subclasses give the fixtures `deployer` (one for all), `good_model` and `bad_model` (paths).

    The methods run in the order of the file, each going on where the one before it stopped: real deployments take
    seconds each.
    """

    def answers(self, name: str) -> None:
        """Called whenever the deployment `name` must answer; subclasses may look."""

    def test_nothing_is_there_at_first(self, deployer: Deployer) -> None:
        deployer.apply([])
        assert deployer.observe() == {}

    def test_two_of_a_name_are_refused(self, deployer: Deployer, good_model: Path) -> None:
        pair = [DesiredDeployment(id=i, name="same", model_path=str(good_model)) for i in ("dep-a", "dep-b")]
        with pytest.raises(ConfigError, match="name: same is used by more than one deployment"):
            deployer.apply(pair)

    def test_a_good_model_becomes_ready_and_stays_so(self, deployer: Deployer, good_model: Path) -> None:
        good = DesiredDeployment(id="dep-good", name="good", model_path=str(good_model))
        deployer.apply([good])
        seen = wait(deployer, lambda s: "dep-good" in s and s["dep-good"].state != "PENDING")
        assert seen == {"dep-good": ObservedDeployment(state="READY", revision=1)}
        self.answers("good")
        deployer.apply([good])
        assert deployer.observe() == seen, "the same wish again changes nothing"

    def test_a_new_revision_takes_over_and_a_bad_model_fails_with_its_cause(
        self, deployer: Deployer, good_model: Path, bad_model: Path
    ) -> None:
        good = DesiredDeployment(id="dep-good", name="good", model_path=str(good_model), revision=2)
        bad = DesiredDeployment(id="dep-bad", name="bad", model_path=str(bad_model))
        deployer.apply([good, bad])

        def both_settled(seen: Seen) -> bool:
            self.answers("good")  # the old revision, until the new one can
            return set(seen) == {"dep-good", "dep-bad"} and all(s.state != "PENDING" for s in seen.values())

        seen = wait(deployer, both_settled)
        assert seen["dep-good"] == ObservedDeployment(state="READY", revision=2)
        assert seen["dep-bad"].state == "FAILED"
        assert str(bad_model) in seen["dep-bad"].message
        assert "\n" not in seen["dep-bad"].message

    def test_what_is_left_out_goes_away(self, deployer: Deployer, good_model: Path) -> None:
        good = DesiredDeployment(id="dep-good", name="good", model_path=str(good_model), revision=2)
        deployer.apply([good])
        wait(deployer, lambda s: set(s) == {"dep-good"})
        self.answers("good")
        deployer.apply([])
        wait(deployer, lambda s: s == {})


def wait(deployer: Deployer, until: Callable[[Seen], bool], timeout_s: float = 300.0) -> Seen:
    """What is observed once `until` holds."""
    deadline = time.monotonic() + timeout_s
    while not until(seen := deployer.observe()):
        assert time.monotonic() < deadline, f"not reached in {timeout_s:.0f} s: {seen}"
        time.sleep(0.2)
    return seen
