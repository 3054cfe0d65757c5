"""Reference log-probabilities of one store serve every method and sweep, and each says what it took."""

from pathlib import Path

from sweeps.prepare import prepare, read_inputs
from sweeps.prepared import Facts, load_facts
from tests.sweeps.tiny import tiny_base, tiny_spec

SPACES = {"dpo": {"beta": 0.1}, "ipo": {"tau": 0.1}, "kto": {"beta": 0.1}, "simpo": {"beta": 2.0}}


def prepared(base: Path, method: str, directory: Path, store: Path) -> Facts:
    spec = tiny_spec(base, method=method, space=SPACES[method])
    return prepare(spec, read_inputs(spec, directory), directory, lambda share, message: None, references=store)


def test_methods_share_reference_values_and_say_what_they_took(tmp_path: Path) -> None:
    """A second method trains with the same bytes; KTO computes its mismatched pairs alone; SimPO pays nothing."""
    base, store = tiny_base(tmp_path / "base"), tmp_path / "references"
    facts = {method: prepared(base, method, tmp_path / method, store) for method in SPACES}
    first, second, third, free = (each.reference for each in facts.values())
    assert first["hits"] + first["misses"] == 400
    assert first["misses"] > 300, "few rows are alike"
    assert (second["hits"], second["misses"], second["checked"]) == (400, 0, 8)
    assert second["tokens"] < first["tokens"] / 10
    assert 0 < third["misses"] <= 2 * 12 * 8, "12 steps of 8 pairs"
    assert third["hits"] >= 400
    assert set(free.values()) == {0}
    assert load_facts(tmp_path / "ipo") == facts["ipo"]
    wholes = [tmp_path / method / "reference.safetensors" for method in ("dpo", "ipo")]
    assert wholes[0].read_bytes() == wholes[1].read_bytes()


def test_a_damaged_store_is_a_warning(tmp_path: Path) -> None:
    base, store = tiny_base(tmp_path / "base"), tmp_path / "references"
    prepared(base, "dpo", tmp_path / "a", store)
    (shard,) = store.rglob("*.safetensors")
    shard.write_bytes(b"")
    again = prepared(base, "dpo", tmp_path / "b", store)
    (warning,) = again.warnings
    assert shard.name in warning
    assert again.reference["misses"] > 300
