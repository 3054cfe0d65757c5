"""Copies of checkpoints on a node: whole or not at all, one fetch for all, bounded, and clear words where none is."""

import json
import math
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from simpo.errors import CheckpointError, StorageError
from sweeps.checkpoint_cache import CheckpointCache
from sweeps.store import DirectoryStore, Store, StoreUnavailable, s3_store
from sweeps.trees import push_tree
from tests.sweeps.s3_double import S3Double

KEY = "simpo/sweeps/swp_1/attempts/1/trials/trl_0001/final"
URI = f"s3://bucket/{KEY}"
SIZE = 1002
"""Bytes of the checkpoint."""


class Counted(DirectoryStore):
    """A directory in the bucket's place, which counts what is read from it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.fetched: list[str] = []
        self.away = False
        self.slow: threading.Event | None = None

    def get(self, key: str) -> bytes | None:
        if self.away:
            raise StoreUnavailable("the object store answers SlowDown", key)
        return super().get(key)

    def get_file(self, key: str, path: Path) -> bool:
        if self.slow is not None:
            assert self.slow.wait(30)
        self.fetched.append(key.rpartition("/")[2])
        return super().get_file(key, path)


@pytest.fixture
def store(tmp_path: Path) -> Counted:
    """With one checkpoint."""
    store = Counted(tmp_path / "bucket")
    _push(store, tmp_path, KEY)
    return store


def _push(store: Store, tmp_path: Path, key: str, files: dict[str, str] | None = None) -> None:
    source = tmp_path / "made"
    for name, text in (files or {"config.json": "{}", "model.safetensors": "w" * 1000}).items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    push_tree(store, key, source)
    shutil.rmtree(source)


def _cache(tmp_path: Path, store: Store, max_bytes: int = 10 * SIZE, patience_s: float = 0.0) -> CheckpointCache:
    return CheckpointCache(tmp_path / "cache", max_bytes=max_bytes, patience_s=patience_s, open_store=lambda uri: store)


def _whole(copy: Path) -> bool:
    return {path.name: path.stat().st_size for path in copy.iterdir()} == {"config.json": 2, "model.safetensors": 1000}


@pytest.mark.quick
class TestCheckpointCache:
    """On a directory in the bucket's place."""

    def test_what_was_fetched_is_there_without_the_store(self, store: Counted, tmp_path: Path) -> None:
        first = _cache(tmp_path, store).hold(URI)
        assert _whole(first.path)
        assert sorted(store.fetched) == ["config.json", "model.safetensors"]
        store.away = True
        second = _cache(tmp_path, store).hold(URI)
        assert second.path == first.path
        assert len(store.fetched) == 2
        first.close()
        second.close()

    def test_two_at_once_fetch_it_once(self, store: Counted, tmp_path: Path) -> None:
        store.slow = threading.Event()
        with ThreadPoolExecutor(2) as pool:
            both = [pool.submit(_cache(tmp_path, store).hold, URI) for _ in range(2)]
            store.slow.set()
            held = [each.result(30) for each in both]  # the first one's is in use while the second one comes
        assert len(store.fetched) == 2
        assert held[0].path == held[1].path
        for each in held:
            each.close()

    def test_a_damaged_copy_is_fetched_anew(self, store: Counted, tmp_path: Path) -> None:
        held = _cache(tmp_path, store).hold(URI)
        (held.path / "model.safetensors").write_bytes(b"\0" * 1000)  # as after a loss of power
        with pytest.raises(CheckpointError, match="is damaged and in use"):
            _cache(tmp_path, store).hold(URI)
        held.close()
        again = _cache(tmp_path, store).hold(URI)
        assert (again.path / "model.safetensors").read_text() == "w" * 1000
        again.close()

    def test_a_fetch_that_was_killed_leaves_nothing(self, store: Counted, tmp_path: Path) -> None:
        held = _cache(tmp_path, store).hold(URI)
        held.close()
        held.path.rename(held.path.with_name(f".{held.path.name}.partial-1-aa"))
        _cache(tmp_path, store).hold(URI).close()
        assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [held.path.name]

    def test_what_was_used_longest_ago_makes_room(self, store: Counted, tmp_path: Path) -> None:
        keys = [f"{KEY}-{number}" for number in range(4)]
        for key in keys:
            _push(store, tmp_path, key)
        cache = _cache(tmp_path, store, max_bytes=3 * SIZE)
        held = [cache.hold(f"s3://bucket/{key}") for key in keys[:3]]
        for place, each in enumerate(held):
            os.utime(each.path.with_suffix(".lock"), (place, place))
        held[1].close()
        held[2].close()
        fourth = cache.hold(f"s3://bucket/{keys[3]}")
        assert [each.path.is_dir() for each in [*held, fourth]] == [True, False, True, True], "the first is in use"
        third = cache.hold(f"s3://bucket/{keys[2]}")
        with pytest.raises(StorageError, match=r"has no room: .* raise SIMPO_MODEL_CACHE_BYTES"):
            cache.hold(URI)
        for each in (held[0], third, fourth):
            assert _whole(each.path)
            each.close()

    def test_room_that_a_killed_fetch_had_taken_is_free_again(self, store: Counted, tmp_path: Path) -> None:
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "0123.json").write_text(json.dumps({"x": {"sha256": "0", "size": SIZE}}))
        _cache(tmp_path, store, max_bytes=SIZE).hold(URI).close()
        assert not (tmp_path / "cache" / "0123.json").exists()

    def test_a_base_within_what_was_prepared(self, store: Counted, tmp_path: Path) -> None:
        files = {"base/config.json": "{}", "base/tokenizer/x.json": "[]", "plan.json": "{}"}
        _push(store, tmp_path, "simpo/attempts/1/prepared", files)
        held = _cache(tmp_path, store).hold("s3://bucket/simpo/attempts/1/prepared/base")
        names = sorted(path.relative_to(held.path).as_posix() for path in held.path.rglob("*") if path.is_file())
        assert names == ["config.json", "tokenizer/x.json"]
        held.close()
        _cache(tmp_path, store).hold("s3://bucket/simpo/attempts/1/prepared/base").close()
        assert len(store.fetched) == 2

    def test_what_cannot_be_had_is_told_and_leaves_nothing(self, store: Counted, tmp_path: Path) -> None:
        cache = _cache(tmp_path, store)
        with pytest.raises(CheckpointError, match=r"s3://bucket/simpo/gone: the store has no such checkpoint"):
            cache.hold("s3://bucket/simpo/gone")
        with pytest.raises(CheckpointError, match="the store has no such checkpoint"):
            cache.hold("s3://bucket/gone")
        weights = next((tmp_path / "bucket").rglob("model.safetensors"))
        weights.write_text("v" * 1000)
        with pytest.raises(CheckpointError, match=r"model\.safetensors is missing or differs from its hash"):
            cache.hold(URI)
        store.away = True
        with pytest.raises(StoreUnavailable, match="SlowDown"):
            cache.hold(URI)
        assert {path.suffix for path in (tmp_path / "cache").iterdir()} <= {".lock", ""}
        assert [path.name for path in (tmp_path / "cache").iterdir() if not path.suffix] == ["lock"]


