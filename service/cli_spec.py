"""A spec from a file or standard input, with the changes given on the command line, ready to be sent."""

from pathlib import Path
from typing import Any

import typer
import yaml

from service.cli_session import UserError
from sweeps.spec import PRACTICE
from sweeps.yaml_text import read_yaml


def read_spec(file: Path, overrides: list[str]) -> dict[str, Any]:
    """The spec as the service gets it: overrides applied, paths that exist here made absolute. Raises UserError."""
    if str(file) == "-":
        text, name = typer.get_text_stream("stdin").read(), "standard input"
    else:
        try:
            text, name = file.read_text(encoding="utf-8"), str(file)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise UserError(f"--file: cannot read {file} ({reason}): check the path") from error
    spec = _parse(text, name)
    if not isinstance(spec, dict):
        raise UserError(f"{name}: a spec is a mapping of keys to values, e.g. name: my-sweep")
    for override in overrides:
        _override(spec, override)
    return _absolute(spec)


def _parse(text: str, name: str) -> Any:
    try:
        return read_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"{name} is not valid YAML or JSON: {' '.join(str(error).split())}") from error


def _override(spec: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UserError(f"--set: {override!r} must look like key.path=value, e.g. budget.trials=4")
    *parents, leaf = path.split(".")
    place = spec
    for key in parents:
        inner = place.setdefault(key, {})
        if not isinstance(inner, dict):
            raise UserError(f"--set: {path}: {key} is {inner!r} in the spec and has no keys; set {key} itself")
        place = inner
    place[leaf] = _parse(text, f"--set {path}")


def _absolute(spec: dict[str, Any]) -> dict[str, Any]:
    """The service runs elsewhere on the disk: a relative path that exists from here is sent in full."""

    def full(value: Any) -> Any:
        here = isinstance(value, str) and value != PRACTICE and Path(value).exists()
        return str(Path(value).absolute()) if here else value

    spec = {**spec}
    if "base_model" in spec:
        spec["base_model"] = full(spec["base_model"])
    if isinstance(spec.get("dataset"), dict):
        spec["dataset"] = {k: full(v) if k in ("train", "eval") else v for k, v in spec["dataset"].items()}
    elif "dataset" in spec:
        spec["dataset"] = full(spec["dataset"])
    return spec
