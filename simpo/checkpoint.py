"""Directory <-> state. Safetensors only; `manifest.json` with the hash of every file is written last.

A checkpoint is a transformers directory (config.json, model.safetensors, tokenizer files) that any tool can load, plus
`optimizer.safetensors` when the run may go on, plus the manifest: what has no valid manifest is not a checkpoint.

A model with a LoRA adapter: `adapter/` holds it in PEFT's format, and the manifest names its base by content hash. A
checkpoint that may only go on has no more than that; one that is to be served has the merged model beside it, so that
whatever reads checkpoints reads it too.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from simpo.config import OptimConfig
from simpo.errors import CheckpointError, StorageError
from simpo.fit import TrainState
from simpo.lora import Adapter, adapter_of
from simpo.sharding import gather, is_sharded, share_like
from simpo.workers import rank_and_size

FORMAT = "simpo-checkpoint/1"
MANIFEST = "manifest.json"
OPTIMIZER = "optimizer.safetensors"
ADAPTER = "adapter"
_OF_ADAM = ("step", "exp_avg", "exp_avg_sq")


def save_checkpoint(
    directory: str | Path,
    *,
    model: Any,
    tokenizer: Any = None,
    state: TrainState | None = None,
    manifest: Mapping[str, Any] | None = None,
    servable: bool = True,
) -> Path:
    """Write a checkpoint beside its place, then rename it into place (an older one there is replaced).

    With `state` the float32 weights and the optimiser's moments are written, so that the run can be resumed exactly.
    `servable=False` leaves the merged model out where there is an adapter: a rung needs no copy of the base.
    In a process group every worker calls it: a divided model is gathered, and worker 0 writes the same files as ever.
    Raises StorageError where the disk is full or may not be written; nothing half-written stays then.
    """
    target = Path(directory)
    adapter = adapter_of(model)
    body = {"format": FORMAT, "step": 0 if state is None else state.step, **(manifest or {})}
    if adapter is not None:
        body |= adapter.manifest()
    weights = _model_weights(model, adapter, state, servable=servable)
    moments = None if state is None else gather(_moments(state))
    if rank_and_size()[0] != 0:
        return target
    with _beside(target) as partial:
        if adapter is not None:
            adapter.save(partial / ADAPTER)
        if adapter is None or servable:
            model.save_pretrained(partial, state_dict=weights)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        if state is not None and moments is not None:
            save_file(moments, str(partial / OPTIMIZER), metadata={"step": str(state.step)})
        body["files"] = {name: _digest(path) for name, path in _files(partial).items()}
        (partial / MANIFEST).write_text(json.dumps(body, indent=1, sort_keys=True) + "\n")
    return target


def read_manifest(
    directory: str | Path, *, verify: bool = True, unread: Callable[[str], bool] = lambda name: False
) -> dict[str, Any]:
    """The manifest, after checking every file's hash. CheckpointError names what is missing, altered or foreign.

    `unread`: names of files that the caller will not open; their hashes are not asked for.
    """
    where = Path(directory)
    try:
        manifest: dict[str, Any] = json.loads((where / MANIFEST).read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{where} has no {MANIFEST}: it is not a finished checkpoint") from None
    except ValueError as error:
        raise CheckpointError(f"{where / MANIFEST} is not JSON: the checkpoint is damaged") from error
    if not isinstance(manifest, dict):
        raise CheckpointError(f"{where / MANIFEST} holds no mapping: the checkpoint is damaged")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{where} has format {manifest.get('format')!r}, this version reads {FORMAT}")
    if not isinstance(manifest.get("step"), int) or not isinstance(manifest.get("files"), dict):
        raise CheckpointError(f"{where / MANIFEST} names no step or no files: the checkpoint is damaged")
    if verify:
        found = set(_files(where)) - {MANIFEST}
        if unknown := sorted(found - set(manifest["files"])):
            raise CheckpointError(f"{where} holds files that its manifest does not know: {', '.join(unknown)}")
        for name, digest in manifest["files"].items():
            if name not in found or (not unread(name) and _digest(where / name) != digest):
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
    """Load weights and optimiser state of a checkpoint into `model` and go on from its step.

    Raises CheckpointError: damaged, without optimiser state, or an adapter of another base or other settings.
    """
    where = Path(directory)
    manifest = read_manifest(where)
    if OPTIMIZER not in manifest["files"]:
        raise CheckpointError(f"{where} was saved without optimiser state: it can be served, not resumed")
    adapter = adapter_of(model)
    if adapter is None:
        if "lora" in manifest:
            raise CheckpointError(f"{where} trains an adapter: load its base and add_lora() first")
        saved = load_file(str(where / "model.safetensors"))
    else:
        _check_fits(adapter, manifest, where)
        adapter.load(where / ADAPTER)
    state = TrainState.fresh(model, optim, total_steps)
    state.step = int(manifest["step"])
    moments = load_file(str(where / OPTIMIZER))
    with torch.no_grad():
        for name, weight in state.named_weights().items():
            if adapter is None:
                weight.copy_(share_like(saved[name], weight))
            own = {key: moments[f"{key}.{name}"] for key in _OF_ADAM if f"{key}.{name}" in moments}
            state.optimizer.state[weight] = {
                key: value.to(weight.device) if value.ndim == 0 else share_like(value, weight)
                for key, value in own.items()
            }
    state.publish()
    return state


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A directory to fill, flushed to disk and put in the target's place at the end; gone if anything goes wrong."""
    # The same process number may write the same checkpoint on two nodes, when one of them was only believed dead.
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in partial.rglob("*"):
            _sync(path)
        _put(partial, target)
        _sync(target.parent)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        # Rust's writers (safetensors, tokenizers) have exceptions of their own, which quote the system's.
        if isinstance(error, OSError) or "os error" in str(error):
            reason = getattr(error, "strerror", None) or str(error)
            raise StorageError(f"cannot be written ({reason}): check space and permissions", str(target)) from error
        raise


