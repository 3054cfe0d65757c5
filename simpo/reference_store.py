"""Log-probabilities of responses on disk, found again by what they were computed from.

    <directory>/<scorer>/<shard>.safetensors     keys (N, 32), sums (N), counts (N)

A scorer is a model in one precision: the hash of its weights, adapters included, and of its config. A key is the sha256
of the scorer, the prompt's ids and the response's ids. What is counted follows from these: a template, a header that
counts or does not, an end token or a cut show in the ids or in where the response begins, so that any change of them
misses, and a change that shows in neither rightly does not. Nothing in a key is a name or a path.

Any number of processes read and write at once: a shard appears whole, under a name of its own, and never changes. Of
two that compute the same response both keep it, with the same value. A shard that cannot be read, or whose content is
not what its writer hashed, is passed over, and its responses are computed again. A store that cannot be written is no
reason to stop.
"""

import contextlib
import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from simpo.packing import PairStore

FORMAT = "simpo-reference/1"
SHARD_ENTRIES = 8192
"""New entries that are held back before a shard is written: what a crash may cost."""
_SUFFIX = ".safetensors"
_OF_A_CONFIG = frozenset({"_name_or_path", "transformers_version"})
"""Fields that say where a model came from, not what it computes."""

Keys = NDArray[np.uint8]


def scorer_hash(model: Any) -> str:
    """sha256 of all that decides a model's log-probabilities: config, precision, every parameter byte by byte."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in _OF_A_CONFIG}
    digest = hashlib.sha256(f"{FORMAT} {json.dumps(config, sort_keys=True, default=str)}\n".encode())
    for name, parameter in sorted(model.named_parameters()):
        plain = parameter.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class ReferenceStore:
    """What one scorer is known to have said. Reading fills an index once; `close` writes what is new."""

    def __init__(self, directory: str | Path, scorer: str) -> None:
        self.path = Path(directory) / scorer[:32]
        self.warnings: list[str] = []
        """What went wrong without stopping anybody, in words."""
        self._scorer = bytes.fromhex(scorer)
        self._shards: list[Path] = []
        self._prefixes, self._keys, self._sums, self._counts = _empty()
        self._new: dict[bytes, tuple[float, int]] = {}
        self._unwritten: list[bytes] = []
        self._read()

    def keys(self, pairs: PairStore) -> Keys:
        """Keys of every pair's two responses, (N, 2, 32). That of an absent response is never looked up."""
        made = np.zeros((len(pairs), 2, 32), dtype=np.uint8)
        for row, (prompt, *responses) in enumerate(pairs.parts()):
            begun = hashlib.sha256(self._scorer + len(prompt).to_bytes(8, "little") + _bytes(prompt))
            for side, response in enumerate(responses):
                whole = begun.copy()
                whole.update(_bytes(response))
                made[row, side] = np.frombuffer(whole.digest(), dtype=np.uint8)
        return made

    def get(self, keys_M: Keys, counts_M: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """(which of M keys are known with this count of tokens, their sums; 0 where unknown)."""
        found = np.zeros(len(keys_M), dtype=bool)
        sums = np.zeros(len(keys_M), dtype=np.float32)
        if len(self._keys):
            at = np.searchsorted(self._prefixes, _prefix(keys_M)).clip(max=len(self._keys) - 1)
            found = (self._keys[at] == keys_M).all(axis=1) & (self._counts[at] == counts_M)
            sums[found] = self._sums[at[found]]
        for row in np.flatnonzero(~found) if self._new else ():
            known = self._new.get(keys_M[row].tobytes())
            if known is not None and known[1] == counts_M[row]:
                found[row], sums[row] = True, known[0]
        return found, sums

    def put(self, key: bytes, value: float, count: int) -> None:
        """Remember a sum of `count` tokens. One that is not finite is not worth keeping."""
        if not np.isfinite(value):
            return
        self._new[key] = (value, count)
        self._unwritten.append(key)
        if len(self._unwritten) >= SHARD_ENTRIES:
            self.close()

    def refuse(self) -> None:
        """Forget everything that was read, and put its shards out of every reader's way, as `<shard>.refused`."""
        for shard in self._shards:
            with contextlib.suppress(OSError):  # another process was faster
                shard.rename(shard.with_suffix(".refused"))
        self._prefixes, self._keys, self._sums, self._counts = _empty()

    def close(self) -> None:
        """Write what is new."""
        if not self._unwritten:
            return
        entries = [self._new[key] for key in self._unwritten]
        tensors = {
            "keys": np.frombuffer(b"".join(self._unwritten), dtype=np.uint8).reshape(-1, 32),
            "sums": np.asarray([value for value, _ in entries], dtype=np.float32),
            "counts": np.asarray([count for _, count in entries], dtype=np.int64),
        }
        self._unwritten = []
        name = uuid.uuid4().hex
        partial = self.path / f".{name}.partial"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.write(save(tensors, metadata={"format": FORMAT, "sha256": _content(tensors)}))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path / f"{name}{_SUFFIX}")
        except OSError as error:
            self.warnings.append(f"{self.path} cannot be written ({error.strerror}): nothing new is kept there")
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()

    def _read(self) -> None:
        parts: list[dict[str, Any]] = []
        for shard in sorted(self.path.glob(f"*{_SUFFIX}")):
            try:
                parts.append(_shard(shard))
            except (OSError, SafetensorError, ValueError, KeyError) as error:
                self.warnings.append(f"{shard} is passed over, its responses are computed again: {error}")
            else:
                self._shards.append(shard)
        if parts:
            keys, sums, counts = (np.concatenate([part[name] for part in parts]) for name in ("keys", "sums", "counts"))
            order = np.argsort(_prefix(keys), kind="stable")
            self._prefixes, self._keys = _prefix(keys)[order], keys[order]
            self._sums, self._counts = sums[order], counts[order]


def _shard(path: Path) -> dict[str, Any]:
    """A shard's arrays, read through a mapping; ValueError when they are not what was written."""
    with safe_open(str(path), framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in ("keys", "sums", "counts")}
        if (file.metadata() or {}).get("sha256") != _content(tensors):
            raise ValueError("its content differs from its hash")
    return tensors


def _content(tensors: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in ("keys", "sums", "counts"):
        digest.update(f"{name} {tensors[name].shape}".encode() + tensors[name].tobytes())
    return digest.hexdigest()


def _empty() -> tuple[NDArray[np.uint64], Keys, NDArray[np.float32], NDArray[np.int64]]:
    return np.zeros(0, np.uint64), np.zeros((0, 32), np.uint8), np.zeros(0, np.float32), np.zeros(0, np.int64)


def _prefix(keys_M: Keys) -> NDArray[np.uint64]:
    """The first 8 bytes of each key: enough to sort by, since equal ones of different keys do not happen."""
    return np.ascontiguousarray(keys_M[:, :8]).view(np.uint64)[:, 0]


def _bytes(ids: NDArray[np.int64]) -> bytes:
    return ids.astype("<i8").tobytes()
