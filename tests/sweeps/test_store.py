"""Stores in a directory and by the S3 protocol: one contract, and the faults of each."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from simpo.errors import ConfigError
from sweeps.store import DirectoryStore, Store, StoreUnavailable, open_store, parse_uri, s3_store, write_whole
from sweeps.trees import has_tree, push_tree
from tests.sweeps.s3_double import S3Double
from tests.sweeps.store_contract import StoreContract


class TestDirectoryStore(StoreContract):
    """A file system."""

    pytestmark = pytest.mark.quick

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        """Empty."""
        return open_store(tmp_path / "store")

    def test_what_was_never_finished_is_not_there(self, tmp_path: Path) -> None:
        store = DirectoryStore(tmp_path)
        (tmp_path / ".half.123-456").write_bytes(b"of a process that was killed")
        assert store.look("").entries == {}

    def test_trouble_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(StoreUnavailable, match=r"cannot be written .*check space and permissions"):
            write_whole(tmp_path / "file" / "under", b"")


class TestS3Store(StoreContract):
    """A bucket of the double."""

    @pytest.fixture
    def store(self, s3: S3Double) -> Store:
        """Empty."""
        return open_store(f"s3://{s3.bucket()}/some/prefix")


@pytest.fixture
def store(s3: S3Double) -> Iterator[Store]:
    """One that gives up soon."""
    store = s3_store(f"s3://{s3.bucket()}", tries=3)
    yield store
    s3.faults.clear()


def test_503s_and_time_outs_are_tried_again(s3: S3Double, store: Store, tmp_path: Path) -> None:
    s3.fail("503", times=2)
    store.put("x", b"1")
    s3.fail("503", method="GET", times=2)
    assert store.get("x") == b"1"
    s3.fail("slow", method="GET", seconds=3.0)
    assert list(s3_store(store.uri, tries=3, read_s=1.0).look("").entries) == ["x"]


def test_a_store_that_stays_away_is_told_after_a_bounded_number_of_tries(s3: S3Double, store: Store) -> None:
    fault = s3.fail("503", times=math.inf)
    with pytest.raises(StoreUnavailable, match="answers SlowDown") as told:
        store.put("x", b"1")
    assert fault.done == 3
    assert "secret" not in str(told.value)
    s3.faults.clear()
    assert store.get("x") is None


def test_an_answer_that_breaks_off_is_read_again(s3: S3Double, store: Store, tmp_path: Path) -> None:
    store.put("x", bytes(100_000))
    s3.fail("cut answer", method="GET", times=2)
    assert store.get("x") == bytes(100_000)
    s3.fail("cut answer", method="GET", times=1)
    assert store.get_file("x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == bytes(100_000)


def test_a_claim_whose_answer_was_lost_is_still_ours(s3: S3Double, store: Store) -> None:
    s3.fail("lost answer", method="PUT")
    store.put_new("claim", b"mine")
    assert store.get("claim") == b"mine"


def test_a_claim_that_another_made_meanwhile_is_not(s3: S3Double, store: Store) -> None:
    store.put_new("claim", b"theirs")
    s3.fail("503", method="PUT")
    with pytest.raises(FileExistsError):
        store.put_new("claim", b"mine")
    assert store.get("claim") == b"theirs"


def test_a_conflict_is_asked_again(s3: S3Double, store: Store) -> None:
    s3.fail("409", method="PUT", times=2)
    store.put_new("claim", b"mine")
    assert store.get("claim") == b"mine"


def test_a_cut_upload_leaves_nothing_and_is_sent_again(s3: S3Double, store: Store, tmp_path: Path) -> None:
    from sweeps.store_s3 import PART_BYTES  # noqa: PLC0415  # lazy: boto3 is slow to import, and here are quick tests

    large = tmp_path / "large"
    large.write_bytes(bytes(2 * PART_BYTES + 1))
    cut = s3.fail("cut upload", method="PUT", path="partNumber=2", times=1)
    store.put_file("large", large)
    assert cut.done == 1
    assert store.look("").entries["large"].size == 2 * PART_BYTES + 1

    s3.fail("503", method="PUT", path="other.*partNumber=2", times=math.inf)
    with pytest.raises(StoreUnavailable):
        store.put_file("other", large)
    assert list(store.look("").entries) == ["large"], "no part is an object"
    bucket = store.uri.removeprefix("s3://")
    assert not s3.client().list_multipart_uploads(Bucket=bucket).get("Uploads"), "and none is left to be paid for"


def test_a_directory_that_was_half_sent_is_none(s3: S3Double, store: Store, tmp_path: Path) -> None:
    (tmp_path / "final").mkdir()
    for name in ("a", "b"):
        (tmp_path / "final" / name).write_text(name)
    s3.fail("503", method="PUT", path="/b$", times=math.inf)
    with pytest.raises(StoreUnavailable):
        push_tree(store, "t/final", tmp_path / "final")
    assert not has_tree(store, "t/final")
    s3.faults.clear()
    before = len(s3.asked)
    push_tree(store, "t/final", tmp_path / "final")
    assert has_tree(store, "t/final")
    assert not [path for method, path in s3.asked[before:] if method == "PUT" and path.endswith("/a")], "it was there"


def test_what_is_wrong_for_good_is_said(s3: S3Double, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3  # noqa: PLC0415  # lazy: the same

    with pytest.raises(StoreUnavailable, match="answers NoSuchBucket: make the bucket first"):
        open_store("s3://no-such-bucket/x").put("x", b"")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it has seen the key
    with pytest.raises(StoreUnavailable, match=r"NoCredentialsError.*AWS_ACCESS_KEY_ID"):
        open_store("s3://no-such-bucket/x").put("x", b"")


@pytest.mark.quick
def test_a_store_is_named_by_a_directory_or_a_bucket(tmp_path: Path) -> None:
    assert parse_uri("s3://my-bucket/runs/one/") == ("my-bucket", "runs/one")
    assert parse_uri("s3://my-bucket") == ("my-bucket", "")
    for wrong in ("s3://", "s3://KEY:SECRET@bucket/x", "s3://bucket/x?secret=1", "s3://bucket/a/../b"):
        with pytest.raises(ConfigError) as told:
            parse_uri(wrong)
        assert "SECRET" not in str(told.value)
    with pytest.raises(ConfigError, match="a directory or s3://BUCKET/PREFIX"):
        open_store("gs://bucket/x")
    assert open_store(tmp_path).uri == str(tmp_path)