def _put(partial: Path, target: Path) -> None:
    """In the target's place, whoever else puts theirs there at the same time."""
    for last in (False, False, True):
        shutil.rmtree(target, ignore_errors=True)
        try:
            partial.rename(target)
            return
        except OSError as error:
            if last or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def _check_fits(adapter: Adapter, manifest: Mapping[str, Any], where: Path) -> None:
    """Refuse an adapter that was trained with other settings or beside other weights."""
    if "lora" not in manifest:
        raise CheckpointError(f"{where} holds whole weights, not an adapter: resume it without lora")
    own = json.loads(json.dumps(adapter.manifest()))
    if manifest["lora"] != own["lora"]:
        raise CheckpointError(f"{where} was trained with lora {manifest['lora']}, not {own['lora']}")
    if manifest["base"]["hash"] != own["base"]["hash"]:
        raise CheckpointError(
            f"{where} belongs to another base (hash {manifest['base']['hash'][:12]}, from "
            f"{manifest['base']['source']!r}) than the loaded one (hash {own['base']['hash'][:12]})"
        )


def _files(directory: Path) -> dict[str, Path]:
    """Every file below, by its path relative to `directory`, in order."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path for path in paths}


def _model_weights(
    model: Any, adapter: Adapter | None, state: TrainState | None, *, servable: bool
) -> dict[str, torch.Tensor] | None:
    """What model.safetensors is to hold; None for the model's own state dict."""
    if adapter is not None:
        return adapter.merged_weights() if servable else None
    if state is not None:
        return gather((name, weight.detach()) for name, weight in state.named_weights().items())
    if is_sharded(model):
        return gather((name, weight.detach().to(model.dtype)) for name, weight in model.named_parameters())
    return None


def _moments(state: TrainState) -> Iterator[tuple[str, torch.Tensor]]:
    for name, weight in state.named_weights().items():
        for key, value in state.optimizer.state[weight].items():
            yield f"{key}.{name}", value.detach().contiguous()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
