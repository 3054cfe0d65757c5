"""What every Deployer promises; run on the fake and on the real Ray Serve."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from service.serving.deployer import Deployer, DesiredDeployment, ObservedDeployment
from simpo.errors import ConfigError

Seen = dict[str, ObservedDeployment]


class DeployerContract:
    """Subclasses give the fixtures `deployer`, `good_model`, `bad_model` (paths) and may override `wait_s`.

    The methods run in the order of the file against one deployer: real deployments take seconds each.
    """

    wait_s = 60.0

    def wait(
        self, deployer: Deployer, until: Callable[[dict[str, ObservedDeployment]], bool]
    ) -> dict[str, ObservedDeployment]:
        deadline = time.monotonic() + self.wait_s
        while not until(seen := deployer.observe()):
            assert time.monotonic() < deadline, f"not reached in {self.wait_s:.0f} s: {seen}"
            time.sleep(0.2)
        return seen

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
        seen = self.wait(deployer, lambda s: "dep-good" in s and s["dep-good"].state != "PENDING")
        assert seen == {"dep-good": ObservedDeployment(state="READY", revision=1)}
        deployer.apply([good])
        assert deployer.observe() == seen, "the same wish again changes nothing"

    def test_a_bad_model_fails_with_its_cause_beside_the_good_one(
        self, deployer: Deployer, good_model: Path, bad_model: Path
    ) -> None:
        good = DesiredDeployment(id="dep-good", name="good", model_path=str(good_model))
        bad = DesiredDeployment(id="dep-bad", name="bad", model_path=str(bad_model))
        deployer.apply([good, bad])
        seen = self.wait(deployer, lambda s: "dep-bad" in s and s["dep-bad"].state != "PENDING")
        assert seen["dep-bad"].state == "FAILED"
        assert str(bad_model) in seen["dep-bad"].message
        assert "\n" not in seen["dep-bad"].message
        assert seen["dep-good"].state == "READY"

    def test_what_is_left_out_goes_away(self, deployer: Deployer, good_model: Path) -> None:
        deployer.apply([DesiredDeployment(id="dep-good", name="good", model_path=str(good_model))])
        self.wait(deployer, lambda s: set(s) == {"dep-good"})
        deployer.apply([])
        self.wait(deployer, lambda s: s == {})
