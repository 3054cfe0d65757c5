"""What every store promises. Subclasses give the fixture `store`: empty, and of their kind."""

import threading
from pathlib import Path

import pytest

from simpo.errors import CheckpointError, ConfigError
from sweeps.store import Store
from sweeps.trees import drop_tree, has_tree, pull_tree, push_tree, trees_in


class StoreContract:
    """One suite for all of them."""

    def test_what_is_put_is_got_until_it_is_replaced(self, store: Store) -> None:
        assert store.get("a/b.json") is None
        store.put("a/b.json", b"one")
        store.put("a/b.json", b"", durable=False)
        assert store.get("a/b.json") == b""
        store.put("a/b.json", b"two")
        assert store.get("a/b.json") == b"two"
        assert store.get("a") is None

    def test_a_new_key_is_made_once(self, store: Store) -> None:
        store.put_new("claims/1", b"mine")
        with pytest.raises(FileExistsError):
            store.put_new("claims/1", b"yours")
        with pytest.raises(FileExistsError):
            store.put_new("claims/1", b"mine")
        assert store.get("claims/1") == b"mine"

    def test_of_eight_who_claim_one_wins(self, store: Store) -> None:
        won: list[bytes] = []

        def claim(name: bytes) -> None:
            try:
                store.put_new("claim", name)
            except FileExistsError:
                return
            won.append(name)

        threads = [threading.Thread(target=claim, args=[b"%d" % number]) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert store.get("claim") == won[0]

    def test_a_look_is_in_order_and_goes_one_level_deep(self, store: Store) -> None:
        for key in ("r/2", "r/1", "r/10", "r/sub/x", "r/sub/deep/y", "rest", "s"):
            store.put(key, key.encode())
        seen = store.look("r/")
        assert (list(seen.entries), seen.folders) == (["1", "10", "2"], ["sub"])
        assert [entry.key for entry in seen.entries.values()] == ["r/1", "r/10", "r/2"]
        assert seen.entries["10"].size == 4
        assert list(store.look("r/", after="10").entries) == ["2"]
        assert list(store.look("r/", deep=True).entries) == ["1", "10", "2", "sub/deep/y", "sub/x"]
        assert list(store.look("").entries) == ["rest", "s"]
        assert store.look("nothing/").entries == {}

    def test_a_look_has_more_than_a_thousand(self, store: Store) -> None:
        for number in range(1001):
            store.put(f"many/{number:04d}", b"", durable=False)
        assert len(store.look("many/").entries) == 1001
        store.delete(f"many/{number:04d}" for number in range(1001))
        assert store.look("many/").entries == {}

    def test_an_etag_is_another_when_the_content_is(self, store: Store) -> None:
        store.put("beat", b"1")
        first = store.look("").entries["beat"].etag
        assert store.look("").entries["beat"].etag == first
        store.put("beat", b"2")
        assert store.look("").entries["beat"].etag != first

    def test_what_is_removed_is_gone_and_may_be_absent(self, store: Store) -> None:
        store.put("x", b"1")
        store.delete(["x", "never/there"])
        assert store.get("x") is None
        store.put_new("x", b"2")

    @pytest.mark.parametrize("key", ["../x", "a//b", "/etc/passwd", "a/./b", "", "a\\b"])
    def test_a_key_is_a_plain_path(self, store: Store, key: str) -> None:
        with pytest.raises(ConfigError, match="no plain relative path"):
            store.put(key, b"")
        with pytest.raises(ConfigError):
            store.get(key)

    def test_files_of_any_size(self, store: Store, tmp_path: Path) -> None:
        large, back = tmp_path / "large", tmp_path / "back"
        large.write_bytes(bytes(range(256)) * 4096 * 17)
        store.put_file("large", large)
        assert store.get_file("large", back)
        assert back.read_bytes() == large.read_bytes()
        assert not store.get_file("none", tmp_path / "none")

    def test_a_directory_comes_back_as_it_was(self, store: Store, tmp_path: Path) -> None:
        source, copy = _directory(tmp_path / "source"), tmp_path / "node" / "copy"
        assert not has_tree(store, "t/final")
        assert not pull_tree(store, "t/final", copy)
        push_tree(store, "t/final", source)
        push_tree(store, "t/final", source)
        assert has_tree(store, "t/final")
        assert trees_in(store, "t/") == ["final"]
        assert pull_tree(store, "t/final", copy)
        assert _content(copy) == _content(source)
        drop_tree(store, "t/final")
        assert not has_tree(store, "t/final")
        assert store.look("t/", deep=True).entries == {}

    def test_a_directory_without_its_manifest_is_none(self, store: Store, tmp_path: Path) -> None:
        push_tree(store, "t/final", _directory(tmp_path / "source"))
        store.delete(["t/final.tree.json"])
        assert not pull_tree(store, "t/final", tmp_path / "copy")
        assert not (tmp_path / "copy").exists()

    def test_what_differs_from_its_hash_never_gets_its_name(self, store: Store, tmp_path: Path) -> None:
        push_tree(store, "t/final", _directory(tmp_path / "source"))
        victim = next(key for key in store.look("t/final/", deep=True).entries if key.endswith("weights"))
        store.put(f"t/final/{victim}", b"something else")
        with pytest.raises(CheckpointError, match="weights is missing or differs"):
            pull_tree(store, "t/final", tmp_path / "copy")
        store.put("t/final.tree.json", b'{"../x": {"sha256": "0"}}')
        with pytest.raises(CheckpointError, match="no manifest of ours"):
            pull_tree(store, "t/final", tmp_path / "copy")
        assert {path.name for path in tmp_path.iterdir()} <= {"source", "store"}

    def test_two_writers_of_one_directory_mix_nothing_up(self, store: Store, tmp_path: Path) -> None:
        one, other = _directory(tmp_path / "one"), _directory(tmp_path / "other", b"other")
        push_tree(store, "t/rung", one)
        push_tree(store, "t/rung", other)
        assert pull_tree(store, "t/rung", tmp_path / "copy")
        assert _content(tmp_path / "copy") == _content(other)


def _directory(path: Path, weights: bytes = b"weights") -> Path:
    (path / "adapter").mkdir(parents=True)
    (path / "weights").write_bytes(weights)
    (path / "adapter" / "empty").write_bytes(b"")
    return path


def _content(path: Path) -> dict[str, bytes]:
    return {each.relative_to(path).as_posix(): each.read_bytes() for each in path.rglob("*") if each.is_file()}
