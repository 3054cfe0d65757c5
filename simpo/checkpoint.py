"""Directory <-> state. Safetensors only; `manifest.json` with the hash of every file is written last.

A checkpoint is a transformers directory (config.json, model.safetensors, tokenizer files) that any tool can load, plus
`optimizer.safetensors` when the run may go on, plus the manifest: what has no valid manifest is not a checkpoint.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from simpo.config import OptimConfig
from simpo.errors import CheckpointError
from simpo.fit import TrainState

FORMAT = "simpo-checkpoint/1"
MANIFEST = "manifest.json"
OPTIMIZER = "optimizer.safetensors"


def save_checkpoint(
    directory: str | Path,
    *,
    model: Any,
    tokenizer: Any = None,
    state: TrainState | None = None,
    manifest: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint beside its place, then rename it into place (an older one there is replaced).

    With `state` the float32 weights and the optimiser's moments are written, so that the run can be resumed exactly.
    """
    target = Path(directory)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    weights = None if state is None else {name: weight.detach() for name, weight in state.named_weights().items()}
    model.save_pretrained(partial, state_dict=weights)
    if tokenizer is not None:
        tokenizer.save_pretrained(partial)
    if state is not None:
        save_file(_moments(state), str(partial / OPTIMIZER), metadata={"step": str(state.step)})
    files = {path.name: _digest(path) for path in sorted(partial.iterdir())}
    body = {"format": FORMAT, "step": 0 if state is None else state.step, "files": files, **(manifest or {})}
    (partial / MANIFEST).write_text(json.dumps(body, indent=1, sort_keys=True) + "\n")
    for path in partial.iterdir():
        _sync(path)
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)
    _sync(target.parent)
    return target


def read_manifest(directory: str | Path, *, verify: bool = True) -> dict[str, Any]:
    """The manifest, after checking every file's hash. CheckpointError names what is missing, altered or foreign."""
    where = Path(directory)
    try:
        manifest: dict[str, Any] = json.loads((where / MANIFEST).read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{where} has no {MANIFEST}: it is not a finished checkpoint") from None
    except ValueError as error:
        raise CheckpointError(f"{where / MANIFEST} is not JSON: the checkpoint is damaged") from error
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{where} has format {manifest.get('format')!r}, this version reads {FORMAT}")
    if verify:
        found = {path.name for path in where.iterdir()} - {MANIFEST}
        if unknown := sorted(found - set(manifest["files"])):
            raise CheckpointError(f"{where} holds files that its manifest does not know: {', '.join(unknown)}")
        for name, digest in manifest["files"].items():
            if name not in found or _digest(where / name) != digest:
                raise CheckpointError(f"{where / name} is missing or differs from its hash: the checkpoint is damaged")
    return manifest


def newest_valid(parent: str | Path) -> Path | None:
    """The checkpoint with the highest step under `parent` whose hashes hold; None if there is none."""
    best: tuple[int, Path] | None = None
    for path in sorted(Path(parent).glob("*")) if Path(parent).is_dir() else []:
        try:
            step = int(read_manifest(path)["step"])
        except (CheckpointError, NotADirectoryError):
            continue
        if best is None or step > best[0]:
            best = (step, path)
    return None if best is None else best[1]


def restore(directory: str | Path, model: Any, optim: OptimConfig, total_steps: int) -> TrainState:
    """Load weights and optimiser state of a checkpoint into `model` and go on from its step."""
    where = Path(directory)
    manifest = read_manifest(where)
    if OPTIMIZER not in manifest["files"]:
        raise CheckpointError(f"{where} was saved without optimiser state: it can be served, not resumed")
    saved = load_file(str(where / "model.safetensors"))
    state = TrainState.fresh(model, optim, total_steps)
    state.step = int(manifest["step"])
    moments = load_file(str(where / OPTIMIZER))
    with torch.no_grad():
        for name, weight in state.named_weights().items():
            weight.copy_(saved[name])
            state.optimizer.state[weight] = {
                key: moments[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in moments
            }
    state.publish()
    return state


def _moments(state: TrainState) -> dict[str, torch.Tensor]:
    return {
        f"{key}.{name}": value.detach().contiguous()
        for name, weight in state.named_weights().items()
        for key, value in state.optimizer.state[weight].items()
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