@pytest.fixture
def bucket(s3: S3Double, tmp_path: Path) -> Iterator[str]:
    """One with a checkpoint, by its URI."""
    uri = f"s3://{s3.bucket()}"
    _push(s3_store(uri), tmp_path, KEY)
    yield f"{uri}/{KEY}"


def test_a_bucket_that_comes_back_in_time(s3: S3Double, bucket: str, tmp_path: Path) -> None:
    s3.fail("cut answer", method="GET", path="safetensors", times=1)
    s3.fail("503", method="GET", times=3)  # once more than a request is tried
    cache = CheckpointCache(tmp_path / "cache", patience_s=300, open_store=lambda uri: s3_store(uri, tries=2))
    with_it = cache.hold(bucket)
    assert _whole(with_it.path)
    with_it.close()


def test_a_bucket_that_is_away(s3: S3Double, bucket: str, tmp_path: Path) -> None:
    s3.fail("503", times=math.inf)
    cache = CheckpointCache(tmp_path / "cache", patience_s=0, open_store=lambda uri: s3_store(uri, tries=2))
    with pytest.raises(StoreUnavailable, match="SlowDown"):
        cache.hold(bucket)


_HOLD = """
import sys, time
from sweeps.checkpoint_cache import CheckpointCache
held = CheckpointCache(sys.argv[1]).hold(sys.argv[2])
print(held.path, flush=True)
time.sleep(600)
"""


def test_who_fetches_may_be_killed(s3: S3Double, bucket: str, tmp_path: Path) -> None:
    slow = s3.fail("slow", method="GET", path="safetensors", seconds=20)
    root = tmp_path / "cache"
    with subprocess.Popen([sys.executable, "-c", _HOLD, str(root), bucket], stdout=subprocess.PIPE) as first:
        while not slow.done:
            assert first.poll() is None
        first.kill()
    held = CheckpointCache(root).hold(bucket)
    assert _whole(held.path)
    assert [path.name for path in root.iterdir() if path.is_dir()] == [held.path.name]
    held.close()
