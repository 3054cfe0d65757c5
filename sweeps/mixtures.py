"""Candidates without training: soups of the finalists and points on the line from the base through the best of them.

<attempt>/mixtures/<name>/seed-<r>/     an ordinary checkpoint, whose manifest holds the recipe
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from simpo.checkpoint import read_manifest, save_checkpoint
from simpo.model import DTYPES, load_model, load_tokenizer
from simpo.soup import scaled, soup
from sweeps.prepared import Facts
from sweeps.spec import SweepSpec

_OF_ONE_TRIAL = ("files", "format", "lora", "base", "method", "learning_rate", "rungs", "trial_id", "replicate")
"""What a trial's manifest says that is not true of a mixture."""


class Ingredient(Protocol):
    """A finalist."""

    @property
    def name(self) -> str:
        """Its trial id."""

    @property
    def places(self) -> dict[int, str]:
        """Replicate -> checkpoint."""


class Mixtures:
    """Makes them under one directory, and clears them away."""

    def __init__(self, spec: SweepSpec, facts: Facts, directory: Path) -> None:
        self._spec = spec
        self._facts = facts
        self._directory = directory

    def made(
        self, finalists: Sequence[Ingredient], best: Ingredient, replicates: Sequence[int]
    ) -> Iterator[tuple[str, dict[str, Any], dict[int, str]]]:
        """(name, recipe, checkpoint by replicate) of each that the spec asks for, made when it is asked for.

        A soup is of the finalists that have every seed; there is none of fewer than two.
        """
        extra = self._spec.finals.extra
        whole = [each for each in finalists if all(r in each.places for r in replicates)]
        if "soup" in extra and len(whole) > 1:
            mix: dict[str, Any] = {"kind": "soup", "weights": "uniform", "of": [each.name for each in whole]}
            yield "soup", mix, {r: self._soup([each.places[r] for each in whole], mix, r) for r in replicates}
        for scale in self._spec.finals.scales if "scale" in extra else ():
            recipe: dict[str, Any] = {"kind": "scale", "scale": scale, "of": [best.name], "base": self._facts.base}
            name = f"scale-{scale:g}"
            yield name, recipe, {r: self._scaled(name, scale, best.places[r], recipe, r) for r in replicates}

    def clear(self, *, keep: str | None) -> None:
        """Remove all but one."""
        for made in self._directory.glob("*/seed-*"):
            if str(made) != keep:
                shutil.rmtree(made, ignore_errors=True)
        for folder in self._directory.glob("*"):
            if not any(folder.iterdir()):
                folder.rmdir()

    def _soup(self, sources: Sequence[str], recipe: dict[str, Any], replicate: int) -> str:
        model = soup(load_model(source, dtype="float32") for source in sources)
        return self._saved("soup", model, sources, recipe, replicate)

    def _scaled(self, name: str, scale: float, source: str, recipe: dict[str, Any], replicate: int) -> str:
        base, tuned = (load_model(each, dtype="float32") for each in (self._facts.base, source))
        return self._saved(name, scaled(base, tuned, scale), [source], recipe, replicate)

    def _saved(self, name: str, model: Any, sources: Sequence[str], recipe: dict[str, Any], replicate: int) -> str:
        manifests = [read_manifest(source, verify=False) for source in sources]
        weights = [{key: v for key, v in each["files"].items() if key.endswith(".safetensors")} for each in manifests]
        kept = {key: value for key, value in manifests[0].items() if key not in _OF_ONE_TRIAL}
        place = self._directory / name / f"seed-{replicate}"
        save_checkpoint(
            place,
            model=model.to(DTYPES[self._spec.train.dtype]),
            tokenizer=load_tokenizer(sources[0]),
            manifest={**kept, "mixture": {**recipe, "seed": replicate + 1, "sha256": weights}},
        )
        return str(place)
